"""Normalization without parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


# `zoo.explain` looks for a call of this name in a traced network.
@partial(jax.jit, static_argnames=("size", "alpha", "beta", "k"))
def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2,
) -> jax.Array:
    """Computes local response normalization across channels.

    It is `x / (k + alpha * sum(x ** 2)) ** beta`, with the sum over `size` channels
    around each channel, as far as they exist. The defaults are those of the paper.
    Caffe and PyTorch divide `alpha` by `size`; use `alpha / size` for their values.

    Args:
      x: [..., C], floating.
      size: Number of channels in the sum, odd.
      alpha: Factor of the sum.
      beta: Exponent.
      k: Constant added to the sum.

    Returns:
      [..., C], of the dtype of `x`; the computation is float32 or wider.

    Reference:
      Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional
      Neural Networks, 2012, section 3.3.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"local_response_norm: size={size}, expected an odd number.")
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.square(wide)
    ends = [(0, 0)] * (x.ndim - 1)
    window = (1,) * (x.ndim - 1) + (size,)
    energy = lax.reduce_window(
        squares, 0.0, lax.add, window, (1,) * x.ndim, [*ends, (size // 2, size // 2)]
    )
    return (wide * (k + alpha * energy) ** -beta).astype(x.dtype)
