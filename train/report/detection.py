"""The report of a detector: precision and recall, detections, false alarms, misses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from train.data import Source
from train.figures import line_chart
from train.report.parts import (
    Evaluation,
    Picture,
    Section,
    class_table,
    macros,
    percent,
)
from train.run import Result
from train.task import Evaluated
from zoo.figures.boxes import cut_around, draw_boxes, draw_detections
from zoo.figures.pictures import MISS, beside
from zoo.metrics.detection import overlaps

MAX_FINDINGS = 24  # largest number of false alarms, and of misses
MAX_CURVES = 10
LEAST_IOU = 0.5  # least IoU of a detection with the object that it finds
IMAGES = 6
MIN_SCORE = 0.3  # lowest score of a detection that is drawn
WIDTH = 820  # pixels of a picture with truth and detections beside each other


class Boxes(NamedTuple):
    """The boxes of one image.

    Attributes:
      boxes: float32 [n, 4], xyxy in pixels of the image.
      classes: int32 [n].
      scores: float32 [n] in [0, 1]; None for the truth.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None

    def confident(self) -> "Boxes":
        """Returns the detections whose score is high enough to be drawn."""
        kept = self.scores >= MIN_SCORE
        return Boxes(*(values[kept] for values in self))


def evaluate_detector(result: Result) -> Evaluation:
    """Makes the report of a run, with the worst false alarms and misses.

    False alarms are sorted by score, the highest first. Misses are sorted by the score
    with which the object was found, if it was, then by area, the largest first.
    """
    found, names = result.evaluated, result.experiment.card.class_names
    source = result.experiment.eval_source.source
    alarms, misses = [], []
    for i in range(len(source)):
        truth, boxes = _boxes_of(found, i)
        difficult = found.objects.difficult[i][found.objects.valid[i]]
        match = match_objects(*boxes, *truth[:2], difficult)
        alarms += [(-boxes.scores[d], i, int(d)) for d in np.flatnonzero(match.alarm)]
        areas = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(-1)
        misses += [
            (match.score[n], -float(areas[n]), i, int(n))
            for n in np.flatnonzero((match.score < MIN_SCORE) & ~difficult)
        ]
    alarms = [
        _draw_alarm(source, i, *_boxes_of(found, i), d, names)
        for _, i, d in sorted(alarms)[:MAX_FINDINGS]
    ]
    misses = [
        _draw_miss(source, i, *_boxes_of(found, i), n, names)
        for *_, i, n in sorted(misses)[:MAX_FINDINGS]
    ]
    shown = []
    for i in np.unique(np.linspace(0, len(source) - 1, IMAGES).astype(int)):
        truth, boxes = _boxes_of(found, i)
        image, where = source.image(int(i)), source.provenance(int(i))
        shown.append(draw_comparison(image, truth, boxes.confident(), names, where))
    return report_detector(found, names, shown, alarms, misses)


def report_detector(
    found: Evaluated,
    class_names: Sequence[str],
    shown: Sequence[Picture] = (),
    alarms: Sequence[Picture] = (),
    misses: Sequence[Picture] = (),
) -> Evaluation:
    """Makes the report of a detector.

    Args:
      found: The result of the evaluation.
      class_names: K names.
      shown: Images with truth and detections.
      alarms: The worst false alarms.
      misses: The worst misses.

    Returns:
      The numbers and sections of the report.
    """
    known = {
        "ap50": ("AP50", "mean over the classes"),
        "ap50_voc07": ("AP50, VOC07", "of 11 points"),
        "ap": ("AP", "mean over IoU 0.5 to 0.95"),
    }
    numbers = {
        name: (percent(found.metrics[key]), remark)
        for key, (name, remark) in known.items()
        if key in found.metrics
    }
    images, objects = (f"{found.metrics[key]:,}" for key in ("images", "objects"))
    numbers["images"] = (images, f"{objects} objects")
    present = found.objects.classes[found.objects.valid]
    precision = found.precision
    classes = class_table(
        ("class", "AP50", "", "objects"),
        class_names,
        precision,
        counts=[f"{(present == c).sum():,}" for c in range(len(class_names))],
        absent="no objects",
    )
    known = [c for c, value in enumerate(precision) if value is not None]
    lowest = sorted(known, key=lambda c: precision[c])[:MAX_CURVES]
    curves = {class_names[c]: found.curves[c] for c in lowest}
    chart = line_chart(curves, "recall", "precision")
    note = (
        "A curve for each class, the lowest average precision first; a detection is "
        "right where its IoU with an object is above 0.5."
    )
    return Evaluation(
        numbers,
        [
            Section("Precision and recall", macros.charts([chart], note)),
            Section("Average precision", classes),
            Section("Truth and detections", macros.gallery(shown, "wide")),
            Section("Worst false alarms", macros.gallery(alarms)),
            Section("Worst misses", macros.gallery(misses)),
        ],
    )


