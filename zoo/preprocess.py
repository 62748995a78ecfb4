"""From uint8 images of any size to a network's input.

`Preprocess.fit` names one of four ways to bring an image to the size of the input:

- "crop": resize the shorter side and crop the center. `resize_center_crop` does it for
  an image on the host, `resize_center_crop_batch` for a batch on the device.
- "stretch": resize to the size of the input.
- "sides": resize the shorter side, and limit the longer one.
- "keep": do not resize.

The last three keep the whole image. `resize_shortest_edge` does them for an image on
the host. `resize_and_pad` does them for a batch on the device, and pads images to one
size with zeros at the bottom and on the right.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.layers import per_channel
from zoo.ops.resize import MAX_SIDE, resize, resize_padded, scale_size
from zoo.spec import Preprocess

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {1: "L", 3: "RGB"}
# Padded inputs have sides that are multiples of this number of pixels.
CANVAS_STEP = 32


class PaddedBatch(NamedTuple):
    """A batch of preprocessed images of several sizes.

    Attributes:
      images: float32 [B, H, W, channels], normalized; padded with zeros.
      sizes: int32 [B, 2], height and width of each image within [H, W] in pixels,
        starting at the upper left corner.
    """

    images: jax.Array
    sizes: jax.Array


def normalize(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Scales uint8 images to the range of the network's input.

    Args:
      images: uint8 [..., H, W, channels].
      preprocess: The preprocessing of the network.

    Returns:
      float32 [..., H, W, channels], `(images / 255 - mean) / std`, with the channels in
      the order that the network takes.

    Raises:
      ValueError: The images have another number of channels than the network takes.
    """
    _check_channels(images.shape, preprocess)
    mean = per_channel(jnp.asarray(preprocess.mean, jnp.float32), images)
    std = per_channel(jnp.asarray(preprocess.std, jnp.float32), images)
    images = (images.astype(jnp.float32) / 255 - mean) / std
    return images[..., ::-1] if preprocess.channel_order == "bgr" else images


def resize_center_crop(
    image: np.ndarray | Image.Image, preprocess: Preprocess
) -> np.ndarray:
    """Resizes the shorter side with Pillow's antialiased filter and crops the center.

    The result equals that of torchvision's reference transform. An image whose shorter
    side has the right length is not resampled.

    Args:
      image: uint8 [h, w, channels], or a Pillow image of mode "L" or "RGB".
      preprocess: The preprocessing of the network.

    Returns:
      uint8 [size, size, channels].

    Raises:
      ValueError: The image has another type, or another number of channels than the
        network takes.
    """
    array = check_image(image, preprocess)
    size, shortest = preprocess.size, preprocess.resize or preprocess.size
    target = shortest_edge_size(*array.shape[:2], shortest)
    array = resize_image(array, target, preprocess.interpolation)
    return center_crop(array, size, size)


