"""Formulations of the convolution that are faster on CPUs than XLA's own.

Each computes the same function, and is equally differentiable, for the shapes that it
takes; all others are left to XLA. The command
`tests/benchmarks/benchmark_formulations.py` measures their gain in whole networks.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.cpu import winograd

Array = jax.Array
Pair = tuple[int, int]


class Window(NamedTuple):
    """The strides, padding, dilation and groups of a convolution; hashable."""

    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1


def convolve(x: Array, kernel: Array, window: Window) -> Array:
    """Computes `zoo.ops.convolution.convolve`, which describes the arguments."""
    if isinstance(x.shape[0], int) and x.size:
        for takes, formulation in FORMULATIONS.values():
            if takes(x, kernel, window):
                return formulation(x, kernel, window)
    return _by_xla(x, kernel, window)


def _by_xla(x: Array, kernel: Array, window: Window) -> Array:
    strides, padding, dilation, groups = window
    # For the gradient of the kernel XLA makes transposed copies of x and the cotangent.
    # Without barriers it fuses the preceding layers into that copy, and so computes
    # them again: in a residual network the whole stage.
    x = lax.optimization_barrier(x)
    y = lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, ("NHWC", "HWIO", "NHWC"), groups
    )
    return lax.optimization_barrier(y)


# Few groups: one convolution each, as XLA has no parallel code for groups.


def _is_groups(x: Array, kernel: Array, window: Window) -> bool:
    return 1 < window.groups <= 4


def _groups(x: Array, kernel: Array, window: Window) -> Array:
    parts = zip(*(jnp.split(a, window.groups, -1) for a in (x, kernel)), strict=True)
    window = window._replace(groups=1)
    return jnp.concatenate([convolve(*part, window) for part in parts], -1)


# 1x1: a matrix product.


def _is_product(x: Array, kernel: Array, window: Window) -> bool:
    return kernel.shape[:2] == (1, 1) and window == Window(window.strides)


def _product(x: Array, kernel: Array, window: Window) -> Array:
    x = x[:, :: window.strides[0], :: window.strides[1]]
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    # Keeps the computation of the cotangent out of the products.
    return lax.optimization_barrier(y.reshape(*x.shape[:3], kernel.shape[-1]))


# 3x3 of stride 1 with enough channels and pixels: Winograd's tiles.


def _is_winograd(x: Array, kernel: Array, window: Window) -> bool:
    return (
        kernel.shape[:2] == (3, 3)
        and window == Window(padding=window.padding)
        and all(0 <= p <= 2 for p in sum(window.padding, ()))
        and winograd.pays(x, kernel)
    )


def _winograd(x: Array, kernel: Array, window: Window) -> Array:
    return winograd.convolve_3x3(x, kernel, window.padding)


# Dilated by d: d * d images, each of every d-th pixel.


def _is_dilated(x: Array, kernel: Array, window: Window) -> bool:
    d = window.dilation[0]
    return (
        d > 1
        and kernel.shape[:2] == (3, 3)
        and window == Window(padding=window.padding, dilation=(d, d))
        and winograd.pays(x, kernel)
    )


def _dilated(x: Array, kernel: Array, window: Window) -> Array:
    d, taps = window.dilation[0], kernel.shape[0]
    height, width = _result(x, kernel, window)
    count = [-(-n // d) + taps - 1 for n in (height, width)]
    x = _pad(x, window, [n * d for n in count])
    x = x.reshape(-1, count[0], d, count[1], d, x.shape[3])
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, *count, x.shape[5])
    y = winograd.convolve_3x3(x, kernel, ((0, 0), (0, 0)))
    y = y.reshape(-1, d, d, *y.shape[1:]).transpose(0, 3, 1, 4, 2, 5)
    rows, columns = ((n - taps + 1) * d for n in count)
    return y.reshape(-1, rows, columns, y.shape[5])[:, :height, :width]


# In the order in which they are tried: a test of the shapes, and the formulation.
FORMULATIONS: dict[str, tuple[Callable, Callable]] = {
    "groups": (_is_groups, _groups),
    "product": (_is_product, _product),
    "winograd": (_is_winograd, _winograd),
    "dilated": (_is_dilated, _dilated),
}


def _pad(x: Array, window: Window, sizes: list[int]) -> Array:
    """Pads at the top and on the left by the window's padding, then to the sizes."""
    pads = [
        (low, size - n - low, 0)
        for (low, _), size, n in zip(window.padding, sizes, x.shape[1:3], strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))


def _result(x: Array, kernel: Array, window: Window) -> Pair:
    """Returns height and width of the result."""
    shape = jax.eval_shape(partial(_by_xla, window=window), x, kernel).shape
    return shape[1:3]
