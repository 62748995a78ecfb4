"""A formulation of locally connected layers that fits into the caches of CPUs."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def locally_connected(x: Array, kernel: Array, stride: int) -> Array:
    """Computes `zoo.ops.locally_connected`, one row of outputs after another.

    The patches of a row stay in the cache until they are multiplied, and are computed
    again in the backward pass: less memory is read, written and kept than by a product
    over all patches at once. `tests/benchmarks/benchmark_faces.py` measures it.

    Args:
      x: [B, H, W, I], floating.
      kernel: [H', W', kh, kw, I, O], of the dtype of `x`.
      stride: Distance between windows.

    Returns:
      [B, H', W', O].
    """
    height, width, rows, columns, inputs, outputs = kernel.shape
    last = (width - 1) * stride + 1
    x = x.transpose(1, 2, 0, 3)

    @jax.checkpoint
    def compute_row(args: tuple[Array, Array]) -> Array:
        row, kernels = args
        band = lax.dynamic_slice_in_dim(x, row * stride, rows)
        taps = [
            band[i, j : j + last : stride] for i in range(rows) for j in range(columns)
        ]
        kernels = kernels.reshape(width, rows * columns * inputs, outputs)
        return jnp.einsum("wbk,wko->wbo", jnp.concatenate(taps, 2), kernels)

    y = lax.map(compute_row, (jnp.arange(height), kernel))
    return y.transpose(2, 0, 1, 3)
