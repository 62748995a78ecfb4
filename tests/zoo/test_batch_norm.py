"""Batch norm's statistics of one pass: as exact as two, wherever the mean is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import BatchNorm

MEANS = [0.0, 1.0, -30.0, 1e3]


def make_images(mean, shape=(4, 17, 16, 5)):
    values = np.random.default_rng(0).normal(mean, 1.0, shape)
    return values.astype(np.float32)


def train_on(x, running_mean=0.0, **options):
    layer, shape = BatchNorm(momentum=0.9, **options), x.shape[-1:]
    variables = {
        "params": {"scale": np.ones(shape), "bias": np.zeros(shape)},
        "batch_stats": {"mean": np.full(shape, running_mean), "var": np.ones(shape)},
    }
    variables = jax.tree.map(np.float32, variables)
    apply = partial(layer.apply, train=True, mutable=["batch_stats"])
    return jax.jit(apply)(variables, x)


@pytest.mark.parametrize("mean", MEANS)
def test_first_batch_gives_exact_statistics(mean):
    x = make_images(mean)
    y, new = train_on(x)
    exact = x.astype(np.float64)
    var = exact.var((0, 1, 2), ddof=1)
    stats = new["batch_stats"]
    np.testing.assert_allclose(
        stats["mean"], 0.1 * exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-6)
    centered = exact - exact.mean((0, 1, 2))
    expected = centered / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    # The mean is rounded to float32.
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 + 1e-7 * abs(mean))


@pytest.mark.parametrize("mean", MEANS)
def test_running_statistics_are_pytorchs(mean):
    torch = pytest.importorskip("torch")
    x = make_images(mean)
    # In float32 PyTorch's own output is off by 2e-4 at a mean of 1,000.
    layer = torch.nn.BatchNorm2d(5, momentum=0.1).double()
    images = torch.from_numpy(x.transpose(0, 3, 1, 2)).double()
    expected = layer(images).detach().numpy()
    y, new = train_on(x)
    stats = new["batch_stats"]
    np.testing.assert_allclose(stats["mean"], layer.running_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(stats["var"], layer.running_var, rtol=1e-6)
    tolerance = 1e-5 + 1e-7 * abs(mean)
    np.testing.assert_allclose(
        y, expected.transpose(0, 2, 3, 1), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_gradient_is_that_of_exact_statistics(mean):
    x = make_images(mean)
    weights = np.random.default_rng(1).normal(size=x.shape)

    def loss(x):
        return jnp.sum(train_on(x)[0] * weights.astype(np.float32))

    def gradient(x):
        """The textbook's, in float64."""
        centered = x - x.mean((0, 1, 2))
        factor = 1 / np.sqrt(x.var((0, 1, 2)) + 1e-5)
        normal = centered * factor
        slope = (weights * normal).mean((0, 1, 2))
        return factor * (weights - weights.mean((0, 1, 2)) - normal * slope)

    found = jax.grad(loss)(x)
    tolerance = 1e-5 + 1e-7 * mean
    np.testing.assert_allclose(
        found, gradient(x.astype(np.float64)), rtol=0, atol=tolerance
    )


def test_equal_values_have_no_variance():
    x = np.full((2, 4, 4, 3), 1e4, np.float32)
    x[..., 1] = -7
    y, new = train_on(x)
    np.testing.assert_array_equal(y, np.zeros_like(y))
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(train_on(x)[0])))(x)
    assert np.isfinite(gradient).all()


def test_middle_row_unlike_the_rest_costs_few_digits():
    x = make_images(0.0)
    x[:, 8] += 1e3
    _, new = train_on(x)
    var = x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=2e-5)


@pytest.mark.parametrize("shape", [(64, 5), (8, 6, 5), (2, 3, 4, 4, 5)])
def test_any_rank(shape):
    x = make_images(1e3, shape)
    _, new = train_on(x)
    axes = tuple(range(x.ndim - 1))
    var = x.astype(np.float64).var(axes, ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-6)


@pytest.mark.parametrize(("running_mean", "rtol"), [(0.0, 1e-3), (29.0, 1e-6)])
def test_bfloat16_images_have_float32_statistics(running_mean, rtol):
    """Far from the running mean the error is below that of rounding to bfloat16."""
    given = make_images(30.0)
    x = jnp.asarray(given, jnp.bfloat16)
    y, new = train_on(x, running_mean=running_mean, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    var = exact.var((0, 1, 2), ddof=1)
    found = 10 * (np.asarray(new["batch_stats"]["var"], np.float64) - 0.9)
    np.testing.assert_allclose(found, var, rtol=10 * rtol)
    assert np.abs(found - var).max() < np.abs(var - given.var((0, 1, 2), ddof=1)).max()
