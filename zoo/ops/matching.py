"""Matching of anchors with objects by their IoU.

Boxes are processed one at a time, so that memory grows with the number of anchors, not
with anchors times boxes. Padding at the end of the boxes is not processed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.ops.boxes import iou

Array = jax.Array

NEGATIVE = -1
IGNORED = -2


def match_by_iou(
    anchors: Array,
    boxes: Array,
    valid: Array,
    *,
    positive: float,
    negative: float | tuple[float, float],
    low_quality: bool,
    usable: Array | None = None,
    inclusive: bool = False,
) -> Array:
    """Matches each anchor with the box of the largest IoU, if it is large enough.

    Args:
      anchors: [A, 4], xyxy.
      boxes: [N, 4], xyxy, the boxes of the objects.
      valid: bool [N]; False for padding.
      positive: Minimum IoU of a matched anchor, 0 to 1.
      negative: An anchor is negative if its largest IoU is less than this or, for a
        pair (low, high), at least `low` and less than `high`.
      low_quality: Whether to also match the anchors with the largest IoU of each box,
        however small, each with the box of its own largest IoU. A box without any
        overlap matches none. (In torchvision it matches all anchors without overlap.)
      usable: bool [A]; other anchors are ignored, such as those that cross the border
        of the image in Faster R-CNN. None if all are usable.
      inclusive: Whether x2 and y2 are the last pixel of a box, see `zoo.ops.boxes`.

    Returns:
      int32 [A]: the index of the box, -1 (`NEGATIVE`), or -2 (`IGNORED`). Among boxes
      with equal IoU, the first is matched.

    Raises:
      ValueError: Shapes do not match, or thresholds are out of order.

    Reference:
      Ren et al., Faster R-CNN, 2015, section 3.1.2.
    """
    low, high = negative if isinstance(negative, tuple) else (0, negative)
    _check("match_by_iou", anchors, boxes, valid, usable)
    if not 0 <= low <= high <= positive <= 1:
        raise ValueError(
            f"match_by_iou: needs 0 <= negative <= positive <= 1, got "
            f"negative={negative}, positive={positive}."
        )
    anchors, boxes = (_constant(b) for b in (anchors, boxes))
    valid = jnp.asarray(valid)
    if not len(boxes):
        boxes, valid = jnp.zeros((1, 4)), jnp.zeros(1, bool)
    if usable is None:
        usable = jnp.ones(len(anchors), bool)

    def body(n: Array, carry: tuple) -> tuple:
        most, index, is_best = carry
        overlap = iou(anchors, boxes[n][None], inclusive=inclusive)
        # The barrier prevents computing it twice with different rounding.
        overlap = lax.optimization_barrier(jnp.where(usable & valid[n], overlap, -1))
        largest = overlap.max(initial=-1)
        is_best |= (overlap == largest) & (largest > 0)
        more = overlap > most
        return jnp.where(more, overlap, most), jnp.where(more, n, index), is_best

    start = (
        jnp.zeros(len(anchors), jnp.float32),
        jnp.zeros(len(anchors), jnp.int32),
        jnp.zeros(len(anchors), bool),
    )
    most, index, is_best = lax.fori_loop(0, _count(valid), body, start)
    matched = (most >= positive) & (most > 0)
    if low_quality:
        matched |= is_best
    rest = jnp.where((low <= most) & (most < high), NEGATIVE, IGNORED)
    return jnp.where(usable, jnp.where(matched, index, rest), IGNORED)


def match_bipartite(
    anchors: Array, boxes: Array, valid: Array, *, positive: float = 0.5
) -> Array:
    """Matches each box with its best free anchor, then all anchors by their IoU.

    The pair with the largest IoU is matched first, then the best pair of the remaining
    anchors and boxes, and so on. The remaining anchors are matched as in
    `match_by_iou`.

    Args:
      anchors: [A, 4], xyxy.
      boxes: [N, 4], xyxy, the boxes of the objects. A box without any overlap is not
        matched.
      valid: bool [N]; False for padding.
      positive: Minimum IoU of anchors in the second step, 0 to 1.

    Returns:
      int32 [A]: the index of the box, or -1 (`NEGATIVE`). Among equal pairs, the one
      with the first anchor is matched first, then the one with the first box.

    Raises:
      ValueError: Shapes do not match, or `positive` is out of range.

    Reference:
      Liu et al., SSD, 2016, section 2.2, "Matching strategy"; bbox_util.cpp of the
      authors' Caffe.
    """
    options = {"positive": positive, "negative": positive, "low_quality": False}
    matches = match_by_iou(anchors, boxes, valid, **options)
    if not len(anchors) or not len(boxes):
        return matches
    anchors, boxes = (_constant(b) for b in (anchors, boxes))

    # The best free anchor and its IoU for each box. They are unknown at first, and when
    # another box takes the anchor. The IoU of a box can only decrease, so that the
    # largest one is final once it is known.
    def body(carry: tuple) -> tuple:
        taken, overlaps, bests, known = carry
        known &= taken[bests] < 0
        leads = overlaps == overlaps.max()
        box = jnp.argmin(jnp.where(leads, jnp.where(known, bests, -1), len(anchors)))
        best = bests[box]
        fits = known[box]
        free = jnp.where(taken < 0, iou(anchors, boxes[box][None]), 0)
        best_free = jnp.argmax(free)
        taken = taken.at[best].set(jnp.where(fits, box, taken[best]).astype(jnp.int32))
        overlaps = overlaps.at[box].set(jnp.where(fits, 0, free[best_free]))
        bests = bests.at[box].set(jnp.where(fits, best, best_free))
        return taken, overlaps, bests, known.at[box].set(True)

    start = (
        jnp.full(len(anchors), -1, jnp.int32),
        jnp.where(valid, jnp.inf, 0),
        jnp.zeros(len(boxes), jnp.int32),
        jnp.zeros(len(boxes), bool),
    )
    taken, *_ = lax.while_loop(lambda carry: (carry[1] > 0).any(), body, start)
    return jnp.where(taken >= 0, taken, matches)


def _constant(boxes: Array) -> Array:
    # Matching has no derivative.
    return lax.stop_gradient(jnp.asarray(boxes, jnp.float32))


def _count(valid: Array) -> Array:
    """Returns the number of boxes up to the last valid one."""
    places = jnp.arange(1, len(valid) + 1, dtype=jnp.int32)
    return jnp.where(valid, places, 0).max(initial=0)


def _check(
    function: str, anchors: Array, boxes: Array, valid: Array, usable: Array | None
) -> None:
    shapes = [list(jnp.shape(array)) for array in (anchors, boxes, valid)]
    fits = all(len(s) == 2 and s[1] == 4 for s in shapes[:2])
    if not fits or shapes[2] != shapes[1][:1]:
        raise ValueError(
            f"{function} takes anchors [A, 4], boxes [N, 4] and valid [N], got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    if usable is not None and list(jnp.shape(usable)) != shapes[0][:1]:
        raise ValueError(
            f"{function}: usable must be [{shapes[0][0]}] as the anchors, got "
            f"{list(jnp.shape(usable))}."
        )
