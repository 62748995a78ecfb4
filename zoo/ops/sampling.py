"""Which anchors or proposals of an image are trained, in fixed numbers."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def sample_balanced(
    key: Array, labels: Array, *, count: int, positive_fraction: float
) -> tuple[Array, Array]:
    """Draws positives up to a share of `count`, and fills up with negatives.

    Args:
      key: Decides which ones are drawn; all are as likely.
      labels: int [A]: 1 positive, 0 negative, -1 never drawn.
      count: How many are drawn in all, where there are enough negatives.
      positive_fraction: Largest share of positives, 0 to 1; rounded down to a whole
        number. Where there are fewer, negatives take their places, but positives never
        take those of negatives.

    Returns:
      Masks bool [A] of the drawn positives and of the drawn negatives.

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
    most = int(count * positive_fraction)
    positive_key, negative_key = jax.random.split(key)
    positive = _draw(positive_key, labels == 1, most, most)
    number = count - positive.sum(dtype=jnp.int32)
    return positive, _draw(negative_key, labels == 0, count, number)


def take(mask: Array, count: int) -> tuple[Array, Array]:
    """Lists the first `count` places where a mask is True.

    Args:
      mask: bool [A].
      count: Length of the list.

    Returns:
      indices int32 [count], ascending, 0 where not valid; and valid bool [count].
    """
    (places,) = jnp.nonzero(mask, size=count, fill_value=len(mask))
    valid = places < len(mask)
    return jnp.where(valid, places, 0).astype(jnp.int32), valid


def mine_hard_negatives(
    losses: Array, positive: Array, candidates: Array, *, ratio: float
) -> Array:
    """Chooses the negatives that the network finds hardest, some for each positive.

    Args:
      losses: float [A], of the class; the largest are chosen, of equal ones the first.
      positive: bool [A], anchors that are matched with an object.
      candidates: bool [A], anchors that may be chosen; positives never are.
      ratio: Largest number of negatives for each positive: 3 in SSD. An image without
        positives has no negatives.

    Returns:
      bool [A], the chosen negatives.

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


def _draw(key: Array, mask: Array, most: int, number: int | Array) -> Array:
    """Draws `number` True places of a mask [A], `most` at most, as a mask."""
    bits = jax.random.bits(key, mask.shape, jnp.uint32)
    tickets = jnp.where(mask, (bits >> 1).astype(jnp.int32), -1)
    highest, places = lax.top_k(tickets, min(most, len(mask)))
    drawn = (jnp.arange(len(places)) < number) & (highest >= 0)
    return jnp.zeros(len(mask), bool).at[places].set(drawn)
