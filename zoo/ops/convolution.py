"""The convolution of the zoo: the same function everywhere, a faster form on CPUs.

On accelerators `convolve` is `lax.conv_general_dilated`. On CPUs it is one of the
formulations of `zoo.ops.convolution_cpu`, chosen when the program is lowered, from
static shapes. Tests hold all of them, and their derivatives of both orders, to XLA's;
the command tests/benchmarks/benchmark_convolution.py measures them.
"""

from functools import partial

import jax
from jax import lax

from zoo.ops import convolution_cpu
from zoo.ops.convolution_window import LAYOUT, Window, convolve_by_xla

Array = jax.Array
Pair = tuple[int, int]


def convolve(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Cross-correlates images with a kernel, as every framework's convolution does.

    All derivatives are defined, forward and reverse; only `jax.linear_transpose` of
    the function itself is not (take `jax.vjp`).

    Args:
      x: [B, H, W, I], floating.
      kernel: [kh, kw, I / groups, O], of the type of `x`; the output channels of a
        group are neighbours.
      strides: Of rows and of columns.
      padding: Zeros ((above, below), (left, right)).
      dilation: Distance between neighbouring taps, of rows and of columns.
      groups: Into how many independent parts the channels fall.

    Returns:
      [B, (H + above + below - (kh - 1) * dilation - 1) // stride + 1, ..., O], of the
      type of `x`; sums are float32 or wider.

    Raises:
      ValueError: The kernel does not fit the channels, or the padded image.
    """
    window = Window(tuple(strides), tuple(map(tuple, padding)), tuple(dilation))
    _check(x, kernel, window, groups)
    return _convolve(x, kernel, window=window, groups=groups)


# Compiled with what calls it; the jit has equal layers traced and differentiated once.
@partial(jax.jit, static_argnames=("window", "groups"), inline=True)
def _convolve(x: Array, kernel: Array, window: Window, groups: int) -> Array:
    options = dict(window=window, groups=groups)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(convolution_cpu.convolve, **options),
        default=partial(convolve_by_xla, **options),
    )


def convolve_transposed(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    crop: tuple[Pair, Pair] = ((0, 0), (0, 0)),
) -> Array:
    """Paints the kernel, times each pixel, at `strides` times the pixel's position.

    It is the adjoint of `convolve`, and "deconvolution" in Caffe. PyTorch's
    `padding=p, output_padding=q` is the crop (p, p - q), its weights (I, O, kh, kw) are
    the kernel transposed by (2, 3, 0, 1).

    Args:
      x: [B, H, W, I], floating.
      kernel: [kh, kw, I, O], of the type of `x`.
      strides: Of rows and of columns.
      crop: Rows and columns cut off ((above, below), (left, right)); negative numbers
        add zeros.

    Returns:
      [B, (H - 1) * stride + kh - above - below, ..., O], of the type of `x`.

    Raises:
      ValueError: The kernel does not fit the channels.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "convolve_transposed takes x [B, H, W, I] and a kernel [kh, kw, I, O], got "
            f"{list(x.shape)} and {list(kernel.shape)}."
        )
    options = dict(strides=tuple(strides), crop=tuple(map(tuple, crop)))
    return _convolve_transposed(x, kernel, **options)


@partial(jax.jit, static_argnames=("strides", "crop"), inline=True)
def _convolve_transposed(x: Array, kernel: Array, strides: Pair, crop: tuple) -> Array:
    options = dict(strides=strides, crop=crop)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(convolution_cpu.convolve_transposed, **options),
        default=partial(_dilate_and_convolve, **options),
    )


def _dilate_and_convolve(x: Array, kernel: Array, strides: Pair, crop: tuple) -> Array:
    """A transposed convolution as XLA has it: zeros between the pixels."""
    sizes = zip(kernel.shape[:2], crop, strict=True)
    padding = [(k - 1 - low, k - 1 - high) for k, (low, high) in sizes]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        padding,
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )


def _check(x: Array, kernel: Array, window: Window, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.dtype != kernel.dtype:
        raise ValueError(
            "convolve takes x [B, H, W, I] and a kernel [kh, kw, I / groups, O] of one "
            f"type, got {x.dtype}{list(x.shape)} and {kernel.dtype}"
            f"{list(kernel.shape)}."
        )
    if kernel.shape[2] * groups != x.shape[3] or kernel.shape[3] % groups:
        raise ValueError(
            f"The kernel {list(kernel.shape)} with groups={groups} takes "
            f"{kernel.shape[2] * groups} channels and makes a multiple of {groups}, "
            f"but x is {list(x.shape)}."
        )
    for axis, (low, high) in enumerate(window.padding):
        reach = (kernel.shape[axis] - 1) * window.dilation[axis] + 1
        if x.shape[axis + 1] + low + high < reach:
            raise ValueError(
                f"The kernel {list(kernel.shape)} with dilation {window.dilation} is "
                f"larger than x {list(x.shape)} with padding {window.padding}."
            )
