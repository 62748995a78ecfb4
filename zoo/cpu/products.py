"""Products with few rows."""

import jax
import jax.numpy as jnp

Array = jax.Array

# Up to so many rows, products of the kernel and one row after the other are faster.
MOST_ROWS = 8


def multiply_transposed(g: Array, kernel: Array) -> Array:
    """Multiplies [B, N] by the transpose of [M, N], row by row: [B, M].

    It is the gradient of a dense layer with respect to its input. XLA transposes the
    kernel for it, which takes longer than reading it.
    """
    return jnp.stack([kernel @ row for row in g])
