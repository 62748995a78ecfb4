"""Normalisation without parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


# A call by this name in a traced network, which `zoo.explain` looks for.
@partial(jax.jit, static_argnames=("size", "alpha", "beta", "k"))
def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2,
) -> jax.Array:
    """Divides each value by the energy of the channels around it.

    `x / (k + alpha * sum(x ** 2)) ** beta`, where the sum goes over `size` channels,
    this one in their middle, as far as there are that many. The defaults are the
    paper's. Caffe and PyTorch divide `alpha` by `size`; give `alpha / size` for theirs.

    Args:
      x: [..., C], floating.
      size: Channels in the sum, odd.
      alpha: Factor of the sum.
      beta: Exponent.
      k: Added to the sum.

    Returns:
      [..., C], of the type of `x`; the computation is float32 or wider.

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
