"""Digits on canvases: what is drawn, and that nothing but split and number decide."""

import functools
import hashlib

import numpy as np
import pytest

from train.data import load_dataset
from train.data.formats import digits
from train.data.formats.digits import SIDE, draw_canvas, read_digits


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def few(data_dir):
    """Both tasks' sources of a smaller set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "COUNTS", {"train": 60, "test": 20})
        return {
            task: load_dataset("digits_canvas", "train", data_dir=data_dir, task=task)
            for task in ("detection", "segmentation")
        }


DIGITS = functools.cache(read_digits)


def draw(split, index):
    images, labels, test = DIGITS()
    chosen = test if split == "test" else ~test
    return draw_canvas(split, index, images[chosen], labels[chosen])


def test_what_is_stored_is_what_is_drawn(few):
    shown, masked = few["detection"], few["segmentation"]
    assert (shown.task, masked.task) == ("detection", "segmentation")
    assert shown.class_names == tuple("0123456789")
    assert masked.class_names == ("background", *"0123456789")
    assert len(shown) == len(masked) == 60
    drawn = {draw("train", i)[0].tobytes(): i for i in range(60)}
    assert len(drawn) == 60
    for position in range(60):
        example, other = shown[position], masked[position]
        image, boxes, classes, mask = draw("train", drawn[example["image"].tobytes()])
        np.testing.assert_array_equal(other["image"], image)
        np.testing.assert_array_equal(other["mask"], mask)
        np.testing.assert_array_equal(example["boxes"], boxes)
        assert example["boxes"].dtype == np.float32
        assert example["classes"].tolist() == classes.tolist()
        assert not example["difficult"].any()


def test_boxes_are_tight_and_digits_are_seen():
    sizes, counts, overlaps = [], [], 0
    for index in range(150):
        image, boxes, classes, mask = draw("train", index)
        assert image.shape == (SIDE, SIDE, 3)
        assert 1 <= len(boxes) <= 4
        assert boxes.min() >= 0
        assert boxes.max() <= SIDE
        assert {*np.unique(mask)} == {0, *(classes + 1)}
        inside = np.zeros_like(mask, bool)
        for (x1, y1, x2, y2), label in zip(boxes, classes, strict=True):
            part = mask[y1:y2, x1:x2] == label + 1
            # Of the digit 85 % is seen, in a box of which it fills a good part.
            assert part.sum() > 0.1 * part.size
            overlaps += inside[y1:y2, x1:x2].any()
            inside[y1:y2, x1:x2] = True
            sizes.append(max(x2 - x1, y2 - y1))
        assert not mask[~inside].any()
        counts.append(len(boxes))
        # The last digit is on top of all: its box is tight around what is seen.
        x1, y1, x2, y2 = boxes[-1]
        part = mask[y1:y2, x1:x2] == classes[-1] + 1
        for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
            assert edge.any()
    assert {*counts} == {1, 2, 3, 4}
    assert 24 < min(sizes) < 30 < 48 < max(sizes) <= 52
    assert overlaps > 50


def test_digits_stand_out():
    luma = np.array([0.299, 0.587, 0.114])
    for index in range(50):
        image, boxes, _, mask = draw("train", index)
        x1, y1, x2, y2 = boxes[-1]
        values, seen = image[y1:y2, x1:x2] @ luma, mask[y1:y2, x1:x2] > 0
        if len(boxes) == 1:
            assert values[seen].mean() - values[~seen].mean() > 40


def test_a_canvas_follows_from_its_number():
    first = draw("test", 3)
    again = draw("test", 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], draw("test", 4)[0])
    assert not np.array_equal(first[0], draw("train", 3)[0])
    # Golden: the set of today is the set of every later version.
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for index in range(20):
            _, boxes, classes, _ = draw(split, index)
            digest.update(boxes.astype("<i4").tobytes())
            digest.update(classes.astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == "f8420632523baad6"


def test_sizes_of_the_splits():
    assert digits.COUNTS == {"train": 4000, "test": 400}
