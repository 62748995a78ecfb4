"""The learned comparisons of descriptors."""

import jax
import numpy as np
import pytest

from train.data.faces.source import make_pairs
from train.tasks.pair_protocols import (
    ensemble,
    evaluate_pairs,
    fit_chi_squared,
    power_kernel,
    siamese,
    weighted_chi_squared,
)
from zoo.face.verification import (
    chi_squared,
    chi_squared_terms,
    inner_product,
    normalize_features,
)
from zoo.metrics.verification import auc, roc


def draw(seed=0, noise=0.6):
    """Descriptors of 20 people of which half of the features say nothing."""
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(20), 6)
    own = rng.exponential(size=(20, 16))[people]
    seen = own + noise * rng.exponential(size=own.shape)
    useless = 4 * rng.exponential(size=own.shape)
    features = np.concatenate([seen, useless], 1).astype(np.float32)
    return np.asarray(normalize_features(features, features.max(0))), people


def test_chi_squared_is_the_formula():
    a, b = np.array([[1.0, 0, 3]], np.float32), np.array([[3.0, 0, 0]], np.float32)
    np.testing.assert_allclose(chi_squared_terms(a, b), [[1, 0, 3]])
    weights = np.array([2.0, 5, 1], np.float32)
    np.testing.assert_allclose(chi_squared(a, b, weights), [5])
    gradient = jax.grad(lambda a: chi_squared(a, b, weights).sum())(a)
    assert np.isfinite(gradient).all()


def test_features_are_normalized_by_their_maximum():
    features = np.array([[2.0, 0.01, 0], [0, 0, 0]], np.float32)
    found = normalize_features(features, np.array([4.0, 0.02, 1.0], np.float32))
    wanted = np.array([0.5, 0.2, 0]) / np.hypot(0.5, 0.2)
    np.testing.assert_allclose(found, [wanted, [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(inner_product(found[:1], found[:1]), 1, rtol=1e-6)


def test_learned_weights_find_the_features_that_count():
    descriptors, people = draw()
    pairs = make_pairs(people)
    learned = evaluate_pairs(weighted_chi_squared, descriptors, pairs)
    plain = inner_product(descriptors[pairs.first], descriptors[pairs.second])
    assert learned["accuracy"] > 0.75
    assert learned["auc"] > auc(roc(np.asarray(plain), pairs.same))
    weights, threshold = fit_chi_squared(
        descriptors[pairs.first], descriptors[pairs.second], pairs.same
    )
    assert weights[:16].mean() > 5 * abs(weights[16:].mean())
    sides = descriptors[pairs.first], descriptors[pairs.second]
    near = chi_squared(*sides, weights) < threshold
    assert (near == pairs.same).mean() > 0.75


def test_an_ensemble_of_two_networks_beats_either():
    """Each sees another half of what tells the people apart."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 6)
    own = rng.exponential(size=(20, 16))[people]
    seen = own + 0.7 * rng.exponential(size=own.shape)
    one, other = (
        np.asarray(normalize_features(half, half.max(0)))
        for half in (seen[:, :8], seen[:, 8:])
    )
    pairs = make_pairs(people)
    accuracy = [
        evaluate_pairs(ensemble, values, pairs)["accuracy"]
        for values in ([one], [other], [one, other])
    ]
    assert accuracy[2] > max(accuracy[:2]) + 0.02


def test_the_power_kernel_is_the_sum_over_networks():
    rng = np.random.default_rng(0)
    a = [rng.normal(size=(3, 4)), rng.normal(size=(3, 2))]
    b = [rng.normal(size=(5, 4)), rng.normal(size=(5, 2))]
    wanted = [
        [
            -sum(np.square(x[i] - y[j]).sum() for x, y in zip(a, b, strict=True))
            for j in range(5)
        ]
        for i in range(3)
    ]
    np.testing.assert_allclose(power_kernel(a, b), wanted)


def test_a_siamese_unit_learns_which_features_count():
    descriptors, people = draw()
    pairs = make_pairs(people)
    f7 = {"kernel": np.eye(32, dtype=np.float32), "bias": np.zeros(32, np.float32)}
    f7["max"] = np.ones(32, np.float32)
    train = descriptors[pairs.first] * 5, descriptors[pairs.second] * 5
    half = np.arange(len(pairs.same)) % 2 == 0
    known, asked = (tuple(a[part] for a in train) for part in (half, ~half))

    def accuracy(steps):
        options = dict(f7=f7, steps=steps, learning_rate=0.003)
        scores = siamese(known, pairs.same[half], asked, **options)
        return ((scores > 0) == pairs.same[~half]).mean()

    start = accuracy(1)
    assert start > 0.55  # The distance of all features.
    assert accuracy(150) > start + 0.05
    with pytest.raises(KeyError):
        siamese(known, pairs.same[half], asked, f7={"max": f7["max"]})
