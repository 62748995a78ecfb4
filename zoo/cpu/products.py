"""Products of few rows and a large matrix, and the mean of a map as a product."""

import jax
import jax.numpy as jnp

Array = jax.Array

# Up to this many rows, multiplying the matrix by one row after the other is faster.
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
    # The transpose of each row's product is a product of the kernel and a row.
    rows = jnp.stack([row @ kernel for row in dx])
    return multiply_few_rows(x, kernel), rows + x @ dkernel


def mean_of_map(x: Array) -> Array:
    """Averages [B, H, W, C] over the map, as a product: XLA is slow at reductions.

    (It delegates them to a library, together with the preceding layers, unless the
    program is compiled with `compiler_options`.)
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    ones = jnp.ones(x.shape[1:3], x.dtype)
    total = jnp.einsum("bhwc,hw->bc", x, ones, preferred_element_type=wide)
    return (total / ones.size).astype(x.dtype)
