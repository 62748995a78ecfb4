"""Runs of detectors and segmentation networks, from the command line to pictures."""

import dataclasses
import json
import re

import numpy as np
import pytest
from page import Page, old_matplotlib
from PIL import Image
from tiny_runs import flat, run_command

import zoo
from train.config import ModelConfig, load_config
from train.configs import get_config
from train.experiment import open_split, prepare_experiment
from train.tasks.segmentation import count_class_weights
from train.warm_start import create_model, read_other

pytestmark = old_matplotlib
BOX = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)
COMMON = (
    *("--batch-size", "2", "--data.eval-batch-size", "2", "--epochs", "2"),
    *("--steps", "0", "--optim.warmup-steps", "0", "--log-every", "1"),
    *("--geometry", "flip"),
)


def draw(number):
    """An image of noise with a bright square on it, and the square's corners."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 100, (96, 96, 3), np.uint8)
    left, top = rng.integers(4, 50, 2)
    image[top : top + 40, left : left + 40] += 150
    return image, (left, top, left + 40, top + 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of squares, with boxes as VOC's and with masks."""
    root = tmp_path_factory.mktemp("squares")
    voc, masks = root / "voc", root / "masks"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    masks.mkdir()
    (voc / "classes.txt").write_text("square\nround\n")
    (masks / "classes.txt").write_text("background\nsquare\n")
    for split, count in (("train", 4), ("test", 3)):
        names = [f"{split}{i}" for i in range(count)]
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for kind in ("images", "masks"):
            (masks / split / kind).mkdir(parents=True)
        for i, name in enumerate(names):
            image, (x1, y1, x2, y2) = draw(i)
            box = BOX.format("square" if i % 2 else "round", x1 + 1, y1 + 1, x2, y2)
            text = f"<annotation>{box}</annotation>"
            (voc / "Annotations" / f"{name}.xml").write_text(text)
            Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.png")
            Image.fromarray(image).save(masks / split / "images" / f"{name}.png")
            mask = np.zeros((96, 96), np.uint8)
            mask[y1:y2, x1:x2] = 1
            Image.fromarray(mask).save(masks / split / "masks" / f"{name}.png")
    return root


def train(name, dataset, run_dir):
    code, out, err = run_command(
        *(name, "--dataset", dataset, *COMMON, "--run-dir", run_dir)
    )
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "yolo"
    return run_dir, train("digits_detection_yolo", f"voc:{folder / 'voc'}", run_dir)


@pytest.fixture(scope="module")
def segmenter(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "unet"
    out = train("digits_segmentation_unet", f"masks:{folder / 'masks'}", run_dir)
    return run_dir, out


def read_evaluation(run_dir):
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, rows) if r["kind"] == "eval"][-1]


def test_a_detector_is_trained_and_judged(detector):
    run_dir, out = detector
    assert re.search(
        r"AP50 \d+\.\d\d%, 3 objects in 3 images \(split 'test'\)\.", out
    ), out
    rows = [json.loads(r) for r in (run_dir / "metrics.jsonl").read_text().splitlines()]
    first = rows[0]
    assert len([r for r in rows if r["kind"] == "train"]) == 4
    names = {"coordinates", "confidence_object", "confidence_no_object", "class"}
    assert names < first.keys()
    assert first["loss"] == pytest.approx(sum(first[n] for n in names), rel=1e-5)
    page = Page((run_dir / "report.html").read_text())
    assert "Precision and recall" in page.text
    assert "Worst misses" in page.text
    kept = run_dir / "checkpoints" / "4" / "metrics" / "metrics"
    assert json.loads(kept.read_text())["ap50"] == read_evaluation(run_dir)["ap50"]


def test_a_detector_is_evaluated_again(detector):
    run_dir, _ = detector
    code, out, err = run_command("evaluate", run_dir, "--batch-size", "2")
    assert code == 0, err
    found = read_evaluation(run_dir)
    assert f"ap50                    {found['ap50']:.4f}" in out
    assert "coco ap75" in out
    code, _, err = run_command("evaluate", run_dir, "--protocol", "ten_crop")
    assert code == 1
    assert "--protocol ten_crop is not for yolo96_small, whose task is detection" in err


