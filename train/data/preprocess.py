"""Preprocessing of examples to the fixed shapes of a network's input."""

import logging
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from train.data.annotations import IGNORED, clip_boxes
from train.data.source import Derived, Example, Source, Subset, map_in_threads
from zoo.decode import BadImage
from zoo.preprocess import (
    center_crop,
    resize_center_crop,
    resize_shortest_edge,
    shortest_edge_size,
)
from zoo.spec import Preprocess

# Maps an example with an image of any size to one of the network's input size.
Fit = Callable[[Example, Preprocess], Example]

logger = logging.getLogger(__name__)


MAX_BOXES = 100  # the default number of slots for the objects of an image
_OBJECTS = ("boxes", "classes", "difficult")


class TooManyObjects(ValueError):
    """An image with more objects than there are slots."""


def fitted_shapes(
    task: str, preprocess: Preprocess, max_boxes: int
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns the shape and the dtype of each array of a fitted example."""
    shapes = {"image": (preprocess.shape, np.uint8), "index": ((), np.int32)}
    if task in ("classification", "verification"):
        return shapes | {"label": ((), np.int32)}
    shapes |= {"size": ((2,), np.int32), "original_size": ((2,), np.int32)}
    if task == "segmentation":
        return shapes | {"mask": (preprocess.shape[:2], np.uint8)}
    return shapes | {
        "boxes": ((max_boxes, 4), np.float32),
        "classes": ((max_boxes,), np.int32),
        "box_valid": ((max_boxes,), bool),
        "difficult": ((max_boxes,), bool),
    }


def fit_example(example: Example, preprocess: Preprocess) -> Example:
    """Fits an example's image, and its boxes or mask, to a network's input.

    With `preprocess.fit` "sides" and "keep" images are in the upper left corner of a
    canvas of `preprocess.shape`; an image that "sides" would make too large is scaled
    to the canvas. Borders have the network's mean color, and are ignored in masks.

    Args:
      example: An example of a `Source`, with an image of any size.
      preprocess: The preprocessing of the network's input.

    Returns:
      The example, with an image uint8 of `preprocess.shape`. For detection and
      segmentation it has `size`, int32 [2], the height and width of the image within
      the canvas.

    Raises:
      ValueError: The image is larger than the network's input and `fit` is "keep", or
        it has boxes and `fit` is "crop".
    """
    image = example["image"]
    if "label" in example:
        return example | {"image": resize_center_crop(image, preprocess)}
    if preprocess.fit == "crop":
        return _crop(example, preprocess)
    if preprocess.fit == "keep" and np.any(image.shape > np.array(preprocess.shape)):
        raise ValueError(
            f"the image has {image.shape[1]} x {image.shape[0]} pixels, and fit='keep' "
            f"has place for {preprocess.shape[1]} x {preprocess.shape[0]}; give a "
            "larger --size HEIGHT WIDTH, another --data.fit (sides or stretch), or "
            "cut parts with --geometry random_crop."
        )
    image, factors = resize_shortest_edge(
        image, preprocess, canvas=preprocess.shape[:2]
    )
    size = image.shape[:2]
    canvas = blank_image(*preprocess.shape[:2], preprocess)
    canvas[: size[0], : size[1]] = image
    fitted = example | {"image": canvas, "size": np.array(size, np.int32)}
    if "boxes" in example:
        boxes = example["boxes"] * factors[[1, 0, 1, 0]]
        fitted["boxes"] = clip_boxes(boxes, *size)  # rounding may exceed the image
    else:
        mask = np.full(preprocess.shape[:2], IGNORED, np.uint8)
        mask[: size[0], : size[1]] = resize_mask(example["mask"], size)
        fitted["mask"] = mask
    return fitted


def mean_color(preprocess: Preprocess) -> np.ndarray:
    """Returns the mean color of the network's input: uint8 [channels]."""
    return np.rint(np.multiply(preprocess.mean, 255)).clip(0, 255).astype(np.uint8)


def blank_image(height: int, width: int, preprocess: Preprocess) -> np.ndarray:
    """Makes an image of the mean color: uint8 [height, width, channels]."""
    # Copying whole rows is several times faster than copying pixels.
    row = np.tile(mean_color(preprocess), width)
    return np.tile(row, (height, 1)).reshape(height, width, -1)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask [h, w] to a height and width by nearest-neighbor sampling."""
    resized = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def pad_boxes(example: Example, max_boxes: int, provenance: str) -> Example:
    """Pads the objects of an example to a fixed number.

    Args:
      example: An example with `boxes` [n, 4], `classes` [n] and `difficult` [n].
      max_boxes: The number of slots.
      provenance: The name of the example in errors.

    Returns:
      The example with `max_boxes` objects, padded by zeros, and `box_valid` bool
      [max_boxes].

    Raises:
      TooManyObjects: There are more objects than slots.
    """
    count = len(example["boxes"])
    if count > max_boxes:
        raise TooManyObjects(
            f"{provenance} (#{example['index']}) has {count} objects, more than "
            f"max_boxes={max_boxes} (--data.max-boxes)."
        )
    padded = {"box_valid": np.arange(max_boxes) < count}
    for name in _OBJECTS:
        padded[name] = np.zeros(
            (max_boxes, *example[name].shape[1:]), example[name].dtype
        )
        padded[name][:count] = example[name]
    return example | padded


def _crop(example: Example, preprocess: Preprocess) -> Example:
    if "boxes" in example:
        raise ValueError("fit='crop' is for images without boxes; expected 'stretch'.")
    size = preprocess.size
    scaled = shortest_edge_size(*example["mask"].shape, preprocess.resize or size)
    mask = resize_mask(example["mask"], scaled)[..., None]
    return example | {
        "image": resize_center_crop(example["image"], preprocess),
        "mask": center_crop(mask, size, size)[..., 0],
        "size": np.array([size, size], np.int32),
    }


class FittedSource(Derived):
    """A source of examples fitted to a network; see `fit_source`."""

    def __init__(self, source: Source, preprocess: Preprocess, max_boxes: int):
        self.name, self.split, self.task = source.name, source.split, source.task
        self.class_names = source.class_names
        self.preprocess, self.max_boxes = preprocess, max_boxes
        self.source = source

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """The shape and the dtype of each array of an example."""
        return fitted_shapes(self.task, self.preprocess, self.max_boxes)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, fit_example)

    def read(self, index: int, fit: Fit) -> Example:
        """Returns one example, fitted by `fit` instead of `fit_example`."""
        example = self.source[index]
        self.check_channels(example["image"], index)
        original_size = np.array(example["image"].shape[:2], np.int32)
        try:
            example = fit(example, self.preprocess)
        except ValueError as error:
            raise ValueError(f"{self.provenance(index)}: {error}") from error
        if self.task in ("classification", "verification"):
            return example
        if self.task == "detection":
            example = pad_boxes(example, self.max_boxes, self.provenance(index))
        return example | {"original_size": original_size}

    def find(self, index: int) -> tuple[Source, int]:
        return self.source, index

    def image(self, index: int) -> np.ndarray:
        return self[index]["image"]

    def check_channels(self, image: np.ndarray, index: int) -> None:
        """Raises ValueError unless an image has the channels of the network's input."""
        found, wanted = image.shape[-1], self.preprocess.channels
        if found != wanted:
            color = self.preprocess.color
            raise ValueError(
                f"{self.provenance(index)}: the image has {found} channel(s) and the "
                f"network takes {wanted}; open the data set with color={color!r} "
                f"(--color {color})."
            )


def fit_source(
    source: Source,
    preprocess: Preprocess,
    on_bad_image: str = "stop",
    *,
    max_boxes: int = MAX_BOXES,
) -> FittedSource:
    """Fits the images of a source, and their annotations, to a network's input.

    Args:
      source: The source. A fitted source is not fitted again.
      preprocess: The preprocessing of the network's input.
      on_bad_image: "stop" to raise `BadImage` when an unreadable image is met; "skip"
        to look for such images now and leave them out, see `skip_bad_images`.
      max_boxes: For detection: the number of slots for the objects of an image; more
        objects are an error.

    Returns:
      A source of examples of fixed shapes, see `fit_example` and `pad_boxes`, with
      `original_size` int32 [2], the height and width of the stored image.

    Raises:
      ValueError: `on_bad_image` is unknown, or `source` is fitted to another network.
    """
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r}: expected 'stop' or 'skip'.")
    if isinstance(source, FittedSource):
        if source.preprocess != preprocess:
            raise ValueError(
                f"{source.name} {source.split} was fitted for {source.preprocess}, "
                f"not for {preprocess}."
            )
        source = source.source
    if on_bad_image == "skip":
        source = skip_bad_images(source)
    return FittedSource(source, preprocess, max_boxes)


