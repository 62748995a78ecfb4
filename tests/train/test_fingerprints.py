"""A resumed run has the images it began with, or says that they have changed."""

import logging

import numpy as np
import pytest
from tiny_runs import make_config, write_images

from train.data import Subset, array_source, load_dataset
from train.fit import fit, resume_run
from train.run_dir import check_fingerprints, save_fingerprints


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
