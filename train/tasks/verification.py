"""Which person is it, and are two faces of one person."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import zoo
from train.config import DataConfig, OptimConfig, load_config
from train.data import Source, align_source, choose_alignment
from train.data.faces import LANDMARKS_FILE, align_face, read_landmarks
from train.data.files import Files
from train.data.landmarks import make_detector
from train.history import read_history
from train.report.verification import evaluate_verification, probability
from train.task import Predicted, Task, apply_and_compare, format_rows
from train.tasks.classification import Loss, check_no_aux_loss, make_loss
from train.tasks.pair_protocols import (
    ensemble,
    evaluate_pairs,
    siamese,
    weighted_chi_squared,
)
from zoo.face.verification import (
    UNKNOWN,
    FaceSet,
    feature_maximum,
    normalize_features,
)
from zoo.figures.pictures import beside, enlarge
from zoo.metrics import identification
from zoo.metrics import verification as metrics
from zoo.preprocess import resize_center_crop
from zoo.registry import unknown
from zoo.spec import PRIMARY_METRICS, Card, ModelSpec, Preprocess

FAR = 0.01  # of the open-set identification
# Comparisons that are fitted to pairs: what they are called, and what fits them.
LEARNED = {
    "chi_squared": ("weighted chi-squared", weighted_chi_squared),
    "siamese": ("siamese", siamese),
    "ensemble": ("ensemble", ensemble),
}
PROTOCOLS = ("center_crop", "lfw", *LEARNED)


class Verified(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: `verification_accuracy`, its `standard_error`, `auc`, `eer`,
        `tar_at_far_...`, `threshold` and `pairs`; `identification`, the part of the
        held-out pictures of people of the training set that got their class, and its
        `loss`, where there are any; `rank1` of descriptors against the gallery, and
        `dir_at_far_0.01` where some people are not in it; `logit_scale`, which makes a
        probability of a score, see `fit_logit`.
      descriptors: float32 [N, D].
      scores: float64 [P], inner products of the pairs' descriptors.
      curve: The ROC curve.
      cmc: float64, the cumulative match characteristic; empty without gallery.
      groups: For each group its name, number of pairs and accuracy at the thresholds
        of all.
      faces: The evaluated people and pairs.
      maps: float32 [N, M], the flattened maps that F7 reads; None where the protocol
        does not need them.
    """

    metrics: dict[str, float]
    descriptors: np.ndarray
    scores: np.ndarray
    curve: metrics.Curve
    cmc: np.ndarray
    groups: list[tuple[str, int, float]]
    faces: FaceSet
    maps: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Verification(Task):
    """Tells people apart in training, and compares descriptors of faces.

    A batch has `label` int32 [B], -1 for people who are not trained on.

    Attributes:
      loss: A function from logits and labels to losses [B].
      faces: The people and the pairs of the evaluated set; not needed in training.
      mirror: Whether a descriptor is the mean over the face and its mirror image.
      f7: `kernel` and `bias` of F7, from which the siamese network starts; None for
        other protocols.
      others: Descriptors float32 [N, D] of the ensemble's other networks.
    """

    loss: Loss
    faces: FaceSet | None = None
    mirror: bool = False
    f7: Mapping[str, Any] | None = None
    others: tuple[np.ndarray, ...] = ()
    name = "verification"
    primary_metric = PRIMARY_METRICS[name]
    has_targets_in_place = False
    eval_batch_size = 64
    evaluate_options = frozenset({"align", "mirror", "ensemble"})
    predict_arguments = "A.png B.png"
    report = staticmethod(evaluate_verification)

    @classmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Verification":
        """Creates the task of a face network; the last source has the pairs."""
        check_no_aux_loss(spec, optim)
        loss = make_loss(optim.loss or spec.loss, smoothing=optim.label_smoothing)
        faces = sources[-1].face_set() if sources else None
        return cls(loss, faces, data.mirror)

    @classmethod
    def prepare_sources(
        cls,
        data: DataConfig,
        sources: Sequence[Source],
        preprocesses: Sequence[Preprocess],
    ) -> tuple[DataConfig, Sequence[Source]]:
        """Aligns the faces, all of them in the way that the first source allows."""
        align = choose_alignment(sources[0], data.align)
        aligned = [
            align_source(source, align, preprocess)
            for source, preprocess in zip(sources, preprocesses, strict=True)
        ]
        return dataclasses.replace(data, align=align), aligned

    @classmethod
    def tiny_data(cls, preprocess: Preprocess) -> dict[str, Any]:
        """Takes the few faces that are drawn."""
        return super().tiny_data(preprocess) | {
            "dataset": "faces_synthetic_tiny",
            "train_split": "train",
            "eval_split": "test",
        }

    def objective(self, model, variables, images, batch, rngs, counts=None):
        """Returns the mean of the losses, the accuracy, and new batch statistics."""
        labels = batch["label"]
        logits, losses, statistics = apply_and_compare(
            model,
            variables,
            images,
            rngs,
            lambda logits: self.loss(logits, labels),
            (),
        )
        hits = logits.argmax(-1) == labels
        return losses.mean(), {"identification": hits.mean()}, statistics

    def empty(self, num_classes: int) -> jax.Array:
        """Returns the number of images before any."""
        return jnp.zeros((), jnp.int32)

    def evaluate(self, model, variables, images, state, batch):
        """Counts images; keeps descriptors, losses, and who got their class."""
        out = model.apply(variables, images, method="endpoints")
        labels = jnp.maximum(batch["label"], 0)
        logits, features = out["logits"], out["f7"]
        if self.mirror:
            other = model.apply(variables, images[:, :, ::-1], method="endpoints")
            features = 0.5 * (features + other["f7"])
        each = {
            "descriptors": normalize_features(features, feature_maximum(variables)),
            "hit": logits.argmax(-1) == labels,
            "loss": self.loss(logits, labels),
        }
        if self.f7 is not None:
            below = out[model.backbone.config.local[-1][0]]
            each["maps"] = below.reshape(len(below), -1)
        return state + batch["valid"].sum(dtype=jnp.int32), each

    def collect(
        self, state: Any, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Verified:
        """Compares the descriptors."""
        if self.faces is None:
            raise ValueError("an evaluation of faces needs the set's FaceSet.")
        found = evaluate_descriptors(each["descriptors"], self.faces)
        held_out = (self.faces.labels != UNKNOWN) & ~self.faces.gallery
        numbers = {}
        if held_out.any():
            numbers["identification"] = float(each["hit"][held_out].mean())
            numbers["loss"] = float(each["loss"][held_out].mean())
        return found._replace(metrics=found.metrics | numbers, maps=each.get("maps"))

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the accuracies."""
        parts = [
            f"verification {metrics['verification_accuracy']:.2%} +- "
            f"{metrics['standard_error']:.2%} of {metrics['pairs']:,} pairs"
        ]
        if "identification" in metrics:
            parts.append(f"identification {metrics['identification']:.2%}")
        if "rank1" in metrics:
            parts.append(f"rank 1 {metrics['rank1']:.2%}")
        return ", ".join(parts)

    @classmethod
    def choose_protocol(cls, name: str, scales: tuple[int, ...], model: str) -> None:
        """Checks the name: faces are compared in pairs, one view of each."""
        if name not in PROTOCOLS:
            raise ValueError(unknown("protocol", name, PROTOCOLS))

    @classmethod
    def check_source(
        cls, source: Source, card: Card, protocol: str, where: str, weights: str
    ) -> None:
        """Checks that there are pairs, if "lfw" asks for them; people may be others."""
        if protocol == "lfw" and source.pairs is None:
            raise ValueError(
                f"--protocol lfw needs the pairs of a list, and {where} has none; open "
                "lfw:PATH with its pairs.txt, split test."
            )

    def prepare_protocol(
        self, protocol: str, variables: Any, others: Sequence[Verified] = ()
    ) -> "Verification":
        """Takes F7 for the siamese network, and the ensemble's other descriptors."""
        folds = 0 if self.faces is None else len(np.unique(self.faces.pairs.fold))
        if protocol in LEARNED and folds < 2:
            raise ValueError(
                f"--protocol {protocol} is fitted to all folds of pairs but one, and "
                f"there are {folds}."
            )
        if (protocol == "ensemble") != bool(others):
            raise ValueError(
                f"--protocol ensemble and --ensemble RUN go together, got --protocol "
                f"{protocol} and {len(others)} other runs."
            )
        f7 = variables["params"]["backbone"]["f7"] if protocol == "siamese" else None
        descriptors = tuple(other.descriptors for other in others)
        return dataclasses.replace(self, f7=f7, others=descriptors)

    def summarize(self, evaluated: Verified, protocol: str) -> Iterator[str]:
        """Yields the metrics, those of what a protocol learns, and those of each group.

        "lfw" has the metrics of its restricted setting, which are those of
        "chi_squared".
        """
        yield from format_rows(evaluated.metrics)
        faces, name = evaluated.faces, protocol
        if protocol == "lfw" and len(np.unique(faces.pairs.fold)) > 1:
            name = "chi_squared"
        if name in LEARNED:
            words, fit = LEARNED[name]
            if name == "siamese":
                fit, values = partial(fit, f7=self.f7), evaluated.maps
            elif name == "ensemble":
                values = [evaluated.descriptors, *self.others]
            else:
                values = evaluated.descriptors
            if faces.templates is not None:
                average = partial(average_templates, templates=faces.templates)
                values = jax.tree.map(average, values)
            learned = evaluate_pairs(fit, values, faces.pairs)
            yield (
                f"  {words:<22}  {learned['accuracy']:.4f} +- "
                f"{learned['standard_error']:.4f}, auc {learned['auc']:.4f}"
            )
        for name, count, accuracy in evaluated.groups:
            yield f"  group {name:<16}  {accuracy:.4f} of {count:,} pairs"

    @classmethod
    def predict(
        cls, run_dir: Path, paths: Sequence[Path], *, score_threshold: float | None
    ) -> Iterator[Predicted]:
        """Yields whether two photographs are of one person, with both aligned.

        Landmarks come from `landmarks.csv` in the folder of a photograph, or from dlib.

        Raises:
          ValueError: There are not two images, the run has not been evaluated, or a
            face has no landmarks.
        """
        if len(paths) != 2:
            raise ValueError(f"name two photographs to compare, got {len(paths)}.")
        rows = [row for row in read_history(run_dir) if "threshold" in row]
        if not rows:
            raise ValueError(f"{run_dir} has no evaluation, and so no threshold yet.")
        data, measured = load_config(run_dir / "config.json").data, rows[-1]
        predictor = zoo.make_predictor(run_dir)
        preprocess = predictor.card.preprocess
        crops = [
            _crop_face(predictor.read(path), path, data.align, preprocess)
            for path in paths
        ]
        describe = zoo.make_describer(predictor.model, preprocess, flip=data.mirror)
        described = describe(predictor.variables, np.stack(crops))
        first, second = np.asarray(described, np.float64)
        score = float(first @ second)
        same = score > measured["threshold"]
        pictures: list[Image.Image] = [enlarge(crop, 256) for crop in crops]
        words = (
            f"{'the same person' if same else 'two people'}, probability of the same "
            f"{probability(score, measured):.1%} (score {score:.3f}, threshold "
            f"{measured['threshold']:.3f})"
        )
        yield Predicted(
            f"{paths[0]} and {paths[1]}",
            f"{paths[0].stem}-{paths[1].stem}",
            words,
            {"": beside(pictures, [path.name[:28] for path in paths])},
        )


def _crop_face(
    image: np.ndarray, path: Path, align: str, preprocess: Preprocess
) -> np.ndarray:
    landmarks = read_landmarks(Files(path.parent)).get(path.name)
    if align == "none":
        return resize_center_crop(image, preprocess)
    if landmarks is None:
        try:
            landmarks = make_detector()(image)
        except ImportError as error:
            raise ValueError(
                f"{path} has no landmarks: {path.parent / LANDMARKS_FILE} must have a "
                f"line for it, or {error}"
            ) from error
        if landmarks is None:
            raise ValueError(f"{path}: no face was found.")
    return align_face(image, landmarks, align, preprocess.size)


def evaluate_descriptors(descriptors: np.ndarray, faces: FaceSet) -> Verified:
    """Verifies and identifies by inner products.

    Args:
      descriptors: float32 [N, D].
      faces: The people, and the pairs to compare.
    """
    scores = pair_scores(descriptors, faces)
    pairs = faces.pairs
    state = metrics.update(metrics.empty(), scores, pairs.same, pairs.fold)
    numbers = metrics.compute(state)
    numbers["verification_accuracy"] = numbers.pop("accuracy")
    curve = metrics.roc(scores, pairs.same)
    numbers["logit_scale"] = fit_logit(scores, pairs.same, numbers["threshold"])
    probes, gallery = ~faces.gallery, faces.gallery
    match = np.zeros(0)
    if gallery.any() and probes.any():
        similarity = descriptors[probes] @ descriptors[gallery].T
        people = faces.people[probes], faces.people[gallery]
        known = np.isin(*people)
        if known.any():
            match = identification.cmc(similarity[known], people[0][known], people[1])
            numbers["rank1"] = float(match[0])
        if known.any() and not known.all():
            numbers[f"dir_at_far_{FAR:g}"] = identification.dir_at_far(
                similarity, *people, FAR
            )
    groups = group_accuracies(scores, faces)
    return Verified(numbers, descriptors, scores, curve, match, groups, faces)


def pair_scores(descriptors: np.ndarray, faces: FaceSet) -> np.ndarray:
    """Returns the inner products of the pairs' descriptors, or templates: [P]."""
    if faces.templates is not None:
        descriptors = average_templates(descriptors, faces.templates)
    first, second = faces.pairs.first, faces.pairs.second
    return np.einsum("pd,pd->p", descriptors[first], descriptors[second], dtype=float)


def average_templates(descriptors: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Averages the descriptors [N, D] of each template: [T, D]."""
    sums = np.zeros((templates.max() + 1, descriptors.shape[1]), np.float64)
    np.add.at(sums, templates, descriptors)
    return sums / np.bincount(templates)[:, None]


def group_accuracies(
    scores: np.ndarray, faces: FaceSet
) -> list[tuple[str, int, float]]:
    """Computes the accuracy of each group, at the thresholds that all pairs gave.

    A pair belongs to a group if both of its people do.

    Returns:
      Name, number of pairs and accuracy of each group that has pairs.
    """
    if faces.groups is None or faces.templates is not None:
        return []
    pairs, right = faces.pairs, np.zeros(len(scores), bool)
    _, thresholds = metrics.fold_accuracies(scores, pairs.same, pairs.fold)
    for fold, threshold in zip(np.unique(pairs.fold), thresholds, strict=True):
        at = pairs.fold == fold
        right[at] = (scores[at] > threshold) == pairs.same[at]
    groups = faces.groups[pairs.first], faces.groups[pairs.second]
    out = []
    for number, name in enumerate(faces.group_names):
        of = (groups[0] == number) & (groups[1] == number)
        if of.any():
            out.append((name, int(of.sum()), float(right[of].mean())))
    return out


def fit_logit(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Fits how fast the probability that a pair is of one person rises with its score.

    It is one half at the threshold: `1 / (1 + exp(-scale * (score - threshold)))`.

    Args:
      scores: float [P].
      same: bool [P].
      threshold: Score from which on pairs are called one person's.

    Returns:
      The scale.

    Reference:
      Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """
    from sklearn.linear_model import LogisticRegression

    spread = max(float(scores.std()), 1e-6)
    model = LogisticRegression(fit_intercept=False)
    model.fit((scores[:, None] - threshold) / spread, same)
    return float(model.coef_[0, 0]) / spread