def skip_bad_images(source: Source) -> Source:
    """Reads all images, and leaves out those that cannot be read.

    This fixes the number of steps of an epoch, and lets an evaluation count every
    readable image once. The number and the files of unreadable images are logged.

    Args:
      source: The source.

    Returns:
      The readable examples; `source` itself if all are readable.

    Raises:
      ValueError: No image can be read.
    """

    def reason(index: int) -> str | None:
        try:
            source[index]
        except BadImage as error:
            return str(error)
        return None

    reasons = list(map_in_threads(reason, len(source), f"checking {source.name}"))
    bad = [r for r in reasons if r is not None]
    if not bad:
        return source
    if len(bad) == len(source):
        raise ValueError(
            f"{source.name} {source.split}: none of its {len(source)} images can be "
            f"read; the first: {bad[0]}"
        )
    listed = "\n".join(bad)
    if source.task == "verification":
        raise ValueError(
            f"{source.name} {source.split}: {len(bad)} of {len(source)} images cannot "
            f"be read, and pairs of faces need all of them:\n{listed}"
        )
    logger.warning(
        "%s %s: %d of %d images are left out:\n%s",
        source.name,
        source.split,
        len(bad),
        len(source),
        listed,
    )
    return Subset(source, np.flatnonzero([r is None for r in reasons]))


def load_resident(
    source: Source, preprocess: Preprocess, *, max_boxes: int = MAX_BOXES
) -> dict[str, np.ndarray]:
    """Reads a whole source into memory.

    Args:
      source: The source.
      preprocess: The preprocessing of the network's input.
      max_boxes: The number of slots for objects, see `fit_source`.

    Returns:
      The arrays [N, ..] of a batch (see `train.data.pipeline`), without `index`.
    """
    source = fit_source(source, preprocess, max_boxes=max_boxes)
    n = len(source)
    data = {k: np.empty((n, *shape), t) for k, (shape, t) in source.shapes.items()}
    del data["index"]

    def read(index: int) -> None:
        example = source[index]
        for name, values in data.items():
            values[index] = example[name]

    for _ in map_in_threads(read, n, f"reading {source.name}"):
        pass
    return data


def resident_bytes(
    source: Source, preprocess: Preprocess, *, max_boxes: int = MAX_BOXES
) -> int:
    """Computes the bytes that `load_resident` needs, without reading images."""
    shapes = fit_source(source, preprocess, max_boxes=max_boxes).shapes
    bytes_each = sum(
        math.prod(shape) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in shapes.items()
        if name != "index"
    )
    return len(source) * bytes_each
