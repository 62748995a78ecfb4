"""A resumed run has the images it began with, or says that they have changed."""

import json
import logging
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_runs import make_config, write_images

from train.data import Subset, array_source, fit_source, load_dataset
from train.data.source import Joined
from train.fit import fit, resume_run
from train.run_dir import check_fingerprints, save_fingerprints
from zoo.spec import Preprocess


def test_what_changes_a_fingerprint(tmp_path):
    first = write_images(tmp_path / "a", {"train": 3, "test": 2})
    second = write_images(tmp_path / "b", {"train": 3, "test": 2})

    def read(root, split="train"):
        return load_dataset(f"imagefolder:{root}", split).fingerprint()

    before = read(first)
    assert before["count"] == 9
    assert before == read(second)  # wherever it lies
    assert read(first, "test")["sha256"] != before["sha256"]
    (second / "train/a/00.png").rename(second / "train/a/99.png")
    assert read(second)["count"] == 9
    assert read(second)["sha256"] != before["sha256"]
    source = load_dataset(f"imagefolder:{first}", "train")
    shuffled = Subset(source, np.arange(9)[::-1])
    assert shuffled.fingerprint()["sha256"] != before["sha256"]
    renamed = Subset(source, np.arange(9), class_names=("x", "b", "c"))
    assert renamed.fingerprint()["sha256"] != before["sha256"]


def zip_files(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def test_another_image_of_the_same_name_is_noticed(tmp_path):
    root = write_images(tmp_path / "a", {"train": 3, "test": 2})
    before = load_dataset(f"imagefolder:{root}", "train").fingerprint()
    os.utime(root / "train/a/00.png", (1e9, 1e9))  # such as by a copy
    assert load_dataset(f"imagefolder:{root}", "train").fingerprint() == before
    zipped = zip_files(root, tmp_path / "before.zip")
    first = load_dataset(f"imagefolder:{zipped}", "train").fingerprint()
    # In zip files others of the same size are noticed, too.
    data = bytearray((root / "train/a/00.png").read_bytes())
    data[-20] ^= 1
    (root / "train/a/00.png").write_bytes(data)
    zipped = zip_files(root, tmp_path / "after.zip")
    second = load_dataset(f"imagefolder:{zipped}", "train").fingerprint()
    Image.new("L", (9, 9)).save(root / "train/a/00.png")
    now = load_dataset(f"imagefolder:{root}", "train").fingerprint()
    for one, other in ((before, now), (first, second)):
        assert one["sha256"] == other["sha256"]
        assert one["content_sha256"] != other["content_sha256"]


def write_boxes(root, xmax):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20)).save(root / "JPEGImages/a.png")
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    box = f"<xmin>1</xmin><ymin>1</ymin><xmax>{xmax}</xmax><ymax>9</ymax>"
    item = f"<object><name>cow</name><bndbox>{box}</bndbox></object>"
    (root / "Annotations/a.xml").write_text(f"<annotation>{item}</annotation>")
    return load_dataset(f"voc:{root}", "train")


def test_other_boxes_and_masks_are_noticed(tmp_path):
    one, same, other = (write_boxes(tmp_path, x).fingerprint() for x in (7, 7, 8))
    assert one == same
    assert one["sha256"] == other["sha256"]
    assert one["content_sha256"] != other["content_sha256"]
    for name in ("images", "masks"):
        (tmp_path / "set/train" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "set/train" / name / "a.png")
    (tmp_path / "set/classes.txt").write_text("x\ny\n")
    before = load_dataset(f"masks:{tmp_path / 'set'}", "train").fingerprint()
    noise = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "set/train/masks/a.png")
    now = load_dataset(f"masks:{tmp_path / 'set'}", "train").fingerprint()
    assert before["content_sha256"] != now["content_sha256"]


def test_a_part_or_a_fitted_source_has_the_contents_of_its_images(tmp_path):
    root = write_images(tmp_path / "a", {"train": 3, "test": 2})
    source = load_dataset(f"imagefolder:{root}", "train")
    fitted = fit_source(source, Preprocess(8, 1, (0.5,), (0.5,)))
    part = Subset(source, np.arange(9))
    for other in (fitted, part, Joined([source])):
        assert (
            other.fingerprint()["content_sha256"]
            == (source.fingerprint()["content_sha256"])
        )


def test_arrays_are_known_by_their_pixels():
    images = np.zeros((3, 4, 4), np.uint8)
    before = array_source(images, [0, 1, 0]).fingerprint()
    assert array_source(images.copy(), [0, 1, 0]).fingerprint() == before
    assert array_source(images, [1, 1, 0]).fingerprint() != before
    images[2, 3, 3] = 1
    assert array_source(images, [0, 1, 0]).fingerprint() != before


def test_a_damaged_file_is_named_and_none_passes(tmp_path):
    source = array_source(np.zeros((3, 4, 4), np.uint8), [0, 1, 0])
    check_fingerprints(tmp_path, {"train": source})  # a run of an older version
    save_fingerprints(tmp_path, {"train": source})
    check_fingerprints(tmp_path, {"train": source})
    for content in (b"null", b"{}", b"\xff", b'{"train": 3}'):
        (tmp_path / "data.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.json: cannot be read"):
            check_fingerprints(tmp_path, {"train": source})


def test_resume_refuses_changed_images_unless_told(tmp_path, caplog):
    images = write_images(tmp_path / "images", {"train": 6, "test": 3})
    config = make_config(images, epochs=1)
    fit(config, tmp_path / "run", quiet=True)
    resume_run(tmp_path / "run")
    (images / "train/a/00.png").rename(images / "train/a/new.png")
    (images / "test/b/00.png").unlink()
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json*")}
    with pytest.raises(ValueError, match="what has changed since") as error:
        resume_run(tmp_path / "run")
    assert "the training images (18 as before, but other names" in str(error.value)
    assert "the evaluation images (9 when the run began, 8 now)" in str(error.value)
    assert "--changed-data" in str(error.value)
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json*")}
    with caplog.at_level(logging.WARNING):
        resume_run(tmp_path / "run", changed_data=True)
    assert "The run goes on with those that are there" in caplog.text
    resume_run(tmp_path / "run")  # what it goes on with is known now


def test_resume_refuses_an_image_that_was_replaced(tmp_path):
    images = write_images(tmp_path / "images", {"train": 6, "test": 3})
    fit(make_config(images, epochs=1), tmp_path / "run", quiet=True)
    Image.new("L", (8, 8)).save(images / "train/a/00.png")
    with pytest.raises(ValueError, match=r"18 of the same names, but files of other"):
        resume_run(tmp_path / "run")
    # A run of a version that knew names alone goes on.
    path = tmp_path / "run" / "data.json"
    content = json.loads(path.read_text())
    for part in content.values():
        del part["content_sha256"]
    path.write_text(json.dumps(content))
    assert resume_run(tmp_path / "run").finished
