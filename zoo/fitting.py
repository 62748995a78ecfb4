"""Whole images as a network's input, without cutting: detection and segmentation.

`fit_sides` is for one image on the host, `fit_batch` for many on the device, and
`scale_boxes` takes boxes along, there and back.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.ops.resize_within import MAX_SIDE, resize_within, scale_sides
from zoo.preprocess import check_batch, check_image, normalize, resize_image
from zoo.spec import Preprocess

# Of the sides of a canvas, in pixels, where borders are added to images.
CANVAS_STEP = 32


class FittedBatch(NamedTuple):
    """A detector's input.

    Attributes:
      images: float32 [B, H, W, channels], normalised; zeros where no image is.
      sizes: int32 [B, 2], height and width in pixels of what each image fills of it,
        from the upper left corner on.
    """

    images: jax.Array
    sizes: jax.Array


def fit_sides(
    image: np.ndarray | Image.Image,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a whole image, as `preprocess.fit` says; `fit_image` cuts off borders.

    Args:
      image: uint8 [h, w, channels], or a Pillow image of mode "L" or "RGB".
      preprocess: What the network takes: "stretch", "sides" or "keep".
      canvas: See `fitted_size`.

    Returns:
      uint8 [H, W, channels] without added borders, and its height and width divided by
      the image's, float32 [2]: the factors for y and x of boxes.

    Raises:
      ValueError: See `fit_image` and `fitted_size`.
    """
    array = check_image(image, preprocess)
    size = array.shape[:2]
    target = fitted_size(*size, preprocess, canvas=canvas)
    shrinks = target[0] < size[0] or target[1] < size[1]
    if shrinks and not preprocess.antialias:
        fitted = _interpolate(array, target)
    else:
        fitted = resize_image(array, target, preprocess.interpolation)
    return fitted, np.float32(target) / np.float32(size)


