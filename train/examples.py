"""Chooses what a report shows: mistakes, misses, false alarms, and what is typical."""

from collections.abc import Sequence

import jax
import numpy as np

from train.data import Source, align_source, fit_source
from train.evaluate import Evaluator
from train.figures.faces import draw_alignment
from train.fit import Result
from train.report import (
    Boxes,
    ClassifierEvaluation,
    DetectorEvaluation,
    Evaluation,
    Finding,
    Mistake,
    SegmentationEvaluation,
    SegmentedImage,
    Shown,
    ShownPair,
    VerificationEvaluation,
)
from train.steps import make_prepare
from train.tasks.matching import match_objects, overlaps
from train.tasks.verification import probability
from zoo.figures.pictures import beside, enlarge
from zoo.preprocess import crop_centre

MOST = 24  # mistakes, false alarms and misses
PICTURES = 6
SURE = 0.3  # score from which a detection is drawn


def make_evaluation(result: Result) -> Evaluation:
    """Makes the part of a run's report that depends on the task."""
    make = {
        "classification": evaluate_classifier,
        "detection": evaluate_detector,
        "segmentation": evaluate_segmentation,
        "verification": evaluate_verification,
    }
    return make[result.experiment.task.name](result)


def evaluate_classifier(result: Result) -> ClassifierEvaluation:
    """Shows the images that the network is most sure and wrong about."""
    source, found = result.experiment.eval_source, result.evaluated
    predictions = found.predictions
    wrong = np.flatnonzero(predictions.predicted != source.labels)
    worst = wrong[np.argsort(-predictions.probability[wrong], kind="stable")]
    mistakes = [
        Mistake(
            image=source.image(int(i)),
            label=int(source.labels[i]),
            predicted=int(predictions.predicted[i]),
            probability=float(predictions.probability[i]),
            provenance=source.provenance(int(i)),
        )
        for i in worst[:MOST]
    ]
    return ClassifierEvaluation(
        class_names=result.experiment.card.class_names,
        confusion=found.confusion,
        loss=found.metrics["loss"],
        mistakes=mistakes,
    )


def evaluate_detector(result: Result) -> DetectorEvaluation:
    """Shows some images, the most confident false alarms and the worst misses.

    An object is missed the worse, the lower the best score is with which it was found;
    among those that were not found at all, the largest comes first.
    """
    found = result.evaluated
    source = result.experiment.eval_source.source
    names = result.experiment.card.class_names
    alarms, misses = [], []
    for i in range(len(source)):
        truth, boxes = _boxes_of(found, i)
        difficult = found.objects.difficult[i][found.objects.valid[i]]
        match = match_objects(*boxes, *truth[:2], difficult)
        alarms += [(-boxes.scores[d], i, int(d)) for d in np.flatnonzero(match.alarm)]
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        misses += [
            (match.score[n], -float(sides[n].prod()), i, int(n))
            for n in np.flatnonzero((match.score < SURE) & ~difficult)
        ]
    images = np.linspace(0, len(source) - 1, PICTURES).astype(int)
    return DetectorEvaluation(
        class_names=names,
        metrics=found.metrics,
        precision=found.precision,
        objects=np.bincount(
            found.objects.classes[found.objects.valid], minlength=len(names)
        ),
        curves=found.curves,
        shown=[_shown(found, source, int(i)) for i in np.unique(images)],
        alarms=[
            _alarm(found, source, names, i, d) for _, i, d in sorted(alarms)[:MOST]
        ],
        misses=[
            _miss(found, source, names, i, n) for *_, i, n in sorted(misses)[:MOST]
        ],
    )


def _boxes_of(found, i: int) -> tuple[Boxes, Boxes]:
    """The objects of image i, and all that was detected."""
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


def _sure(boxes: Boxes) -> Boxes:
    kept = boxes.scores >= SURE
    return Boxes(*(values[kept] for values in boxes))


def _shown(found, source: Source, i: int) -> Shown:
    truth, boxes = _boxes_of(found, i)
    return Shown(source.image(i), truth, _sure(boxes), source.provenance(i))


def _alarm(found, source, names: Sequence[str], i: int, d: int) -> Finding:
    truth, boxes = _boxes_of(found, i)
    number, box = int(boxes.classes[d]), boxes.boxes[d]
    shares = overlaps(box[None], truth.boxes)[0]
    best = int(shares.argmax()) if len(shares) else -1
    name = names[truth.classes[best]] if best >= 0 else ""
    if best < 0 or shares[best] < 0.1:
        reason = "there is nothing"
    elif shares[best] < 0.5:
        reason = f"only {shares[best]:.0%} of the union with {name} is shared"
    elif truth.classes[best] != number:
        reason = f"it is {name}"
    else:
        reason = "found a second time"
    title = f"{names[number]} {boxes.scores[d]:.0%}"
    where = source.provenance(i)
    return Finding(source.image(i), box, title, reason, where, truth)


