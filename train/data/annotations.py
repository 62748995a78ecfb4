"""Annotations of images: boxes with their classes, and masks."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from train.data.source import Example
from zoo.decode import BadImage

logger = logging.getLogger(__name__)


class Objects(NamedTuple):
    """The objects of an image.

    Attributes:
      boxes: float32 [n, 4], xyxy in pixels.
      classes: int32 [n].
      difficult: bool [n], whether an evaluation ignores the object.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray

    def choose(self, which: np.ndarray) -> "Objects":
        """Returns the objects selected by a boolean mask or by positions."""
        return Objects(*(values[which] for values in self))


def make_objects(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    classes: Sequence[int] | np.ndarray,
    difficult: Sequence[bool] | np.ndarray | None = None,
) -> Objects:
    """Makes objects from lists, which may be empty; if None, no object is difficult."""
    count = len(classes)
    return Objects(
        np.asarray(boxes, np.float32).reshape(count, 4),
        np.asarray(classes, np.int32),
        np.zeros(count, bool) if difficult is None else np.asarray(difficult, bool),
    )


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Clips boxes [n, 4] to an image of the given height and width."""
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Returns bool [n], whether each box [n, 4] has x2 > x1 and y2 > y1."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def clip_objects(
    objects: Objects, size: tuple[int, int], names: Sequence[str]
) -> tuple[Objects, list[str], int]:
    """Clips boxes to their image, and drops those without any remaining area.

    Such a box is inverted (x2 <= x1 or y2 <= y1), or outside the image.

    Args:
      objects: The objects of an image.
      size: The height and width of the image, 0 if they are unknown.
      names: The name of each object in messages.

    Returns:
      The remaining objects, a message for each object that was dropped, and the number
      of boxes, dropped ones included, that reach beyond their image by more than a
      pixel.
    """
    height, width = size if all(size) else (np.inf, np.inf)
    boxes = clip_boxes(objects.boxes, height, width)
    kept = has_area(boxes)
    reasons = [
        f"{names[i]}: box {', '.join(f'{x:g}' for x in objects.boxes[i])}"
        for i in np.flatnonzero(~kept)
    ]
    outside = (np.abs(boxes - objects.boxes) > 1).any(1)
    return objects._replace(boxes=boxes).choose(kept), reasons, int(outside.sum())


def log_dropped_boxes(where: str, reasons: Sequence[str]) -> None:
    """Logs the number of dropped boxes, and the first few of them."""
    if reasons:
        more = [f"and {len(reasons) - 10} more"] if len(reasons) > 10 else []
        logger.warning(
            "%s: %d box(es) without any area within their image are left out:\n%s",
            where,
            len(reasons),
            "\n".join([*reasons[:10], *more]),
        )


def detection_example(image: np.ndarray, objects: Objects) -> Example:
    """Makes the example of an image and its objects, as `Source.example` returns it."""
    boxes = clip_boxes(objects.boxes, *image.shape[:2])
    objects = objects._replace(boxes=boxes).choose(has_area(boxes))
    return {"image": image, **objects._asdict()}


class Table:
    """The objects of many images, stored in four arrays.

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


IGNORED = 255


class UnknownValues(BadImage):
    """A mask with values that have no class."""


class UnnamedClasses(ValueError):
    """The names of the classes of masks are not known."""


