"""Sampling of the anchors or proposals of an image that enter the loss."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def sample_balanced(
    key: Array, labels: Array, *, count: int, positive_fraction: float
) -> tuple[Array, Array]:
    """Samples positives up to a fraction of `count`, and negatives for the rest.

    Args:
      key: Random key; sampling is uniform.
      labels: int [A]: 1 positive, 0 negative, -1 never sampled.
      count: Number of samples, if there are enough negatives.
      positive_fraction: Maximum fraction of positives, 0 to 1; their number is rounded
        down. Negatives replace missing positives, but not the other way round.

    Returns:
      Masks bool [A] of the sampled positives and of the sampled negatives.

    Raises:
      ValueError: `labels` are not [A], or a number is out of range.

    Reference:
      Ren et al., Faster R-CNN, 2015, section 3.1.3.
    """
    if labels.ndim != 1 or count < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            f"sample_balanced takes labels [A], got {list(labels.shape)}; "
            f"count={count} must be 1 or more, and "
            f"positive_fraction={positive_fraction} 0 to 1."
        )
    labels = jnp.asarray(labels)
    limit = int(count * positive_fraction)
    positive_key, negative_key = jax.random.split(key)
    positive = _sample(positive_key, labels == 1, limit, limit)
    number = count - positive.sum(dtype=jnp.int32)
    return positive, _sample(negative_key, labels == 0, count, number)


def take(mask: Array, count: int) -> tuple[Array, Array]:
    """Returns the indices of the first `count` True elements of a mask.

    Args:
      mask: bool [A].
      count: Number of slots of the result.

    Returns:
      Indices int32 [count], ascending, 0 where not valid; and valid bool [count].
    """
    (indices,) = jnp.nonzero(mask, size=count, fill_value=len(mask))
    valid = indices < len(mask)
    return jnp.where(valid, indices, 0).astype(jnp.int32), valid


def mine_hard_negatives(
    losses: Array, positive: Array, candidates: Array, *, ratio: float
) -> Array:
    """Selects the negatives with the largest losses, a number for each positive.

    Args:
      losses: float [A], classification losses; equal ones are sorted by index.
      positive: bool [A], anchors that are matched with an object.
      candidates: bool [A], anchors that may be selected; positives never are.
      ratio: Maximum number of negatives for each positive: 3 in SSD. An image without
        positives has no negatives.

    Returns:
      bool [A], the selected negatives.

    Raises:
      ValueError: Shapes differ, or `ratio` is negative.

    Reference:
      Liu et al., SSD, 2016, section 2.2, "Hard negative mining".
    """
    shapes = [list(a.shape) for a in (losses, positive, candidates)]
    if losses.ndim != 1 or shapes[1:] != shapes[:1] * 2 or ratio < 0:
        raise ValueError(
            f"mine_hard_negatives takes three arrays [A], got {shapes}; and "
            f"ratio={ratio} must not be negative."
        )
    candidates = jnp.asarray(candidates) & ~jnp.asarray(positive)
    hardness = jnp.where(candidates, lax.stop_gradient(losses), -jnp.inf)
    order = jnp.argsort(-hardness, stable=True)
    chosen = jnp.arange(len(order)) < ratio * positive.sum()
    return jnp.zeros(len(order), bool).at[order].set(chosen) & candidates


def _sample(key: Array, mask: Array, limit: int, number: int | Array) -> Array:
    """Samples `number` True elements of a mask [A], at most `limit`, as a mask."""
    bits = jax.random.bits(key, mask.shape, jnp.uint32)
    priorities = jnp.where(mask, (bits >> 1).astype(jnp.int32), -1)
    highest, indices = lax.top_k(priorities, min(limit, len(mask)))
    sampled = (jnp.arange(len(indices)) < number) & (highest >= 0)
    return jnp.zeros(len(mask), bool).at[indices].set(sampled)
