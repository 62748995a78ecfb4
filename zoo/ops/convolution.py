"""Convolutions, by `lax.conv_general_dilated` or, on CPUs, by `zoo.cpu`.

The implementation is selected when a program is lowered for a platform.
"""

from functools import partial

import jax
from jax import lax

from zoo import cpu

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
    """Computes a convolution (cross-correlation) of images with a kernel.

    All derivatives are defined, in forward and reverse mode. Only
    `jax.linear_transpose` of the function itself is not; use `jax.vjp`.

    Args:
      x: [B, H, W, I], floating.
      kernel: [kh, kw, I / groups, O], of the dtype of `x`; the output channels of a
        group are contiguous.
      strides: Strides of rows and columns.
      padding: Zeros ((top, bottom), (left, right)).
      dilation: Dilation of rows and columns.
      groups: Number of groups of channels.

    Returns:
      [B, (H + top + bottom - (kh - 1) * dilation - 1) // stride + 1, ..., O], of the
      dtype of `x`; sums are float32 or wider.

    Raises:
      ValueError: The kernel does not match the channels, or is larger than the padded
        image.
    """
    padding = tuple(map(tuple, padding))
    window = cpu.Window(tuple(strides), padding, tuple(dilation), groups)
    _check(x, kernel, window)
    return _convolve(x, kernel, window)


# The jit makes JAX trace and differentiate equal layers once; it is inlined.
@partial(jax.jit, static_argnums=2, inline=True)
def _convolve(x: Array, kernel: Array, window: cpu.Window) -> Array:
    by_xla = partial(
        lax.conv_general_dilated,
        window_strides=window.strides,
        padding=window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )
    by_cpu = partial(cpu.convolve, window=window)
    return lax.platform_dependent(x, kernel, cpu=by_cpu, default=by_xla)


def convolve_transposed(
    x: Array,
    kernel: Array,
    *,
    strides: Pair = (1, 1),
    crop: tuple[Pair, Pair] = ((0, 0), (0, 0)),
) -> Array:
    """Computes a transposed convolution, "deconvolution" in Caffe.

    It is the adjoint of `convolve`. PyTorch's `padding=p, output_padding=q` is the crop
    (p, p - q), and its weights (I, O, kh, kw) are the kernel transposed by
    (2, 3, 0, 1).

    Args:
      x: [B, H, W, I], floating.
      kernel: [kh, kw, I, O], of the dtype of `x`.
      strides: Strides of rows and columns.
      crop: Rows and columns to remove ((top, bottom), (left, right)); negative numbers
        add zeros.

    Returns:
      [B, (H - 1) * stride + kh - top - bottom, ..., O], of the dtype of `x`.

    Raises:
      ValueError: The kernel does not match the channels.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "convolve_transposed takes x [B, H, W, I] and a kernel [kh, kw, I, O], got "
            f"{list(x.shape)} and {list(kernel.shape)}."
        )
    sizes = zip(kernel.shape[:2], crop, strict=True)
    padding = [(k - 1 - low, k - 1 - high) for k, (low, high) in sizes]
    return lax.conv_transpose(x, kernel[::-1, ::-1], strides, padding)


def _check(x: Array, kernel: Array, window: cpu.Window) -> None:
    _, padding, dilation, groups = window
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
    for axis, (low, high) in enumerate(padding):
        reach = (kernel.shape[axis] - 1) * dilation[axis] + 1
        if x.shape[axis + 1] + low + high < reach:
            raise ValueError(
                f"The kernel {list(kernel.shape)} with dilation {dilation} is "
                f"larger than x {list(x.shape)} with padding {padding}."
            )
