"""Random transforms of images with their boxes or masks, on the host.

Each is a pure function of an example and of random numbers that depend only on the
seed, the step and the image's index, like those of `train.data.crops`, so that training
is the same with any number of workers and after a restart. Most transforms crop a
window, which may extend beyond the image: there the result has the network's mean
color, and its mask is ignored. An object is kept if the center of its box is in the
window, to which the box is clipped.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from train.data.annotations import IGNORED, clip_boxes, has_area
from train.data.preprocess import blank_image, mean_color, resize_mask
from train.data.rng import RandomStream
from train.data.source import Example
from zoo.decode import MAX_PIXELS
from zoo.metrics.detection import overlaps
from zoo.ops.augment import parse_call
from zoo.preprocess import resize_image
from zoo.spec import Preprocess

Geometry = Callable[[Example, int, int], Example]

# The minimal IoUs that `iou_crop` chooses from; None leaves the image whole.
MIN_IOUS = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
ATTEMPTS = 50  # windows that `iou_crop` draws for each minimal IoU
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def cut(example: Example, window: Sequence[int], preprocess: Preprocess) -> Example:
    """Crops a window of an example, which may extend beyond its image.

    Args:
      example: An example with an image, and boxes or a mask.
      window: The top, left, height and width in pixels.
      preprocess: The preprocessing of the network's input; its mean color fills the
        outside.

    Returns:
      The cropped example. An object is kept if the center of its box is in the window,
      to which the box is clipped.
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
    """Returns the overlap of [start, start + length) and [0, of), relative to each."""
    first, last = max(start, 0), max(min(start + length, of), 0)
    first = min(first, last)
    return slice(first - start, last - start), slice(first, last)


