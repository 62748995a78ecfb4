"""Batches: the same for streams and for arrays, exact over processes and restarts."""

import itertools
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from damage import is_alive
from PIL import Image

from train.data import (
    BadImage,
    array_source,
    epoch_order,
    eval_batches,
    fit_source,
    load_dataset,
    load_resident,
    resident_bytes,
    skip_bad_images,
    train_stream,
)
from train.data.pipeline import WorkerError
from zoo.preprocess import resize_center_crop
from zoo.spec import Preprocess

ROOT = Path(__file__).parents[3]
GRAY = Preprocess(size=4, channels=1, mean=(0.5,), std=(0.5,))
RGB = Preprocess(size=6, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, resize=8)


def make_source(n=23):
    """Gray 4x4 images whose value is their position."""
    images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    return array_source(images, np.arange(n) % 3)


def write_images(path, n=10, broken=()):
    """RGB images of many sizes in class folders, some of them broken."""
    rng = np.random.default_rng(0)
    for i in range(n):
        file = path / "train" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (*rng.integers(6, 20, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:60])
    return load_dataset(f"imagefolder:{path}", "train")


def take(stream, count):
    iterator = iter(stream)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


# Fitting


def test_fitted_images_are_those_of_preprocess(tmp_path):
    source = write_images(tmp_path)
    fitted = fit_source(source, RGB)
    for i in range(len(source)):
        expected = resize_center_crop(source[i]["image"], RGB)
        np.testing.assert_array_equal(fitted[i]["image"], expected)
        np.testing.assert_array_equal(fitted.image(i), expected)
    assert fitted.labels.tolist() == source.labels.tolist()
    assert fitted.provenance(3) == source.provenance(3)
    # A second fit for the same network must not resize again.
    again = fit_source(fitted, RGB)
    np.testing.assert_array_equal(again[0]["image"], fitted[0]["image"])
    with pytest.raises(ValueError, match="was fitted for"):
        fit_source(fitted, GRAY)


def test_other_channels_name_the_file_and_the_option(tmp_path):
    source = write_images(tmp_path)
    message = r"a/00\.png: the image has 3 channel.* takes 1; .* color='gray'"
    with pytest.raises(ValueError, match=message):
        fit_source(source, GRAY)[0]
    with pytest.raises(ValueError, match="takes 3; open the data set with color='rgb'"):
        load_resident(make_source(), RGB)


# Bad images


def test_bad_images_stop_and_are_named(tmp_path):
    source = write_images(tmp_path, broken=(3,))
    with pytest.raises(BadImage, match=r"b/03\.png"):
        load_resident(source, RGB)
    with pytest.raises(BadImage, match=r"b/03\.png"):
        take(train_stream(source, RGB, batch_size=10, seed=0), 1)
    with pytest.raises(BadImage, match=r"b/03\.png"):
        list(eval_batches(source, RGB, batch_size=4))


def test_bad_images_are_skipped_counted_and_named(tmp_path, caplog):
    source = write_images(tmp_path, broken=(3, 4))
    with caplog.at_level(logging.WARNING):
        good = fit_source(source, RGB, on_bad_image="skip")
    assert "2 of 10 images are left out" in caplog.text
    assert "b/03.png" in caplog.text
    assert "a/04.png" in caplog.text
    assert len(good) == 8
    data = load_resident(good, RGB)
    batches = list(eval_batches(good, RGB, batch_size=3))
    valid = np.concatenate([b["valid"] for b in batches])
    seen = np.concatenate([b["index"] for b in batches])[valid]
    assert seen.tolist() == list(range(8))
    files = [good.provenance(i)[-6:-4] for i in range(8)]
    assert files == ["00", "02", "06", "08", "01", "05", "07", "09"]
    assert data["label"].tolist() == [0] * 4 + [1] * 4
    whole = write_images(tmp_path / "whole")
    assert skip_bad_images(whole) is whole


def test_skipping_everything_or_by_another_word_is_an_error(tmp_path):
    source = write_images(tmp_path, n=2, broken=(0, 1))
    with pytest.raises(ValueError, match=r"none of its 2 images .*00\.png"):
        fit_source(source, RGB, on_bad_image="skip")
    with pytest.raises(ValueError, match="on_bad_image='ignore'"):
        fit_source(source, RGB, on_bad_image="ignore")
    # Not a bad image, thus not skipped: a set of the wrong kind.
    wrong = fit_source(write_images(tmp_path / "x"), GRAY, on_bad_image="skip")
    with pytest.raises(ValueError, match="color='gray'"):
        wrong[0]


