"""Anchors against the lists of the papers' code and of torchvision."""

import math

import numpy as np
import pytest

from zoo.ops.anchors import make_anchors, rpn_anchors, ssd_boxes, tile_anchors

# As the authors of Faster R-CNN list them, with pixels counted from 1.
NINE = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]
GRIDS_300 = [(n, n) for n in (38, 19, 10, 5, 3, 1)]
STEPS_300 = (8, 16, 32, 64, 100, 300)
RATIOS_300 = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))


def test_anchors_of_a_cell_equal_torchvision():
    """`AnchorGenerator(((32,), (48, 64)), ((0.5, 1, 2),) * 2)` of torchvision 0.29."""
    one = make_anchors((32,), (0.5, 1, 2))
    assert one.dtype == np.float32
    assert one.tolist() == [
        [-23, -11, 23, 11],
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
    ]
    assert make_anchors((48, 64), (0.5, 1, 2)).tolist() == [
        [-34, -17, 34, 17],
        [-45, -23, 45, 23],
        [-24, -24, 24, 24],
        [-32, -32, 32, 32],
        [-17, -34, 17, 34],
        [-23, -45, 23, 45],
    ]


def test_anchors_have_their_size_and_ratio_where_nothing_is_rounded():
    anchors = make_anchors((10, 33.5), (0.3, 1, 4), round=False)
    expected = [(s, r) for r in (0.3, 1, 4) for s in (10, 33.5)]
    for (x1, y1, x2, y2), (size, ratio) in zip(anchors, expected, strict=True):
        width, height = x2 - x1, y2 - y1
        assert math.sqrt(width * height) == pytest.approx(size, rel=1e-6)
        assert height / width == pytest.approx(ratio, rel=1e-6)
        assert (x1 + x2, y1 + y2) == (0, 0)


def test_the_paper_s_nine_anchors():
    nine = rpn_anchors()
    assert nine.dtype == np.float32
    assert (nine + 1).tolist() == NINE
    twelve = rpn_anchors(scales=(4, 8, 16, 32))  # COCO's
    assert np.delete(twelve, [0, 4, 8], axis=0).tolist() == nine.tolist()


def test_tiles_go_row_by_row_and_keep_a_cell_together():
    cell = np.array([[-1, -2, 3, 4], [0, 0, 5, 6], [7, 7, 8, 8]], np.float32)
    tiles = tile_anchors(cell, 2, 4, 16, 10)
    assert tiles.shape == (2 * 4 * 3, 4)
    assert tiles.dtype == np.float32
    grid = tiles.reshape(2, 4, 3, 4)
    for y in range(2):
        for x in range(4):
            shift = np.array([10 * x, 16 * y, 10 * x, 16 * y])
            np.testing.assert_array_equal(grid[y, x], cell + shift)


def one_ssd_box(size, bigger, index):
    """Width and height of a box by its place in the cell: the paper's rules in turn."""
    if index < 2:
        side = size if index == 0 else math.sqrt(size * bigger)
        return side, side
    ratio = (2, 1 / 2, 3, 1 / 3)[index - 2]
    return size * math.sqrt(ratio), size / math.sqrt(ratio)


@pytest.mark.parametrize(
    ("grids", "steps", "sizes", "ratios", "count"),
    [
        (
            GRIDS_300,
            STEPS_300,
            (30, 60, 111, 162, 213, 264, 315),
            RATIOS_300,
            8_732,
        ),
        (
            [(n, n) for n in (64, 32, 16, 8, 4, 2, 1)],
            (8, 16, 32, 64, 128, 256, 512),
            (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
            (*RATIOS_300[:4], (2, 3), (2,), (2,)),
            24_564,
        ),
    ],
    ids=["ssd300", "ssd512"],
)
def test_default_boxes_of_the_paper(grids, steps, sizes, ratios, count):
    boxes = ssd_boxes(grids, steps, sizes, ratios)
    assert boxes.shape == (count, 4)
    assert boxes.dtype == np.float32
    expected = []
    for k, (height, width) in enumerate(grids):
        for y in range(height):
            for x in range(width):
                for i in range(2 + 2 * len(ratios[k])):
                    w, h = one_ssd_box(sizes[k], sizes[k + 1], i)
                    cx, cy = (x + 0.5) * steps[k], (y + 0.5) * steps[k]
                    expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    np.testing.assert_allclose(boxes, expected, atol=1e-4)


def test_default_boxes_equal_torchvision():
    """The anchors of torchvision 0.29's `ssd300_vgg16`, some of them and their sums."""
    sizes = [300 * s for s in (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)]
    boxes = ssd_boxes(GRIDS_300, STEPS_300, sizes, RATIOS_300, max_sides=(300, 300))
    assert boxes.shape == (8_732, 4)
    some = {
        0: [-6.5, -6.5, 14.5, 14.5],
        1: [-11.370427, -11.370427, 19.370426, 19.370426],
        2: [-10.849242, -3.424621, 18.849241, 11.424622],
        3: [-3.424621, -10.849242, 11.424622, 18.849241],
        5: [-3.370427, -11.370427, 27.370428, 19.370426],
        5776: [-14.5, -14.5, 30.5, 30.5],
        5781: [-4.990381, -30.971142, 20.990381, 46.971146],
        8000: [218.26347, -12.578838, 389.7365, 44.578842],
        8727: [176.81444, 103.62889, 323.18555, 396.3711],
        8728: [19.5, 19.5, 280.5, 280.5],
        8729: [6.6342115, 6.6342115, 293.36578, 293.36578],
        8730: [0, 57.72257, 300, 242.27744],
        8731: [57.72257, 0, 242.27744, 300],
    }
    np.testing.assert_allclose(boxes[[*some]], [*some.values()], atol=1e-4)
    sums = [1157388.838327646] * 2 + [1508979.162509918] * 2
    np.testing.assert_allclose(boxes.sum(0, dtype=np.float64), sums, rtol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_anchors((), (1,)), r"make_anchors: sizes=\(\) must be above 0"),
        (lambda: make_anchors((8, 16), (1, -1)), r"ratios=\(1, -1\) must be above 0"),
        (lambda: rpn_anchors(base=0), "rpn_anchors: base=0 must be above 0"),
        (lambda: tile_anchors(np.zeros(4), 2, 2, 8, 8), r"cell must be \[A, 4\], got"),
        (lambda: tile_anchors(np.zeros((1, 4)), 0, 2, 8, 8), "height=0 must be above"),
        (
            lambda: ssd_boxes([(2, 2)], (8,), (30,), ((2,),)),
            "1 grids need as many steps and ratios and one size more, .* 1 sizes",
        ),
        (lambda: ssd_boxes([(2, 2)], (8,), (30, 0), ((2,),)), r"sizes=\(30, 0\) must"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
