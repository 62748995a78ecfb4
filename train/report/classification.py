"""The report of a classifier: confusion, classes, worst mistakes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.figures import draw_confusion, to_pil
from train.report.parts import (
    NONE,
    Card,
    Section,
    bar,
    breakable,
    class_table,
    confidence_interval,
    confused_pairs,
    percent,
    picture_card,
)

MOST_MISTAKES = 24


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that was given a wrong class.

    Attributes:
        image: uint8 [H, W, C] with 1, 3 or 4 channels, of any size.
        label: True class, 0..K-1.
        predicted: The model's class, 0..K-1.
        probability: What the model gave its class, in [0, 1].
        provenance: Where the image comes from, e.g. a file name.
    """

    image: np.ndarray
    label: int
    predicted: int
    probability: float
    provenance: str


@dataclass(frozen=True, eq=False)
class ClassifierEvaluation:
    """How a trained model does on one set of labelled images.

    Attributes:
        class_names: K names.
        confusion: Counts [K, K], row = truth, column = prediction.
        loss: Mean loss over the images.
        mistakes: The mistakes to show; the most confident ones come first.
    """

    class_names: tuple[str, ...]
    confusion: np.ndarray
    loss: float
    mistakes: Sequence[Mistake] = ()

    def __post_init__(self):
        k, counts = len(self.class_names), self.confusion
        whole = np.issubdtype(counts.dtype, np.integer) and not (counts < 0).any()
        if not k or counts.shape != (k, k) or not whole:
            raise ValueError(
                f"confusion is {counts.dtype} {counts.shape} for {k} class names; "
                f"expected whole numbers [{k}, {k}], none negative, for some classes"
            )
        for mistake in self.mistakes:
            if not (0 <= mistake.label < k and 0 <= mistake.predicted < k):
                raise ValueError(
                    f"mistake {mistake.provenance!r} has label {mistake.label} and "
                    f"predicted {mistake.predicted}; expected 0..{k - 1}"
                )

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of images that were given their true class."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Share of correct predictions in [0, 1]; NaN without images."""
        return self.correct / self.count if self.count else math.nan

    def cards(self) -> dict[str, Card]:
        """Returns the headline numbers."""
        low, high = confidence_interval(self.correct, self.count)
        interval = f"95 % interval {percent(low)} to {percent(high)}"
        return {
            "accuracy": (percent(self.accuracy), interval),
            "loss": (f"{self.loss:.4g}", "evaluation"),
            "examples": (f"{self.count:,}", "evaluated"),
        }

    def sections(self) -> list[Section]:
        """Returns the parts of the page."""
        confusion, names = self.confusion.astype(np.int64), self.class_names
        totals = confusion.sum(axis=1)
        share = confusion.diagonal() / np.maximum(totals, 1)
        order = np.argsort(np.where(totals, share, 2), kind="stable")  # empty ones last
        rows = [
            _class_row(names[c], int(confusion[c, c]), int(totals[c])) for c in order
        ]
        header = ("class", "accuracy", "", "correct")
        classes = class_table(header, rows, "Lowest first; band = 95 % interval.")
        worst = sorted(self.mistakes, key=lambda m: -m.probability)
        cards = "".join(_mistake_card(m, names) for m in worst[:MOST_MISTAKES])
        return [
            Section("Confusion matrix", draw_confusion(confusion, names)),
            Section("Most confused", confused_pairs(confusion, names)),
            Section("Accuracy of each class", classes),
            Section("Worst mistakes", f'<div class="cards">{cards or NONE}</div>'),
        ]


def _class_row(name: str, correct: int, count: int) -> tuple[str, ...]:
    """Returns the cells of one class, with a bar and its interval."""
    if not count:
        return breakable(name), "", "–", "no examples"
    drawn = bar(correct / count, confidence_interval(correct, count))
    return breakable(name), drawn, percent(correct / count), f"{correct:,}/{count:,}"


def _mistake_card(mistake: Mistake, names: Sequence[str]) -> str:
    true, predicted = names[mistake.label], names[mistake.predicted]
    caption = (
        f"<b>{breakable(predicted)}</b> {percent(mistake.probability)}<br>truth: "
        f"<b>{breakable(true)}</b><small>{breakable(mistake.provenance)}</small>"
    )
    return picture_card(to_pil(mistake.image), f"{true} taken for {predicted}", caption)
