"""Examples of fixed shapes, as a network takes them, one by one or all at once."""

import logging
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from train.data.annotations import IGNORED, Objects, clip_boxes
from train.data.source import Example, Source, Subset, map_in_threads
from zoo.decode import BadImage
from zoo.fitting import fit_sides
from zoo.preprocess import crop_centre, fit_image, scaled_size
from zoo.spec import Preprocess

# From an example with an image of any size and what the network takes, to one with an
# image of its size.
Fit = Callable[[Example, Preprocess], Example]

logger = logging.getLogger(__name__)


MAX_BOXES = 100  # of an image, unless another number is asked for
_OBJECTS = ("boxes", "classes", "difficult")


class TooManyObjects(ValueError):
    """An image with more objects than there are slots."""


def fitted_shapes(
    task: str, preprocess: Preprocess, max_boxes: int
) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns the shape and the type of each array of a fitted example."""
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
    """Fits an example's image to a network, and its boxes or mask with it.

    With `preprocess.fit` "sides" and "keep" all images lie in the upper left corner of
    one canvas, of `preprocess.shape`; where "sides" would make one too large for it,
    its scale is reduced. Borders have the network's mean colour, and masks are to be
    ignored there.

    Args:
      example: As a `Source` gives it, with an image of any size.
      preprocess: What the network takes.

    Returns:
      The example, with an image uint8 of `preprocess.shape`. Of detection and
      segmentation it has `size` too, int32 [2]: height and width of the part of it,
      from the upper left corner on, that shows the image.

    Raises:
      ValueError: The image is larger than the network's input and not to be resized,
        or it has boxes and is to be cropped.
    """
    image = example["image"]
    if "label" in example:
        return example | {"image": fit_image(image, preprocess)}
    if preprocess.fit == "crop":
        return _crop(example, preprocess)
    if preprocess.fit == "keep" and np.any(image.shape > np.array(preprocess.shape)):
        raise ValueError(
            f"the image has {image.shape[1]} x {image.shape[0]} pixels, and fit='keep' "
            f"has place for {preprocess.shape[1]} x {preprocess.shape[0]}; give a "
            "larger --size HEIGHT WIDTH, another --data.fit (sides or stretch), or "
            "cut parts with --geometry random_crop."
        )
    image, factors = fit_sides(image, preprocess, canvas=preprocess.shape[:2])
    size = image.shape[:2]
    canvas = blank_image(*preprocess.shape[:2], preprocess)
    canvas[: size[0], : size[1]] = image
    fitted = example | {"image": canvas, "size": np.array(size, np.int32)}
    if "boxes" in example:
        boxes = example["boxes"] * factors[[1, 0, 1, 0]]
        fitted["boxes"] = clip_boxes(boxes, *size)  # rounding may lead beyond it
    else:
        mask = np.full(preprocess.shape[:2], IGNORED, np.uint8)
        mask[: size[0], : size[1]] = resize_mask(example["mask"], size)
        fitted["mask"] = mask
    return fitted


def mean_color(preprocess: Preprocess) -> np.ndarray:
    """Returns the colour that the network's input has around 0: uint8 [channels]."""
    return np.rint(np.multiply(preprocess.mean, 255)).clip(0, 255).astype(np.uint8)


def blank_image(height: int, width: int, preprocess: Preprocess) -> np.ndarray:
    """Returns an image uint8 [height, width, channels] of the mean colour alone."""
    # Whole rows are copied several times faster than pixels are.
    row = np.tile(mean_color(preprocess), width)
    return np.tile(row, (height, 1)).reshape(height, width, -1)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask [h, w] to height and width by the nearest pixel."""
    resized = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def pad_boxes(example: Example, max_boxes: int, provenance: str) -> Example:
    """Brings the objects of an example to a fixed number.

    Args:
      example: With `boxes` [n, 4], `classes` [n] and `difficult` [n].
      max_boxes: Number of slots.
      provenance: What to call the example in errors.

    Returns:
      The example with `max_boxes` of each, zero where there is no object, and
      `box_valid` bool [max_boxes].

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
    scaled = scaled_size(*example["mask"].shape, preprocess.resize or size)
    mask = resize_mask(example["mask"], scaled)[..., None]
    return example | {
        "image": fit_image(example["image"], preprocess),
        "mask": crop_centre(mask, size, size)[..., 0],
        "size": np.array([size, size], np.int32),
    }


class FittedSource(Source):
    """A source of examples of the shapes that a network takes; see `fit_source`."""

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
        """The shape and the type of each array of an example."""
        return fitted_shapes(self.task, self.preprocess, self.max_boxes)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, fit_example)

    def read(self, index: int, fit: Fit) -> Example:
        """Returns one example that another function than `fit_example` fits."""
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

    def image(self, index: int) -> np.ndarray:
        return self[index]["image"]

    def provenance(self, index: int) -> str:
        return self.source.provenance(index)

    def identity(self, index: int) -> str:
        return self.source.identity(index)

    def objects(self, index: int) -> Objects | None:
        return self.source.objects(index)

    def check_channels(self, image: np.ndarray, index: int) -> None:
        """Raises ValueError unless an image is grey or RGB as the network takes it."""
        found, wanted = image.shape[-1], self.preprocess.channels
        if found != wanted:
            color = {1: "grey", 3: "rgb"}[wanted]
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
    """Fits the images of a source to a network, and what they show with them.

    Args:
      source: The images.
      preprocess: What the network takes.
      on_bad_image: "stop" raises `BadImage` when a bad image is met; "skip" looks for
        bad images now and leaves them out, see `skip_bad_images`.
      max_boxes: Of detection: number of slots for the objects of an image; an image
        with more is an error.

    Returns:
      A source of examples of fixed shapes, see `fit_example` and `pad_boxes`, with
      `original_size` int32 [2], the image's own height and width, beside `size`. One
      that was made for the same `preprocess` is fitted only once.

    Raises:
      ValueError: `on_bad_image` is unknown, or `source` fits another network.
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
    """Leaves out the images that cannot be read, after reading every one of them.

    Knowing them beforehand keeps the number of steps in an epoch exact and counts
    every good image once in an evaluation. Their number and files are logged.

    Args:
      source: The images.

    Returns:
      The readable examples; `source` itself if that is all of them.

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
    logger.warning(
        "%s %s: %d of %d images are left out:\n%s",
        source.name,
        source.split,
        len(bad),
        len(source),
        "\n".join(bad),
    )
    if source.task == "verification":
        raise ValueError(
            f"{source.name} {source.split}: {len(bad)} of {len(source)} images cannot "
            f"be read, and pairs of faces need all of them; the first: {bad[0]}"
        )
    return Subset(source, np.flatnonzero([r is None for r in reasons]))


def load_resident(
    source: Source, preprocess: Preprocess, *, max_boxes: int = MAX_BOXES
) -> dict[str, np.ndarray]:
    """Reads a whole source into memory.

    Args:
      source: The examples.
      preprocess: What the network takes.
      max_boxes: See `fit_source`.

    Returns:
      What a batch has (see `train.data.pipeline`) without `index`, [N, ..] each.
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
    """Returns how many bytes `load_resident` takes, without reading an image."""
    shapes = fit_source(source, preprocess, max_boxes=max_boxes).shapes
    bytes_each = sum(
        math.prod(shape) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in shapes.items()
        if name != "index"
    )
    return len(source) * bytes_each
