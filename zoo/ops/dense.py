"""The product of dense layers, by `jnp.matmul` or, on CPUs, by `zoo.cpu`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo import cpu

Array = jax.Array


def dense(x: Array, kernel: Array) -> Array:
    """Multiplies features by the kernel of a dense layer.

    All derivatives are defined, in forward and reverse mode.

    Args:
      x: [..., M], floating.
      kernel: [M, N], of the dtype of `x`.

    Returns:
      [..., N], of the dtype of `x`.
    """
    if x.ndim != 2 or not cpu.has_few_rows(x):
        return jnp.matmul(x, kernel)
    ways = dict(cpu=cpu.multiply_few_rows, default=jnp.matmul)
    return lax.platform_dependent(x, kernel, **ways)


def dot_general(x: Array, kernel: Array, dimensions: tuple, **options: Any) -> Array:
    """Applies `dense` with the arguments that `flax.linen.Dense` passes."""
    del dimensions, options
    return dense(x, kernel)