def _miss(found, source, names: Sequence[str], i: int, n: int) -> Finding:
    truth, boxes = _boxes_of(found, i)
    number, box, boxes = int(truth.classes[n]), truth.boxes[n], _sure(boxes)
    shares = overlaps(box[None], boxes.boxes)[0]
    reason = "nothing was found here"
    if len(shares) and shares.max() >= 0.1:
        best = int(shares.argmax())
        other = f"{names[boxes.classes[best]]} {boxes.scores[best]:.0%}"
        reason = f"found {other}, which shares {shares[best]:.0%} of the union"
    where = source.provenance(i)
    return Finding(source.image(i), box, names[number], reason, where, boxes)


def evaluate_segmentation(result: Result) -> SegmentationEvaluation:
    """Shows the images with the most errors, and some others."""
    experiment, found = result.experiment, result.evaluated
    variables = result.state.eval_variables()
    source, preprocess = experiment.eval_source, experiment.card.preprocess
    prepare = make_prepare(preprocess, None)

    @jax.jit
    def predict(variables, batch):
        logits = experiment.model.apply(variables, prepare(None, batch))
        return logits.argmax(-1).astype(np.uint8)

    def show(i: int) -> SegmentedImage:
        example = source[i]
        batch = {k: example[k][None] for k in ("image", "size")}
        predicted = np.asarray(predict(variables, batch)[0])
        # A network without padding says the classes of the middle.
        image, mask = (
            crop_centre(values, *predicted.shape)
            for values in (example["image"], example["mask"][..., None])
        )
        right = float(found.right[i])
        return SegmentedImage(
            image, mask[..., 0], predicted, right, source.provenance(i)
        )

    order = np.argsort(np.nan_to_num(found.right, nan=2.0), kind="stable")
    worst = order[:PICTURES]
    typical = np.unique(np.linspace(0, len(source) - 1, PICTURES).astype(int))
    return SegmentationEvaluation(
        class_names=experiment.card.class_names,
        metrics=found.metrics,
        iou=found.classes["iou"],
        confusion=found.confusion,
        worst=[show(int(i)) for i in worst],
        typical=[show(int(i)) for i in typical if i not in worst],
    )


def evaluate_verification(result: Result) -> VerificationEvaluation:
    """Shows the worst pairs, and what other alignments make of the same network."""
    found, experiment = result.evaluated, result.experiment
    source, preprocess = experiment.eval_source, experiment.card.preprocess
    aligned = source.source
    photographs = getattr(aligned, "photographs", aligned)
    method = getattr(aligned, "method", "none")
    every = {method: found} | {
        name: _realign(result, photographs, name)
        for name in _other_alignments(photographs, method)
    }
    pairs = found.faces.pairs
    wrong = (found.scores > found.metrics["threshold"]) != pairs.same
    off = np.abs(found.scores - found.metrics["threshold"]) * wrong
    worst = [int(i) for i in np.argsort(-off, kind="stable")[:MOST] if wrong[i]]
    steps = []
    for i in np.linspace(0, len(source) - 1, PICTURES).astype(int):
        landmarks = photographs.landmarks(int(i))
        if landmarks is not None:
            image = photographs.image(int(i))
            picture = draw_alignment(image, landmarks, preprocess.size)
            steps.append((photographs.provenance(int(i)), picture))
    return VerificationEvaluation(
        metrics=found.metrics,
        curves={name: (each.curve.far, each.curve.tar) for name, each in every.items()},
        cmc=found.cmc,
        comparison=[
            (
                name,
                each.metrics["verification_accuracy"],
                each.metrics["standard_error"],
                each.metrics["auc"],
            )
            for name, each in every.items()
        ],
        groups=found.groups,
        mistakes=[_shown_pair(found, source, i) for i in worst],
        steps=steps,
    )


def _other_alignments(photographs, method: str) -> list[str]:
    landmarks = photographs.landmarks(0)
    count = 0 if landmarks is None else len(landmarks)
    possible = ["none", *(["2d"] if count else []), *(["3d"] if count >= 67 else [])]
    return [name for name in possible[::-1] if name != method]


def _realign(result: Result, photographs, method: str):
    """Evaluates a run's network on faces that are aligned in another way."""
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


def _shown_pair(found, source: Source, i: int) -> ShownPair:
    pairs, first = found.faces.pairs, found.faces.templates
    at = [int(pairs.first[i]), int(pairs.second[i])]
    if first is not None:  # A template is shown by its first picture.
        at = [int(np.argmax(first == number)) for number in at]
    score = float(found.scores[i])
    pictures = [enlarge(source.image(place), 110) for place in at]
    return ShownPair(
        beside(pictures, ("", ""), gap=4),
        bool(pairs.same[i]),
        score,
        probability(score, found.metrics),
        " and ".join(source.provenance(place) for place in at),
    )
