"""Max pooling with indices, and unpooling.

The index of a pixel is row * width + column, as in PyTorch and in SegNet's code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.ops.pooling import Pads, pool_padding, window_taps

Array = jax.Array
Size = tuple[int, int]


def max_pool_with_indices(
    x: Array, window: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> tuple[Array, Array]:
    """Computes the maximum of each window and its index.

    Among equal values, the first is the maximum, row by row; NaN exceeds all values.

    Args:
      x: [B, H, W, C], floating.
      window: Height and width of a window.
      stride: Distance between windows.
      padding: Number of pixels of minus infinity on each of the four sides.
      ceil: See `zoo.ops.pooling.max_pool`.

    Returns:
      `(y, indices)`: the result of `max_pool`, [B, H', W', C], and int32 of the same
      shape, the index row * W + column of each maximum.

    Raises:
      ValueError: The window is larger than the padded image, or fits into the padding.
    """
    pads = pool_padding(x, window, stride, padding, ceil)
    number = _largest_tap(lax.stop_gradient(x), window, stride, pads)
    # A sum with one nonzero term, whose derivative is a selection too.
    zero = jnp.zeros((), x.dtype)
    taps = window_taps(x, window, stride, pads, -np.inf)
    y = sum(jnp.where(number == i, tap, zero) for i, tap in enumerate(taps))
    rows, columns = (
        jnp.arange(n, dtype=jnp.int32) * stride - low
        for n, (low, _) in zip(y.shape[1:3], pads[1:3], strict=True)
    )
    number = number.astype(jnp.int32)
    rows = rows.reshape(1, -1, 1, 1) + number // window
    columns = columns.reshape(1, 1, -1, 1) + number % window
    # If all values are minus infinity, the first element may be in the padding.
    return y, jnp.maximum(rows, 0) * x.shape[2] + jnp.maximum(columns, 0)


def _largest_tap(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Returns the index of the maximum within each window: uint8 or int32."""
    y, *others = window_taps(x, window, stride, pads, -np.inf)
    kind = jnp.uint8 if window**2 < 256 else jnp.int32
    chosen = jnp.zeros(y.shape, kind)
    for number, tap in enumerate(others, 1):
        larger = (tap > y) | (tap != tap)
        chosen = jnp.where(larger, kind(number), chosen)
        y = jnp.where(larger, tap, y)
    return chosen


def max_unpool(
    y: Array, indices: Array, size: Size, *, stride: int | None = None
) -> Array:
    """Places each value at the index of the maximum of its window, and zeros elsewhere.

    If overlapping windows have the same index, their values are added (in PyTorch one
    of them is kept), so that it is the adjoint of gathering the maxima.

    Args:
      y: [B, H', W', C].
      indices: int32 [B, H', W', C], from `max_pool_with_indices`.
      size: Height and width of the unpooled map, in pixels.
      stride: Stride of the pooling if its windows have the same size and there was no
        padding, which needs no scatter and is faster. None for any pooling.

    Returns:
      [B, size[0], size[1], C], of the type of `y`.

    Raises:
      ValueError: The shapes do not match.
    """
    if y.ndim != 4 or y.shape != indices.shape:
        raise ValueError(
            "max_unpool: values and indices must be of one shape [B, H', W', C], got "
            f"{list(y.shape)} and {list(indices.shape)}."
        )
    height, width = size
    if stride is None:
        return _scatter(y, indices, size)
    sizes = zip(size, y.shape[1:3], strict=True)
    if any(m not in (n // stride, -(-n // stride)) for n, m in sizes):
        raise ValueError(
            f"max_unpool: windows of {stride} x {stride} pixels make of "
            f"{height} x {width} pixels no {y.shape[1]} x {y.shape[2]}."
        )
    here = np.arange(height)[:, None] * width + np.arange(width)
    here = jnp.asarray(here.reshape(1, height, width, 1), jnp.int32)
    taken = crop_or_pad_end(repeat_pixels(indices, stride), size) == here
    return jnp.where(
        taken, crop_or_pad_end(repeat_pixels(y, stride), size), jnp.zeros((), y.dtype)
    )


def _scatter(y: Array, indices: Array, size: Size) -> Array:
    batch, _, _, channels = y.shape
    values, places = (x.reshape(batch, -1, channels) for x in (y, indices))
    image, channel = jnp.ogrid[:batch, :1, :channels][::2]
    out = jnp.zeros((batch, size[0] * size[1], channels), y.dtype)
    out = out.at[image, places, channel].add(values, mode="drop")
    return out.reshape(batch, *size, channels)


def crop_or_pad_end(x: Array, size: Size) -> Array:
    """Crops a map, or pads it with zeros, at the bottom and on the right.

    Args:
      x: [B, H, W, C].
      size: Height and width of the result.
    """
    ends = [n - m for n, m in zip(size, x.shape[1:3], strict=True)]
    pads = [(0, 0, 0), *((0, end, 0) for end in ends), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def repeat_pixels(x: Array, factor: int) -> Array:
    """Upsamples by nearest neighbors and an integer factor.

    Unlike that of a gather, its gradient is a plain sum.

    Args:
      x: [B, H, W, C].
      factor: Upsampling factor of height and width.

    Returns:
      [B, H * factor, W * factor, C].
    """
    batch, height, width, channels = x.shape
    shape = (batch, height, factor, width, factor, channels)
    x = jnp.broadcast_to(x[:, :, None, :, None], shape)
    return x.reshape(batch, height * factor, width * factor, channels)
