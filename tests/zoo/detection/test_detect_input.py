"""Images and numbers that no detector takes, and images of extreme shapes."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_detectors import Bright, facts

import zoo

CASES = {"stretch": facts("stretch"), "sides": facts("sides", resize=64, longest=128)}


@pytest.fixture(scope="module")
def bright():
    """A detector, its variables, and images of several sizes with their sizes."""
    images = [np.zeros((*s, 3), np.uint8) for s in ((64, 90), (70, 80), (60, 96))]
    variables = {"params": {"scale": jnp.ones(3)}}
    return Bright(CASES["sides"]), variables, *zoo.pad_images(images, step=32)


@pytest.mark.parametrize(
    ("fit", "size"),
    [("stretch", (3, 10000)), ("sides", (1, 1)), ("sides", (10000, 3))],
    ids=str,
)
def test_extreme_images_are_searched(cheap_jit, fit, size):
    preprocess = CASES[fit]
    detect = cheap_jit(zoo.make_detector(Bright(preprocess), score_threshold=0.1))
    found = detect(
        {"params": {"scale": jnp.ones(3)}}, np.full((1, *size, 3), 255, np.uint8)
    )
    boxes = np.asarray(found.boxes[0])[np.asarray(found.valid[0])]
    assert len(boxes)
    assert np.isfinite(boxes).all()
    assert (boxes >= 0).all()
    limit = np.array([size[1], size[0]] * 2)
    assert (boxes <= limit * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold=1.5 and iou_threshold=0.5 must be"),
        ({"iou_threshold": -0.1}, "iou_threshold=-0.1 must be 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold=nan"),
        ({"max_detections": 0}, "max_detections=0 must be 1 or more"),
    ],
)
def test_numbers_out_of_range_are_said(bright, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.make_detector(bright[0], **options)


def test_only_detectors_detect():
    with pytest.raises(ValueError, match="takes a detector, got Classifier, which has"):
        zoo.make_detector(zoo.build("lenet5", num_classes=3))
    with pytest.raises(ValueError, match=r"got RCNN, .*make_region_detector takes"):
        zoo.make_detector(zoo.build("rcnn_alexnet"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, s: (i / 255, s), "images must be uint8"),
        (lambda i, s: (i[0], s), r"got uint8 \[96, 96, 3\]"),
        (lambda i, s: (i[..., :1], s), r"has 1 channel.*takes 3"),
        (lambda i, s: (i, s[:2]), r"sizes must be integers \[3, 2\].*got int32 \[2, 2"),
        (lambda i, s: (i, s / 1), r"sizes must be integers \[3, 2\].*got float64"),
        (lambda i, s: (i, s + 30), r"sizes\[0\]=\[94, 120\].*at most its array's \[96"),
        (lambda i, s: (i, s * np.int32([[1], [0], [1]])), r"sizes\[1\]=\[0, 0\]"),
    ],
)
def test_wrong_images_and_sizes_are_said(bright, change, message):
    model, variables, images, sizes = bright
    with pytest.raises(ValueError, match=message):
        zoo.make_detector(model)(variables, *change(images, sizes))


def test_images_of_several_sizes_are_put_into_one_array():
    images = [np.full(size, 9, np.uint8) for size in ((3, 5, 3), (70, 2, 3))]
    arrays, sizes = zoo.pad_images(images)
    assert arrays.shape == (2, 128, 64, 3)
    assert sizes.tolist() == [[3, 5], [70, 2]]
    assert arrays[0].sum() == 9 * 45
    assert (arrays[0, :3, :5] == 9).all()
    with pytest.raises(ValueError, match=r"3 in the first.*\[4, 4, 1\] for images\[2"):
        zoo.pad_images([*images, np.zeros((4, 4, 1), np.uint8)])
    with pytest.raises(ValueError, match="got 0 images"):
        zoo.pad_images([])
