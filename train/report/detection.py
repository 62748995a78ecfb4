"""The report of a detector: precision and recall, false alarms, misses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.figures import Series, line_chart
from train.report.parts import (
    NONE,
    Card,
    Section,
    bar,
    breakable,
    class_table,
    percent,
    picture_card,
    text,
)
from zoo.figures.boxes import cut_around, draw_boxes, draw_detections
from zoo.figures.pictures import MISS, beside

WIDE = 820  # pixels of a picture with truth and detections beside each other
MOST_CURVES = 10


class Boxes(NamedTuple):
    """Boxes of one image, of which `scores` is None where they are the truth.

    Attributes:
      boxes: float32 [n, 4], xyxy in pixels of the image.
      classes: int32 [n].
      scores: float32 [n], 0 to 1.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


class Shown(NamedTuple):
    """An image, what is on it and what was found.

    Attributes:
      image: uint8 [H, W, C].
      truth: Its objects.
      found: What was detected.
      provenance: Where the image comes from.
    """

    image: np.ndarray
    truth: Boxes
    found: Boxes
    provenance: str


class Finding(NamedTuple):
    """A detection that is wrong, or an object that was missed.

    Attributes:
      image: uint8 [H, W, C].
      box: float32 [4], xyxy in pixels.
      title: What it is, such as the class and the score.
      reason: In words.
      provenance: Where the image comes from.
      others: Boxes that are shown beside it: objects, or detections.
    """

    image: np.ndarray
    box: np.ndarray
    title: str
    reason: str
    provenance: str
    others: Boxes


@dataclass(frozen=True, eq=False)
class DetectorEvaluation:
    """How a trained detector does on one set of images.

    Attributes:
      class_names: K names.
      metrics: `ap50` and more, and the counts `images` and `objects`.
      precision: Average precision of each class at an IoU of 0.5; None where the set
        has no object of it.
      objects: How many there are of each class.
      curves: Of each class, recall and precision.
      shown: Images to show.
      alarms: The most confident false alarms.
      misses: The worst misses.
    """

    class_names: tuple[str, ...]
    metrics: dict[str, float]
    precision: Sequence[float | None]
    objects: Sequence[int]
    curves: Sequence[tuple[np.ndarray, np.ndarray]]
    shown: Sequence[Shown] = ()
    alarms: Sequence[Finding] = ()
    misses: Sequence[Finding] = ()

    def cards(self) -> dict[str, Card]:
        """Returns the headline numbers."""
        known = {
            "ap50": ("AP50", "mean over the classes"),
            "ap50_voc07": ("AP50, VOC07", "of 11 points"),
            "ap": ("AP", "mean over IoU 0.5 to 0.95"),
        }
        cards = {
            name: (percent(self.metrics[key]), remark)
            for key, (name, remark) in known.items()
            if key in self.metrics
        }
        count = f"{self.metrics['images']:,}", f"{self.metrics['objects']:,} objects"
        return cards | {"images": count}

    def sections(self) -> list[Section]:
        """Returns the parts of the page."""
        names = self.class_names
        missing = [p is None for p in self.precision]
        values = np.array([2 if p is None else p for p in self.precision])
        order = np.argsort(values, kind="stable")  # those without objects are last
        rows = [
            (breakable(names[c]), "", "–", "no objects")
            if missing[c]
            else (
                breakable(names[c]),
                bar(values[c]),
                percent(values[c]),
                f"{self.objects[c]:,}",
            )
            for c in order
        ]
        header = ("class", "AP50", "", "objects")
        curves = {
            names[c]: self.curves[c] for c in order[:MOST_CURVES] if not missing[c]
        }
        shown = "".join(_shown_card(image, names) for image in self.shown)
        return [
            Section("Precision and recall", _curves(curves)),
            Section("Average precision", class_table(header, rows, "Lowest first.")),
            Section("Truth and detections", f'<div class="wide">{shown or NONE}</div>'),
            Section("Worst false alarms", _cards(self.alarms, names)),
            Section("Worst misses", _cards(self.misses, names)),
        ]


def _curves(curves: Series) -> str:
    chart = line_chart(curves, "recall", "precision")
    note = (
        "A curve for each class, the lowest average precision first; a detection "
        "is right where it shares more than half of its union with an object."
    )
    return f'<div class="charts">{chart}</div><p>{note}</p>'


def _shown_card(shown: Shown, names: Sequence[str]) -> str:
    truth, found = (
        draw_detections(shown.image, *boxes, names)
        for boxes in (shown.truth, shown.found)
    )
    both = beside((truth, found), ("truth", "detections"))
    alt = f"{len(shown.truth.boxes)} objects and {len(shown.found.boxes)} detections"
    return picture_card(
        both, alt, f"<small>{breakable(shown.provenance)}</small>", WIDE
    )


def _cards(findings: Sequence[Finding], names: Sequence[str]) -> str:
    cards = "".join(_finding_card(finding, names) for finding in findings)
    return f'<div class="cards">{cards or NONE}</div>'


def _finding_card(finding: Finding, names: Sequence[str]) -> str:
    part, corner = cut_around(finding.image, finding.box)
    box, others = finding.box - np.tile(corner, 2), finding.others
    boxes = others.boxes - np.tile(corner, 2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = ((centres >= 0) & (centres < part.shape[1::-1])).all(-1)
    captions = ["", *(names[c] for c in others.classes[near])]
    colors = [MISS, *[(255, 255, 255)] * near.sum()]
    boxes = np.concatenate([box[None], boxes[near]])
    picture = draw_boxes(part, boxes, captions, colors, least=256, bold=1)
    caption = (
        f"<b>{breakable(finding.title)}</b><br>{text(finding.reason)}"
        f"<small>{breakable(finding.provenance)}</small>"
    )
    return picture_card(picture, f"{finding.title}: {finding.reason}", caption)
