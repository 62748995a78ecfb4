"""From a uint8 image to a network's input."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.layers import per_channel
from zoo.ops.resize import resize
from zoo.spec import Preprocess

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {1: "L", 3: "RGB"}


def fit_image(image: np.ndarray | Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resizes the shorter side with Pillow's antialiased filter and crops the centre.

    It gives the pixels of torchvision's reference transform. An image whose shorter
    side has the right length is not resampled.

    Args:
      image: uint8 [h, w, channels], or a Pillow image of mode "L" or "RGB".
      preprocess: What the network takes.

    Returns:
      uint8 [size, size, channels].

    Raises:
      ValueError: The image is of another type, or has another number of channels than
        the network takes.
    """
    array = check_image(image, preprocess)
    size, shorter = preprocess.size, preprocess.resize or preprocess.size
    array = scale_image(array, shorter, preprocess.interpolation)
    return crop_centre(array, size, size)


def fit_images(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Does what `fit_image` does, on the device, to images of one size.

    It is one for `jit`, which compiles it for each size of images. The pixels are
    those of `fit_image`, or one level from them where Pillow before version 13 takes
    the width first (and with "bicubic", in noise, several levels).

    Args:
      images: uint8 [B, h, w, channels].
      preprocess: What the network takes.

    Returns:
      uint8 [B, size, size, channels].

    Raises:
      ValueError: The images are of another type, or have another number of channels
        than the network takes.
    """
    check_batch(images, preprocess)
    size, shorter = preprocess.size, preprocess.resize or preprocess.size
    target = scaled_size(*images.shape[1:3], shorter)
    images = resize(images, target, preprocess.interpolation, antialias=True)
    return crop_centre(images, size, size)


def check_image(image: np.ndarray | Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Returns an image as uint8 [h, w, channels], or raises where it is not one.

    Raises:
      ValueError: See `fit_image`.
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
    _check_channels(array.shape, preprocess)
    return array


def scaled_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns height and width of an image once its shorter side is `shorter` pixels.

    The longer side is truncated, as in torchvision's reference transform.
    """
    if width <= height:
        return int(shorter * height / width), shorter
    return shorter, int(shorter * width / height)


def scale_image(image: np.ndarray, shorter: int, interpolation: str) -> np.ndarray:
    """Resizes an image uint8 [h, w, 1 or 3], so that its shorter side has a length."""
    return resize_image(image, scaled_size(*image.shape[:2], shorter), interpolation)


def resize_image(
    image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resizes an image uint8 [h, w, 1 or 3] to height and width with Pillow."""
    if image.shape[:2] == size:
        return image
    pil = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pil = pil.resize(size[::-1], _FILTERS[interpolation])
    return np.asarray(pil).reshape(*size, image.shape[-1])


def crop_centre(images: jax.Array, height: int, width: int) -> jax.Array:
    """Cuts the centre out of images [..., h, w, C] that are at least as large."""
    top = round((images.shape[-3] - height) / 2)
    left = round((images.shape[-2] - width) / 2)
    return images[..., top : top + height, left : left + width, :]


def check_batch(images: jax.Array, preprocess: Preprocess) -> None:
    """Raises unless images are what `fit_images` takes.

    Raises:
      ValueError: See `fit_images`.
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
    _check_channels(images.shape, preprocess)


def _check_channels(shape: tuple[int, ...], preprocess: Preprocess) -> None:
    if shape[-1] != preprocess.channels:
        raise ValueError(
            f"the image has {shape[-1]} channel(s), and the network takes "
            f"{preprocess.channels} ({MODES.get(preprocess.channels, '?')}). Convert "
            "it, or adapt the network with zoo.transfer.change_input_channels."
        )


def normalize(images: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Scales uint8 images to the network's input range.

    Args:
      images: uint8 [..., H, W, channels].
      preprocess: What the network takes.

    Returns:
      float32 [..., H, W, channels], `(images / 255 - mean) / std`, in the order of
      channels that the network takes.
    """
    mean = per_channel(jnp.asarray(preprocess.mean, jnp.float32), images)
    std = per_channel(jnp.asarray(preprocess.std, jnp.float32), images)
    images = (images.astype(jnp.float32) / 255 - mean) / std
    return images[..., ::-1] if preprocess.channel_order == "bgr" else images