def test_a_detector_draws_what_it_finds(detector, folder, tmp_path):
    run_dir, _ = detector
    image = folder / "voc" / "JPEGImages" / "test0.png"
    arguments = ("--out", tmp_path, "--score-threshold", "0")
    code, out, err = run_command("predict", run_dir, image, *arguments)
    assert code == 0, err
    assert re.match(rf"{re.escape(str(image))}: \d+ x (square|round)", out)
    with Image.open(tmp_path / "test0.png") as picture:
        assert picture.size == (672, 672)


def test_a_segmentation_network_is_trained_and_judged(segmenter):
    run_dir, out = segmenter
    assert re.search(r"mean IoU \d+\.\d\d% of 3 images, .* \(split 'test'\)\.", out)
    found = read_evaluation(run_dir)
    assert found["pixels"] == 3 * 96 * 96
    code, out, err = run_command("evaluate", run_dir, "--batch-size", "2")
    assert code == 0, err
    assert f"mean iou                {found['mean_iou']:.4f}" in out
    page = Page((run_dir / "report.html").read_text())
    assert "Confusion between classes" in page.text
    assert len(page.all("img")) == 3
    said = segmenter[1].split("Next:")[0].splitlines()[-2]
    assert said in run_command("resume", run_dir)[1]


def test_a_segmentation_network_writes_masks(segmenter, folder, tmp_path):
    run_dir, _ = segmenter
    image = folder / "masks" / "test" / "images" / "test0.png"
    code, out, err = run_command("predict", run_dir, image, "--out", tmp_path)
    assert code == 0, err
    assert re.search(r"(background|square) \d+\.\d%", out)
    with Image.open(tmp_path / "test0-mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (96, 96))
        assert {*np.unique(np.asarray(mask))} <= {0, 1}
    assert (tmp_path / "test0.png").exists()


def test_pixels_are_counted_of_images_that_are_to_be_cut(folder):
    base = get_config("digits_segmentation_unet")
    data = dataclasses.replace(
        base.data,
        dataset=f"masks:{folder / 'masks'}",
        geometry=("random_crop",),
        size=(48, 48),
        eval_size=(96, 96),
        batch_size=2,
    )
    optim = dataclasses.replace(base.optim, loss="median_frequency")
    config = dataclasses.replace(base, data=data, optim=optim)
    task = prepare_experiment(config).task
    square = 40**2 / 96**2
    np.testing.assert_allclose(
        count_class_weights(open_split(data, "train", "segmentation")),
        [0.5 / (1 - square), 0.5 / square],
        rtol=1e-6,
    )
    assert task.loss.keywords["class_weights"] == count_class_weights(
        open_split(data, "train", "segmentation")
    )


def test_a_task_needs_its_own_data(folder, tmp_path):
    code, _, err = run_command(
        *("digits_segmentation_unet", "--dataset", f"voc:{folder / 'voc'}"),
        *(*COMMON, "--run-dir", tmp_path / "run"),
    )
    assert code == 1
    assert "is for detection, not for task='segmentation'" in err
    assert not (tmp_path / "run").exists()


def test_a_detector_learns_other_classes(detector):
    run_dir, _ = detector
    config = load_config(run_dir / "config.json")
    model = dataclasses.replace(config.model, weights=str(run_dir))
    config = dataclasses.replace(config, model=model)
    before = flat(zoo.weights.read_checkpoint(run_dir)[0]["params"])
    _, variables, card = create_model(config, ("a", "b", "c"))
    after = flat(variables["params"])
    assert card.num_classes == 3
    new = {path for path in after if after[path].shape != before[path].shape}
    assert new
    assert all(path.startswith("head/") for path in new)
    for path in before.keys() - new:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def test_layers_come_from_another_network_with_its_colors(detector):
    run_dir, _ = detector
    config = load_config(run_dir / "config.json")
    layers = ("backbone/conv1_1/**",)
    model = ModelConfig("yolo96_small", weights=str(run_dir), layers=layers)
    source, other = read_other(str(run_dir))
    _, variables, card = create_model(
        dataclasses.replace(config, model=model, seed=5), ("a",)
    )
    ours, theirs = flat(variables["params"]), flat(source["params"])
    paths = [path for path in ours if path.startswith("backbone/conv1_1/")]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert card.preprocess == other.preprocess
    assert card.num_classes == 1
