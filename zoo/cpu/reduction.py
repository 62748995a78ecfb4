"""Sums over feature maps."""

import jax
import jax.numpy as jnp

Array = jax.Array


def mean_of_map(x: Array) -> Array:
    """Averages [B, H, W, C] over the map, as a product: XLA is slow at reductions.

    (It hands them to a library, and with them the layers before; `compiler_options`
    keeps it from that where a program is compiled with them.)
    """
    height, width = x.shape[1:3]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    weights = jnp.full((height, width), 1 / (height * width), wide)
    return jnp.einsum("bhwc,hw->bc", x.astype(wide), weights).astype(x.dtype)
