"""Greedy non-maximum suppression with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ops.boxes import iou

Array = jax.Array

# Boxes that are decided at a time, and kept ones that they are compared with at a time:
# beside the boxes, memory is BLOCK * TILE however many there are.
BLOCK = 256
TILE = 512


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
    goes first. A box whose score is not a number is not valid. Time grows with the
    boxes times those that are kept, and memory with the boxes.

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
    usable = ~jnp.isnan(scores)
    if valid is not None:
        usable &= valid
    count = usable.sum(dtype=jnp.int32)
    # Padding sorts behind everything, then the order of the input decides.
    order = jnp.argsort(jnp.where(usable, -scores, jnp.inf), stable=True)
    rest = -len(boxes) % BLOCK if len(boxes) else BLOCK
    # Boxes, and what goes with them, in blocks [blocks, BLOCK, ...].
    boxes = _block(jnp.asarray(boxes)[order], rest)
    classes = None if classes is None else _block(jnp.asarray(classes)[order], rest)
    order = _block(order.astype(jnp.int32), rest)
    tile = min(TILE, -(-max_outputs // BLOCK) * BLOCK)
    room = -(-max_outputs // tile) * tile

    def near(some: Array, others: Array, kinds: Array | None, others_kinds: Array):
        overlaps = iou(some[:, None], others[None], inclusive=inclusive) > iou_threshold
        if kinds is None:
            return overlaps
        return overlaps & (kinds[:, None] == others_kinds[None])

    def body(carry: tuple) -> tuple:
        number, total, kept, kept_classes, places = carry
        rows = boxes[number]
        kinds = None if classes is None else classes[number]

        def compare(at: Array, alive: Array) -> Array:
            start = at * tile
            some = lax.dynamic_slice(kept, (start, 0), (tile, 4))
            some_kinds = None
            if classes is not None:
                some_kinds = lax.dynamic_slice(kept_classes, (start,), (tile,))
            there = (start + jnp.arange(tile) < total)[:, None]
            return alive & ~(near(some, rows, some_kinds, kinds) & there).any(axis=0)

        alive = number * BLOCK + jnp.arange(BLOCK) < count
        alive = lax.fori_loop(0, -(-total // tile), compare, alive)
        alive = _decide(alive, near(rows, rows, kinds, kinds))
        # What is kept goes behind what was kept before; the rest nowhere.
        to = jnp.where(alive, total + jnp.cumsum(alive, dtype=jnp.int32) - 1, room)
        kept = kept.at[to].set(rows, mode="drop")
        places = places.at[to].set(order[number], mode="drop")
        if classes is not None:
            kept_classes = kept_classes.at[to].set(kinds, mode="drop")
        total += alive.sum(dtype=jnp.int32)
        return number + 1, total, kept, kept_classes, places

    def unfinished(carry: tuple) -> Array:
        number, total, *_ = carry
        return (number * BLOCK < count) & (total < max_outputs)

    start = (
        jnp.int32(0),
        jnp.int32(0),
        jnp.zeros((room, 4), boxes.dtype),
        None if classes is None else jnp.zeros(room, classes.dtype),
        jnp.zeros(room, jnp.int32),
    )
    _, total, _, _, places = lax.while_loop(unfinished, body, start)
    found = jnp.arange(max_outputs) < total
    return Kept(jnp.where(found, places[:max_outputs], 0), found)


def _block(x: Array, rest: int) -> Array:
    """Pads [N, ...] by `rest` places of zeros, and splits it into blocks."""
    x = jnp.pad(x, [(0, rest)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, BLOCK, *x.shape[1:])


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
