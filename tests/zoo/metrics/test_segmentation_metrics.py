"""Measures of masks, against loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.metrics.segmentation import (
    boundary_f1,
    compute,
    confusion_matrix,
    empty,
    merge,
    update,
)


def make_masks(seed, images=4, classes=5, size=(6, 7)):
    """Masks in which the last class does not occur, nor is the one before predicted."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, classes - 1, (images, *size)).astype(np.uint8)
    guess = rng.integers(0, classes - 2, mask.shape).astype(np.uint8)
    predicted = np.where(rng.random(mask.shape) < 0.5, mask, guess)
    predicted[predicted == classes - 2] = 0
    mask[rng.random(mask.shape) < 0.2] = 255
    return predicted.astype(np.uint8), mask


def slow_measures(predicted, mask, classes):
    """From sets of pixels, class by class."""
    pairs = [(p, m) for p, m in zip(predicted.flat, mask.flat, strict=True) if m < 255]
    accuracies, ious, weighted = [], [], 0.0
    for c in range(classes):
        true = {i for i, (_, m) in enumerate(pairs) if m == c}
        found = {i for i, (p, _) in enumerate(pairs) if p == c}
        accuracies.append(len(true & found) / len(true) if true else None)
        ious.append(len(true & found) / len(true | found) if true | found else None)
        weighted += len(true) / len(pairs) * (ious[-1] or 0)
    return {
        "pixels": len(pairs),
        "pixel_accuracy": np.mean([p == m for p, m in pairs]),
        "class_accuracy": np.mean([a for a in accuracies if a is not None]),
        "mean_iou": np.mean([i for i in ious if i is not None]),
        "frequency_weighted_iou": weighted,
        "accuracies": accuracies,
        "iou": ious,
    }


@pytest.mark.parametrize("seed", range(3))
def test_measures(seed):
    predicted, mask = make_masks(seed)
    state = jax.jit(update)(empty(5), predicted, mask)
    found = compute(state)
    for name, value in slow_measures(predicted, mask, 5).items():
        assert found[name] == pytest.approx(value), name
    assert found["iou"][4] is found["accuracies"][4] is None
    assert found["iou"][3] == 0
    assert found["images"] == 4


def test_batches_padding_and_merging():
    predicted, mask = make_masks(0, images=6)
    losses = jnp.arange(6.0)
    whole = update(empty(5), predicted, mask, losses)
    first = update(empty(5), predicted[:2], mask[:2], losses[:2])
    # The rest in another worker, with two images that are padding.
    rest = [np.concatenate([x[2:], x[:2]]) for x in (predicted, mask, losses)]
    valid = jnp.arange(6) < 4
    second = update(empty(5), *rest, valid)
    jax.tree.map(np.testing.assert_array_equal, merge(first, second), whole)
    assert compute(whole)["loss"] == pytest.approx(2.5)


def test_padding_may_be_not_a_number():
    predicted, mask = make_masks(0, images=2)
    losses, valid = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    assert compute(update(empty(5), predicted, mask, losses, valid))["loss"] == 1


def test_another_ignored_value():
    predicted, mask = make_masks(0)
    moved = np.where(mask == 255, 3, mask % 3)
    a = update(empty(4), predicted, moved, ignore=3)
    b = update(empty(4), predicted, np.where(mask == 255, 255, moved))
    np.testing.assert_array_equal(a.low, b.low)


def test_more_pixels_than_an_integer_counts():
    predicted = mask = np.zeros((1, 2, 2), np.uint8)
    state = empty(2)._replace(low=jnp.full((2, 2), 2**30 - 1), images=jnp.int32(1))
    for _ in range(3):
        state = update(merge(state, state), predicted, mask)
    expected = np.full((2, 2), 8 * (2**30 - 1))
    expected[0, 0] += 4 + 2 * 4 + 4 * 4
    np.testing.assert_array_equal(confusion_matrix(state), expected)
    assert (state.low < 2**30).all()
    assert compute(state)["pixels"] == expected.sum()


def test_bad_input():
    predicted, mask = make_masks(0)
    with pytest.raises(ValueError, match=r"one size.*\[4, 6, 7\].*\[4, 6, 6\]"):
        update(empty(5), predicted, mask[..., :6])
    with pytest.raises(ValueError, match=r"no pixel.*0 image\(s\)"):
        compute(empty(5))
    with pytest.raises(ValueError, match=r"no pixel.*4 image\(s\).*ignored"):
        compute(update(empty(5), predicted, np.full_like(mask, 255)))
    with pytest.raises(ValueError, match=r"one size \[H, W\]"):
        boundary_f1(predicted[0], mask[0, :5])


def slow_boundary_f1(predicted, mask, tolerance):
    """From all pairs of boundary pixels."""
    height, width = mask.shape
    limit = tolerance * np.hypot(height, width)

    def boundary(classes, number):
        points = []
        for y, x in np.ndindex(height, width):
            if classes[y, x] != number or mask[y, x] == 255:
                continue
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < height and 0 <= u < width
                if inside and mask[v, u] != 255 and classes[v, u] != number:
                    points.append((y, x))
                    break
        return points

    def near(points, others):
        hits = [
            any(np.hypot(y - v, x - u) <= limit for v, u in others) for y, x in points
        ]
        return np.mean(hits) if hits else 0.0

    scores = []
    for number in sorted({int(m) for m in mask.flat} - {255}):
        true, found = boundary(mask, number), boundary(predicted, number)
        precision, recall = near(found, true), near(true, found)
        total = precision + recall
        scores.append(2 * precision * recall / total if total else 0.0)
    return np.mean(scores)


@pytest.mark.parametrize("tolerance", [0.06, 0.09, 0.25])
def test_boundary_f1(tolerance):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :14]
    mask = ((y > 4) + (x > 6) * (y > 7) + (y + x > 20)).astype(np.uint8)
    predicted = np.roll(mask, (1, -1), (0, 1))
    mask = np.where(rng.random(mask.shape) < 0.05, 255, mask)
    found = boundary_f1(predicted, mask, tolerance=tolerance)
    assert found == pytest.approx(slow_boundary_f1(predicted, mask, tolerance))
    assert 0.1 < found < 1


def test_boundary_f1_at_its_ends():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    assert boundary_f1(mask, mask) == 1
    # A class that fills the image has no boundary, and may be missed all the same.
    plain = np.zeros_like(mask)
    assert boundary_f1(plain, plain) == 1
    assert boundary_f1(plain + 1, plain) == 0
    assert boundary_f1(plain, mask) == 0
    assert boundary_f1(plain, np.full_like(mask, 255)) is None
    # 0.75 % of 600 pixels' diagonal are 4.5 pixels.
    mask = np.zeros((360, 480), np.uint8)
    mask[:, 200:] = 1
    assert boundary_f1(np.roll(mask, 4, axis=1)[:, 10:-10], mask[:, 10:-10]) == 1
    assert boundary_f1(np.roll(mask, 5, axis=1)[:, 10:-10], mask[:, 10:-10]) == 0


def test_values_that_are_no_classes_are_not_counted():
    mask = np.array([[[-1, 1, 7]]])
    state = update(empty(3), np.array([[[2, 1, 0]]]), mask)
    np.testing.assert_array_equal(confusion_matrix(state), np.diag([0, 1, 0]))
