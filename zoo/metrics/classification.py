"""Metrics of classification: accuracy, top-5 accuracy, loss and confusion matrix."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class State(NamedTuple):
    """Sums over the examples seen so far.

    Attributes:
      confusion: int32 [K, K], the confusion matrix; rows are the true classes.
      top5: int32, number of examples whose label is among the five highest logits.
      loss: float32, sum of the losses.
    """

    confusion: jax.Array
    top5: jax.Array
    loss: jax.Array


def empty(num_classes: int) -> State:
    """Returns the state before any example."""
    return State(
        jnp.zeros((num_classes, num_classes), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.float32),
    )


def update(
    state: State, logits: jax.Array, labels: jax.Array, losses: jax.Array, valid
) -> State:
    """Adds a batch.

    Args:
      state: Sums so far.
      logits: float32 [B, K].
      labels: int32 [B], 0 to K - 1; examples with another label are not counted.
      losses: float32 [B].
      valid: bool [B]; False for padding, which is not counted.
    """
    valid = valid & (labels >= 0) & (labels < logits.shape[-1])
    predicted = logits.argmax(-1)
    # Equal logits are sorted by class, as in argmax, so that a network with constant
    # outputs has no more hits than chance.
    top = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hit = (top == labels[:, None]).any(-1)
    return State(
        state.confusion.at[labels, predicted].add(valid.astype(jnp.int32)),
        state.top5 + (valid & hit).sum(dtype=jnp.int32),
        state.loss + jnp.where(valid, losses, 0).sum(),
    )


def merge(a: State, b: State) -> State:
    """Merges the sums of two disjoint sets of examples."""
    return jax.tree.map(jnp.add, a, b)


def compute(state: State) -> dict[str, float]:
    """Computes `count`, `correct`, `accuracy`, `loss` and, from 6 classes on, `top5`.

    Accuracies are fractions, and the loss is the mean.

    Raises:
      ValueError: There are no examples.
    """
    confusion = np.asarray(state.confusion)
    count, correct = int(confusion.sum()), int(np.trace(confusion))
    if not count:
        raise ValueError("no example was evaluated.")
    out = {
        "count": count,
        "correct": correct,
        "accuracy": correct / count,
        "loss": float(state.loss) / count,
    }
    if len(confusion) > 5:
        out["top5"] = int(state.top5) / count
    return out


def confidence_interval(correct: int, count: int) -> tuple[float, float]:
    """Computes the 95 % score interval of a proportion; (0, 1) without examples.

    It stays within [0, 1] and holds for few examples and for proportions near 0 or 1.

    Args:
      correct: The number of successes, 0..count.
      count: The number of trials.

    Reference:
      Wilson, "Probable inference, the law of succession", JASA 22 (1927).
    """
    if not 0 <= correct <= count:
        raise ValueError(
            f"correct must lie in 0..count, got correct={correct} and count={count}"
        )
    if count == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, weight = correct / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / weight
    variance = share * (1 - share) / count + z**2 / (4 * count**2)
    half = z * math.sqrt(variance) / weight
    # The bounds at no and at full success are exact; rounding must not pass them.
    return max(0.0, middle - half), min(1.0, middle + half)
