"""The strongest activations of a set, by the order of the images and of batches."""

import numpy as np
import pytest
from tiny_explained import make_tiny

import zoo
from zoo.explain import strongest


def by_sorting(activations, k):
    """For each channel: value, image, position, of images sorted by their maxima."""
    rows = []
    for channel in range(activations.shape[-1]):
        plane = activations[..., channel]
        best = plane.reshape(len(plane), -1)
        order = np.argsort(-best.max(axis=1), kind="stable")[:k]
        places = np.stack(np.unravel_index(best.argmax(1)[order], plane.shape[1:]), -1)
        rows.append((best.max(axis=1)[order], order, places))
    return [np.stack(each) for each in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def tiny():
    return make_tiny(batch=11)


@pytest.mark.parametrize("k", [1, 4])
def test_it_finds_what_sorting_finds(tiny, k):
    model, variables, images = tiny
    activations = np.asarray(
        model.apply(variables, images, method="endpoints")["conv2"]
    )
    expected = by_sorting(activations, k)
    batches = [images[:4], images[4:8], images[8:]]
    found = zoo.explain.top_activations(model, variables, batches, "conv2", k)
    np.testing.assert_allclose(found.values, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found.images, expected[1])
    alive = found.values > 0  # Of a channel that is zero, any position is the largest.
    np.testing.assert_array_equal(found.positions[alive], expected[2][alive])
    assert found.count == 11


def test_padding_is_not_counted(tiny):
    model, variables, images = tiny
    valid = np.array([True, False, True, True])
    batches = [(images[:4], valid), (images[4:8], np.ones(4, bool))]
    found = zoo.explain.top_activations(model, variables, batches, "conv2", 9)
    kept = [np.concatenate([images[[0, 2, 3]], images[4:8]])]
    expected = zoo.explain.top_activations(model, variables, kept, "conv2", 9)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert found.values.shape == (5, 7)
    assert np.isfinite(found.values).all()


def test_of_a_vector_there_is_no_position(tiny):
    model, variables, images = tiny
    found = zoo.explain.top_activations(model, variables, [images], "logits", 2)
    assert found.positions.shape == (3, 2, 0)
    logits = np.asarray(model.apply(variables, images))
    np.testing.assert_array_equal(found.images[:, 0], logits.argmax(axis=0))


def test_merging_in_any_order():
    rng = np.random.default_rng(0)
    # Few values, so that there are ties.
    activations = rng.integers(0, 3, size=(9, 2, 2, 4)).astype(np.float32)
    states = []
    for first in (0, 3, 6):
        part = activations[first : first + 3]
        state = strongest.empty(4, 5)
        states.append(strongest.update(state, part, np.arange(first, first + 3)))
    a, b, c = states
    whole = strongest.update(strongest.empty(4, 5), activations, np.arange(9))
    merge = strongest.merge
    for joined in (merge(merge(a, b), c), merge(c, merge(b, a)), merge(merge(c, a), b)):
        for x, y in zip(
            strongest.compute(joined), strongest.compute(whole), strict=True
        ):
            np.testing.assert_array_equal(x, y)


def test_bad_input(tiny):
    model, variables, images = tiny
    top = zoo.explain.top_activations
    with pytest.raises(ValueError, match="set of images is empty"):
        top(model, variables, [], "conv2")
    with pytest.raises(ValueError, match="no image was seen"):
        top(model, variables, [(images[:2], np.zeros(2, bool))], "conv2")
    with pytest.raises(ValueError, match=r"'conv3'.*conv[12]"):
        top(model, variables, [images], "conv3")
    with pytest.raises(ValueError, match="k must be 1"):
        top(model, variables, [images], "conv2", 0)
