"""The report of a face network: ROC, worst pairs, alignment step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from train.figures import line_chart
from train.report.parts import (
    NONE,
    Card,
    Section,
    percent,
    picture_card,
    table,
    text,
)


@dataclass(frozen=True, eq=False)
class ShownPair:
    """Two faces that were taken for one person's, or for two people's, wrongly.

    Attributes:
        picture: Both as the network saw them, side by side.
        same: Whether they are of one person.
        score: Inner product of their descriptors.
        probability: That they are of one person, in [0, 1].
        provenance: Where both come from.
    """

    picture: Image.Image
    same: bool
    score: float
    probability: float
    provenance: str


@dataclass(frozen=True, eq=False)
class VerificationEvaluation:
    """How a face network does on one set of pairs.

    Attributes:
        metrics: See `train.tasks.Verified`.
        curves: (false accept rates, true accept rates) by name of the alignment.
        cmc: Part of the probes whose person is among the r best, r from 1 on.
        comparison: Rows of alignment, accuracy, standard error and area under the ROC.
        groups: Rows of name, number of pairs and accuracy.
        mistakes: Pairs, the worst ones first.
        steps: Pictures of the steps of the alignment, of some faces.
    """

    metrics: dict[str, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    cmc: np.ndarray
    comparison: Sequence[tuple[str, float, float, float]] = ()
    groups: Sequence[tuple[str, int, float]] = ()
    mistakes: Sequence[ShownPair] = ()
    steps: Sequence[tuple[str, Image.Image]] = field(default_factory=tuple)

    def cards(self) -> dict[str, Card]:
        """Returns the headline numbers."""
        found = self.metrics
        cards = {
            "verification": (
                percent(found["verification_accuracy"]),
                f"+- {percent(found['standard_error'])}, {found['pairs']:,} pairs",
            ),
            "AUC": (percent(found["auc"]), "area under the ROC"),
            "EER": (percent(found["eer"]), "equal error rate"),
        }
        if "identification" in found:
            held = "held-out pictures of trained people"
            cards["identification"] = (percent(found["identification"]), held)
        if "rank1" in found:
            cards["rank 1"] = (percent(found["rank1"]), "descriptors, closed set")
        return cards

    def sections(self) -> list[Section]:
        """Returns the parts of the page."""
        charts = line_chart(
            {name: curve for name, curve in self.curves.items()},
            "false accept rate",
            "true accept rate",
        )
        if len(self.cmc):
            ranks = np.arange(1, min(len(self.cmc), 20) + 1)
            cmc = {"closed set": (ranks, 100 * self.cmc[: len(ranks)])}
            charts += line_chart(cmc, "rank", "identified (%)")
        rows = [
            (text(name), percent(accuracy), f"+- {percent(error)}", percent(area))
            for name, accuracy, error, area in self.comparison
        ]
        header = ("alignment", "accuracy", "standard error", "AUC")
        note = (
            "The same network on the same pairs; it was trained with the first "
            "alignment."
        )
        parts = [
            Section("Verification", f'<div class="charts">{charts}</div>'),
            Section("With other alignments", table(header, rows, note)),
        ]
        if self.groups:
            rows = [(text(n), f"{count:,}", percent(a)) for n, count, a in self.groups]
            note = (
                "Pairs within a group, at the thresholds of all. Accuracy differs "
                "between groups: measure it for yours before any use."
            )
            header = ("group", "pairs", "accuracy")
            parts.append(Section("Groups", table(header, rows, note)))
        numbers = [
            (text(name.replace("_", " ")), f"{value:.4g}")
            for name, value in self.metrics.items()
        ]
        parts.append(Section("All measures", table(("measure", "value"), numbers)))
        cards = "".join(_pair_card(pair) for pair in self.mistakes)
        parts.append(
            Section("Worst pairs", f'<div class="cards">{cards or NONE}</div>')
        )
        if self.steps:
            shown = "".join(
                picture_card(picture, "alignment of a face", text(name), 900)
                for name, picture in self.steps
            )
            parts.append(Section("Alignment", shown))
        return parts


def _pair_card(pair: ShownPair) -> str:
    truth = "one person" if pair.same else "two people"
    caption = (
        f"<b>{percent(pair.probability)}</b> one person, score {pair.score:.3f}<br>"
        f"truth: <b>{truth}</b><small>{text(pair.provenance)}</small>"
    )
    return picture_card(pair.picture, f"two faces of {truth}", caption)
