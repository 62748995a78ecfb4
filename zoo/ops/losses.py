"""Losses that optax lacks: element-wise over examples, not reduced."""

import jax
import jax.numpy as jnp


def lenet_map_loss(logits: jax.Array, labels: jax.Array, j: float = 10.0) -> jax.Array:
    """LeNet-5's discriminative criterion, against a constant "rubbish" class.

    With penalties `y = -logits` it is `y[label] + log(exp(-j) + sum_i exp(-y[i]))`:
    the right class's penalty falls, and wrong ones rise where they are below `j`.

    Args:
      logits: float32 [..., K], the negative RBF outputs.
      labels: int32 [...], 0 to K - 1.
      j: Penalty of the rubbish class, positive. The paper prints no value; of 1, 10 and
        30, 10 gives the best accuracy on small digits.

    Returns:
      float32 [...].

    Reference:
      LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998,
      equation 9.
    """
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    normalizer = jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return normalizer - right