def _boxes_of(found: Evaluated, i: int) -> tuple[Boxes, Boxes]:
    """Returns the objects of image i, and all its detections."""
    objects, detections = found.objects, found.detections
    known, valid = objects.valid[i], detections.valid[i]
    return (
        Boxes(objects.boxes[i][known], objects.classes[i][known]),
        Boxes(
            detections.boxes[i][valid],
            detections.classes[i][valid],
            detections.scores[i][valid],
        ),
    )


def _draw_alarm(
    source: Source, i: int, truth: Boxes, found: Boxes, d: int, names: Sequence[str]
) -> Picture:
    box, number = found.boxes[d], int(found.classes[d])
    ious = overlaps(box[None], truth.boxes)[0]
    best = int(ious.argmax()) if len(ious) else -1
    name = names[truth.classes[best]] if best >= 0 else ""
    if best < 0 or ious[best] < 0.1:
        reason = "there is nothing"
    elif ious[best] < 0.5:
        reason = f"its IoU with {name} is only {ious[best]:.0%}"
    elif truth.classes[best] != number:
        reason = f"it is {name}"
    else:
        reason = "found a second time"
    title = f"{names[number]} {found.scores[d]:.0%}"
    image, where = source.image(i), source.provenance(i)
    return draw_finding(image, box, title, reason, truth, names, where)


def _draw_miss(
    source: Source, i: int, truth: Boxes, found: Boxes, n: int, names: Sequence[str]
) -> Picture:
    box, title, found = truth.boxes[n], names[truth.classes[n]], found.confident()
    ious = overlaps(box[None], found.boxes)[0]
    reason = "nothing was found here"
    if len(ious) and ious.max() >= 0.1:
        best = int(ious.argmax())
        other = f"{names[found.classes[best]]} {found.scores[best]:.0%}"
        reason = f"found {other} with an IoU of {ious[best]:.0%}"
    image, where = source.image(i), source.provenance(i)
    return draw_finding(image, box, title, reason, found, names, where)


def draw_comparison(
    image: np.ndarray, truth: Boxes, found: Boxes, names: Sequence[str], where: str
) -> Picture:
    """Draws the objects of an image beside the detections."""
    both = [draw_detections(image, *boxes, names) for boxes in (truth, found)]
    alt = f"{len(truth.boxes)} objects and {len(found.boxes)} detections"
    return Picture(beside(both, ("truth", "detections")), alt, "", where, WIDTH)


def draw_finding(
    image: np.ndarray,
    box: np.ndarray,
    title: str,
    reason: str,
    others: Boxes,
    names: Sequence[str],
    where: str,
) -> Picture:
    """Draws a wrong detection or a missed object, and the boxes near it.

    Args:
      image: uint8 [H, W, C].
      box: float32 [4], xyxy in pixels.
      title: The class of the box, and its score.
      reason: Why the box is wrong, or was missed.
      others: The boxes to show beside it: objects, or detections.
      names: K class names.
      where: Where the image comes from.
    """
    part, corner = cut_around(image, box)
    box, boxes = box - np.tile(corner, 2), others.boxes - np.tile(corner, 2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = ((centers >= 0) & (centers < part.shape[1::-1])).all(-1)
    drawn = draw_boxes(
        part,
        np.concatenate([box[None], boxes[near]]),
        ["", *(names[c] for c in others.classes[near])],
        [MISS, *[(255, 255, 255)] * near.sum()],
        least=256,
        bold=1,
    )
    caption = Markup("<b>{}</b><br>{}").format(title, reason)
    return Picture(drawn, f"{title}: {reason}", caption, where)


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
      boxes: float [D, 4], detections by descending score.
      classes: int [D].
      scores: float [D].
      objects: float [N, 4].
      object_classes: int [N].
      difficult: bool [N]; a detection of a difficult object is neither right nor wrong.
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
