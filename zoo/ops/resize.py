"""Resizing of images by the frameworks' own rules, as two matrix products.

The matrices follow from the sizes alone and are made in numpy, so that what is compiled
is two products: they run under `jit`, `vmap` and `grad`, and over a batch that is
spread over devices.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ("bilinear", "bicubic", "nearest")
# Of the fixed-point numbers in which Pillow weights pixels of 8 bits.
_FRACTION_BITS = 22


def resize(
    images: jax.Array,
    size: tuple[int, int],
    method: str = "bilinear",
    *,
    antialias: bool,
    align_corners: bool = False,
) -> jax.Array:
    """Resizes images by one of three rules.

    - `antialias=True` is Pillow's: where the image shrinks, the filter widens with the
      step between output pixels, and beyond the border its weights are spread over the
      rest. uint8 images are weighted in Pillow's fixed-point numbers and rounded
      after each direction, and the result is Pillow's to the bit. It is also PyTorch's
      `interpolate` with `antialias=True`.
    - `antialias=False` is PyTorch's `interpolate`, with `align_corners=False`: pixels
      between output pixels are skipped, and beyond the border its pixels repeat.
    - `antialias=False, align_corners=True` is Caffe's and PSPNet's: the corner pixels'
      centres stay where they are.

    The bicubic filter is Keys' with a = -0.5 in the first and a = -0.75 in the others.
    "nearest" takes the pixel in which the output pixel's centre lies, as Pillow does
    and PyTorch's "nearest-exact"; PyTorch's "nearest" is the same at whole factors.

    Args:
      images: [..., H, W, C], floating or uint8; of any type for "nearest".
      size: Height and width of the result, in pixels.
      method: "bilinear", "bicubic" or "nearest".
      antialias: Whether to average over what lies between output pixels; False for
        "nearest", which does not.
      align_corners: As above; False for "nearest".

    Returns:
      [..., size[0], size[1], C] of the images' type. Floating ones are computed in
      float32 or wider, and uint8 ones are rounded after the width and again after the
      height.

    Raises:
      ValueError: The images or an option are not as above.
    """
    images = jnp.asarray(images)
    _check(images, size, method, antialias, align_corners)
    dtype = images.dtype
    if method != "nearest" and dtype != np.uint8:
        images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    # As Pillow from version 13 on: the width, unless the height shrinks so much more.
    removed = [images.shape[-3] - size[0], images.shape[-2] - size[1]]
    height_first = removed[0] > max(0, 2 * removed[1])
    for axis in (-3, -2) if height_first else (-2, -3):
        length, target = images.shape[axis], size[axis + 3]
        # At equal sizes every rule leaves the pixels as they are.
        if length != target and method == "nearest":
            images = jnp.take(images, _nearest(length, target), axis)
        elif length != target:
            weights = (
                _antialiased(length, target, method)
                if antialias
                else _interpolated(length, target, method, align_corners)
            )
            images = _apply(images, weights, axis)
    return images.astype(dtype)


def _apply(images: jax.Array, weights: np.ndarray, axis: int) -> jax.Array:
    """Multiplies one axis of float32 or uint8 images by weights [target, length]."""
    product = "...wc,tw->...tc" if axis == -2 else "...hwc,th->...twc"
    if images.dtype != np.uint8:
        weights = jnp.asarray(weights, images.dtype)
        return jnp.einsum(product, images, weights, precision="highest")
    one = 1 << _FRACTION_BITS
    fixed = np.trunc(weights * one + np.copysign(0.5, weights)).astype(np.int32)
    x = jnp.einsum(product, images.astype(jnp.int32), fixed)
    x = (x + one // 2) >> _FRACTION_BITS
    return x.clip(0, 255).astype(jnp.uint8)


def _antialiased(length: int, target: int, method: str) -> np.ndarray:
    """Pillow's weights, float64 [target, length]."""
    step = length / target
    stretch = max(step, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * step
    places = (np.arange(length) - centres + 0.5) * (1 / stretch)
    weights = _filter(places, method, a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _interpolated(
    length: int, target: int, method: str, align_corners: bool
) -> np.ndarray:
    """PyTorch's weights, float64 [target, length]."""
    outputs = np.arange(target)
    if align_corners:
        places = outputs * ((length - 1) / max(target - 1, 1))
    else:
        places = (outputs + 0.5) * (length / target) - 0.5
    first = np.floor(places).astype(int)
    weights = np.zeros((target, length))
    for tap in (0, 1) if method == "bilinear" else (-1, 0, 1, 2):
        pixels = first + tap
        values = _filter(pixels - places, method, a=-0.75)
        np.add.at(weights, (outputs, pixels.clip(0, length - 1)), values)
    return weights


def _nearest(length: int, target: int) -> np.ndarray:
    """Positions int [target] of the pixels that are taken."""
    step = length / target
    # Summed up as Pillow does, whose rounding decides where a centre lies on a border.
    places = np.cumsum(np.r_[0.5 * step, np.full(target - 1, step)])
    return places.astype(int).clip(0, length - 1)


def _filter(x: np.ndarray, method: str, a: float) -> np.ndarray:
    """The triangle, or Keys' cubic of the parameter a, at distances in pixels."""
    x = np.abs(x)
    if method == "bilinear":
        return np.maximum(1 - x, 0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _check(images, size, method, antialias, align_corners) -> None:
    if method not in METHODS:
        raise ValueError(f"resize: method={method!r}, expected one of {METHODS}.")
    if images.ndim < 3 or not math.prod(images.shape[-3:-1]):
        raise ValueError(
            "resize: images must be [..., H, W, C] with at least one pixel, got "
            f"{list(images.shape)}."
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"resize: size={size}, expected a height and a width.")
    if method == "nearest":
        if antialias or align_corners:
            raise ValueError(
                "resize: 'nearest' has neither antialias nor align_corners."
            )
    elif images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"resize: {method!r} takes floating or uint8 images, got {images.dtype}."
        )
    if antialias and align_corners:
        raise ValueError("resize: antialias and align_corners exclude each other.")