# The order


def test_every_epoch_is_another_permutation():
    order = epoch_order(23, 5, seed=7)
    epochs = [np.concatenate([order[4 * e + s] for s in range(4)]) for e in range(6)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
        assert 0 <= epoch.min() <= epoch.max() < 23
    assert len({tuple(e) for e in epochs}) == 6
    # What an epoch drops is not always the same.
    dropped = [set(range(23)) - set(e.tolist()) for e in epochs]
    assert len(set().union(*dropped)) > 3
    again = epoch_order(23, 5, seed=7)
    assert all(np.array_equal(order[s], again[s]) for s in range(24))
    # Golden: a run resumed under another version of numpy goes on in the same order.
    assert order[0].tolist() == [8, 16, 4, 1, 6]
    # The next seed is no shifted copy: none of its epochs is one of ours.
    other = epoch_order(23, 5, seed=8)
    theirs = {
        tuple(np.concatenate([other[4 * e + s] for s in range(4)])) for e in range(6)
    }
    assert not theirs & {tuple(e) for e in epochs}


def test_every_example_comes_equally_often_at_every_place():
    order = epoch_order(10, 10, seed=0)
    places = np.stack([order[e] for e in range(2000)])
    counts = np.stack([(places == i).sum(0) for i in range(10)])
    assert np.abs(counts - 200).max() < 75  # 5.6 standard deviations


@pytest.mark.parametrize("batch_size", [0, -1, 24])
def test_a_batch_that_does_not_fit_is_an_error(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} of a set of 23"):
        epoch_order(23, batch_size, seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        epoch_order(23, 5, seed=-1)
    if batch_size == 24:
        with pytest.raises(ValueError, match="batch_size=24 of a set of 23"):
            train_stream(make_source(), GRAY, batch_size=24, seed=0)


# Training


def test_a_stream_is_what_the_resident_data_gives():
    source = make_source()
    data, order = load_resident(source, GRAY), epoch_order(23, 6, seed=3)
    stream = train_stream(source, GRAY, batch_size=6, seed=3)
    for step, batch in enumerate(take(stream, 9)):  # three epochs
        assert batch["index"].tolist() == order[step].tolist()
        for key in ("image", "label"):
            assert batch[key].dtype == data[key].dtype
            np.testing.assert_array_equal(batch[key], data[key][order[step]])
        assert batch["index"].dtype == np.int32


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_parts_of_all_processes_are_the_batch(process_count):
    order = epoch_order(23, 6, seed=3)
    parts = [
        take(
            train_stream(
                make_source(),
                GRAY,
                batch_size=6,
                seed=3,
                process_index=p,
                process_count=process_count,
            ),
            7,
        )
        for p in range(process_count)
    ]
    for step in range(7):
        together = np.concatenate([part[step]["index"] for part in parts])
        assert together.tolist() == order[step].tolist()
        images = np.concatenate([part[step]["image"] for part in parts])
        assert images[:, 0, 0, 0].tolist() == order[step].tolist()


@pytest.mark.parametrize("function", [train_stream, eval_batches])
def test_processes_are_checked(function):
    seed = {"seed": 0} if function is train_stream else {}
    with pytest.raises(ValueError, match="batch_size=5 cannot be divided over 2"):
        function(make_source(), GRAY, batch_size=5, process_count=2, **seed)
    with pytest.raises(ValueError, match=r"process_index=2: expected 0 \.\. 1"):
        function(
            make_source(), GRAY, batch_size=4, process_index=2, process_count=2, **seed
        )


def test_a_stream_continues_exactly_with_any_number_of_workers():
    source, expected = make_source(), epoch_order(23, 4, seed=1)
    streams = {
        workers: train_stream(source, GRAY, batch_size=4, seed=1, workers=workers)
        for workers in (0, 2)
    }
    states = {}
    for workers, stream in streams.items():
        iterator = iter(stream)
        assert iterator.get_state() == {"next_index": 0}
        first = [next(iterator) for _ in range(7)]
        states[workers] = json.loads(json.dumps(iterator.get_state()))
        rest = [next(iterator) for _ in range(6)]
        # Back and forth in the same iterator.
        iterator.set_state(states[workers])
        assert indices([next(iterator)]) == indices(rest[:1])
        iterator.close()
        assert indices(first + rest) == [expected[s].tolist() for s in range(13)]
        for batch in rest:  # usable after closing, and plain arrays
            assert type(batch["image"]) is np.ndarray
            assert batch["image"][:, 0, 0, 0].tolist() == batch["index"].tolist()
        with pytest.raises(ValueError, match="closed"):
            next(iterator)
    assert states[0] == states[2]
    # With workers it went on from the same state, above.
    iterator = iter(streams[0])
    iterator.set_state(states[2])
    assert indices([next(iterator)]) == [expected[7].tolist()]
    iterator.close()


def test_grain_composes_with_the_stream():
    stream = train_stream(make_source(), GRAY, batch_size=4, seed=1)
    labels = take(stream.map(lambda batch: batch["label"].tolist()), 3)
    assert labels == [(epoch_order(23, 4, seed=1)[s] % 3).tolist() for s in range(3)]


def test_a_worker_names_the_bad_file(tmp_path):
    source = write_images(tmp_path, broken=(3,))
    stream = train_stream(source, RGB, batch_size=5, seed=0, workers=2)
    with pytest.raises(BadImage, match=r"b/03\.png"):
        take(stream, 2)


def test_a_killed_worker_is_said():
    stream = train_stream(make_source(), GRAY, batch_size=4, seed=1, workers=1)
    iterator = iter(stream)
    next(iterator)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(WorkerError, match=r"one of the data\.workers=1 processes"):
        list(itertools.islice(iterator, 1000))
    iterator.close()


STREAM = """
import multiprocessing, time
import numpy as np
from train.data import array_source, train_stream
from zoo.spec import Preprocess

if __name__ == "__main__":
    source = array_source(np.zeros((8, 4, 4), np.uint8), np.zeros(8, int))
    takes = Preprocess(size=4, channels=1, mean=(0.5,), std=(0.5,))
    batches = iter(train_stream(source, takes, batch_size=4, seed=0, workers=1))
    next(batches)
    print(*(p.pid for p in multiprocessing.active_children()), flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes of Linux")
def test_workers_end_with_a_killed_process(tmp_path):
    (tmp_path / "stream.py").write_text(STREAM)
    with subprocess.Popen(
        [sys.executable, tmp_path / "stream.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
        process.stdout.read()
    assert workers
    for _ in range(600):
        if not any(map(is_alive, workers)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{workers} go on")


# Evaluation


@pytest.mark.parametrize(("n", "batch_size"), [(23, 6), (24, 6), (1, 6), (7, 12)])
@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_an_evaluation_sees_everything_once(n, batch_size, process_count):
    source = make_source(n)
    parts = [
        list(
            eval_batches(
                source,
                GRAY,
                batch_size=batch_size,
                process_index=p,
                process_count=process_count,
            )
        )
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-n // batch_size)}
    seen = []
    for batches in zip(*parts, strict=True):
        for batch in batches:
            assert batch["image"].shape == (batch_size // process_count, 4, 4, 1)
            assert {k: v.dtype.name for k, v in batch.items()} == {
                "image": "uint8",
                "label": "int32",
                "index": "int32",
                "valid": "bool",
            }
            valid = batch["valid"]
            assert (batch["image"][valid][:, 0, 0, 0] == batch["index"][valid]).all()
            assert (batch["label"][valid] == batch["index"][valid] % 3).all()
            assert not batch["image"][~valid].any()
            seen += batch["index"][valid].tolist()
    assert seen == list(range(n))
    batches = eval_batches(source, GRAY, batch_size=batch_size)
    assert indices(batches) == indices(batches)  # can be gone through again


# In memory


def test_resident_data_and_its_size(tmp_path):
    source = write_images(tmp_path)
    data = load_resident(source, RGB)
    assert data["image"].shape == (10, 6, 6, 3)
    for i in range(10):
        np.testing.assert_array_equal(
            data["image"][i], fit_source(source, RGB)[i]["image"]
        )
    assert data["label"].tolist() == source.labels.tolist()
    assert resident_bytes(source, RGB) == sum(v.nbytes for v in data.values())


def test_size_is_known_without_reading(tmp_path):
    source = write_images(tmp_path, broken=range(10))
    assert resident_bytes(source, RGB) == 10 * (6 * 6 * 3 + 4)


def test_a_large_set_shows_its_progress(capfd):
    source = make_source(200)
    big = array_source(
        np.zeros((6000, 4, 4), np.uint8), np.zeros(6000, int), name="big"
    )
    load_resident(source, GRAY)
    assert capfd.readouterr().err == ""
    load_resident(big, GRAY)
    assert "reading big: 100%" in capfd.readouterr().err
