"""Which person is it, and are two faces of one person."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.tasks.classification import Loss
from train.tasks.task import apply_and_compare
from zoo.face.verification import (
    UNKNOWN,
    FaceSet,
    feature_maximum,
    normalize_features,
)
from zoo.metrics import identification
from zoo.metrics import verification as metrics

FAR = 0.01  # of the open-set identification


class Verified(NamedTuple):
    """What an evaluation found out.

    Attributes:
      metrics: `verification_accuracy`, its `standard_error`, `auc`, `eer`,
        `tar_at_far_...`, `threshold` and `pairs`; `identification`, the part of the
        held-out pictures of people of the training set that got their class, and its
        `loss`, where there are any; `rank1` of descriptors against the gallery, and
        `dir_at_far_0.01` where some people are not in it; `logit_scale`, which makes a
        probability of a score, see `fit_logit`.
      descriptors: float32 [N, D].
      scores: float64 [P], inner products of the pairs' descriptors.
      curve: The ROC.
      cmc: float64, the cumulative match characteristic; empty without gallery.
      groups: For each group its name, number of pairs and accuracy at the thresholds
        of all.
      faces: What was evaluated.
    """

    metrics: dict[str, float]
    descriptors: np.ndarray
    scores: np.ndarray
    curve: metrics.Curve
    cmc: np.ndarray
    groups: list[tuple[str, int, float]]
    faces: FaceSet


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """Tells people apart in training, and compares descriptors of faces.

    A batch has `label` int32 [B], -1 for people who are not trained on.

    Attributes:
      loss: From logits and labels to losses [B].
      faces: What an evaluation must know of its set; not needed in training.
      mirror: Whether a descriptor is the mean over the face and its mirror image.
    """

    loss: Loss
    faces: FaceSet | None = None
    mirror: bool = False
    name = "verification"

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

    def counts(self, model, variables, images, batch, rngs):
        """Counts nothing: the loss is the mean of those of the images."""
        return {}

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
        return found._replace(metrics=found.metrics | numbers)

    def say(self, metrics: dict[str, float]) -> str:
        """Says the accuracies."""
        parts = [
            f"verification {metrics['verification_accuracy']:.2%} +- "
            f"{metrics['standard_error']:.2%} of {metrics['pairs']:,} pairs"
        ]
        if "identification" in metrics:
            parts.append(f"identification {metrics['identification']:.2%}")
        if "rank1" in metrics:
            parts.append(f"rank 1 {metrics['rank1']:.2%}")
        return ", ".join(parts)


def evaluate_descriptors(descriptors: np.ndarray, faces: FaceSet) -> Verified:
    """Verifies and identifies by inner products.

    Args:
      descriptors: float32 [N, D].
      faces: Who is shown, and what is to be compared.
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


def probability(score: float, metrics: dict[str, float]) -> float:
    """Returns the probability that a pair with a score is of one person."""
    logit = metrics["logit_scale"] * (score - metrics["threshold"])
    return float(1 / (1 + np.exp(-logit)))
