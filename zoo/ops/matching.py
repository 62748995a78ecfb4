"""Which object each anchor shall find, by how much the two overlap.

Boxes are taken one at a time, so that memory grows with the anchors and not with
anchors times boxes; padding at the end of the boxes costs no time.
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
    """Matches each anchor with the box it overlaps most, if it does so enough.

    Args:
      anchors: [A, 4], xyxy.
      boxes: [N, 4], xyxy: the objects.
      valid: bool [N]; False for padding.
      positive: Least IoU of an anchor that is matched, 0 to 1.
      negative: An anchor whose IoU is less than this with every box is negative. Of a
        pair (low, high), one whose largest IoU is at least `low` and less than `high`.
      low_quality: Whether the anchors that overlap a box most are matched too, however
        little that is, each with the box that it overlaps most itself. A box which no
        anchor meets matches none. (In torchvision it does: all anchors without any
        overlap.)
      usable: bool [A]; where False, an anchor is ignored and is the best of no box, as
        those that cross the image's border in Faster R-CNN. None for all.
      inclusive: Whether the last pixel belongs to a box, see `zoo.ops.boxes`.

    Returns:
      int32 [A]: the index of the box; -1 (`NEGATIVE`), or -2 (`IGNORED`) where neither
      holds. Of boxes that are overlapped alike the first counts.

    Raises:
      ValueError: Shapes do not fit, or thresholds are out of order.

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
        # Computed once: rounded in two ways, the largest might equal none.
        overlap = lax.optimization_barrier(jnp.where(usable & valid[n], overlap, -1))
        largest = overlap.max(initial=-1)
        is_best |= (overlap == largest) & (largest > 0)
        more = overlap > most
        return jnp.where(more, overlap, most), jnp.where(more, n, index), is_best

    # Anchors without any box have no overlap with any.
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
    """Gives each box the best anchor that is free, then all that overlap it enough.

    The pair of the largest IoU is matched first, then the largest of the anchors and
    boxes that are left, and so on. Each anchor that is left after that is matched as by
    `match_by_iou`.

    Args:
      anchors: [A, 4], xyxy.
      boxes: [N, 4], xyxy: the objects. One that no anchor meets gets none.
      valid: bool [N]; False for padding.
      positive: Least IoU of the anchors of the second step, 0 to 1.

    Returns:
      int32 [A]: the index of the box, or -1 (`NEGATIVE`). Of equal pairs the one with
      the first anchor counts, then the one with the first box.

    Raises:
      ValueError: Shapes do not fit, or `positive` is out of range.

    Reference:
      Liu et al., SSD, 2016, section 2.2, "Matching strategy"; bbox_util.cpp of the
      authors' Caffe.
    """
    options = {"positive": positive, "negative": positive, "low_quality": False}
    matches = match_by_iou(anchors, boxes, valid, **options)
    if not len(anchors) or not len(boxes):
        return matches
    anchors, boxes = (_constant(b) for b in (anchors, boxes))

    # Of every box, its best anchor and their IoU: at first unknown, and known anew
    # each time that another box takes the anchor. IoUs only fall in this, so the
    # largest is right once it is known.
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
    # What matches what has no derivative.
    return lax.stop_gradient(jnp.asarray(boxes, jnp.float32))


def _count(valid: Array) -> Array:
    """The number of boxes up to the last valid one."""
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
