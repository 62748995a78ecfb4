"""Greedy non-maximum suppression with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ops.boxes import iou

Array = jax.Array

# Boxes that are decided at a time. Memory grows with BLOCK * N, never with N * N.
BLOCK = 256


class Kept(NamedTuple):
    """What suppression leaves, best first.

    Attributes:
      indices: int32 [D], places in the input; 0 where not valid.
      valid: bool [D].
    """

    indices: Array
    valid: Array


def nms(
    boxes: Array,
    scores: Array,
    *,
    iou_threshold: float | Array,
    max_outputs: int,
    classes: Array | None = None,
    valid: Array | None = None,
    inclusive: bool = False,
) -> Kept:
    """Keeps boxes by falling score, unless one that is kept overlaps too much.

    Equal to the greedy algorithm at every threshold. Of equal scores the earlier box
    goes first. A box whose score is not a number is not valid.

    Args:
      boxes: float [N, 4], xyxy.
      scores: float [N].
      iou_threshold: A box goes where its IoU with a kept one is above this, 0 to 1.
      max_outputs: D, the number of places in the result.
      classes: int [N]; boxes of different classes do not suppress each other. None for
        one class.
      valid: bool [N]; False for padding. None for all.
      inclusive: Whether the last pixel belongs to a box, see `zoo.ops.boxes`.

    Returns:
      `Kept`, by falling score.

    Raises:
      ValueError: Shapes do not fit, or a number is out of range.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"nms takes boxes [N, 4] and scores [N], got {list(boxes.shape)} and "
            f"{list(scores.shape)}."
        )
    is_number = isinstance(iou_threshold, (int, float))
    if (is_number and not 0 <= iou_threshold <= 1) or max_outputs < 1:
        raise ValueError(
            f"nms: iou_threshold={iou_threshold} must be 0 to 1, and "
            f"max_outputs={max_outputs} 1 or more."
        )
    count = len(boxes)
    padded = max(-(-count // BLOCK) * BLOCK, BLOCK)
    usable = ~jnp.isnan(scores)
    if valid is not None:
        usable &= valid
    # Padding sorts behind everything, then the order of the input decides.
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True)
    rest = (0, padded - count)
    alive = jnp.pad(usable[order], rest)
    boxes = jnp.pad(boxes[order], (rest, (0, 0)))
    classes = None if classes is None else jnp.pad(classes[order], rest)
    order = jnp.pad(order, rest)

    def overlaps(rows: Array, start: Array) -> Array:
        """Which boxes [N] are too near to each box of the block at `start`."""
        near = iou(rows[:, None], boxes[None], inclusive=inclusive) > iou_threshold
        if classes is not None:
            block = lax.dynamic_slice(classes, (start,), (BLOCK,))
            near &= block[:, None] == classes[None]
        return near

    def body(carry: tuple) -> tuple:
        number, alive, total = carry
        start = number * BLOCK
        rows = lax.dynamic_slice(boxes, (start, 0), (BLOCK, 4))
        near = overlaps(rows, start)
        within = lax.dynamic_slice(near, (0, start), (BLOCK, BLOCK))
        block = lax.dynamic_slice(alive, (start,), (BLOCK,))
        block = _decide(block, within)
        later = jnp.arange(padded) >= start + BLOCK
        alive &= ~((near & block[:, None]).any(axis=0) & later)
        alive = lax.dynamic_update_slice(alive, block, (start,))
        return number + 1, alive, total + block.sum()

    def unfinished(carry: tuple) -> Array:
        number, _, total = carry
        return (number < padded // BLOCK) & (total < max_outputs)

    # Blocks behind the last one that was decided may hold boxes that should go, but
    # so many were kept before them that they do not reach the result.
    _, alive, _ = lax.while_loop(unfinished, body, (0, alive, 0))
    (places,) = jnp.nonzero(alive, size=max_outputs, fill_value=padded)
    found = places < padded
    indices = jnp.where(found, order[jnp.minimum(places, padded - 1)], 0)
    return Kept(indices.astype(jnp.int32), found)


def _decide(alive: Array, near: Array) -> Array:
    """Greedy suppression within a block whose boxes are in order of their scores.

    A box stays if no earlier one that stays is near. Starting from any guess, the rule
    is right for the first box after one round, for the first two after two, and so on:
    its only fixed point is the greedy result, which few rounds reach.

    Args:
      alive: bool [T], what earlier blocks left.
      near: bool [T, T].
    """
    earlier = jnp.triu(near, k=1)

    def body(carry: tuple) -> tuple:
        guess, _ = carry
        return alive & ~(earlier & guess[:, None]).any(axis=0), guess

    def changed(carry: tuple) -> Array:
        return (carry[0] != carry[1]).any()

    return lax.while_loop(changed, body, body((alive, alive)))[0]
