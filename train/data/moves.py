"""What changes of an image do to its boxes and masks: cutting, resizing, mirroring."""

from collections.abc import Sequence

import numpy as np

from train.data.masks import IGNORED
from train.data.objects import clip_boxes, has_area
from train.data.shapes import blank_image, resize_mask
from train.data.source import Example
from zoo.preprocess import resize_image
from zoo.spec import Preprocess


def cut(example: Example, window: Sequence[int], preprocess: Preprocess) -> Example:
    """Cuts a window out of an example, which may reach beyond its image.

    Args:
      example: With an image, and boxes or a mask.
      window: Top, left, height and width in pixels.
      preprocess: What the network takes; its mean colour is outside.

    Returns:
      The example with what is in the window. An object is kept if the centre of its box
      is, and its box is cut.
    """
    top, left, height, width = map(int, window)
    image = example["image"]
    canvas = blank_image(height, width, preprocess)
    rows, from_rows = _overlap(top, height, image.shape[0])
    columns, from_columns = _overlap(left, width, image.shape[1])
    canvas[rows, columns] = image[from_rows, from_columns]
    example = example | {"image": canvas}
    if "mask" in example:
        mask = np.full((height, width), IGNORED, np.uint8)
        mask[rows, columns] = example["mask"][from_rows, from_columns]
        return example | {"mask": mask}
    shift = np.array([left, top, left, top], np.float32)
    return keep_boxes(example, example["boxes"] - shift, height, width)


def _overlap(start: int, length: int, of: int) -> tuple[slice, slice]:
    """Where start .. start + length and 0 .. of overlap, in the one and the other."""
    first, last = max(start, 0), max(min(start + length, of), 0)
    first = min(first, last)
    return slice(first - start, last - start), slice(first, last)


def keep_boxes(example: Example, boxes: np.ndarray, height: int, width: int) -> Example:
    """Gives objects new boxes [n, 4], and keeps those with their centre in the image.

    Boxes are cut to the image's new height and width.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres < np.array([width, height]))).all(1)
    boxes = clip_boxes(boxes, height, width)
    kept = inside & has_area(boxes)
    moved = {name: example[name][kept] for name in ("classes", "difficult")}
    return example | moved | {"boxes": boxes[kept]}


def resize(example: Example, scale: float, preprocess: Preprocess) -> Example:
    """Resizes an example by a factor, to at least one pixel."""
    height, width = example["image"].shape[:2]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = resize_image(example["image"], size, preprocess.interpolation)
    if "mask" in example:
        return example | {"image": image, "mask": resize_mask(example["mask"], size)}
    factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    # Rounding may lead beyond the image.
    boxes = clip_boxes(example["boxes"] * factors, *size)
    return example | {"image": image, "boxes": boxes}


def mirror(example: Example) -> Example:
    """Exchanges left and right."""
    flipped = example | {"image": example["image"][:, ::-1]}
    if "mask" in example:
        flipped["mask"] = example["mask"][:, ::-1]
    else:
        x1, y1, x2, y2 = example["boxes"].T
        width = np.float32(example["image"].shape[1])
        flipped["boxes"] = np.stack([width - x2, y1, width - x1, y2], axis=-1)
    return flipped
