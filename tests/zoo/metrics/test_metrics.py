"""Classification metrics against counting one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.metrics import classification as metrics


def count_slowly(logits, labels, losses, valid):
    """Counts in plain Python; of equal logits the lower class comes first."""
    num_classes = logits.shape[1]
    confusion = [[0] * num_classes for _ in range(num_classes)]
    top5, loss = 0, 0.0
    for row, label, value, is_valid in zip(logits, labels, losses, valid, strict=True):
        if not is_valid:
            continue
        order = sorted(range(num_classes), key=lambda k: (-row[k], k))
        confusion[label][order[0]] += 1
        top5 += label in order[:5]
        loss += float(value)
    count = int(np.sum(valid))
    out = {
        "count": count,
        "correct": sum(confusion[k][k] for k in range(num_classes)),
        "loss": loss / count,
    }
    out["accuracy"] = out["correct"] / count
    if num_classes > 5:
        out["top5"] = top5 / count
    return out, confusion


def make_batch(seed, size=40, num_classes=10, kind="random"):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, num_classes)).astype(np.float32)
    if kind == "ties":
        logits = rng.integers(0, 3, logits.shape).astype(np.float32)
    if kind == "constant":
        logits[:] = 0.5
    labels = rng.integers(0, num_classes, size).astype(np.int32)
    losses = rng.random(size).astype(np.float32)
    valid = rng.random(size) < 0.8
    if kind == "padding":
        # What is padding may hold anything.
        logits[~valid], losses[~valid] = np.inf, np.nan
        labels[~valid] = 0
    return logits, labels, losses, valid


CASES = [
    {"seed": 0},
    {"seed": 1, "kind": "ties"},
    {"seed": 2, "kind": "constant"},
    {"seed": 3, "kind": "padding"},
    {"seed": 4, "num_classes": 2},
    {"seed": 5, "num_classes": 2, "kind": "ties"},
    {"seed": 6, "num_classes": 5},
    {"seed": 7, "num_classes": 6, "kind": "ties"},
    {"seed": 8, "size": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_metrics_are_those_of_slow_counting(case):
    batch = make_batch(**case)
    state = metrics.empty(batch[0].shape[1])
    state = jax.jit(metrics.update)(state, *map(jnp.asarray, batch))
    found = metrics.compute(state)
    expected, confusion = count_slowly(*batch)
    assert found == pytest.approx(expected)
    assert {*found} == {*expected}
    np.testing.assert_array_equal(state.confusion, confusion)


def test_a_network_that_says_the_same_for_all_classes_is_no_better_than_chance():
    labels = jnp.arange(10)
    zeros = jnp.zeros(10)
    state = metrics.update(
        metrics.empty(10), jnp.zeros((10, 10)), labels, zeros, labels >= 0
    )
    assert metrics.compute(state)["accuracy"] == 0.1
    assert metrics.compute(state)["top5"] == 0.5


def test_parts_add_up_to_the_whole():
    batch = make_batch(9, kind="ties")
    whole = metrics.update(metrics.empty(10), *map(jnp.asarray, batch))
    a, b, c = (
        metrics.update(metrics.empty(10), *(jnp.asarray(v[part]) for v in batch))
        for part in (slice(0, 10), slice(10, 20), slice(20, 40))
    )
    one_by_one = metrics.empty(10)
    for part in (slice(0, 20), slice(20, 40)):
        one_by_one = metrics.update(one_by_one, *(jnp.asarray(v[part]) for v in batch))
    for state in (
        one_by_one,
        metrics.merge(metrics.merge(a, b), c),
        metrics.merge(c, metrics.merge(b, a)),
        metrics.merge(whole, metrics.empty(10)),
    ):
        np.testing.assert_array_equal(state.confusion, whole.confusion)
        assert state.top5 == whole.top5
        np.testing.assert_allclose(state.loss, whole.loss, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_without_examples_there_is_no_accuracy(num_classes):
    with pytest.raises(ValueError, match="no example"):
        metrics.compute(metrics.empty(num_classes))
    logits, labels, losses, _ = make_batch(0, num_classes=num_classes)
    nothing = jnp.zeros(len(labels), bool)
    state = metrics.update(metrics.empty(num_classes), logits, labels, losses, nothing)
    with pytest.raises(ValueError, match="no example"):
        metrics.compute(state)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_confidence_interval(correct, count, low, high):
    interval = metrics.confidence_interval(correct, count)
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert 0 <= interval[0] <= interval[1] <= 1


def test_confidence_interval_refuses_nonsense():
    for correct, count in ((3, 2), (-1, 2), (0, -1)):
        with pytest.raises(ValueError, match=f"correct={correct} and count={count}"):
            metrics.confidence_interval(correct, count)


def test_labels_that_are_no_classes_are_not_counted():
    logits = jnp.eye(3)
    labels, losses = jnp.array([0, -1, 7]), jnp.array([1.0, 2.0, 4.0])
    state = metrics.update(metrics.empty(3), logits, labels, losses, labels > -2)
    found = metrics.compute(state)
    assert (found["count"], found["accuracy"], found["loss"]) == (1, 1, 1)
