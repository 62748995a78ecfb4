"""Locally connected layers: convolutions with a kernel for each output position."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zoo import cpu

Array = jax.Array


def locally_connected(
    x: Array, kernel: Array, bias: Array | None = None, *, stride: int = 1
) -> Array:
    """Computes a convolution without padding and without shared weights.

    The windows are gathered as patches, and multiplied by the kernels in one batched
    product; for several images on CPUs row by row, see `zoo.cpu.locally_connected`.
    `tests/benchmarks/benchmark_faces.py` compares it with PyTorch.

    Args:
      x: [B, H, W, I], floating.
      kernel: [H', W', kh, kw, I, O], of the dtype of `x`.
      bias: [H', W', O]; None for no bias.
      stride: Distance between windows.

    Returns:
      [B, H', W', O].

    Raises:
      ValueError: The stride is not positive, or the shapes do not match.

    Reference:
      Taigman et al., DeepFace, 2014, section 3; Gregor and LeCun, Emergence of
      complex-like cells in a temporal product network with local receptive fields,
      2010.
    """
    if kernel.ndim != 6:
        raise ValueError(
            f"kernel must be [H', W', kh, kw, I, O], got {list(kernel.shape)}."
        )
    height, width, rows, columns, inputs, outputs = kernel.shape
    if x.ndim != 4 or x.shape[3] != inputs:
        raise ValueError(f"x must be [B, H, W, {inputs}], got {list(x.shape)}.")
    found = output_size(x.shape[1:3], (rows, columns), stride)
    if found != (height, width):
        raise ValueError(
            f"kernel is for {height} x {width} positions, and x {list(x.shape)} has "
            f"{found[0]} x {found[1]} of them at stride={stride}."
        )
    if bias is not None and bias.shape != (height, width, outputs):
        raise ValueError(
            f"bias must be [{height}, {width}, {outputs}], got {list(bias.shape)}."
        )
    y = _locally_connected(x, kernel, stride)
    return y if bias is None else y + bias[None]


# The jit makes JAX trace and differentiate equal layers once; it is inlined.
@partial(jax.jit, static_argnums=2, inline=True)
def _locally_connected(x: Array, kernel: Array, stride: int) -> Array:
    by_rows = partial(cpu.locally_connected, stride=stride)
    at_once = partial(_multiply_patches, stride=stride)
    if x.shape[0] == 1:
        return at_once(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=by_rows, default=at_once)


def _multiply_patches(x: Array, kernel: Array, stride: int) -> Array:
    height, width, rows, columns, inputs, outputs = kernel.shape
    last = [(n - 1) * stride + 1 for n in (height, width)]
    # Positions first, as in the kernel, which XLA would copy for the product otherwise.
    x = x.transpose(1, 2, 0, 3)
    taps = [
        x[i : i + last[0] : stride, j : j + last[1] : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    patches = jnp.concatenate(taps, 3)
    kernel = kernel.reshape(height, width, rows * columns * inputs, outputs)
    return jnp.einsum("hwbk,hwko->hwbo", patches, kernel).transpose(2, 0, 1, 3)


def output_size(
    size: tuple[int, int], kernel: tuple[int, int], stride: int
) -> tuple[int, int]:
    """Returns the numbers of rows and columns of windows in a feature map.

    Args:
      size: Height and width of the feature map.
      kernel: Height and width of a window.
      stride: Distance between windows.

    Raises:
      ValueError: The stride is not positive, or the window is larger than the map.
    """
    if stride < 1:
        raise ValueError(f"stride={stride} must be 1 or more.")
    found = tuple((n - k) // stride + 1 for n, k in zip(size, kernel, strict=True))
    if min(found) < 1:
        raise ValueError(
            f"a window of {kernel[0]} x {kernel[1]} does not fit into a map of "
            f"{size[0]} x {size[1]}."
        )
    return found


def from_keras(kernel: Array, window: tuple[int, int], size: tuple[int, int]) -> Array:
    """Converts a kernel of Keras' `LocallyConnected2D`.

    Args:
      kernel: [H' W', kh kw I, O], as in implementation 1 with channels last.
      window: (kh, kw).
      size: (H', W').

    Returns:
      [H', W', kh, kw, I, O]. Biases [H', W', O] are the same in both.

    Raises:
      ValueError: The kernel does not match the window or the size.
    """
    places, fan_in, outputs = kernel.shape
    inputs, rest = divmod(fan_in, window[0] * window[1])
    if rest or places != size[0] * size[1]:
        raise ValueError(
            f"kernel {list(kernel.shape)} does not fit window={window}, size={size}: "
            "expected [H' W', kh kw I, O]."
        )
    return kernel.reshape(*size, *window, inputs, outputs)


def to_keras(kernel: Array) -> Array:
    """Inverts `from_keras`: [H', W', kh, kw, I, O] to [H' W', kh kw I, O]."""
    height, width, rows, columns, inputs, outputs = kernel.shape
    return kernel.reshape(height * width, rows * columns * inputs, outputs)