def resize_center_crop_batch(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Resizes and crops images of one size on the device, as `resize_center_crop`.

    Under `jit` it is compiled for each size of images. The pixels equal those of
    `resize_center_crop`, or differ by one level with versions of Pillow before 13,
    which resize the width first (by several levels with "bicubic" on noise).

    Args:
      images: uint8 [B, h, w, channels].
      preprocess: The preprocessing of the network.

    Returns:
      uint8 [B, size, size, channels].

    Raises:
      ValueError: The images have another type, or another number of channels than the
        network takes.
    """
    check_batch(images, preprocess)
    size, shortest = preprocess.size, preprocess.resize or preprocess.size
    target = shortest_edge_size(*images.shape[1:3], shortest)
    images = resize(images, target, preprocess.interpolation, antialias=True)
    return center_crop(images, size, size)


def resize_shortest_edge(
    image: np.ndarray | Image.Image,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a whole image, as `preprocess.fit` states.

    Args:
      image: uint8 [h, w, channels], or a Pillow image of mode "L" or "RGB".
      preprocess: The preprocessing of the network, with "stretch", "sides" or "keep".
      canvas: See `resized_size`.

    Returns:
      uint8 [H, W, channels] without padding, and its height and width divided by those
      of the image, float32 [2], the factors of y and x of boxes.

    Raises:
      ValueError: See `resize_center_crop` and `resized_size`.
    """
    array = check_image(image, preprocess)
    size = array.shape[:2]
    target = resized_size(*size, preprocess, canvas=canvas)
    shrinks = target[0] < size[0] or target[1] < size[1]
    if shrinks and not preprocess.antialias:
        resized = _resize_without_antialias(array, target)
    else:
        resized = resize_image(array, target, preprocess.interpolation)
    return resized, np.float32(target) / np.float32(size)


def pad_images(
    images: Sequence[np.ndarray | Image.Image], *, step: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Pads images of several sizes to one array, for `resize_and_pad` and detectors.

    Args:
      images: uint8 [h, w, channels] or Pillow images with the same number of channels.
      step: Height and width of the array are multiples of this number of pixels, so
        that functions are compiled for few shapes.

    Returns:
      uint8 [B, H, W, channels], with each image at the upper left corner and zeros
      elsewhere, and the sizes of the images, int32 [B, 2].

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
    for image, padded in zip(images, out, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    return out, sizes


def resize_and_pad(
    images: jax.Array,
    preprocess: Preprocess,
    sizes: jax.Array | None = None,
    *,
    canvas: tuple[int, int] | None = None,
    shrink: bool = True,
) -> PaddedBatch:
    """Normalizes, resizes and pads a batch of whole images on the device.

    Under `jit` it is compiled for each shape of the arrays, whatever the sizes of the
    images. Images are normalized first, as in torchvision's detectors, so that the
    padding is 0 and resized pixels are not rounded as in `resize_shortest_edge`.

    Args:
      images: uint8 [B, h, w, channels].
      preprocess: The preprocessing of the network, with "stretch", "sides" or "keep".
      sizes: int [B, 2], height and width of each image within its array in pixels,
        starting at the upper left corner; clipped to between 1 and the size of the
        array. None if all images fill their arrays.
      canvas: Height and width of the result in pixels; None for `canvas_size` of these
        sizes or, if they are traced, of any. With "sides", larger images are shrunk.
      shrink: Whether images that exceed the canvas are shrunk; False if the canvas is
        `canvas_size` of these sizes.

    Raises:
      ValueError: The network does not take these images or this canvas.
    """
    check_batch(images, preprocess)
    array_size, limit = images.shape[1:3], canvas if shrink else None
    canvas = canvas_size(*array_size, preprocess, canvas=canvas, sizes=sizes)
    images = normalize(images, preprocess)
    resized = resized_size(*array_size, preprocess, canvas=limit)
    if sizes is None and resized == array_size:
        sizes = jnp.broadcast_to(np.int32(array_size), (images.shape[0], 2))
        return PaddedBatch(_pad(images, canvas), sizes)

    def resize_one(image: jax.Array, size: jax.Array) -> PaddedBatch:
        if preprocess.fit == "keep":
            rows, columns = (jnp.arange(n) < size[i] for i, n in enumerate(array_size))
            inside = (rows[:, None] & columns[None])[..., None]
            return PaddedBatch(_pad(jnp.where(inside, image, 0), canvas), size)
        target = jnp.asarray(canvas, jnp.int32)
        if preprocess.fit == "sides":
            target = scale_size(size, _scales(*size, preprocess, limit))
        antialias = preprocess.antialias
        image = resize_padded(image, size, target, canvas, antialias=antialias)
        return PaddedBatch(image, target)

    if sizes is None:
        size = jnp.asarray(array_size, jnp.int32)
        return jax.vmap(resize_one, in_axes=(0, None))(images, size)
    sizes = jnp.clip(jnp.asarray(sizes, jnp.int32), 1, np.int32(array_size)[None])
    return jax.vmap(resize_one)(images, sizes)


def resized_size(
    height: int,
    width: int,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Returns height and width of a whole image after resizing, without padding.

    Args:
      height: Height of the image, in pixels.
      width: Width of the image, in pixels.
      preprocess: The preprocessing of the network, with "stretch", "sides" or "keep".
      canvas: With "sides", the maximum height and width of the result, in pixels.

    Raises:
      ValueError: The preprocessing does not keep whole images.
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
    scale = min(m / n for m, n in _scales(height, width, preprocess, canvas))
    return max(1, int(height * scale)), max(1, int(width * scale))


def canvas_size(
    height: int,
    width: int,
    preprocess: Preprocess,
    *,
    canvas: tuple[int, int] | None = None,
    sizes: jax.Array | None = None,
) -> tuple[int, int]:
    """Returns height and width of a network's input for arrays of a given size.

    With "stretch" it is the size of the input. Otherwise, if the canvas is None, it is
    the largest height and the largest width of the resized images, rounded up to a
    multiple of 32 as in torchvision, so that no image is shrunk because of the others.

    Args:
      height: Height of the arrays, in pixels.
      width: Width of the arrays, in pixels.
      preprocess: The preprocessing of the network, with "stretch", "sides" or "keep".
      canvas: A canvas to check and return; None to compute it.
      sizes: int [B, 2], see `resize_and_pad`; None if images fill their arrays. If they
        are traced, the canvas with "sides" is a square of the maximum longer side.

    Raises:
      ValueError: The canvas is too small or too large, or not the input's size with
        "stretch".
    """
    if preprocess.fit == "sides" and max(height, width) > MAX_SIDE:
        raise ValueError(
            f"images of {height} x {width} pixels: at most {MAX_SIDE} a side."
        )
    least = resized_size(height, width, preprocess)
    canvas = None if canvas is None else tuple(canvas)
    if canvas is None:
        if preprocess.fit == "sides" and isinstance(sizes, jax.core.Tracer):
            least = (preprocess.longest,) * 2
        elif preprocess.fit == "sides" and sizes is not None:
            shapes = np.clip(np.asarray(sizes).reshape(-1, 2), 1, (height, width))
            resized = []
            for h, w in map(tuple, shapes.tolist()):
                # Exact, as on the device, where rounding does not cost a pixel.
                scale = min(Fraction(m, n) for m, n in _scales(h, w, preprocess, None))
                resized.append([int(h * scale), int(w * scale)])
            least = tuple(map(max, zip(*resized, strict=True)))
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


def resize_boxes(boxes: jax.Array, size: jax.Array, target: jax.Array) -> jax.Array:
    """Maps boxes from an image of one size to the same image of another size.

    Args:
      boxes: float32 [..., N, 4], xyxy in pixels.
      size: int [..., 2], height and width of the image.
      target: int [..., 2], height and width of the resized image.

    Returns:
      float32 [..., N, 4].
    """
    factors = target.astype(np.float32) / size.astype(np.float32)
    return boxes * factors[..., None, (1, 0, 1, 0)]


def shortest_edge_size(height: int, width: int, shortest: int) -> tuple[int, int]:
    """Returns height and width of an image whose shorter side is resized to a length.

    The longer side is truncated, as in torchvision's reference transform.
    """
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


def resize_image(
    image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resizes an image uint8 [h, w, 1 or 3] to a height and width with Pillow."""
    if image.shape[:2] == size:
        return image
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pil = pil.resize(size[::-1], _FILTERS[interpolation])
    return np.asarray(pil).reshape(*size, image.shape[-1])


def center_crop(images: jax.Array, height: int, width: int) -> jax.Array:
    """Crops the center of images [..., h, w, C], which must be at least as large."""
    top = round((images.shape[-3] - height) / 2)
    left = round((images.shape[-2] - width) / 2)
    return images[..., top : top + height, left : left + width, :]


def check_image(image: np.ndarray | Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Returns an image as uint8 [h, w, channels].

    Raises:
      ValueError: See `resize_center_crop`.
    """
    if isinstance(image, Image.Image) and image.mode not in MODES.values():
        raise ValueError(
            f"a Pillow image must be of mode 'L' or 'RGB', got {image.mode!r}; call "
            "its convert method."
        )
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3:
        raise ValueError(
            f"an image must be uint8 [h, w, channels], got {array.dtype} "
            f"{list(array.shape)}."
        )
    if not array.size:
        raise ValueError(f"an image has no pixels: {list(array.shape)}.")
    _check_channels(array.shape, preprocess)
    return array


def check_batch(images: jax.Array, preprocess: Preprocess) -> None:
    """Raises unless images are uint8 [B, h, w, channels].

    Raises:
      ValueError: See `resize_center_crop_batch`.
    """
    if not hasattr(images, "dtype") or not hasattr(images, "shape"):
        count = f" of {len(images)}" if isinstance(images, list | tuple) else ""
        raise ValueError(
            "images must be one array uint8 [B, h, w, channels], got "
            f"{type(images).__name__}{count}; np.stack joins images of one size, and "
            "zoo.pad_images those of several."
        )
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 [B, h, w, channels], got {images.dtype} "
            f"{list(images.shape)}."
        )
    # Symbolic sizes are not compared.
    if any(isinstance(side, int) and side == 0 for side in images.shape):
        raise ValueError(f"there are no images, or no pixels: {list(images.shape)}.")
    _check_channels(images.shape, preprocess)


def _check_channels(shape: tuple[int, ...], preprocess: Preprocess) -> None:
    if shape[-1] != preprocess.channels:
        raise ValueError(
            f"the image has {shape[-1]} channel(s), and the network takes "
            f"{preprocess.channels} ({MODES.get(preprocess.channels, '?')}). Convert "
            "it, or adapt the network with zoo.transfer.change_input_channels."
        )


def _scales(height, width, preprocess: Preprocess, canvas) -> list[tuple]:
    """Returns candidate scales as fractions; "sides" uses the smallest one.

    Height and width are Python or jax integers.
    """
    lower = min if isinstance(height, int) else jnp.minimum
    upper = max if isinstance(height, int) else jnp.maximum
    scales = [
        (preprocess.resize, lower(height, width)),
        (preprocess.longest, upper(height, width)),
    ]
    return scales + ([(canvas[0], height), (canvas[1], width)] if canvas else [])


def _resize_without_antialias(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 [h, w, C] bilinearly as PyTorch does without antialiasing."""
    image = image.astype(np.float32)
    for axis in (0, 1):
        length, target = image.shape[axis], size[axis]
        places = (np.arange(target) + 0.5) * (length / target) - 0.5
        places = places.clip(0, length - 1)
        first = places.astype(int)
        second = np.minimum(first + 1, length - 1)
        weight = np.float32(places - first).reshape(
            (-1, 1, 1) if axis == 0 else (-1, 1)
        )
        near, far = image.take(first, axis), image.take(second, axis)
        image = near + (far - near) * weight
    return np.rint(image).astype(np.uint8)


def _pad(images: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    padding = [(0, 0)] * images.ndim
    for axis in (-3, -2):
        padding[axis] = (0, canvas[axis + 3] - images.shape[axis])
    return jnp.pad(images, padding)
