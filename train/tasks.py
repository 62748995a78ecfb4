"""What a task's outputs are held against: losses by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from zoo.ops.losses import lenet_map_loss
from zoo.registry import unknown

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy with label smoothing.

    Args:
      logits: float32 [B, K].
      labels: int32 [B].
      smoothing: Probability that is spread evenly over all K classes.

    Returns:
      float32 [B].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, smoothing) if smoothing else targets
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def make_loss(name: str, *, smoothing: float = 0.0) -> Loss:
    """Makes the loss of a classifier, element-wise over the batch.

    Args:
      name: `ModelSpec.loss`: "softmax_cross_entropy" or "lenet_map".
      smoothing: Label smoothing, of the softmax cross-entropy alone.

    Raises:
      ValueError: The name is unknown, or the loss knows no label smoothing.
    """
    if name == "softmax_cross_entropy":
        return lambda logits, labels: softmax_cross_entropy(logits, labels, smoothing)
    if name == "lenet_map":
        if smoothing:
            raise ValueError(
                f"the loss lenet_map has no label smoothing ({smoothing})."
            )
        return lenet_map_loss
    raise ValueError(unknown("loss", name, ("softmax_cross_entropy", "lenet_map")))