def keep_boxes(example: Example, boxes: np.ndarray, height: int, width: int) -> Example:
    """Sets new boxes [n, 4], and keeps the objects with their center in the image.

    Boxes are clipped to the image's new height and width.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < np.array([width, height]))).all(1)
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
    # Rounding may move a box beyond the image.
    boxes = clip_boxes(example["boxes"] * factors, *size)
    return example | {"image": image, "boxes": boxes}


def mirror(example: Example) -> Example:
    """Flips an example horizontally."""
    flipped = example | {"image": example["image"][:, ::-1]}
    if "mask" in example:
        flipped["mask"] = example["mask"][:, ::-1]
    else:
        x1, y1, x2, y2 = example["boxes"].T
        width = np.float32(example["image"].shape[1])
        flipped["boxes"] = np.stack([width - x2, y1, width - x1, y2], axis=-1)
    return flipped


def flip(
    rng: RandomStream, example: Example, preprocess: Preprocess, *, p: float = 0.5
) -> Example:
    """Flips an example horizontally with probability `p`."""
    del preprocess
    _check("flip", 0 <= p <= 1, f"p={p}", "0 to 1")
    if rng.uniform() >= p:
        return example
    return mirror(example)


def zoom_out(
    rng: RandomStream,
    example: Example,
    preprocess: Preprocess,
    max_pixels: int = MAX_PIXELS,
    *,
    most: float = 4,
    p: float = 0.5,
) -> Example:
    """Places the image on a larger canvas, with probability `p`.

    The canvas has 1 to `most` times the image's height and width. If it would have more
    than `max_pixels`, the image is resized first.

    Reference: Liu et al., SSD: Single Shot MultiBox Detector, 2016, section 3.6.
    """
    _check("zoom_out", most >= 1 and 0 <= p <= 1, f"most={most}, p={p}", ">= 1, 0 to 1")
    if rng.uniform() >= p:
        return example
    ratio = rng.uniform(1, most)
    height, width = example["image"].shape[:2]
    # By default the canvas is never larger than the largest image that is decoded.
    scale = math.sqrt(max_pixels / (height * width)) / ratio
    if scale < 1:
        example = resize(example, scale, preprocess)
        height, width = example["image"].shape[:2]
    tall, wide = int(height * ratio), int(width * ratio)
    top, left = rng.integer(0, tall - height), rng.integer(0, wide - width)
    return cut(example, (-top, -left, tall, wide), preprocess)


def iou_crop(
    rng: RandomStream,
    example: Example,
    preprocess: Preprocess,
    min_ious: Sequence[float | None] = MIN_IOUS,
) -> Example:
    """Crops a window that has a minimal IoU with some object.

    One of `min_ious` is chosen at random: None is the whole image, 0 any window, and
    0.1 a window with an IoU of at least 0.1 with some object. If none of `ATTEMPTS`
    windows reaches the IoU, another one is chosen. The geometric mean of a window's
    sides, relative to the image's, is 0.3 to 1, and its relative aspect ratio 1:2 to
    2:1. An image without objects is not changed.

    Reference: Liu et al., SSD: Single Shot MultiBox Detector, 2016, section 2.2, and
    its released code (`batch_sampler`).
    """
    if "boxes" not in example:
        raise ValueError("iou_crop is for detection: it looks at the boxes.")
    for overlap in np.array(min_ious, object)[rng.permutation(len(min_ious))]:
        windows = _draw_windows(rng, *example["image"].shape[:2])
        if overlap is None or not len(example["boxes"]):
            return example
        low, size = windows[:, 1::-1], windows[:, :1:-1]
        parts = np.concatenate([low, low + size], axis=1)
        good = overlaps(parts, example["boxes"]).max(axis=1) >= overlap
        if good.any():
            return cut(example, windows[good.argmax()], preprocess)
    raise AssertionError("the image as it is was among the choices")


def jitter(
    rng: RandomStream, example: Example, preprocess: Preprocess, *, share: float = 0.2
) -> Example:
    """Moves each border in or out by up to a share of the side's length.

    Reference: Redmon et al., You Only Look Once, 2016, section 2.2, as darknet does it.
    """
    _check("jitter", 0 <= share < 0.5, f"share={share}", "0 to 0.5")
    height, width = example["image"].shape[:2]
    moves = rng.uniform(-share, share, (4,)) * [height, width, height, width]
    top, left, bottom, right = np.rint(moves).astype(int)
    size = max(1, height - bottom - top), max(1, width - right - left)
    return cut(example, (top, left, *size), preprocess)


def translate(
    rng: RandomStream,
    example: Example,
    preprocess: Preprocess,
    *,
    share: float = 0.1,
    wide: float | None = None,
) -> Example:
    """Shifts by up to a share of height and width, in whole pixels.

    Args:
      rng: The random numbers.
      example: The example.
      preprocess: The preprocessing of the network's input.
      share: The largest vertical shift, as a share of the height.
      wide: The largest horizontal shift, as a share of the width; `share` if None.
    """
    wide = share if wide is None else wide
    good = 0 <= share <= 1 and 0 <= wide <= 1
    _check("translate", good, f"share={share}, wide={wide}", "0 to 1")
    height, width = example["image"].shape[:2]
    shares = rng.uniform(-1, 1, (2,)) * [share, wide]
    down, right = np.rint(shares * [height, width])
    return cut(example, (-int(down), -int(right), height, width), preprocess)


def scale_jitter(
    rng: RandomStream,
    example: Example,
    preprocess: Preprocess,
    *,
    least: float = 0.5,
    most: float = 2,
) -> Example:
    """Resizes by a uniform random factor; `random_crop` then gives the network's size.

    Reference: Zhao et al., Pyramid Scene Parsing Network, 2017, section 5.1.
    """
    _check("scale_jitter", 0 < least <= most, f"{least} to {most}", "0 < .. <= ..")
    return resize(example, rng.uniform(least, most), preprocess)


def random_crop(rng: RandomStream, example: Example, preprocess: Preprocess) -> Example:
    """Crops a window of the network's size; a smaller image is placed in it."""
    tall, wide, _ = preprocess.shape
    places = []
    for length, target in zip(example["image"].shape, (tall, wide), strict=False):
        place = rng.integer(0, abs(length - target))
        places.append(place if length > target else -place)
    return cut(example, (*places, tall, wide), preprocess)


