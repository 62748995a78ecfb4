"""Average precision of PASCAL VOC, computed on the host.

state = empty(num_classes)
state = update(state, detections, objects)  # for each batch
print(compute(state)["ap50"])
"""

from typing import Any, NamedTuple

import numpy as np


class Objects(NamedTuple):
    """The ground truth of a batch of images.

    Attributes:
      boxes: float32 [B, N, 4], xyxy in the pixels of the detections.
      classes: int32 [B, N], 0 to K - 1.
      valid: bool [B, N]; False for padding.
      difficult: bool [B, N]; difficult objects are neither found nor missed.
    """

    boxes: np.ndarray
    classes: np.ndarray
    valid: np.ndarray
    difficult: np.ndarray


class State(NamedTuple):
    """The detections in the images seen so far.

    Attributes:
      classes: int32 [M], classes of the detections.
      scores: float32 [M], scores of the detections.
      hits: int8 [M], 1 for a true positive, 0 for a false positive, -1 for a detection
        that is ignored.
      objects: int64 [K], number of objects of each class, without difficult ones.
      images: Number of images.
    """

    classes: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    objects: np.ndarray
    images: int


def empty(num_classes: int) -> State:
    """Returns the state before any image."""
    return State(
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int8),
        np.zeros(num_classes, np.int64),
        0,
    )


def update(
    state: State,
    detections: Any,
    objects: Any,
    valid: np.ndarray | None = None,
    *,
    iou_threshold: float = 0.5,
    inclusive: bool = False,
) -> State:
    """Adds a batch of images.

    Each detection is assigned to the object of its class with the largest IoU. By
    descending score, the first detection of an object whose IoU is above the threshold
    is a true positive, and further ones are false positives.

    Args:
      state: The images seen so far.
      detections: `zoo.Detections`.
      objects: `Objects`, or an object with the same attributes.
      valid: bool [B]; False for padding, which is not counted. None if all are valid.
      iou_threshold: IoU threshold, 0 to 1.
      inclusive: Whether x2 and y2 are the last pixel of a box, as in the files of
        PASCAL VOC. False for boxes whose upper left corner was moved by -1, as in
        `train.data`, which have the same IoU.

    Raises:
      ValueError: A class is out of range.
    """
    num_classes = len(state.objects)
    found = [np.asarray(getattr(detections, n)) for n in _DETECTED]
    there = [np.asarray(getattr(objects, n)) for n in Objects._fields]
    counts = state.objects.copy()
    parts, images = [], 0
    for i in range(len(found[0])):
        if valid is not None and not valid[i]:
            continue
        images += 1
        boxes, scores, classes = (x[i][found[3][i]] for x in found[:3])
        order = np.argsort(-scores, kind="stable")
        boxes, scores, classes = boxes[order], scores[order], classes[order]
        kept = there[2][i]
        targets, kinds, difficult = (there[n][i][kept] for n in (0, 1, 3))
        for name, values in (("detections", classes), ("objects", kinds)):
            if len(values) and not 0 <= values.min() <= values.max() < num_classes:
                raise ValueError(
                    f"{name} of image {i}: classes {np.unique(values).tolist()} must "
                    f"be 0 to {num_classes - 1}."
                )
        counts += np.bincount(kinds[~difficult], minlength=num_classes)
        near = overlaps(boxes, targets, inclusive=inclusive)
        near = np.where(classes[:, None] == kinds[None], near, 0)
        parts.append((classes, scores, _match(near, difficult, iou_threshold)))
    joined = [
        np.concatenate(column).astype(column[0].dtype)
        for column in zip(state[:3], *parts, strict=True)
    ]
    return State(*joined, counts, state.images + images)


def merge(a: State, b: State) -> State:
    """Merges the states of two disjoint sets of images."""
    joined = [np.concatenate(pair) for pair in zip(a[:3], b[:3], strict=True)]
    return State(*joined, a.objects + b.objects, a.images + b.images)


def compute(state: State) -> dict[str, Any]:
    """Computes the average precision of each class, and its mean.

    Returns:
      - "ap50": The mean over classes with objects of the area under the monotone
        precision-recall curve (VOC 2010 and later), 0 to 1; NaN if no class has any.
      - "ap50_voc07": The same for the mean precision at the recalls 0, 0.1, ..., 1.
      - "images", "objects" (without difficult ones) and "detections": Their numbers.
      - "by_class" and "by_class_voc07": The average precision of each class, None if it
        has no objects.
      - "curves": Recall and precision of each class, float64 [n] each, after each of
        its detections by descending score.
      All are for the threshold of `update`, 0.5 unless another is given.

    References:
      Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective,
      2015, section 3.2; its implementation in Faster R-CNN (`voc_eval.py`).
    """
    curves = [curve(state, k) for k in range(len(state.objects))]
    rules = {"": area_under, "_voc07": eleven_points}
    out: dict[str, Any] = {}
    for suffix, rule in rules.items():
        each = [
            rule(*c) if count else None
            for c, count in zip(curves, state.objects, strict=True)
        ]
        counted = [ap for ap in each if ap is not None]
        out[f"ap50{suffix}"] = float(np.mean(counted)) if counted else float("nan")
        out[f"by_class{suffix}"] = each
    return {
        **out,
        "images": state.images,
        "objects": int(state.objects.sum()),
        "detections": len(state.scores),
        "curves": curves,
    }


def curve(state: State, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes recall and precision of a class after each of its detections."""
    mine = (state.classes == number) & (state.hits >= 0)
    order = np.argsort(-state.scores[mine], kind="stable")
    right = np.cumsum(state.hits[mine][order], dtype=np.float64)
    recall = right / max(state.objects[number], 1)
    return recall, right / np.arange(1, len(right) + 1)


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """Computes the average precision of VOC 2010, the area under the envelope."""
    recall = np.r_[0.0, recall]
    # The maximum precision at each recall or a larger one.
    precision = np.maximum.accumulate(np.r_[precision, 0.0][::-1])[::-1][:-1]
    return float(np.sum(np.diff(recall) * precision))


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """Computes the average precision of VOC 2007, the mean at eleven recalls."""
    # The same numbers as in the commonly used code.
    points = np.arange(0.0, 1.1, 0.1)
    return float(np.mean([precision[recall >= p].max(initial=0) for p in points]))


_DETECTED = ("boxes", "scores", "classes", "valid")


def _match(near: np.ndarray, difficult: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the `hits` int8 [D] of detections sorted by descending score."""
    hits = np.zeros(len(near), np.int8)
    if not near.shape[1]:
        return hits
    used = np.zeros(near.shape[1], bool)
    best = near.argmax(axis=1)
    for d in np.flatnonzero(near.max(axis=1) > threshold):
        if difficult[best[d]]:
            hits[d] = -1
        elif not used[best[d]]:
            hits[d], used[best[d]] = 1, True
    return hits


def overlaps(
    boxes: np.ndarray, others: np.ndarray, *, inclusive: bool = False
) -> np.ndarray:
    """Computes the IoU of all pairs in float64 on the host; see `zoo.ops.boxes.iou`.

    Args:
      boxes: [n, 4], xyxy.
      others: [m, 4].
      inclusive: Whether x2 and y2 are the last pixel of a box.

    Returns:
      float64 [n, m]; 0 if both boxes are empty.
    """
    one = 1 if inclusive else 0
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.maximum(high - low + one, 0).prod(-1)
    a, b = ((x[:, 2:] - x[:, :2] + one).clip(0).prod(-1) for x in (boxes, others))
    union = a[:, None] + b[None] - shared
    return shared / np.where(union > 0, union, 1)
