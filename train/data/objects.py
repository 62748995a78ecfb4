"""Objects with boxes: what an image of a set for detection shows."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from train.data.source import Example

logger = logging.getLogger(__name__)


class Objects(NamedTuple):
    """The objects of an image.

    Attributes:
      boxes: float32 [n, 4], xyxy in pixels.
      classes: int32 [n].
      difficult: bool [n], whether an evaluation does not count them.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray

    def choose(self, which: np.ndarray) -> "Objects":
        """Returns those that a mask or positions name."""
        return Objects(*(values[which] for values in self))


def make_objects(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    classes: Sequence[int] | np.ndarray,
    difficult: Sequence[bool] | np.ndarray | None = None,
) -> Objects:
    """Makes objects of lists, which may be empty; none is difficult if None."""
    count = len(classes)
    return Objects(
        np.asarray(boxes, np.float32).reshape(count, 4),
        np.asarray(classes, np.int32),
        np.zeros(count, bool) if difficult is None else np.asarray(difficult, bool),
    )


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Cuts boxes [n, 4] to an image of a height and a width."""
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Says which boxes [n, 4] have x2 > x1 and y2 > y1: bool [n]."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def tidy_objects(
    objects: Objects, size: tuple[int, int], names: Sequence[str]
) -> tuple[Objects, list[str]]:
    """Cuts boxes to their image, and leaves out those of which nothing is left.

    What is left out was inside out (x2 <= x1 or y2 <= y1), or lies outside.

    Args:
      objects: The objects of an image.
      size: Its height and width, 0 where they are not known.
      names: What to call each object.

    Returns:
      The others, and for each that was left out a line that names it.
    """
    height, width = size if all(size) else (np.inf, np.inf)
    boxes = clip_boxes(objects.boxes, height, width)
    kept = has_area(boxes)
    reasons = [
        f"{names[i]}: box {', '.join(f'{x:g}' for x in objects.boxes[i])}"
        for i in np.flatnonzero(~kept)
    ]
    return objects._replace(boxes=boxes).choose(kept), reasons


def log_left_out(where: str, reasons: Sequence[str]) -> None:
    """Warns of objects that were left out, with their number and the first of them."""
    if reasons:
        more = [f"and {len(reasons) - 10} more"] if len(reasons) > 10 else []
        logger.warning(
            "%s: %d box(es) without any area within their image are left out:\n%s",
            where,
            len(reasons),
            "\n".join([*reasons[:10], *more]),
        )


def detection_example(image: np.ndarray, objects: Objects) -> Example:
    """Puts an image and its objects together as `Source.example` returns them."""
    boxes = clip_boxes(objects.boxes, *image.shape[:2])
    objects = objects._replace(boxes=boxes).choose(has_area(boxes))
    return {"image": image, **objects._asdict()}


class Table:
    """The objects of many images in four arrays.

    Args:
      images: The objects of each image.
    """

    def __init__(self, images: Iterable[Objects]):
        images = [make_objects([], []), *images]
        counts = [len(objects.classes) for objects in images]
        self._starts = np.cumsum(counts)
        self._all = Objects(
            *(np.concatenate(parts) for parts in zip(*images, strict=True))
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Objects:
        """Returns the objects of the image at a position."""
        return self._all.choose(slice(*self._starts[index : index + 2]))
