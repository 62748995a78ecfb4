"""Pooling with the frameworks' own rules for borders."""

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def max_pool(
    x: Array, window: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> Array:
    """Takes the largest value of each window, apart for each channel.

    Args:
      x: [B, H, W, C], floating.
      window: Height and width of a window.
      stride: Between windows.
      padding: On each of the four sides, of values that are never the largest.
      ceil: Rounds the number of windows up, as Caffe does and PyTorch does with
        `ceil_mode`; the last one may reach over the border but not begin beyond it.

    Returns:
      [B, H', W', C].

    Raises:
      ValueError: The window is larger than the padded image.
    """
    pads = _pads(x, window, stride, padding, ceil)
    lowest = jnp.array(-jnp.inf, x.dtype)
    return lax.reduce_window(
        x, lowest, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


def avg_pool(
    x: Array,
    window: int,
    stride: int,
    padding: int = 0,
    *,
    ceil: bool = False,
    count_padding: bool = True,
) -> Array:
    """Takes the mean of each window, apart for each channel.

    Args:
      x: [B, H, W, C], floating.
      window: Height and width of a window.
      stride: Between windows.
      padding: Zeros on each of the four sides.
      ceil: As in `max_pool`.
      count_padding: Whether zeros of the padding count, as in Caffe and PyTorch; what
        lies beyond the padding, under a window that `ceil` added, never does.

    Returns:
      [B, H', W', C].

    Raises:
      ValueError: The window is larger than the padded image.
    """
    pads = _pads(x, window, stride, padding, ceil)
    shape, strides = (1, window, window, 1), (1, stride, stride, 1)
    zero = jnp.zeros((), x.dtype)
    total = lax.reduce_window(x, zero, lax.add, shape, strides, pads)
    counted = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    if count_padding:
        sides = (padding, padding)
        counted = jnp.pad(counted, ((0, 0), sides, sides, (0, 0)), constant_values=1)
        pads = [(low - padding, high - padding) for low, high in pads[1:3]]
        pads = [(0, 0), *pads, (0, 0)]
    return total / lax.reduce_window(counted, zero, lax.add, shape, strides, pads)


def _pads(
    x: Array, window: int, stride: int, padding: int, ceil: bool
) -> list[tuple[int, int]]:
    """The padding of each axis, with which windows fit without a rest."""
    pads = [(0, 0)]
    for axis, size in zip("HW", x.shape[1:3], strict=True):
        room = size + 2 * padding - window
        if room < 0:
            raise ValueError(
                f"a {window}x{window} window with padding {padding} does not fit into "
                f"{axis} of {list(x.shape)}."
            )
        count = (math.ceil(room / stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + padding:
            count -= 1
        pads.append((padding, (count - 1) * stride + window - size - padding))
    return [*pads, (0, 0)]
