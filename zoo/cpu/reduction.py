"""Sums over feature maps."""

import jax
import jax.numpy as jnp

Array = jax.Array


def mean_of_map(x: Array) -> Array:
    """Averages [B, H, W, C] over the map, as a product: XLA is slow at reductions.

    (It hands them to a library, and with them the layers before; `compiler_options`
    keeps it from that where a program is compiled with them.)
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    ones = jnp.ones(x.shape[1:3], x.dtype)
    total = jnp.einsum("bhwc,hw->bc", x, ones, preferred_element_type=wide)
    return (total / ones.size).astype(x.dtype)
