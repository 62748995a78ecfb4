"""Matches the detections of one image with its objects, for the report."""

from typing import NamedTuple

import numpy as np

from zoo.metrics.detection import overlaps

LEAST_IOU = 0.5


class Matches(NamedTuple):
    """The match of the detections of an image with its objects.

    Attributes:
      alarm: bool [D], whether a detection is a false alarm.
      score: float32 [N], the score of the detection that found an object, or 0.
    """

    alarm: np.ndarray
    score: np.ndarray


def match_objects(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    objects: np.ndarray,
    object_classes: np.ndarray,
    difficult: np.ndarray,
) -> Matches:
    """Matches each detection, best first, with the object that it overlaps most.

    Args:
      boxes: float [D, 4], detections by falling score.
      classes: int [D].
      scores: float [D].
      objects: float [N, 4].
      object_classes: int [N].
      difficult: bool [N]; a detection of one is neither right nor wrong.
    """
    alarm, found = np.ones(len(boxes), bool), np.zeros(len(objects), np.float32)
    shares = overlaps(boxes, objects)
    shares = np.where(classes[:, None] == object_classes[None], shares, 0)
    for d in range(len(boxes) if len(objects) else 0):
        best = int(shares[d].argmax())
        if shares[d, best] < LEAST_IOU:
            continue
        if difficult[best]:
            alarm[d] = False
        elif not found[best]:
            alarm[d], found[best] = False, scores[d]
    return Matches(alarm, found)
