"""How a kernel moves, and convolutions that are plain ones of rearranged images."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pair = tuple[int, int]
# A convolution of stride 1, without padding and dilation, of images and a kernel.
Plain = Callable[[Array, Array], Array]

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """How a kernel moves; hashable, hence static under `jit`."""

    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair


def convolve_by_xla(x: Array, kernel: Array, window: Window, groups: int = 1) -> Array:
    """The convolution of XLA, on any platform."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def result(x: Array, kernel: Array, window: Window) -> jax.ShapeDtypeStruct:
    """The shape and the type of what a convolution gives."""
    return jax.eval_shape(partial(convolve_by_xla, window=window), x, kernel)


def by_phases(x: Array, kernel: Array, window: Window, plain: Plain) -> Array:
    """A dilated convolution as one of d * d images, of every d-th pixel each."""
    dilation, taps = window.dilation[0], kernel.shape[0]
    height, width = result(x, kernel, window).shape[1:3]
    count = [-(-n // dilation) + taps - 1 for n in (height, width)]
    x = _pad(x, window, [n * dilation for n in count])
    x = x.reshape(-1, count[0], dilation, count[1], dilation, x.shape[3])
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, *count, x.shape[5])
    y = plain(x, kernel)
    y = y.reshape(-1, dilation, dilation, *y.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    rows, columns = ((n - taps + 1) * dilation for n in count)
    return y.reshape(-1, rows, columns, y.shape[5])[:, :height, :width]


def by_blocks(x: Array, kernel: Array, window: Window, plain: Plain) -> Array:
    """A convolution of stride s as one of stride 1, whose pixels are s x s blocks."""
    (stride, _), (size, _, channels, features) = window.strides, kernel.shape
    taps = -(-size // stride)
    count = [n + taps - 1 for n in result(x, kernel, window).shape[1:3]]
    # What no window reaches is cut off: an end of less than a block.
    x = _pad(x, window, [n * stride for n in count])
    x = x.reshape(-1, count[0], stride, count[1], stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *count, stride**2 * channels)
    more = (0, taps * stride - size)
    kernel = jnp.pad(kernel, (more, more, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(taps, taps, -1, features)
    return plain(x, kernel)


def by_strips(
    x: Array, kernel: Array, window: Window, rows: int, convolve: Callable
) -> Array:
    """A convolution as one of more and lower images, each of some rows of the result.

    Args:
      x: [B, H, W, I].
      kernel: [kh, kw, I, O].
      window: How it moves.
      rows: Of the result, in each strip; a strip shares `reach - stride` rows of `x`
        with the next, which must not be more than it has.
      convolve: What is given strips, the kernel, and the window without its padding.
    """
    _, height, width, features = result(x, kernel, window).shape
    count, stride = -(-height // rows), window.strides[0]
    shared = max((kernel.shape[0] - 1) * window.dilation[0] + 1 - stride, 0)
    columns = x.shape[2] + sum(window.padding[1])
    x = _pad(x, window, [(count + 1) * rows * stride, columns])
    x = x.reshape(-1, count + 1, rows * stride, columns, x.shape[3])
    x = jnp.concatenate([x[:, :-1], x[:, 1:, :shared]], axis=2)
    window = window._replace(padding=((0, 0), (0, 0)))
    y = convolve(x.reshape(-1, *x.shape[2:]), kernel, window)
    return y.reshape(-1, count * rows, width, features)[:, :height]


def _pad(x: Array, window: Window, sizes: list[int]) -> Array:
    """Pads above and on the left as the window says, and then to the sizes."""
    pads = [
        (low, size - n - low, 0)
        for (low, _), size, n in zip(window.padding, sizes, x.shape[1:3], strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