def pad_images(
    images: Sequence[np.ndarray | Image.Image], *, step: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Puts images of several sizes into one array, for `fit_batch` and detectors.

    Args:
      images: uint8 [h, w, channels] or Pillow images, with channels as many in all.
      step: Height and width of the array are multiples of it, in pixels: few shapes,
        for each of which is compiled, serve many sizes.

    Returns:
      uint8 [B, H, W, channels], each image in its upper left corner and zeros
      elsewhere, and the images' sizes, int32 [B, 2].

    Raises:
      ValueError: There is no image, or their types or channels differ.
    """
    images = [np.asarray(image) for image in images]
    images = [image[..., None] if image.ndim == 2 else image for image in images]
    if not images or step < 1:
        raise ValueError(
            f"pad_images takes images and a step of 1 or more, got {len(images)} "
            f"images and step={step}."
        )
    for i, image in enumerate(images):
        alike = image.ndim == 3 and image.shape[2:] == images[0].shape[2:]
        if image.dtype != np.uint8 or not alike or not image.size:
            raise ValueError(
                "images must be uint8 [h, w, channels] with channels as many in all "
                f"({images[0].shape[-1]} in the first), got {image.dtype} "
                f"{list(image.shape)} for images[{i}]."
            )
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    height, width = -(-sizes.max(axis=0) // step) * step
    out = np.zeros((len(images), height, width, images[0].shape[2]), np.uint8)
    for image, place in zip(images, out, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return out, sizes


def fit_batch(
    images: jax.Array,
    preprocess: Preprocess,
    sizes: jax.Array | None = None,
    *,
    canvas: tuple[int, int] | None = None,
    shrink: bool = True,
) -> FittedBatch:
    """Normalises and resizes whole images on the device, each from its own size.

    It is one for `jit`, which compiles it for each shape of the arrays, whatever the
    sizes. Images are normalised first, as torchvision's detectors do it, so that
    borders are 0; and resized pixels are not rounded as those of `fit_sides` are.

    Args:
      images: uint8 [B, h, w, channels].
      preprocess: What the network takes: "stretch", "sides" or "keep".
      sizes: int [B, 2], height and width in pixels of what each image fills of its
        array, from the upper left corner on; they are limited to 1 and the array's.
        None where all fill all of it.
      canvas: Height and width of the result, in pixels; `canvas_size` where None, of
        these sizes or, where they are traced, of any. With "sides", images for which it
        is too small are made smaller.
      shrink: Whether they are; False where the canvas is `canvas_size` of these sizes.

    Raises:
      ValueError: The images or the canvas are none that the network takes.
    """
    check_batch(images, preprocess)
    array_size, limit = images.shape[1:3], canvas if shrink else None
    canvas = canvas_size(*array_size, preprocess, canvas=canvas, sizes=sizes)
    images = normalize(images, preprocess)
    fitted = fitted_size(*array_size, preprocess, canvas=limit)
    if sizes is None and fitted == array_size:
        filled = jnp.broadcast_to(np.int32(array_size), (images.shape[0], 2))
        return FittedBatch(_add_borders(images, canvas), filled)

    def fit_one(image: jax.Array, size: jax.Array) -> FittedBatch:
        if preprocess.fit == "keep":
            rows, columns = (jnp.arange(n) < size[i] for i, n in enumerate(array_size))
            inside = (rows[:, None] & columns[None])[..., None]
            return FittedBatch(_add_borders(jnp.where(inside, image, 0), canvas), size)
        target = jnp.asarray(canvas, jnp.int32)
        if preprocess.fit == "sides":
            target = scale_sides(size, _limits(*size, preprocess, limit))
        antialias = preprocess.antialias
        image = resize_within(image, size, target, canvas, antialias=antialias)
        return FittedBatch(image, target)

    if sizes is None:
        size = jnp.asarray(array_size, jnp.int32)
        return jax.vmap(fit_one, in_axes=(0, None))(images, size)
    sizes = jnp.clip(jnp.asarray(sizes, jnp.int32), 1, np.int32(array_size)[None])
    return jax.vmap(fit_one)(images, sizes)


def fitted_size(
    height: int,
    width: int,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Returns height and width of a whole image once it is fitted, without borders.

    Args:
      height: Of the image, in pixels.
      width: Of the image, in pixels.
      preprocess: What the network takes: "stretch", "sides" or "keep".
      canvas: With "sides", height and width in pixels that an image must not exceed:
        its scale is reduced where it would.

    Raises:
      ValueError: The preprocessing is none of whole images.
    """
    if preprocess.fit == "crop" or preprocess.interpolation != "bilinear":
        raise ValueError(
            "whole images are fitted by fit='stretch', 'sides' or 'keep' and "
            f"interpolation='bilinear', got {preprocess}."
        )
    if preprocess.fit == "stretch":
        return preprocess.shape[:2]
    if preprocess.fit == "keep":
        return height, width
    # In torchvision's order of operations, whose rounding may cost a pixel.
    scale = min(m / n for m, n in _limits(height, width, preprocess, canvas))
    return max(1, int(height * scale)), max(1, int(width * scale))


def canvas_size(
    height: int,
    width: int,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
    sizes: jax.Array | None = None,
) -> tuple[int, int]:
    """Returns height and width of a network's input for arrays of a height and width.

    They are what "stretch" says. Otherwise, where the canvas is None, they are the
    largest height and the largest width of the fitted images, rounded up to a multiple
    of 32 as in torchvision: no image is made smaller because of the others.

    Args:
      height: Of the arrays, in pixels.
      width: Of the arrays, in pixels.
      preprocess: What the network takes: "stretch", "sides" or "keep".
      canvas: What was chosen, and is checked; None for what is needed.
      sizes: int [B, 2], see `fit_batch`; None where images fill their arrays. Where
        they are traced, with "sides" the canvas is a square of the longest side.

    Raises:
      ValueError: The canvas is too small or too large, or not what "stretch" says.
    """
    if preprocess.fit == "sides" and max(height, width) > MAX_SIDE:
        raise ValueError(
            f"images of {height} x {width} pixels: at most {MAX_SIDE} a side."
        )
    least = fitted_size(height, width, preprocess)
    if canvas is None:
        if preprocess.fit == "sides" and isinstance(sizes, jax.core.Tracer):
            least = (preprocess.longest,) * 2
        elif preprocess.fit == "sides" and sizes is not None:
            shapes = np.clip(np.asarray(sizes).reshape(-1, 2), 1, (height, width))
            fitted = []
            for h, w in map(tuple, shapes.tolist()):
                # As exact as on the device, where no rounding costs a pixel.
                scale = min(Fraction(m, n) for m, n in _limits(h, w, preprocess, None))
                fitted.append([int(h * scale), int(w * scale)])
            least = tuple(map(max, zip(*fitted, strict=True)))
        step = 1 if preprocess.fit == "stretch" else CANVAS_STEP
        return tuple(-(-side // step) * step for side in least)
    expected = {
        "stretch": canvas == least,
        "keep": canvas[0] >= height and canvas[1] >= width,
        "sides": min(canvas) >= 1 and max(canvas) <= MAX_SIDE,
    }
    if not expected[preprocess.fit]:
        raise ValueError(
            f"canvas={canvas}: with fit={preprocess.fit!r}, images in arrays of "
            f"{height} x {width} pixels become {least[0]} x {least[1]}."
        )
    return canvas


def scale_boxes(boxes: jax.Array, size: jax.Array, target: jax.Array) -> jax.Array:
    """Maps boxes from an image of one size to the same image of another size.

    Args:
      boxes: float32 [..., N, 4], xyxy in pixels.
      size: int [..., 2], the image's height and width.
      target: int [..., 2], those of the other.

    Returns:
      float32 [..., N, 4].
    """
    factors = target.astype(np.float32) / size.astype(np.float32)
    return boxes * factors[..., None, (1, 0, 1, 0)]


def _limits(height, width, preprocess: Preprocess, canvas) -> list[tuple]:
    """The fractions of which "sides" takes the smallest; of Python or jax numbers."""
    lower = min if isinstance(height, int) else jnp.minimum
    upper = max if isinstance(height, int) else jnp.maximum
    limits = [
        (preprocess.resize, lower(height, width)),
        (preprocess.longest, upper(height, width)),
    ]
    return limits + ([(canvas[0], height), (canvas[1], width)] if canvas else [])


def _interpolate(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, C] as PyTorch does: pixels between outputs are skipped."""
    image = image.astype(np.float32)
    for axis in (0, 1):
        length, target = image.shape[axis], size[axis]
        places = (np.arange(target) + 0.5) * (length / target) - 0.5
        places = places.clip(0, length - 1)
        first = places.astype(int)
        second = np.minimum(first + 1, length - 1)
        share = np.float32(places - first).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        near, far = image.take(first, axis), image.take(second, axis)
        image = near + (far - near) * share
    return np.rint(image).astype(np.uint8)


def _add_borders(images: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    rest = [(0, 0)] * images.ndim
    for axis in (0, 1):
        rest[axis - 3] = (0, canvas[axis] - images.shape[axis - 3])
    return jnp.pad(images, rest)
