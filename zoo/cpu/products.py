"""Products of few rows and a large matrix."""

import jax
import jax.numpy as jnp

Array = jax.Array

# Up to so many rows, the products of the matrix and one row after the other are faster.
MOST_ROWS = 8


def has_few_rows(x: Array) -> bool:
    """Whether `multiply_few_rows` is faster for x [B, M]; B may be symbolic."""
    return isinstance(x.shape[0], int) and 0 < x.shape[0] <= MOST_ROWS


@jax.custom_jvp
def multiply_few_rows(x: Array, kernel: Array) -> Array:
    """Multiplies [B, M] by [M, N], with a faster gradient with respect to few rows.

    XLA transposes the kernel for that gradient, which takes longer than reading it.
    """
    return x @ kernel


@multiply_few_rows.defjvp
def _differentiate(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # Transposed, the product of each row is one of the kernel and a row.
    rows = jnp.stack([row @ kernel for row in dx])
    return multiply_few_rows(x, kernel), rows + x @ dkernel
