"""Sources from arrays, and choosing classes and few images."""

import pickle

import numpy as np
import pytest

from train.data import Subset, array_source, load_dataset
from train.data.source import select

NAMES = ("ape", "bee", "cat", "dog")


def make_source(n=40, names=NAMES):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    return array_source(images, np.arange(n) % len(names), names)


def test_array_source_gives_back_what_went_in():
    source = make_source()
    assert len(source) == 40
    example = source[7]
    assert example["image"].tolist() == np.full((2, 2, 3), 7).tolist()
    assert (example["label"], example["index"]) == (3, 7)
    assert {k: v.dtype.name for k, v in example.items()} == {
        "image": "uint8",
        "label": "int32",
        "index": "int32",
    }
    assert source.provenance(7) == "arrays train #7"
    gray = array_source(np.zeros((3, 4, 5), np.uint8), np.array([0, 2, 1]))
    assert gray[0]["image"].shape == (4, 5, 1)
    assert gray.class_names == ("0", "1", "2")
    with pytest.raises(IndexError, match="40 examples, no #-1"):
        source[-1]
    assert sum(1 for _ in source) == 40


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 1], r"uint8 .* got float64 \[2, 4, 4, 3\]"),
        (np.zeros((2, 4, 4, 2), np.uint8), [0, 1], r"got uint8 \[2, 4, 4, 2\]"),
        (np.zeros((2, 4), np.uint8), [0, 1], r"got uint8 \[2, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), [0], r"integers \[2\].* got int64 \[1\]"),
        (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], r"got float64 \[2\]"),
        (
            np.zeros((2, 4, 4), np.uint8),
            [0, 4],
            r"train #1: label 4 is not in 0 \.\. 3",
        ),
        (np.zeros((2, 4, 4), np.uint8), [-1, 0], r"#0: label -1 is not in 0 \.\. 3"),
    ],
)
def test_wrong_arrays_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        array_source(images, np.array(labels), NAMES)


def test_classes_are_kept_in_the_given_order():
    source = select(make_source(), classes=("dog", "bee"))
    assert source.class_names == ("dog", "bee")
    assert len(source) == 20
    values = [int(source[i]["image"][0, 0, 0]) for i in range(20)]
    assert values == [v for v in range(40) if v % 4 in (1, 3)]
    assert source.labels.tolist() == [1 if v % 4 == 1 else 0 for v in values]
    assert source.labels.dtype == np.int32
    assert [int(source[i]["index"]) for i in range(20)] == list(range(20))
    assert source.provenance(0) == "arrays train #1"


def test_few_images_of_each_class():
    source = make_source()
    few = select(source, per_class=3, seed=1)
    assert np.bincount(few.labels).tolist() == [3, 3, 3, 3]
    chosen = [few.provenance(i) for i in range(12)]
    assert len(set(chosen)) == 12
    same = select(make_source(), per_class=3, seed=1)
    assert [same.provenance(i) for i in range(12)] == chosen
    other = select(source, per_class=3, seed=2)
    assert [other.provenance(i) for i in range(12)] != chosen
    # Leaving a class out does not change which images of another are drawn.
    dogs = select(source, classes=("dog",), per_class=3, seed=1)
    assert {dogs.provenance(i) for i in range(3)} <= set(chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("cat", "dgo")}, "no class 'dgo'; did you mean 'dog'"),
        ({"classes": ("cat", "cat")}, "names that differ"),
        ({"classes": ()}, "at least one"),
        ({"per_class": 11}, "class 'ape' has 10 images, per_class=11"),
        ({"per_class": 0}, "at least 1"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        select(make_source(), **options)


def test_subsets_nest_and_can_be_pickled():
    inner = Subset(make_source(), np.array([5, 9, 13]))
    outer = pickle.loads(pickle.dumps(Subset(inner, np.array([2, 0]))))
    assert [int(outer[i]["image"][0, 0, 0]) for i in range(2)] == [13, 5]
    assert outer.labels.tolist() == [1, 1]


def test_color_is_checked():
    with pytest.raises(ValueError, match="color='blue': expected 'rgb', 'gray'"):
        load_dataset("digits", "train", color="blue")