def make_values(
    num_classes: int, ignored: Sequence[int] = (), values: Sequence[int] = ()
) -> np.ndarray:
    """Makes the lookup table from the values in a mask's file to classes.

    Args:
      num_classes: The number of classes, at most 255.
      ignored: The pixel values to ignore, besides 255.
      values: The value of each class, such as 0 and 255; 0, 1, .. if empty. 255 is not
        ignored if it is the value of a class.

    Returns:
      int16 [256]: the class of each value, 255 if it is ignored, -1 if it has none.

    Raises:
      ValueError: A number is out of range, a value is given twice, or the value of a
        class is to be ignored.
    """
    if not 1 <= num_classes <= IGNORED:
        raise ValueError(f"{num_classes} classes: masks have 1 to {IGNORED}.")
    if any(not 0 <= value <= IGNORED for value in ignored):
        raise ValueError(
            f"ignored={ignored} (--data.ignored): values of masks are 0 to {IGNORED}."
        )
    if values:
        good = len(set(values)) == len(values) == num_classes
        if not good or any(not 0 <= value <= IGNORED for value in values):
            raise ValueError(
                f"values={tuple(values)} (--data.values): expected one value for each "
                f"of the {num_classes} classes, different ones from 0 to {IGNORED}."
            )
    both = sorted({*(values or range(num_classes))} & {*ignored})
    if both:
        shown = f"{tuple(values)}" if values else f"0 .. {num_classes - 1} if not given"
        raise ValueError(
            f"--data.values ({shown}) and --data.ignored both have {both}: a value is "
            "of a class, or ignored; --data.values gives those of the classes alone."
        )
    table = np.full(256, -1, np.int16)
    if not values:
        table[:num_classes] = np.arange(num_classes)
    table[[*ignored, IGNORED]] = IGNORED
    table[[*values]] = np.arange(len(values))
    return table


def explain_values(
    counts: np.ndarray, values: np.ndarray, examined: int, *, sure: bool = False
) -> str | None:
    """Checks that the values of masks agree with the table of values.

    Args:
      counts: int [256], the number of pixels with each value.
      values: int16 [256], the table of `make_values`.
      examined: The number of masks that were counted.
      sure: Whether the user said that 255 is ignored, or that it is a class.

    Returns:
      None, or a message if there are values without a class, or if pixels with 255 are
      ignored while some class has no pixels, so that 255 probably stands for it.
    """
    found = np.flatnonzero(counts)
    classes = values[(values >= 0) & (values < IGNORED)]
    used = {*values[found]} & {*classes}
    unknown = [value for value in found if values[value] < 0]
    ignored = (
        not sure
        and values[IGNORED] == IGNORED
        and counts[IGNORED] > 0
        and len(used) < len(classes)
        and (len(used) < 2 or len(found) == len(classes))
    )
    if not unknown and not ignored:
        return None
    shares = [f"{value} ({counts[value] / counts.sum():.2%})" for value in found[:20]]
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    what = (
        f"the masks ({examined} were examined) have the values {', '.join(shares)}"
        f"{more} of the pixels, and there are {len(classes)} classes"
    )
    if unknown:
        names = ", ".join(map(str, unknown[:20]))
        what += f"; {names} stand(s) for nothing"
    else:
        what += "; pixels of 255 are ignored, so that some class has none at all"
    which = " ".join(map(str, found[: len(classes)]))
    which = which if len(found) == len(classes) else "VALUE VALUE .."
    ignore = " ".join(map(str, unknown[:20] or [IGNORED]))
    return (
        f"{what}. Say which value each class has (--data.values {which}), or which "
        f"are to be ignored (--data.ignored {ignore})."
    )


def segmentation_example(
    image: np.ndarray, mask: np.ndarray, values: np.ndarray, provenance: str
) -> Example:
    """Makes the example of an image and its mask, as `Source.example` returns it.

    Args:
      image: uint8 [height, width, C].
      mask: uint8 [height, width], the values of the file.
      values: int16 [256], the table of `make_values`.
      provenance: The name of the mask in errors.

    Returns:
      The image, and the mask uint8 [height, width] of classes.

    Raises:
      BadImage: The sizes of mask and image differ.
      UnknownValues: The mask has a value without a class.
    """
    if mask.shape != image.shape[:2]:
        raise BadImage(
            f"{provenance}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its "
            f"image {image.shape[1]} x {image.shape[0]}."
        )
    classes = values[mask]
    if classes.min() < 0:
        wrong = classes < 0
        known = np.flatnonzero((values >= 0) & (values < IGNORED))
        raise UnknownValues(
            f"{provenance}: {wrong.sum()} pixel(s) have values such as "
            f"{mask[wrong][0]}, expected {known[0]} .. {known[-1]} ({len(known)} "
            f"classes) or {IGNORED} (ignored); --data.ignored names more values to be "
            "ignored, --data.values those of the classes."
        )
    return {"image": image, "mask": classes.astype(np.uint8)}
