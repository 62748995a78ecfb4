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
    # For the gradient of the kernel XLA makes transposed copies of x and the cotangent.
    # Without barriers it fuses the preceding layers into that copy, and so computes
    # them again: in a residual network the whole stage.
    x = lax.optimization_barrier(x)
    call = convolve_by_xla if window.groups == 1 else call_xla
    return lax.optimization_barrier(call(x, kernel, window))


def call_xla(
    x: Array, kernel: Array, window: Window, layout: str = "NHWC HWIO NHWC"
) -> Array:
    """Calls XLA's convolution, of operands and a result in any layout."""
    strides, padding, dilation, groups = window
    return lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, layout.split(), groups
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve_by_xla(x: Array, kernel: Array, window: Window) -> Array:
    """Calls XLA's convolution, whose gradients are in the layout that is fast.

    This is NHWC, HWIO, NHWC. XLA transposes the operands of others to it, but not in
    loops, where the gradients took twice the time. The tangents are therefore computed
    in layouts whose transposes, the gradients, are NHWC and HWIO.
    """
    return call_xla(x, kernel, window)


@convolve_by_xla.defjvp
def _differentiate(window: Window, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    # The gradient takes the kernel reversed, which cancels one of the reversals. The
    # transposition of what is reversed already is four times as fast as both at once.
    reversed_kernel = lax.optimization_barrier(lax.rev(kernel, (0, 1)))
    turned = lax.rev(reversed_kernel.transpose(0, 1, 3, 2), (0, 1))
    of_x = call_xla(dx, turned, window, "NHWC HWOI NHWC")
    of_kernel = _differentiate_kernel(x, dkernel, window)
    return convolve_by_xla(x, kernel, window), of_x + of_kernel


# The gradient transposes the images itself, so that they are not kept twice for it.
@partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def _differentiate_kernel(x: Array, dkernel: Array, window: Window) -> Array:
    images, taps = x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3)
    of_kernel = call_xla(images, taps, window, "CHWN IHWO HWNC")
    return of_kernel.transpose(2, 0, 1, 3)


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


# In the order in which they are tried: a test of the shapes, and the formulation.
FORMULATIONS: dict[str, tuple[Callable, Callable]] = {
    "groups": (_is_groups, _groups),
    "product": (_is_product, _product),
    "winograd": (_is_winograd, _winograd),
}
