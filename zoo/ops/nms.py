"""Greedy non-maximum suppression with static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ops.boxes import iou

Array = jax.Array

# Number of boxes that are processed at a time, and number of kept boxes that they are
# compared with at a time. Besides the boxes, this takes BLOCK * TILE memory.
BLOCK = 256
TILE = 512


class NMSResult(NamedTuple):
    """The boxes kept by non-maximum suppression, sorted by descending score.

    Attributes:
      indices: int32 [D], indices into the input; 0 where not valid.
      valid: bool [D]; False for padding.
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
) -> NMSResult:
    """Applies greedy non-maximum suppression.

    Boxes are visited by descending score, and kept unless their IoU with a kept box is
    above the threshold. The result equals that of the greedy algorithm for every
    threshold. Equal scores are sorted by index. Boxes with a NaN score are not valid.
    Time grows with the number of boxes times the number of kept boxes, and memory with
    the number of boxes.

    Args:
      boxes: float [N, 4], xyxy.
      scores: float [N].
      iou_threshold: IoU above which a box is suppressed, 0 to 1.
      max_outputs: Number of slots D of the result.
      classes: int [N]; boxes of different classes do not suppress each other. None for
        one class.
      valid: bool [N]; False for padding. None if all are valid.
      inclusive: Whether x2 and y2 are the last pixel of a box, see `zoo.ops.boxes`.

    Returns:
      `NMSResult`, sorted by descending score.

    Raises:
      ValueError: Shapes do not match, or a number is out of range.
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
    # Padding is sorted to the end, behind scores of -inf.
    finite = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
    order = jnp.argsort(jnp.where(usable, -finite, jnp.inf), stable=True)
    padding = -len(boxes) % BLOCK if len(boxes) else BLOCK
    # Boxes, classes and indices in blocks [blocks, BLOCK, ...].
    boxes = _block(jnp.asarray(boxes)[order], padding)
    classes = None if classes is None else _block(jnp.asarray(classes)[order], padding)
    order = _block(order.astype(jnp.int32), padding)
    tile = min(TILE, -(-max_outputs // BLOCK) * BLOCK)
    capacity = -(-max_outputs // tile) * tile

    def suppresses(a: Array, b: Array, a_classes: Array | None, b_classes: Array):
        overlaps = iou(a[:, None], b[None], inclusive=inclusive) > iou_threshold
        if a_classes is None:
            return overlaps
        return overlaps & (a_classes[:, None] == b_classes[None])

    def body(carry: tuple) -> tuple:
        number, total, kept, kept_classes, indices = carry
        block = boxes[number]
        block_classes = None if classes is None else classes[number]

        def compare(i: Array, alive: Array) -> Array:
            start = i * tile
            some = lax.dynamic_slice(kept, (start, 0), (tile, 4))
            some_classes = None
            if classes is not None:
                some_classes = lax.dynamic_slice(kept_classes, (start,), (tile,))
            filled = (start + jnp.arange(tile) < total)[:, None]
            suppressed = suppresses(some, block, some_classes, block_classes) & filled
            return alive & ~suppressed.any(axis=0)

        alive = number * BLOCK + jnp.arange(BLOCK) < count
        alive = lax.fori_loop(0, -(-total // tile), compare, alive)
        pairs = suppresses(block, block, block_classes, block_classes)
        alive = _suppress_within_block(alive, pairs)
        # Append the kept boxes; the others are dropped.
        to = jnp.where(alive, total + jnp.cumsum(alive, dtype=jnp.int32) - 1, capacity)
        kept = kept.at[to].set(block, mode="drop")
        indices = indices.at[to].set(order[number], mode="drop")
        if classes is not None:
            kept_classes = kept_classes.at[to].set(block_classes, mode="drop")
        total += alive.sum(dtype=jnp.int32)
        return number + 1, total, kept, kept_classes, indices

    def unfinished(carry: tuple) -> Array:
        number, total, *_ = carry
        return (number * BLOCK < count) & (total < max_outputs)

    start = (
        jnp.int32(0),
        jnp.int32(0),
        jnp.zeros((capacity, 4), boxes.dtype),
        None if classes is None else jnp.zeros(capacity, classes.dtype),
        jnp.zeros(capacity, jnp.int32),
    )
    _, total, _, _, indices = lax.while_loop(unfinished, body, start)
    valid = jnp.arange(max_outputs) < total
    return NMSResult(jnp.where(valid, indices[:max_outputs], 0), valid)


def _block(x: Array, padding: int) -> Array:
    """Pads [N, ...] with zeros and splits it into blocks."""
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, BLOCK, *x.shape[1:])


def _suppress_within_block(alive: Array, pairs: Array) -> Array:
    """Applies greedy suppression to a block of boxes sorted by descending score.

    A box is kept if no kept box before it suppresses it. Iterating this rule from any
    guess, the first n boxes are right after n iterations. The greedy result is thus its
    only fixed point, which is reached after few iterations.

    Args:
      alive: bool [T], boxes that earlier blocks do not suppress.
      pairs: bool [T, T], whether the IoU of two boxes is above the threshold.
    """
    earlier = jnp.triu(pairs, k=1)

    def body(carry: tuple) -> tuple:
        guess, _ = carry
        return alive & ~(earlier & guess[:, None]).any(axis=0), guess

    def changed(carry: tuple) -> Array:
        return (carry[0] != carry[1]).any()

    return lax.while_loop(changed, body, body((alive, alive)))[0]
