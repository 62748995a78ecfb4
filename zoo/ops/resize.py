"""Resizing of images by the rules of Pillow, PyTorch and Caffe.

`resize` takes images of one size. Its weights follow from the sizes alone and are made
in numpy, so that it is compiled to two matrix products: it runs under `jit`, `vmap` and
`grad`, and over a batch that is sharded over devices.

`resize_padded` takes an image at the upper left corner of a larger array. Its size is a
value on the device, so that images of many sizes share one compiled program.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

METHODS = ("bilinear", "bicubic", "nearest")
# Pillow's fixed-point weights for pixels of 8 bits have this number of fraction bits.
_FRACTION_BITS = 22
# Maximum side of images, in pixels, for which `scale_size` fits into int32.
MAX_SIDE = (1 << 14) - 1


def resize(
    images: Array,
    size: tuple[int, int],
    method: str = "bilinear",
    *,
    antialias: bool,
    align_corners: bool = False,
) -> Array:
    """Resizes images by one of three rules.

    - `antialias=True` is Pillow's rule: when downsampling, the filter widens with the
      distance between output pixels, and its weights are normalized at the border. For
      uint8 images the weights are Pillow's fixed-point numbers and the result is
      rounded after each direction, so that it equals Pillow's exactly. It is also the
      rule of PyTorch's `interpolate` with `antialias=True`.
    - `antialias=False` is the rule of PyTorch's `interpolate` with
      `align_corners=False`: pixels between output pixels are skipped, and the border's
      pixels are repeated beyond it.
    - `antialias=False, align_corners=True` is the rule of Caffe and PSPNet: the centers
      of the corner pixels are preserved.

    The bicubic filter is Keys' with a = -0.5 for the first rule and a = -0.75 for the
    others. "nearest" takes the pixel that contains the center of the output pixel, as
    Pillow and PyTorch's "nearest-exact" do; PyTorch's "nearest" is the same for integer
    factors.

    Args:
      images: [..., H, W, C], floating or uint8; any type for "nearest".
      size: Height and width of the result, in pixels.
      method: "bilinear", "bicubic" or "nearest".
      antialias: Whether to average over the pixels between output pixels; False for
        "nearest".
      align_corners: See above; False for "nearest".

    Returns:
      [..., size[0], size[1], C] of the dtype of the images. Floating images are
      computed in float32 or wider; uint8 images are rounded after the width and again
      after the height.

    Raises:
      ValueError: The images or an option are invalid.
    """
    images = jnp.asarray(images)
    _check(images, size, method, antialias, align_corners)
    dtype = images.dtype
    if method != "nearest" and dtype != np.uint8:
        images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    # As in Pillow since version 13: the width first, unless the height shrinks more.
    removed = [images.shape[-3] - size[0], images.shape[-2] - size[1]]
    height_first = removed[0] > max(0, 2 * removed[1])
    for axis in (-3, -2) if height_first else (-2, -3):
        length, target = images.shape[axis], size[axis + 3]
        # Equal sizes leave pixels unchanged, with every rule.
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


def resize_padded(
    image: Array,
    size: Array,
    target: Array,
    canvas: tuple[int, int],
    *,
    antialias: bool,
) -> Array:
    """Resizes an image within an array bilinearly, and pads it with zeros to a canvas.

    The rule is that of PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Args:
      image: float [H, W, C].
      size: int32 [2], height and width of the image within the array in pixels,
        starting at the upper left corner; 1 or more. The rest must be finite.
      target: int32 [2], height and width after resizing, 1 to those of the canvas.
      canvas: Height and width of the result, in pixels.
      antialias: Whether to average over the pixels between output pixels.

    Returns:
      float32 [*canvas, C].
    """
    image = image.astype(jnp.float32)

    def by_products(image: Array, size: Array, target: Array) -> Array:
        return _resize_by_products(image, size, target, canvas, antialias)

    def by_gather(image: Array, size: Array, target: Array) -> Array:
        return _resize_by_gather(image, size, target, canvas)

    if antialias:
        return by_products(image, size, target)
    # From 480 x 640 to 800 x 1066 pixels a CPU takes 19 ms, and 228 ms with products.
    gather = dict.fromkeys(("cpu", "cuda", "rocm"), by_gather)
    return lax.platform_dependent(image, size, target, **gather, default=by_products)


def scale_size(size: Array, scales: Sequence[tuple]) -> Array:
    """Scales height and width by the smallest of several fractions, and truncates.

    It computes torchvision's `int(side * min(m / n for m, n in scales))` in float64
    exactly, on devices without float64: if `side * m / n` is an integer, the rounding
    of `m / n` decides whether the result is this integer or one less.

    Args:
      size: int32 [2], 1 to `MAX_SIDE`.
      scales: Fractions (m, n) of integers from 1 to `MAX_SIDE`.

    Returns:
      int32 [2], 1 or more.
    """
    pairs = [(jnp.asarray(m, jnp.int32), jnp.asarray(n, jnp.int32)) for m, n in scales]
    m, n = pairs[0]
    for other_m, other_n in pairs[1:]:
        less = other_m * n < m * other_n
        m, n = jnp.where(less, other_m, m), jnp.where(less, other_n, n)
    whole = size * m // n
    short = (size * m % n == 0) & _falls_short(size, m, n, whole)
    return jnp.maximum(whole - short, 1)


def _apply(images: Array, weights: np.ndarray, axis: int) -> Array:
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
    """Returns Pillow's weights, float64 [target, length]."""
    step = length / target
    stretch = max(step, 1.0)
    centers = (np.arange(target)[:, None] + 0.5) * step
    places = (np.arange(length) - centers + 0.5) * (1 / stretch)
    weights = _filter(places, method, a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _interpolated(
    length: int, target: int, method: str, align_corners: bool
) -> np.ndarray:
    """Returns PyTorch's weights, float64 [target, length]."""
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
    """Returns the index of the nearest pixel, int [target]."""
    step = length / target
    # Summed as in Pillow, as rounding decides if a center lies between two pixels.
    places = np.cumsum(np.r_[0.5 * step, np.full(target - 1, step)])
    return places.astype(int).clip(0, length - 1)


def _filter(x: np.ndarray, method: str, a: float) -> np.ndarray:
    """Evaluates the triangle filter or Keys' cubic filter at distances in pixels."""
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


def _resize_by_gather(
    image: Array, size: Array, target: Array, canvas: tuple[int, int]
) -> Array:
    """Interpolates two pixels of each column, then two of each row."""
    for axis in (0, 1):
        outputs = np.arange(canvas[axis], dtype=np.float32)
        step = size[axis].astype(jnp.float32) / target[axis]
        places = jnp.clip(step * (outputs + 0.5) - 0.5, 0, size[axis] - 1)
        first = places.astype(jnp.int32)
        second = jnp.minimum(first + 1, size[axis] - 1)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        weight = (places - first).reshape(shape)
        near, far = (jnp.take(image, x, axis, mode="clip") for x in (first, second))
        inside = (outputs < target[axis]).reshape(shape)
        image = jnp.where(inside, near + (far - near) * weight, 0)
    return image


def _resize_by_products(
    image: Array, size: Array, target: Array, canvas: tuple[int, int], antialias: bool
) -> Array:
    """Multiplies rows and columns by matrices of weights."""
    height, width = image.shape[:2]
    rows = _padded_weights(height, canvas[0], size[0], target[0], antialias)
    columns = _padded_weights(width, canvas[1], size[1], target[1], antialias)
    products = [("hwc,th->twc", rows), ("hwc,tw->htc", columns)]
    # The multiply-adds of both orders for each channel.
    rows_first = canvas[0] * width * (height + canvas[1])
    columns_first = height * canvas[1] * (width + canvas[0])
    for product, weights in products if rows_first <= columns_first else products[::-1]:
        image = jnp.einsum(product, image, weights, precision="highest")
    return image


def _padded_weights(
    length: int, places: int, size: Array, target: Array, antialias: bool
) -> Array:
    """Returns float32 [places, length], zero from row `target` on."""
    step = size.astype(jnp.float32) / target
    stretch = jnp.maximum(step, 1) if antialias else 1
    outputs = np.arange(places, dtype=np.float32)[:, None]
    inputs = np.arange(length, dtype=np.float32)[None]
    centers = step * (outputs + 0.5) - 0.5
    weights = jnp.maximum(1 - jnp.abs(inputs - centers) / stretch, 0)
    # Weights beyond the border are distributed over the others. With two neighbors this
    # repeats the last pixel.
    weights = jnp.where(inputs < size, weights, 0)
    total = weights.sum(axis=1, keepdims=True)
    return jnp.where(outputs < target, weights / jnp.where(total > 0, total, 1), 0)


def _falls_short(side: Array, m: Array, n: Array, whole: Array) -> Array:
    """Returns whether side * (m / n) in float64 is less than `whole` = side * m / n.

    m / n = 2^e * 1.xxx has 52 bits after the point. The remainder r of m * 2^(52 - e)
    divided by n is lost, unless it is rounded up. The product is then too small by
    side * r / n units of 2^(e - 52). It is rounded to `whole` unless that is more than
    half the distance to the next smaller number, 2^(below - 52).
    """
    e = lax.clz(n) - lax.clz(m)
    e -= jnp.where(e >= 0, m < n << jnp.maximum(e, 0), m << jnp.maximum(-e, 0) < n)
    power, square, shift = jnp.ones_like(n), 2 % n, 52 - e
    for bit in range(7):
        power = jnp.where(shift >> bit & 1 == 1, power * square, power) % n
        square = square * square % n
    r = m * power % n
    below = 31 - lax.clz(jnp.maximum(whole - 1, 1))
    lacks = 4 * side * r > n << (below - e + 1)
    return (2 * r < n) & lacks
