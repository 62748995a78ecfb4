"""Verification and identification against scikit-learn and slow statements."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from zoo.metrics import identification
from zoo.metrics import verification as metrics


def draw(seed, count=200, ties=False):
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.4
    scores = rng.normal(size=count) + 1.2 * same
    return (scores.round(1) if ties else scores), same, rng.integers(0, 10, count)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_curve_and_area_are_scikit_learns(seed, ties):
    scores, same, _ = draw(seed, ties=ties)
    curve = metrics.roc(scores, same)
    far, tar, thresholds = sklearn_metrics.roc_curve(
        same, scores, drop_intermediate=False
    )
    np.testing.assert_allclose(curve.far, far)
    np.testing.assert_allclose(curve.tar, tar)
    np.testing.assert_allclose(curve.thresholds, thresholds)
    wanted = sklearn_metrics.roc_auc_score(same, scores)
    assert metrics.auc(curve) == pytest.approx(wanted)


def test_equal_error_rate():
    # Ten of each: at 0.5, two of one person fail and two of two pass.
    one = np.array([0.9] * 8 + [0.3] * 2)
    two = np.array([0.6] * 2 + [0.1] * 8)
    curve = metrics.roc(np.append(one, two), np.repeat([True, False], 10))
    assert metrics.eer(curve) == pytest.approx(0.2)
    perfect = metrics.roc(np.array([2.0, 1.0]), np.array([True, False]))
    assert metrics.eer(perfect) == 0
    hopeless = metrics.roc(np.array([1.0, 2.0]), np.array([True, False]))
    assert metrics.eer(hopeless) == 1
    blind = metrics.roc(np.zeros(4), np.array([True, False] * 2))
    assert metrics.eer(blind) == pytest.approx(0.5)


def test_true_accept_rate_counts_pairs():
    scores, same, _ = draw(0)
    curve = metrics.roc(scores, same)
    for rate in (0.0, 0.05, 0.1, 1.0):
        others = np.sort(scores[~same])[::-1]
        allowed = int(rate * len(others))
        limit = others[allowed] if allowed < len(others) else -np.inf
        wanted = (scores[same] > limit).mean()
        assert metrics.tar_at_far(curve, rate) == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"far=1\.5"):
        metrics.tar_at_far(curve, 1.5)


def slow_best_accuracy(scores, same):
    cuts = [-np.inf, *sorted(set(scores))]
    return max(((scores > cut) == same).mean() for cut in cuts)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_is_the_best_of_all(seed):
    scores, same, _ = draw(seed, 60, ties=True)
    threshold = metrics.best_threshold(scores, same)
    found = ((scores > threshold) == same).mean()
    assert found == slow_best_accuracy(scores, same)


def test_folds_are_tested_at_the_threshold_of_the_others():
    scores, same, folds = draw(1)
    accuracies, thresholds = metrics.fold_accuracies(scores, same, folds)
    for fold in range(10):
        rest = folds != fold
        training = ((scores[rest] > thresholds[fold]) == same[rest]).mean()
        assert training == slow_best_accuracy(scores[rest], same[rest])
        test = ((scores[~rest] > thresholds[fold]) == same[~rest]).mean()
        assert accuracies[fold] == test
    found = metrics.compute(metrics.update(metrics.empty(), scores, same, folds))
    assert found["accuracy"] == pytest.approx(accuracies.mean())
    error = np.sqrt(np.square(accuracies - accuracies.mean()).sum() / 9 / 10)
    assert found["standard_error"] == pytest.approx(error)
    assert found["threshold"] == pytest.approx(thresholds.mean())


def test_parts_of_a_set_are_joined():
    scores, same, folds = draw(2)
    whole = metrics.update(metrics.empty(), scores, same, folds)
    halves = [
        metrics.update(metrics.empty(), scores[part], same[part], folds[part])
        for part in (slice(0, 90), slice(90, None))
    ]
    assert metrics.compute(metrics.merge(*halves)) == metrics.compute(whole)


def test_one_fold_has_its_own_best_accuracy():
    scores, same, _ = draw(3)
    found = metrics.compute(metrics.update(metrics.empty(), scores, same))
    assert found["accuracy"] == slow_best_accuracy(scores, same)
    assert found["standard_error"] == 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="2 pairs of one person and 0 of two"):
        metrics.roc(np.zeros(2), np.ones(2, bool))
    with pytest.raises(ValueError, match=r"must be \[P\]"):
        metrics.update(metrics.empty(), np.zeros(2), np.ones(3, bool))
    with pytest.raises(ValueError, match="1 of 2 scores are not a number"):
        metrics.update(metrics.empty(), np.array([0, np.nan]), np.ones(2, bool))
    with pytest.raises(ValueError, match="two values or more"):
        metrics.fold_accuracies(np.zeros(2), np.ones(2, bool), np.zeros(2))


def slow_rank(scores, probe, gallery):
    """How many people score at least as much as the probe's own, itself included."""
    best = {}
    for score, person in zip(scores, gallery, strict=True):
        best[person] = max(score, best.get(person, -np.inf))
    return sum(score >= best[probe] for score in best.values())


def test_cumulative_match_characteristic():
    rng = np.random.default_rng(0)
    gallery, probes = (
        rng.permutation([5, 5, 7, 8, 8, 8, 9]),
        rng.choice([5, 7, 8, 9], 30),
    )
    scores = rng.normal(size=(30, 7)).round(1)
    scores += 0.8 * (probes[:, None] == gallery)
    found = identification.cmc(scores, probes, gallery)
    ranks = np.array(
        [slow_rank(s, p, gallery) for s, p in zip(scores, probes, strict=True)]
    )
    np.testing.assert_allclose(found, [(ranks <= r).mean() for r in (1, 2, 3, 4)])
    assert found[-1] == 1
    with pytest.raises(ValueError, match=r"people \[4\] are not in the gallery"):
        identification.cmc(scores, np.where(probes == 5, 4, probes), gallery)


def test_open_set_identification():
    gallery = np.array([0, 1, 2])
    scores = np.array(
        [
            [0.9, 0.1, 0.2],  # Person 0, found.
            [0.2, 0.6, 0.1],  # Person 1, found, below one stranger.
            [0.8, 0.1, 0.7],  # Person 2, taken for 0.
            [0.7, 0.2, 0.1],  # Strangers.
            [0.3, 0.1, 0.4],
        ]
    )
    probes = np.array([0, 1, 2, 3, 4])

    def rate(far):
        return identification.dir_at_far(scores, probes, gallery, far)

    assert rate(0.0) == pytest.approx(1 / 3)
    assert rate(0.49) == pytest.approx(1 / 3)
    assert rate(0.5) == pytest.approx(2 / 3)
    assert rate(1.0) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="3 of 3 probes are of people in the gallery"):
        identification.dir_at_far(scores[:3], probes[:3], gallery, 0.1)
