"""Metrics of face verification: telling pairs of one person from pairs of two.

Larger scores mean more similar faces. The metrics are the ROC curve, AUC, EER, the true
accept rate at a false accept rate, and LFW's accuracy over folds.
"""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
# False accept rates for which `compute` returns the true accept rate.
RATES = (0.1, 0.01, 0.001)


class State(NamedTuple):
    """The pairs seen so far.

    Attributes:
      scores: float64 [P].
      same: bool [P], whether a pair shows one person.
      folds: int64 [P], the fold of each pair.
    """

    scores: Array
    same: Array
    folds: Array


def empty() -> State:
    """Returns the state before any pair."""
    return State(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))


def update(state: State, scores: Array, same: Array, folds: Array | None = None):
    """Adds pairs.

    Args:
      state: Pairs so far.
      scores: float [P].
      same: bool [P].
      folds: int [P]; None if all pairs are in fold 0.

    Returns:
      The new state.

    Raises:
      ValueError: The lengths differ, or a score is NaN.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    folds = np.zeros(len(scores), np.int64) if folds is None else np.asarray(folds)
    if not scores.shape == same.shape == folds.shape or scores.ndim != 1:
        raise ValueError(
            f"scores, same and folds must be [P], got {list(scores.shape)}, "
            f"{list(same.shape)} and {list(folds.shape)}."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not a number."
        )
    return merge(state, State(scores, same, folds.astype(np.int64)))


def merge(a: State, b: State) -> State:
    """Merges two disjoint sets of pairs."""
    return State(*(np.concatenate(parts) for parts in zip(a, b, strict=True)))


def compute(state: State) -> dict[str, Any]:
    """Computes the metrics; rates are fractions.

    Returns:
      `pairs`, their number; `auc`; `eer`; `tar_at_far_0.01` and so on for each of
      `RATES`; `accuracy`, the mean over folds (see `fold_accuracies`; for one fold, the
      accuracy of the best threshold), its `standard_error`, and `threshold`, the mean
      over folds.

    Raises:
      ValueError: There is no pair of one person, or none of two.
    """
    curve = roc(state.scores, state.same)
    out = {
        "pairs": len(state.scores),
        "auc": auc(curve),
        "eer": eer(curve),
        **{f"tar_at_far_{rate:g}": tar_at_far(curve, rate) for rate in RATES},
    }
    if len(np.unique(state.folds)) > 1:
        accuracies, thresholds = fold_accuracies(*state)
        error = accuracies.std(ddof=1) / np.sqrt(len(accuracies))
        best = accuracies.mean(), error, thresholds.mean()
    else:
        threshold = best_threshold(state.scores, state.same)
        right = (state.scores > threshold) == state.same
        best = right.mean(), 0.0, threshold
    names = ("accuracy", "standard_error", "threshold")
    return out | {k: float(v) for k, v in zip(names, best, strict=True)}


class Curve(NamedTuple):
    """A receiver operating characteristic.

    Attributes:
      far: float64 [T], false accept rate: the fraction of pairs of two people with a
        score of at least the threshold.
      tar: float64 [T], true accept rate: the same for pairs of one person.
      thresholds: float64 [T], descending; the first one is infinite.
    """

    far: Array
    tar: Array
    thresholds: Array


def roc(scores: Array, same: Array) -> Curve:
    """Computes the receiver operating characteristic, with a point for each score.

    Args:
      scores: float [P].
      same: bool [P].

    Raises:
      ValueError: There is no pair of one person, or none of two.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    counts = int(same.sum()), int((~same).sum())
    if not all(counts):
        raise ValueError(
            f"there are {counts[0]} pairs of one person and {counts[1]} of two; both "
            "are needed."
        )
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    last = np.append(
        np.flatnonzero(np.diff(scores)), len(scores) - 1
    )  # of equal scores
    tar, far = np.cumsum(same)[last] / counts[0], np.cumsum(~same)[last] / counts[1]
    return Curve(
        np.append(0.0, far), np.append(0.0, tar), np.append(np.inf, scores[last])
    )


def auc(curve: Curve) -> float:
    """Computes the area under a curve by the trapezoidal rule."""
    return float(np.trapezoid(curve.tar, curve.far))


def eer(curve: Curve) -> float:
    """Computes the equal error rate: false accept rate equals false reject rate.

    The curve is interpolated linearly between thresholds.
    """
    miss = 1 - curve.tar
    at = int(np.argmax(curve.far >= miss))
    if at == 0:
        return float(curve.far[0])
    gap = miss - curve.far
    share = gap[at - 1] / (gap[at - 1] - gap[at])
    return float(curve.far[at - 1] + share * (curve.far[at] - curve.far[at - 1]))


def tar_at_far(curve: Curve, far: float) -> float:
    """Computes the true accept rate at a false accept rate of at most `far`.

    Args:
      curve: From `roc`.
      far: False accept rate, 0 to 1.

    Raises:
      ValueError: `far` is out of range.
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far={far} must be between 0 and 1.")
    return float(curve.tar[curve.far <= far].max())


def best_threshold(scores: Array, same: Array) -> float:
    """Computes the threshold with the fewest errors.

    Pairs with a score above it are classified as one person. It is the midpoint of two
    scores; of several thresholds with equal errors, the lowest.

    Args:
      scores: float [P].
      same: bool [P].
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    values = np.unique(scores)
    middles = np.append(values[0] - 1.0, (values[1:] + values[:-1]) / 2)
    middles = np.append(middles, values[-1] + 1.0)
    # Pairs with at most the threshold are classified as two people.
    below = np.searchsorted(np.sort(scores[same]), middles, "right")
    other = np.searchsorted(np.sort(scores[~same]), middles, "right")
    return float(middles[np.argmin(below - other)])


def fold_accuracies(scores: Array, same: Array, folds: Array) -> tuple[Array, Array]:
    """Computes the accuracy of each fold with the best threshold of the other folds.

    This is view 2 of LFW, which reports the mean and the standard error
    `std(ddof=1) / sqrt(folds)`.

    Args:
      scores: float [P].
      same: bool [P].
      folds: int [P], with at least two different values.

    Returns:
      Accuracies float64 [F] and thresholds float64 [F].

    Raises:
      ValueError: There are fewer than two folds.

    Reference:
      Huang et al., Labeled Faces in the Wild, 2007, section 4.
    """
    names = np.unique(folds)
    if len(names) < 2:
        raise ValueError(f"folds must have two values or more, got {names.tolist()}.")
    accuracies, thresholds = np.zeros((2, len(names)))
    for i, fold in enumerate(names):
        test = folds == fold
        thresholds[i] = best_threshold(scores[~test], same[~test])
        accuracies[i] = ((scores[test] > thresholds[i]) == same[test]).mean()
    return accuracies, thresholds
