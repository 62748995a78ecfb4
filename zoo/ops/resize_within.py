"""Resizing of images that fill only a part of their arrays, to sizes of their own.

Images of many sizes share one compiled program where they lie at the upper left corner
of arrays of one shape. Their sizes are then values on the device, and so is what
follows from them: which pixels are taken, or the two matrices that resize.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

# Sides of images, in pixels, up to which the arithmetic below fits into int32.
MAX_SIDE = (1 << 14) - 1


def resize_within(
    image: Array,
    size: Array,
    target: Array,
    canvas: tuple[int, int],
    *,
    antialias: bool,
) -> Array:
    """Resizes what an image fills of its array, and lays it on a canvas of zeros.

    The rule is PyTorch's `interpolate(mode="bilinear", align_corners=False)`, with
    `antialias` as there; see `zoo.ops.resize`.

    Args:
      image: float [H, W, C].
      size: int32 [2], height and width in pixels of what the image fills, from the
        upper left corner on; 1 or more. The rest is not looked at, but must be finite.
      target: int32 [2], height and width after resizing, 1 to the canvas's.
      canvas: Height and width of the result, in pixels.
      antialias: Whether to average over what lies between output pixels.

    Returns:
      float32 [*canvas, C].
    """
    image = image.astype(jnp.float32)

    def by_products(image: Array, size: Array, target: Array) -> Array:
        return _by_products(image, size, target, canvas, antialias)

    def by_taps(image: Array, size: Array, target: Array) -> Array:
        return _by_taps(image, size, target, canvas)

    if antialias:
        return by_products(image, size, target)
    # For 480 x 640 pixels to 800 x 1066 a CPU takes 19 ms, and 228 ms by products.
    taps = dict.fromkeys(("cpu", "cuda", "rocm"), by_taps)
    return lax.platform_dependent(image, size, target, **taps, default=by_products)


def _by_taps(image: Array, size: Array, target: Array, canvas: tuple) -> Array:
    """Without antialias, each pixel comes from two of a column, then two of a row."""
    for axis in (0, 1):
        outputs = np.arange(canvas[axis], dtype=np.float32)
        step = size[axis].astype(jnp.float32) / target[axis]
        places = jnp.clip(step * (outputs + 0.5) - 0.5, 0, size[axis] - 1)
        first = places.astype(jnp.int32)
        second = jnp.minimum(first + 1, size[axis] - 1)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        share = (places - first).reshape(shape)
        near, far = (jnp.take(image, x, axis, mode="clip") for x in (first, second))
        inside = (outputs < target[axis]).reshape(shape)
        image = jnp.where(inside, near + (far - near) * share, 0)
    return image


def _by_products(
    image: Array, size: Array, target: Array, canvas: tuple, antialias: bool
) -> Array:
    height, width = image.shape[:2]
    rows = _weights(height, canvas[0], size[0], target[0], antialias)
    columns = _weights(width, canvas[1], size[1], target[1], antialias)
    products = [("hwc,th->twc", rows), ("hwc,tw->htc", columns)]
    # The cheaper order: height * width of either first product, and of the second.
    rows_first = canvas[0] * width * (height + canvas[1])
    columns_first = height * canvas[1] * (width + canvas[0])
    for product, weights in products if rows_first <= columns_first else products[::-1]:
        image = jnp.einsum(product, image, weights, precision="highest")
    return image


def _weights(
    length: int, places: int, size: Array, target: Array, antialias: bool
) -> Array:
    """Weights float32 [places, length] of pixels of each place; 0 behind `target`."""
    step = size.astype(jnp.float32) / target
    stretch = jnp.maximum(step, 1) if antialias else 1
    outputs = np.arange(places, dtype=np.float32)[:, None]
    inputs = np.arange(length, dtype=np.float32)[None]
    centres = step * (outputs + 0.5) - 0.5
    weights = jnp.maximum(1 - jnp.abs(inputs - centres) / stretch, 0)
    # What would lie beyond the border is spread over the rest, which for two
    # neighbours is to repeat the last pixel.
    weights = jnp.where(inputs < size, weights, 0)
    total = weights.sum(axis=1, keepdims=True)
    return jnp.where(outputs < target, weights / jnp.where(total > 0, total, 1), 0)


def scale_sides(size: Array, limits: Sequence[tuple]) -> Array:
    """Scales height and width by the smallest of some fractions, and cuts off.

    It is `int(side * min(m / n for m, n in limits))` in float64, as torchvision has it,
    to the bit, on devices without float64: where `side * m / n` is a whole number, the
    rounding of `m / n` decides whether it comes out, or one less.

    Args:
      size: int32 [2], 1 to `MAX_SIDE`.
      limits: Fractions (m, n), of whole numbers 1 to `MAX_SIDE`.

    Returns:
      int32 [2], 1 or more.
    """
    pairs = [(jnp.asarray(m, jnp.int32), jnp.asarray(n, jnp.int32)) for m, n in limits]
    m, n = pairs[0]
    for other_m, other_n in pairs[1:]:
        less = other_m * n < m * other_n
        m, n = jnp.where(less, other_m, m), jnp.where(less, other_n, n)
    whole = size * m // n
    short = (size * m % n == 0) & _falls_short(size, m, n, whole)
    return jnp.maximum(whole - short, 1)


def _falls_short(side: Array, m: Array, n: Array, whole: Array) -> Array:
    """Whether float64 has less than `whole`, which is side * m / n, for side * (m / n).

    m / n = 2^e * 1.xxx keeps 52 binary digits behind the point. The remainder r of
    m * 2^(52 - e) by n says what is cut off, where it is not rounded up. The product
    lacks side * r / n units of 2^(e - 52), and is rounded to `whole` unless that is
    more than half the distance to the next number below, which is 2^(below - 52).
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
