"""Losses against loops over pixels and the equations of the papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.losses import (
    bootstrapped_cross_entropy,
    median_frequency_weights,
    segmentation_cross_entropy,
    smooth_l1,
)

cross_entropy = jax.jit(segmentation_cross_entropy, static_argnames="ignore")
bootstrapped = jax.jit(bootstrapped_cross_entropy, static_argnames=("count", "ignore"))


def make_example(seed=0, shape=(3, 5, 7), classes=4):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((*shape, classes)).astype(np.float32)
    mask = rng.integers(0, classes, shape).astype(np.uint8)
    mask[rng.random(shape) < 0.3] = 255
    return jnp.asarray(logits), jnp.asarray(mask)


def pixel_losses(logits, mask, ignore=255):
    """For each image, the (loss, class) of its valid pixels, one at a time."""
    logits = np.asarray(logits, np.float64)
    out = []
    for image, labels in zip(logits, np.asarray(mask), strict=True):
        losses = []
        for y, x in np.ndindex(labels.shape):
            if labels[y, x] != ignore:
                row = image[y, x]
                loss = np.log(np.exp(row).sum()) - row[labels[y, x]]
                losses.append((loss, int(labels[y, x])))
        out.append(losses)
    return out


def test_cross_entropy():
    logits, mask = make_example()
    found = cross_entropy(logits, mask)
    expected = [
        np.mean([loss for loss, _ in image]) for image in pixel_losses(logits, mask)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.shape == (3,)
    assert found.dtype == jnp.float32


def test_cross_entropy_with_weights():
    logits, mask = make_example()
    weights = [0.5, 2.0, 0.0, 1.5]
    found = cross_entropy(logits, mask, class_weights=weights)
    expected = [
        np.mean([loss * weights[c] for loss, c in image])
        for image in pixel_losses(logits, mask)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    pixels = jnp.where(jnp.arange(7).reshape(1, 1, 7) < 3, 2.0, 0.0)
    pixels = jnp.broadcast_to(pixels, mask.shape)
    found = cross_entropy(logits, mask, pixel_weights=pixels)
    left = cross_entropy(logits, mask.at[:, :, 3:].set(255))
    valid = mask != 255
    share = valid[:, :, :3].sum((1, 2)) / valid.sum((1, 2))
    np.testing.assert_allclose(found, 2 * left * share, rtol=1e-6)


def test_another_ignored_value():
    logits, mask = make_example()
    moved = jnp.where(mask == 255, 7, mask)
    np.testing.assert_array_equal(
        cross_entropy(logits, moved, ignore=7),
        cross_entropy(logits, mask),
    )
    np.testing.assert_array_equal(
        bootstrapped(logits, moved, count=5, ignore=7),
        bootstrapped(logits, mask, count=5),
    )


@pytest.mark.parametrize("count", [1, 6, 20, 35, 1000])
def test_bootstrapped(count):
    logits, mask = make_example()
    found = bootstrapped(logits, mask, count=count)
    expected = [
        np.mean(sorted(loss for loss, _ in image)[-count:])
        for image in pixel_losses(logits, mask)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradient_of_bootstrapped_is_that_of_the_worst_pixels():
    logits, mask = make_example()
    worst = []
    for image, labels in zip(np.asarray(logits), np.asarray(mask), strict=True):
        alone = np.full((labels.size, *labels.shape), 255, np.uint8)
        for i, place in enumerate(np.ndindex(labels.shape)):
            alone[i][place] = labels[place]
        images = np.broadcast_to(image, (labels.size, *image.shape))
        worst.append(np.argsort(cross_entropy(images, alone))[-6:])
    kept = np.full((3, 35), 255, np.uint8)
    for i, pixels in enumerate(worst):
        kept[i, pixels] = np.asarray(mask).reshape(3, -1)[i, pixels]
    kept = jnp.asarray(kept.reshape(mask.shape))

    def total(loss):
        return jax.jit(jax.grad(lambda x: loss(x).sum()))(logits)

    found = total(lambda x: bootstrapped(x, mask, count=6))
    expected = total(lambda x: cross_entropy(x, kept))
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_gradient_of_bootstrapped_is_shared_among_equals():
    logits, mask = jnp.zeros((1, 2, 3, 2)), jnp.zeros((1, 2, 3), jnp.uint8)

    def loss(x):
        return bootstrapped(x, mask, count=3).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[..., 0], -0.5 / 6, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        lambda x, m: cross_entropy(x, m, class_weights=[1, 2, 3, 4]),
        lambda x, m: bootstrapped(x, m, count=9),
    ],
)
def test_images_without_a_valid_pixel(loss):
    logits, mask = make_example()
    mask = mask.at[1].set(255)
    losses, pull = jax.vjp(lambda x: loss(x, mask), logits)
    assert losses[1] == 0
    assert (losses[np.array([0, 2])] > 0).all()
    (gradient,) = pull(jnp.ones(3))
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    # What is ignored has no say, whatever the network says there.
    other = jnp.where((mask == 255)[..., None], 100.0, logits)
    np.testing.assert_array_equal(loss(other, mask), losses)


def test_values_outside_the_classes_are_seen():
    logits, mask = make_example()
    mask = mask.at[2, 0, 0].set(4)
    for losses in (
        cross_entropy(logits, mask),
        bootstrapped(logits, mask, count=5),
    ):
        assert np.isnan(losses).tolist() == [False, False, True]


def test_bad_input():
    logits, mask = make_example()
    with pytest.raises(
        ValueError, match=r"one size.*\[3, 5, 7, 4\].*\[3, 5, 6\].*crop"
    ):
        segmentation_cross_entropy(logits, mask[..., :6])
    with pytest.raises(ValueError, match="integers, got float32"):
        segmentation_cross_entropy(logits, mask.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"class_weights are \[3\].*4 classes"):
        segmentation_cross_entropy(logits, mask, class_weights=[1, 2, 3])
    with pytest.raises(ValueError, match="pixel_weights"):
        segmentation_cross_entropy(logits, mask, pixel_weights=jnp.ones((3, 5, 6)))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        bootstrapped_cross_entropy(logits, mask, count=0)


def test_median_frequency_weights():
    # Frequencies 0.5, 0.1, 0.2: the median is 0.2; one class does not occur.
    weights = median_frequency_weights([500, 10, 0, 20], [1000, 100, 0, 100])
    np.testing.assert_allclose(weights, [0.4, 2, 0, 1], rtol=1e-6)
    with pytest.raises(ValueError, match="no class has a pixel"):
        median_frequency_weights([0, 0], [0, 0])
    with pytest.raises(ValueError, match="no more pixels"):
        median_frequency_weights([10, 5], [8, 8])


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_smooth_l1_is_fast_rcnns_equation_3(beta):
    errors = np.float32([-3, -beta, -beta / 2, 0, beta / 3, beta, 1.5 * beta, 2])
    sizes = np.abs(errors)
    expected = np.where(sizes < beta, errors**2 / (2 * beta), sizes - beta / 2)
    slopes = np.clip(errors / np.float32(beta), -1, 1)
    run = jax.vmap(jax.value_and_grad(partial(smooth_l1, beta=beta)))
    found, gradients = jax.jit(run)(errors)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, slopes, rtol=1e-6)