def rotate(
    rng: RandomStream, example: Example, preprocess: Preprocess, *, degrees: float = 10
) -> Example:
    """Rotates about the center by a uniform angle in [-degrees, degrees].

    Images are interpolated, masks take the nearest pixel, and a box becomes the
    bounding box of its four rotated corners.
    """
    _check("rotate", 0 <= degrees <= 180, f"degrees={degrees}", "0 to 180")
    angle = rng.uniform(-degrees, degrees)
    image = example["image"]
    height, width, channels = image.shape
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    color = tuple(mean_color(preprocess).tolist())
    fill = color[0] if channels == 1 else color
    turned = pil.rotate(angle, _FILTERS[preprocess.interpolation], fillcolor=fill)
    example = example | {"image": np.asarray(turned).reshape(image.shape)}
    if "mask" in example:
        mask = Image.fromarray(example["mask"])
        mask = mask.rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORED)
        return example | {"mask": np.asarray(mask)}
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = example["boxes"][:, [0, 2, 0, 2]] - width / 2
    y = example["boxes"][:, [1, 1, 3, 3]] - height / 2
    # Counter-clockwise, with y pointing down.
    x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2
    boxes = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=-1)
    return keep_boxes(example, boxes.astype(np.float32), height, width)


GEOMETRY: dict[str, Callable] = {
    function.__name__: function
    for function in (
        flip,
        zoom_out,
        iou_crop,
        jitter,
        translate,
        scale_jitter,
        random_crop,
        rotate,
    )
}


class _Chain:
    """Transforms in sequence, each with random numbers of its own."""

    def __init__(self, names: Sequence[str], preprocess: Preprocess, seed: int):
        self._changes = [parse_call("geometry", name, GEOMETRY) for name in names]
        self._preprocess, self._seed = preprocess, seed

    def __call__(self, example: Example, step: int, index: int) -> Example:
        for i, change in enumerate(self._changes):
            rng = RandomStream((self._seed, step), (0, index + 1, i + 1))
            example = change(rng, example, self._preprocess)
        return example


def parse_geometry(
    names: Sequence[str], preprocess: Preprocess, *, task: str, seed: int
) -> Geometry:
    """Parses transforms with their options, such as ("zoom_out:4", "iou_crop", "flip").

    Args:
      names: The transforms in order; each is a name of `GEOMETRY`, followed by its
        options in order, each after a colon.
      preprocess: The preprocessing of the network's input.
      task: "detection" or "segmentation".
      seed: The seed of the training, 0 or more.

    Returns:
      A function from an example with an image of any size, the training step and the
      index of the image to the transformed example. It can be pickled.

    Raises:
      ValueError: A name is unknown, an option is invalid, or a transform is not for the
        task.
    """
    chain = _Chain(names, preprocess, seed)
    # Transforms check their options when they are called.
    example = {"image": np.zeros((2, 2, preprocess.channels), np.uint8)}
    if task == "segmentation":
        example["mask"] = np.zeros((2, 2), np.uint8)
    elif task == "detection":
        example["boxes"] = np.zeros((0, 4), np.float32)
        example["classes"], example["difficult"] = (
            np.zeros(0, np.int32),
            np.zeros(0, bool),
        )
    elif names:
        raise ValueError(
            f"geometry={tuple(names)} moves boxes or masks; for {task} there are crop "
            "and augment."
        )
    for step in range(8):  # some transforms are applied at random
        chain(example, step, 0) if names else None
    return chain


def _check(name: str, good: bool, found: str, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: {found}; expected {expected}.")


def _draw_windows(rng: RandomStream, height: int, width: int) -> np.ndarray:
    """Draws windows of an image, int [ATTEMPTS, 4]: top, left, height and width."""
    scale, ratio, down, right = rng.uniform(shape=(4, ATTEMPTS))
    scale = 0.3 + 0.7 * scale
    # No side may exceed the image's.
    low, high = np.maximum(0.5, scale**2), np.minimum(2, scale**-2)
    ratio = low + (high - low) * ratio
    tall = np.rint(height * scale / np.sqrt(ratio)).clip(1, height)
    wide = np.rint(width * scale * np.sqrt(ratio)).clip(1, width)
    top = np.floor(down * (height - tall + 1))
    left = np.floor(right * (width - wide + 1))
    return np.stack([top, left, tall, wide], axis=-1).astype(int)
