"""Which detections are right, of one image: for what a report shows."""

from typing import NamedTuple

import numpy as np

from zoo.metrics.detection import overlaps

LEAST_IOU = 0.5


class Matches(NamedTuple):
    """What became of the detections and the objects of an image.

    Attributes:
      alarm: bool [D], whether a detection is a false alarm.
      score: float32 [N], of the detection that found an object; 0 where none did.
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
    """Gives each detection, the best first, the object that it overlaps most.

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
