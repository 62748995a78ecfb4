"""What is wrong is said in one line that names it, and nothing is lost."""

import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_command, write_images

from train.data import array_source


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", {"train": 5, "test": 3})


def train(images, run_dir, *options, name="digits_lenet5_modern"):
    dataset = ("--dataset", f"imagefolder:{images}") if images else ()
    return run_command(
        *(name, *dataset, "--batch-size", "4", "--augment", "--steps", "2"),
        *("--run-dir", run_dir, *options),
    )


def assert_refused(result, *words):
    """Asserts one line on stderr with all the words, and the exit code 1."""
    code, _, err = result
    assert code == 1
    # Before it there may be a bar of progress, but no traceback.
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert len(lines) == 1
    assert err.endswith(lines[0] + "\n")
    for word in words:
        assert str(word) in lines[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])
    return path


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_a_truncated_image_is_named(images, tmp_path, placement):
    bad = truncate(images / "train" / "b" / "03.png")
    # Nine steps: a stream comes to it in one of three epochs, if not in the first.
    options = ("--data.placement", placement, "--steps", "9")
    result = train(images, tmp_path / "run", *options)
    assert_refused(result, bad, "cannot be read")
    # A set for the device is read before anything is written.
    assert (tmp_path / "run").exists() == (placement == "stream")


def test_a_truncated_image_of_the_other_split_is_named_before_training(
    images, tmp_path
):
    bad = truncate(images / "test" / "c" / "01.png")
    assert_refused(train(images, tmp_path / "run"), bad, "cannot be read")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_skipping_counts_and_names_what_is_skipped(images, tmp_path, placement, caplog):
    train_bad = truncate(images / "train" / "b" / "03.png")
    test_bad = truncate(images / "test" / "c" / "01.png")
    code, out, err = train(
        *(images, tmp_path / "run", "--data.on-bad-image", "skip"),
        *("--data.placement", placement),
    )
    assert code == 0, err
    assert re.search(r"of 8 images, .*\(split 'test'\)", out)
    assert "1 of 15 images are left out" in caplog.text
    assert str(train_bad) in caplog.text
    assert "1 of 9 images are left out" in caplog.text
    assert str(test_bad) in caplog.text


def write_bomb(path, side=100_000):
    """A PNG of a few bytes that says it is `side` squared."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )
    return path


def test_a_decompression_bomb_is_named(images, tmp_path):
    bomb = write_bomb(images / "train" / "a" / "bomb.png")
    assert_refused(train(images, tmp_path / "run"), bomb)


def test_an_empty_class_is_named(images, tmp_path):
    (images / "train" / "d").mkdir()
    assert_refused(train(images, tmp_path / "run"), "train/d has no images")


def test_a_class_without_test_images_is_fine(images, tmp_path):
    shutil.rmtree(images / "test" / "c")
    code, _, err = train(images, tmp_path / "run")
    assert code == 0, err


def test_labels_out_of_range_are_named():
    images = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"arrays train #2: label 7 is not in 0 .. 1"):
        array_source(images, np.array([0, 1, 7]), ["x", "y"])


def test_a_gray_image_for_a_color_network_says_what_to_do(images, tmp_path):
    name = "cifar10_resnet20"
    result = train(images, tmp_path / "run", name=name)
    assert_refused(result, f"{images}/", "1 channel", "3", "rgb")
    assert not (tmp_path / "run").exists()


def test_images_of_all_sizes_are_resized(images, tmp_path):
    for i, size in enumerate([(1, 1), (300, 20), (28, 28), (7, 90)]):
        pixels = np.full(size, 50, np.uint8)
        Image.fromarray(pixels).save(images / "train" / "a" / f"odd{i}.png")
    code, _, err = train(images, tmp_path / "run")
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.name", "lenet6"), ("unknown model 'lenet6'", "lenet5")),
        (("--dataset", "digit"), ("digit", "digits")),
        (("--dataset", "imagefolder:/nowhere"), ("/nowhere does not exist",)),
        (("--model.options", "int=glorot"), ("option", "'int'", "init")),
        (("--model.options", "init=none"), ("init='none'", "glorot")),
        (("--model.options", "init"), ("'init' must be name=value",)),
        (("--augment", "flop"), ("unknown augmentation 'flop'", "flip")),
        (("--augment", "pad_crop"), ("pad_crop:padding",)),
        (("--augment", "pad_crop:-4"), ("padding=-4",)),
        (("--freeze", "backbon/**"), ("'backbon/**' matches no", "backbone")),
        (("--classes", "a", "z"), ("no class 'z'",)),
        (("--per-class", "6"), ("has 5 images", "6")),
        (("--data.train-split", "holdout"), ("no split 'holdout'", "test, train")),
        (("--from", "/nowhere"), ("/nowhere",)),
    ],
)
def test_what_is_unknown_is_named_and_nothing_is_written(
    images, tmp_path, options, words
):
    result = train(images, tmp_path / "run", *options)
    assert_refused(result, *words)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    images = write_images(root / "images", {"train": 5, "test": 3})
    code, _, err = train(images, root / "run")
    assert code == 0, err
    return root / "run", images


def test_weights_of_another_model_are_refused(trained, tmp_path):
    run_dir, images = trained
    result = train(images, tmp_path / "run", "--from", run_dir, name="digits_lenet5")
    assert_refused(result, "lenet5_modern", run_dir)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_classes_get_a_new_head(trained, tmp_path):
    run_dir, _ = trained
    images = write_images(tmp_path / "more", {"train": 3, "test": 2}, classes="abcd")
    options = ("--from", run_dir, "--freeze", "backbone/**")
    code, _, err = train(images, tmp_path / "run", *options)
    assert code == 0, err
    assert_refused(
        run_command("evaluate", run_dir, "--dataset", f"imagefolder:{images}"),
        "4 classes",
        "trained on 3",
    )


def test_a_folder_with_a_run_is_left_alone(trained):
    run_dir, images = trained
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    result = train(images, run_dir)
    assert_refused(result, f"{run_dir} has a run already", f"train resume {run_dir}")
    assert before == {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def test_a_run_folder_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "file").write_text("in the folder's place")
    for folder in (tmp_path / "file" / "run", "/proc/run"):
        assert_refused(train(images, folder), f"cannot write the run folder {folder}")
    # The folder of checkpoints alone: it is found before the first step.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the folder's place")
    assert_refused(train(images, tmp_path / "run"), "cannot write", "run/checkpoints")


def test_a_loss_that_is_not_finite_is_one_line(images, tmp_path):
    result = train(images, tmp_path / "run", "--learning-rate", "1e30")
    assert_refused(result, "not finite at step", f"{images}/train/", "is none")


def test_what_the_other_commands_cannot_find_is_named(trained, tmp_path):
    run_dir, _ = trained
    nowhere = tmp_path / "nowhere"
    for command in ("resume", "evaluate"):
        assert_refused(run_command(command, nowhere), nowhere)
    assert_refused(run_command("predict", run_dir, nowhere), nowhere)
    assert_refused(run_command("predict", run_dir), "at least one image")
    assert_refused(run_command("evaluate"), "--model, --weights and --dataset")
    assert_refused(run_command("transfer"), "transfer needs --from")
    assert_refused(run_command("resume", run_dir, "--step", "1"), "no step 1", "[2]")
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    assert_refused(run_command("predict", run_dir, bad), bad, "not an image")
    assert not (tmp_path / "nowhere").exists()
