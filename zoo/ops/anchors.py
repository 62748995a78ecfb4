"""Anchors: the reference boxes of a detector, one set for each cell of a grid.

They depend on sizes only, so they are made in numpy and become constants of the
compiled program: float32, xyxy in pixels of the network's input.
"""

import math
from collections.abc import Sequence

import numpy as np


def make_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, round: bool = True
) -> np.ndarray:
    """Makes the anchors of one cell around the origin, as in feature pyramid networks.

    Args:
      sizes: Square roots of the areas, in pixels.
      ratios: Aspect ratios, height divided by width.
      round: Whether to round corners to integers, as in torchvision.

    Returns:
      float32 [A, 4], with A = ratios times sizes: all sizes of the first ratio, then
      those of the next.

    Raises:
      ValueError: A size or a ratio is not positive, or there is none.
    """
    _check("make_anchors", sizes=sizes, ratios=ratios)
    # In float32 as in torchvision, as the rounding depends on it.
    stretch = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    side = np.asarray(sizes, np.float32)
    half = np.stack([1 / stretch * side, stretch * side], axis=-1).reshape(-1, 2) / 2
    anchors = np.concatenate([-half, half], axis=1)
    return np.round(anchors) if round else anchors


def rpn_anchors(
    base: int = 16,
    ratios: Sequence[float] = (0.5, 1, 2),
    scales: Sequence[float] = (8, 16, 32),
) -> np.ndarray:
    """Makes the anchors of the upper left cell as in Faster R-CNN.

    x2 and y2 are the last pixel (`inclusive` in `zoo.ops.boxes`), and the sides of a
    ratio are rounded before scaling. The authors' table, which starts with
    (-83, -39, 100, 56), counts pixels from 1; here they are counted from 0.

    Args:
      base: Stride of the cells, in pixels; anchors are centered in the cell.
      ratios: Aspect ratios, height divided by width.
      scales: Side of a square anchor divided by `base`.

    Returns:
      float32 [A, 4], with A = ratios times scales: all scales of the first ratio, then
      those of the next.

    Raises:
      ValueError: A number is not positive, or there is none.

    Reference:
      Ren et al., Faster R-CNN, 2015, section 3.1; py-faster-rcnn, generate_anchors.py.
    """
    _check("rpn_anchors", base=(base,), ratios=ratios, scales=scales)
    widths = np.round(np.sqrt(base**2 / np.asarray(ratios, np.float64)))
    heights = np.round(widths * ratios)
    sides = np.stack([widths, heights], axis=-1)[:, None]
    sides = (sides * np.asarray(scales, np.float64)[:, None]).reshape(-1, 2)
    center, half = (base - 1) / 2, (sides - 1) / 2
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)


def tile_anchors(
    cell: np.ndarray, height: int, width: int, stride_y: float, stride_x: float
) -> np.ndarray:
    """Repeats the anchors of the upper left cell over a grid.

    Args:
      cell: The anchors of the upper left cell, [A, 4].
      height: Number of rows.
      width: Number of columns.
      stride_y: Distance between rows, in pixels.
      stride_x: Distance between columns, in pixels.

    Returns:
      float32 [height * width * A, 4]: all anchors of a cell, then those of the next
      cell of the row, as in a head's outputs [height, width, A, ...].

    Raises:
      ValueError: `cell` is not [A, 4], or the grid has no cells.
    """
    cell = np.asarray(cell, np.float32)
    if cell.ndim != 2 or cell.shape[1] != 4:
        raise ValueError(f"tile_anchors: cell must be [A, 4], got {list(cell.shape)}.")
    _check("tile_anchors", height=(height,), width=(width,))
    shift_y = np.arange(height, dtype=np.float32)[:, None] * np.float32(stride_y)
    shift_x = np.arange(width, dtype=np.float32)[None] * np.float32(stride_x)
    shifts = np.stack(np.broadcast_arrays(shift_x, shift_y) * 2, axis=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)


def ssd_boxes(
    grids: Sequence[tuple[int, int]],
    steps: Sequence[float],
    sizes: Sequence[float],
    ratios: Sequence[Sequence[float]],
    *,
    max_sides: tuple[float, float] | None = None,
) -> np.ndarray:
    """Makes SSD's default boxes of all levels.

    Each cell has a square of the level's size, a square of the geometric mean of this
    size and that of the next level, and, for each ratio r, a landscape and a portrait
    box of this ratio with the area of the first square.

    Args:
      grids: Height and width of the feature map of each level.
      steps: Distance between cells of each level, in pixels; boxes are centered in the
        cell.
      sizes: Size of each level in pixels, and one more: the authors' "min sizes" and
        the last "max size".
      ratios: Aspect ratios of each level, without 1 and without inverses: (2,) or
        (2, 3).
      max_sides: Maximum height and width of a box, the size of the image in
        torchvision; None for no limit, as in the authors' code.

    Returns:
      float32 [A, 4]: level by level and row by row, all boxes of a cell together. Boxes
      may extend beyond the image.

    Raises:
      ValueError: The numbers of levels differ, or a number is not positive.

    Reference:
      Liu et al., SSD, 2016, section 2.2; prior_box_layer.cpp of the authors' Caffe.
    """
    levels = len(grids)
    if not levels or [len(steps), len(sizes) - 1, len(ratios)] != [levels] * 3:
        raise ValueError(
            f"ssd_boxes: {levels} grids need as many steps and ratios and one size "
            f"more, got {len(steps)} steps, {len(ratios)} ratios, {len(sizes)} sizes."
        )
    _check("ssd_boxes", steps=steps, sizes=sizes)
    boxes = []
    for i, ((height, width), step) in enumerate(zip(grids, steps, strict=True)):
        size, mean = sizes[i], math.sqrt(sizes[i] * sizes[i + 1])
        sides = [(size, size), (mean, mean)]  # width, height
        for ratio in ratios[i]:
            long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
            sides += [(long, short), (short, long)]
        half = np.array(sides) / 2
        if max_sides is not None:
            half = np.minimum(half, np.array(max_sides[::-1]) / 2)
        cell = step / 2 + np.concatenate([-half, half], axis=1)
        boxes.append(tile_anchors(cell, height, width, step, step))
    return np.concatenate(boxes)


def _check(function: str, **numbers: Sequence[float]) -> None:
    for name, values in numbers.items():
        if not len(values) or not all(value > 0 for value in values):
            shown = values[0] if len(values) == 1 else tuple(values)
            raise ValueError(f"{function}: {name}={shown} must be above 0.")
