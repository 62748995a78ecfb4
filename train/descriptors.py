"""Verification and identification by descriptors of faces."""

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from zoo.face.verification import FaceSet
from zoo.metrics import identification
from zoo.metrics import verification as metrics

FAR = 0.01  # false accept rate of the open-set identification


class Verified(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: `verification_accuracy`, its `standard_error`, `auc`, `eer`,
        `tar_at_far_...`, `threshold` and `pairs`; `identification`, the accuracy of the
        classifier on held-out pictures of people of the training set, and its `loss`,
        if there are any; `rank1` of descriptors against the gallery, and
        `dir_at_far_0.01` if some people are not in it; `logit_scale`, which turns a
        score into a probability, see `fit_logit`.
      descriptors: float32 [N, D].
      scores: float64 [P], inner products of the pairs' descriptors.
      curve: The ROC curve.
      cmc: float64, the cumulative match characteristic; empty without a gallery.
      groups: For each group its name, number of pairs and accuracy, at the thresholds
        fitted to all pairs.
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


def evaluate_descriptors(descriptors: np.ndarray, faces: FaceSet) -> Verified:
    """Verifies and identifies faces by inner products of descriptors.

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
    """Returns the inner products [P] of each pair's descriptors, or templates."""
    if faces.templates is not None:
        descriptors = average_templates(descriptors, faces.templates)
    first, second = faces.pairs.first, faces.pairs.second
    return np.einsum("pd,pd->p", descriptors[first], descriptors[second], dtype=float)


def average_templates(descriptors: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Averages the descriptors [N, D] of each template; returns [T, D]."""
    sums = np.zeros((templates.max() + 1, descriptors.shape[1]), np.float64)
    np.add.at(sums, templates, descriptors)
    return sums / np.bincount(templates)[:, None]


def group_accuracies(
    scores: np.ndarray, faces: FaceSet
) -> list[tuple[str, int, float]]:
    """Computes the accuracy of each group, at the thresholds fitted to all pairs.

    A pair belongs to a group if both of its people do.

    Returns:
      Name, number of pairs and accuracy of each group that has pairs.
    """
    if faces.groups is None:
        return []
    pairs, right = faces.pairs, np.zeros(len(scores), bool)
    folds = np.unique(pairs.fold)
    if len(folds) > 1:
        _, thresholds = metrics.fold_accuracies(scores, pairs.same, pairs.fold)
    else:
        thresholds = [metrics.best_threshold(scores, pairs.same)]
    for fold, threshold in zip(folds, thresholds, strict=True):
        at = pairs.fold == fold
        right[at] = (scores[at] > threshold) == pairs.same[at]
    own = faces.groups
    if faces.templates is not None:  # A template shows one person.
        own = own[np.unique(faces.templates, return_index=True)[1]]
    groups, out = (own[pairs.first], own[pairs.second]), []
    for number, name in enumerate(faces.group_names):
        of = (groups[0] == number) & (groups[1] == number)
        if of.any():
            out.append((name, int(of.sum()), float(right[of].mean())))
    return out


def fit_logit(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    """Fits how fast the probability that a pair is of one person rises with its score.

    The probability is `1 / (1 + exp(-scale * (score - threshold)))`, one half at the
    threshold.

    Args:
      scores: float [P].
      same: bool [P], whether each pair is of one person.
      threshold: Score above which a pair is taken to be of one person.

    Returns:
      The scale.

    Reference:
      Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """
    spread = max(float(scores.std()), 1e-6)
    model = LogisticRegression(fit_intercept=False)
    model.fit((scores[:, None] - threshold) / spread, same)
    return float(model.coef_[0, 0]) / spread


def probability(score: float, metrics: dict[str, float]) -> float:
    """Returns the probability that a pair with a score is of one person."""
    logit = metrics["logit_scale"] * (score - metrics["threshold"])
    return float(1 / (1 + np.exp(-logit)))
