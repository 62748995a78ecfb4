"""Examples of fixed shapes: what a network takes, whatever the image's size."""

import numpy as np
from PIL import Image

from train.data.masks import IGNORED
from train.data.objects import clip_boxes
from train.data.source import Example
from zoo.fitting import fit_sides
from zoo.preprocess import crop_centre, fit_image, scaled_size
from zoo.spec import Preprocess

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
