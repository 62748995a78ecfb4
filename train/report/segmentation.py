"""The report of a segmentation network: classes, confusion, images and errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.figures import draw_confusion
from train.report.parts import (
    NONE,
    Card,
    Section,
    bar,
    breakable,
    class_table,
    confused_pairs,
    percent,
    picture_card,
)
from zoo.figures.masks import draw_comparison, make_palette

WIDE = 1200  # pixels of a picture with image, truth, prediction and errors


class SegmentedImage(NamedTuple):
    """An image, its mask and the prediction.

    Attributes:
      image: uint8 [H, W, C].
      mask: uint8 [H, W], 255 where it is ignored.
      predicted: uint8 [H, W].
      right: Which part of its pixels is right.
      provenance: Where the image comes from.
    """

    image: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    right: float
    provenance: str


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """How a trained segmentation network does on one set of images.

    Attributes:
      class_names: K names.
      metrics: Of `zoo.metrics.segmentation`.
      iou: Intersection over union of each class, None where it does not occur.
      confusion: Counts of pixels [K, K], row = truth, column = prediction.
      worst: The images with the most errors.
      typical: Others.
    """

    class_names: tuple[str, ...]
    metrics: dict[str, float]
    iou: Sequence[float | None]
    confusion: np.ndarray
    worst: Sequence[SegmentedImage] = ()
    typical: Sequence[SegmentedImage] = ()

    def cards(self) -> dict[str, Card]:
        """Returns the headline numbers."""
        found = self.metrics
        images = f"{found['images']:,}", f"{found['pixels']:,} pixels"
        return {
            "mean IoU": (percent(found["mean_iou"]), "mean over the classes"),
            "pixels right": (percent(found["pixel_accuracy"]), "of all"),
            "class accuracy": (percent(found["class_accuracy"]), "mean over classes"),
            "loss": (f"{found['loss']:.4g}", "evaluation"),
            "images": images,
        }

    def sections(self) -> list[Section]:
        """Returns the parts of the page."""
        names, totals = self.class_names, self.confusion.sum(axis=1)
        values = np.array([2 if v is None else v for v in self.iou])
        rows = []
        for c in np.argsort(values, kind="stable"):  # those that do not occur are last
            pixels = f"{totals[c]:,}"
            if self.iou[c] is None:
                rows.append((breakable(names[c]), "", "–", "does not occur"))
            else:
                drawn = bar(values[c])
                rows.append((breakable(names[c]), drawn, percent(values[c]), pixels))
        header = ("class", "intersection over union", "", "pixels")
        share = self.confusion / np.maximum(totals, 1)[:, None]
        confusion = draw_confusion(np.rint(100 * share).astype(int), names)
        note = "<p>Percent of the true class's pixels.</p>"
        return [
            Section("Classes", class_table(header, rows, "Lowest first.")),
            Section("Confusion between classes", confusion + note),
            Section("Most confused", confused_pairs(self.confusion, names)),
            Section("Worst images", self._pictures(self.worst)),
            Section("Other images", self._pictures(self.typical)),
        ]

    def _pictures(self, images: Sequence[SegmentedImage]) -> str:
        palette = make_palette(self.class_names)
        cards = "".join(
            picture_card(
                draw_comparison(shown.image, shown.mask, shown.predicted, palette),
                "image, truth, prediction and errors",
                f"{percent(shown.right)} right"
                f"<small>{breakable(shown.provenance)}</small>",
                WIDE,
            )
            for shown in images
        )
        legend = "".join(
            f'<span style="color:rgb{tuple(int(v) for v in palette[c])}">●</span> '
            f"{breakable(name)} &ensp;"
            for c, name in enumerate(self.class_names)
        )
        return f'<p>{legend}</p><div class="wide">{cards or NONE}</div>'
