"""The report of a face network: ROC, groups, worst pairs, steps of the alignment."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from train.data import Source, align_source, fit_source
from train.descriptors import probability
from train.evaluate import Evaluator
from train.figures import line_chart
from train.figures.faces import draw_alignment
from train.report.parts import Evaluation, Picture, Section, macros, percent
from train.run import Result
from train.task import Evaluated
from zoo.figures.pictures import beside, enlarge

MAX_MISTAKES = 24
MAX_RANK = 20
FACES = 6  # number of faces whose alignment is shown
WIDTH = 900  # pixels of a picture with the steps of an alignment


def evaluate_verification(result: Result) -> Evaluation:
    """Makes the report of a run, with the worst pairs and with other alignments."""
    found, experiment = result.evaluated, result.experiment
    source, preprocess = experiment.eval_source, experiment.card.preprocess
    aligned = source.source
    photographs = getattr(aligned, "photographs", aligned)
    method = getattr(aligned, "method", "none")
    every = {method: found} | {
        name: _realign(result, photographs, name)
        for name in _other_alignments(photographs, method)
    }
    wrong = (found.scores > found.metrics["threshold"]) != found.faces.pairs.same
    off = np.abs(found.scores - found.metrics["threshold"]) * wrong
    worst = np.argsort(-off, kind="stable")[:MAX_MISTAKES]
    steps = []
    for i in map(int, np.linspace(0, len(source) - 1, FACES)):
        landmarks = photographs.landmarks(i)
        if landmarks is not None:
            drawn = draw_alignment(photographs.image(i), landmarks, preprocess.size)
            where = photographs.provenance(i)
            steps.append(Picture(drawn, "alignment of a face", where, size=WIDTH))
    mistakes = [_draw_pair(found, source, int(i)) for i in worst if wrong[i]]
    return report_verification(every, mistakes, steps)


def report_verification(
    every: Mapping[str, Evaluated],
    mistakes: Sequence[Picture] = (),
    steps: Sequence[Picture] = (),
) -> Evaluation:
    """Makes the report of a face network.

    Args:
      every: The evaluations by name of the alignment; that of the training comes first.
      mistakes: Wrong pairs, the worst first.
      steps: The steps of the alignment of some faces.

    Returns:
      The numbers and sections of the report.
    """
    found = next(iter(every.values()))
    metrics, cmc = found.metrics, found.cmc
    error = f"+- {percent(metrics['standard_error'])}, {metrics['pairs']:,} pairs"
    numbers = {
        "verification": (percent(metrics["verification_accuracy"]), error),
        "AUC": (percent(metrics["auc"]), "area under the ROC"),
        "EER": (percent(metrics["eer"]), "equal error rate"),
    }
    for key, name, remark in (
        ("identification", "identification", "held-out pictures of trained people"),
        ("rank1", "rank 1", "descriptors, closed set"),
    ):
        if key in metrics:
            numbers[name] = (percent(metrics[key]), remark)
    curves = {name: (each.curve.far, each.curve.tar) for name, each in every.items()}
    charts = [line_chart(curves, "false accept rate", "true accept rate")]
    if len(cmc):
        ranks = np.arange(1, min(len(cmc), MAX_RANK) + 1)
        series = {"closed set": (ranks, 100 * cmc[: len(ranks)])}
        charts.append(line_chart(series, "rank", "identified (%)"))
    alignments = macros.table(
        ("alignment", "accuracy", "standard error", "AUC"),
        [
            (
                name,
                percent(each.metrics["verification_accuracy"]),
                f"+- {percent(each.metrics['standard_error'])}",
                percent(each.metrics["auc"]),
            )
            for name, each in every.items()
        ],
        "The same network on the same pairs; it was trained with the first alignment.",
    )
    sections = [
        Section("Verification", macros.charts(charts)),
        Section("With other alignments", alignments),
    ]
    if found.groups:
        table = macros.table(
            ("group", "pairs", "accuracy"),
            [
                (name, f"{count:,}", percent(share))
                for name, count, share in found.groups
            ],
            "Pairs within a group, at the thresholds of all. Accuracy differs between "
            "groups: measure it for yours before any use.",
        )
        sections.append(Section("Groups", table))
    rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in metrics.items()]
    sections += [
        Section("All metrics", macros.table(("metric", "value"), rows)),
        Section("Worst pairs", macros.gallery(mistakes)),
    ]
    if steps:
        sections.append(Section("Alignment", macros.gallery(steps, "wide")))
    return Evaluation(numbers, sections)


def _other_alignments(photographs, method: str) -> list[str]:
    landmarks = photographs.landmarks(0)
    count = 0 if landmarks is None else len(landmarks)
    possible = ["none", *(["2d"] if count else []), *(["3d"] if count >= 67 else [])]
    return [name for name in possible[::-1] if name != method]


def _realign(result: Result, photographs, method: str):
    """Evaluates the network of a run on faces with another alignment."""
    experiment = result.experiment
    preprocess = experiment.card.preprocess
    source = fit_source(align_source(photographs, method, preprocess), preprocess)
    evaluate = Evaluator(
        experiment.model,
        experiment.task,
        source,
        preprocess,
        experiment.mesh,
        experiment.config.data.eval_batch_size,
    )
    return evaluate(result.state.eval_variables())


def _draw_pair(found, source: Source, i: int) -> Picture:
    """Draws the two faces of a pair, as the network sees them."""
    pairs, templates = found.faces.pairs, found.faces.templates
    at = [int(pairs.first[i]), int(pairs.second[i])]
    if templates is not None:  # a template is shown by its first image
        at = [int(np.argmax(templates == number)) for number in at]
    drawn = beside([enlarge(source.image(k), 110) for k in at], ("", ""), gap=4)
    truth, score = "one person" if pairs.same[i] else "two people", found.scores[i]
    caption = Markup("<b>{}</b> one person, score {:.3f}<br>truth: <b>{}</b>")
    share = percent(probability(float(score), found.metrics))
    return Picture(
        drawn,
        f"two faces of {truth}",
        caption.format(share, float(score), truth),
        " and ".join(source.provenance(k) for k in at),
    )
