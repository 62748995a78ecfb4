"""SSD's random crops and zoom-out: what is kept, and how often."""

import numpy as np
import pytest

from train.data import parse_geometry
from train.data.annotations import detection_example, make_objects
from train.data.box_transforms import MIN_IOUS, iou_crop, zoom_out
from train.data.rng import RandomStream
from zoo.spec import Preprocess

GRAY = Preprocess(
    size=24, width=32, channels=1, mean=(200 / 255,), std=(1,), fit="keep"
)


def change(name, example, step=0, preprocess=GRAY):
    chain = parse_geometry((name,), preprocess, task="detection", seed=0)
    return chain(example, step, 0)


def make_scene(step, objects=3):
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (30, 41, 1), np.uint8)
    boxes = [[2, 3, 12, 14], [15, 1, 22, 28], [30, 10, 40, 20]][:objects]
    return detection_example(image, make_objects(boxes, range(objects)))


def test_zooming_out():
    ratios, plain = [], 0
    for step in range(300):
        scene = make_scene(step, objects=1)
        height, width, _ = change("zoom_out", scene, step=step)["image"].shape
        plain += (height, width) == (30, 41)
        ratios.append(height / 30)
        assert width / 41 == pytest.approx(height / 30, abs=0.05)
    assert 110 < plain < 190
    ratios = np.array(ratios)[np.array(ratios) > 1]
    assert ratios.max() <= 4
    np.testing.assert_allclose(np.histogram(ratios, 3, (1, 4))[0], 50, atol=25)


def test_no_canvas_is_larger_than_an_image_may_be():
    for step in range(20):
        scene = make_scene(step)
        out = zoom_out(RandomStream((0, step), (0, 1)), scene, GRAY, 2000, p=1)
        assert out["image"].size <= 2200
        assert len(out["boxes"]) == 3


def window_of(step, scene, min_ious=MIN_IOUS):
    # The image of places tells which part was cut out.
    height, width = scene["image"].shape[:2]
    rows, columns = np.indices((height, width)).astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    rgb = Preprocess(size=9, channels=3, mean=(1,) * 3, std=(1,) * 3)
    rng = RandomStream((0, step), (0, 1, 1))
    part = iou_crop(rng, scene | {"image": image}, rgb, min_ious)["image"]
    return part[0, 0, 1], part[0, 0, 0], part[-1, -1, 1] + 1, part[-1, -1, 0] + 1


def slow_iou(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0, min(a[3], b[3]) - max(a[1], b[1])
    )
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_parts_are_covered_by_an_object(overlap):
    shapes, least = [], []
    for step in range(80):
        boxes = [[10, 20, 150, 110], [100, 60, 190, 120]]
        scene = detection_example(
            np.zeros((120, 200, 1), np.uint8), make_objects(boxes, [0, 1])
        )
        window = tuple(map(int, window_of(step, scene, (overlap, None))))
        if window == (0, 0, 200, 120):
            continue
        least.append(max(slow_iou(window, box) for box in boxes))
        x1, y1, x2, y2 = window
        shapes.append([(x2 - x1) / 200, (y2 - y1) / 120])
    assert len(least) > 25
    assert min(least) >= overlap
    if overlap < 0.5:
        assert min(least) < overlap + 0.2
    sides = np.array(shapes)
    assert 0.2 < sides.min() < sides.max() <= 1
    ratios = sides[:, 0] / sides[:, 1]
    assert 0.48 < ratios.min() < 0.75 < 1.3 < ratios.max() < 2.1


def test_the_choices_are_as_frequent():
    # With a box that is the image, every part with 0.9 is nearly all of it.
    scene = detection_example(
        np.zeros((90, 90, 1), np.uint8), make_objects([[0, 0, 90, 90]], [0])
    )
    areas = []
    for step in range(350):
        x1, y1, x2, y2 = map(int, window_of(step, scene))
        areas.append((x2 - x1) * (y2 - y1) / 8100)
    areas = np.array(areas)
    assert 25 < (areas == 1).sum() < 85
    # 0, 0.1 and 0.3 are six of seven times below one in two.
    assert 0.15 < (areas < 0.5).mean() < 0.5
    assert areas.min() < 0.2
    # Without any object the image stays as it is.
    empty = detection_example(np.zeros((90, 90, 1), np.uint8), make_objects([], []))
    out = change("iou_crop", empty)
    assert out["image"].shape == (90, 90, 1)


def test_an_impossible_overlap_leaves_another_choice():
    tiny = detection_example(
        np.zeros((90, 90, 1), np.uint8), make_objects([[4, 4, 5, 5]], [0])
    )
    for step in range(20):
        window = window_of(step, tiny, (0.9, None))
        assert tuple(map(int, window)) == (0, 0, 90, 90)
