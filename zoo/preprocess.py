"""From a uint8 image to a network's input."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.layers import per_channel
from zoo.spec import Preprocess

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {1: "L", 3: "RGB"}


def fit_image(image: np.ndarray | Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resizes the shorter side with Pillow's antialiased filter and crops the centre.

    An image whose shorter side has that length is not resampled.

    Args:
      image: uint8 [h, w, channels], or a Pillow image of mode "L" or "RGB".
      preprocess: What the network takes.

    Returns:
      uint8 [size, size, channels].

    Raises:
      ValueError: The image is of another type, or has another number of channels than
        the network takes.
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
    if array.shape[-1] != preprocess.channels:
        raise ValueError(
            f"the image has {array.shape[-1]} channel(s), and the network takes "
            f"{preprocess.channels} ({MODES.get(preprocess.channels, '?')}). Convert "
            "it, or adapt the network with zoo.transfer.change_input_channels."
        )
    size, shorter = preprocess.size, preprocess.resize or preprocess.size
    height, width = array.shape[:2]
    if min(height, width) != shorter:
        # The longer side is truncated, as in torchvision's reference transform.
        target = (
            (shorter, int(shorter * height / width))
            if width <= height
            else (int(shorter * width / height), shorter)
        )
        pil = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        pil = pil.resize(target, _FILTERS[preprocess.interpolation])
        array = np.asarray(pil).reshape(*pil.size[::-1], preprocess.channels)
    top = round((array.shape[0] - size) / 2)
    left = round((array.shape[1] - size) / 2)
    return array[top : top + size, left : left + size]


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
