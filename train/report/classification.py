"""The report of a classifier: confusion, accuracy by class, worst mistakes."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from train.report.parts import (
    Evaluation,
    Picture,
    Section,
    class_table,
    confused_pairs,
    confusion_matrix,
    macros,
    percent,
)
from train.run import Result
from zoo.figures.pictures import to_pil
from zoo.metrics.classification import confidence_interval

MAX_MISTAKES = 24


def evaluate_classifier(result: Result) -> Evaluation:
    """Makes the report of a run, with the most confident mistakes of its network."""
    found, names = result.evaluated, result.experiment.card.class_names
    source, predictions = result.experiment.eval_source, found.predictions
    wrong = np.flatnonzero(predictions.predicted != source.labels)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")]
    mistakes = []
    for i in map(int, worst[:MAX_MISTAKES]):
        true, predicted = names[source.labels[i]], names[predictions.predicted[i]]
        share = percent(predictions.probability[i])
        caption = Markup("<b>{}</b> {}<br>truth: <b>{}</b>")
        caption = caption.format(predicted, share, true)
        image, alt = to_pil(source.image(i)), f"{true} taken for {predicted}"
        mistakes.append(Picture(image, alt, caption, source.provenance(i)))
    return report_classifier(names, found.confusion, found.metrics["loss"], mistakes)


def report_classifier(
    class_names: Sequence[str],
    confusion: np.ndarray,
    loss: float,
    mistakes: Sequence[Picture] = (),
) -> Evaluation:
    """Makes the report of a classifier.

    Args:
      class_names: K names.
      confusion: Counts, int [K, K], row = truth, column = prediction.
      loss: The mean loss over the images.
      mistakes: The mistakes to show, the worst first.

    Returns:
      The numbers and sections of the report.
    """
    totals, correct = confusion.sum(axis=1), confusion.diagonal()
    count, right = int(totals.sum()), int(correct.sum())
    low, high = confidence_interval(right, count)
    accuracy = percent(right / count if count else np.nan)
    pairs = [*zip(correct.tolist(), totals.tolist(), strict=True)]
    classes = class_table(
        ("class", "accuracy", "", "correct"),
        class_names,
        [c / n if n else None for c, n in pairs],
        [confidence_interval(c, n) for c, n in pairs],
        [f"{c:,}/{n:,}" for c, n in pairs],
        absent="no examples",
        note="Lowest first; band = 95 % interval.",
    )
    return Evaluation(
        {
            "accuracy": (accuracy, f"95 % interval {percent(low)} to {percent(high)}"),
            "loss": (f"{loss:.4g}", "evaluation"),
            "examples": (f"{count:,}", "evaluated"),
        },
        [
            Section("Confusion matrix", confusion_matrix(confusion, class_names)),
            Section("Most confused", confused_pairs(confusion, class_names)),
            Section("Accuracy of each class", classes),
            Section("Worst mistakes", macros.gallery(mistakes)),
        ],
    )
