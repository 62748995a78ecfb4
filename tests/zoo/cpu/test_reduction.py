"""The mean over a map, as a product on CPUs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.pooling import global_average_pool


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_the_mean_over_height_and_width(dtype):
    x = np.random.default_rng(0).normal(30, 1, (2, 7, 5, 3))
    x = jnp.asarray(x, dtype)
    found = jax.jit(global_average_pool)(x)
    assert found.dtype == x.dtype
    exact = np.asarray(x, np.float64).mean((1, 2)).astype(x.dtype)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_gradient_and_symbolic_batch():
    def run(x):
        loss = lambda x: jnp.sum(jnp.square(global_average_pool(x)))  # noqa: E731
        return jax.value_and_grad(loss)(x)

    x = jnp.arange(24, dtype=jnp.float32).reshape(2, 2, 3, 2)
    mean = x.mean((1, 2))
    value, gradient = run(x)
    np.testing.assert_allclose(value, jnp.square(mean).sum(), rtol=1e-6)
    expected = jnp.broadcast_to(mean[:, None, None] / 3, x.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    shape = jax.export.symbolic_shape("b, 2, 3, 2")
    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(shape, x.dtype))
    np.testing.assert_allclose(exported.call(x)[1], gradient, rtol=1e-6)
