"""The product of dense layers with few rows, against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import cpu
from zoo.ops.dense import dense


@pytest.mark.parametrize("rows", [0, 1, 3, 9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_product(rows, dtype):
    rng = np.random.default_rng(0)
    shapes = ((rows, 7), (7, 5), (rows, 5))
    x, kernel, g = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    y, back = jax.vjp(jax.jit(dense), x, kernel)
    assert y.dtype == dtype
    wide_x, wide_kernel, wide_g = (np.asarray(a, np.float32) for a in (x, kernel, g))
    expected = wide_x @ wide_kernel, wide_g @ wide_kernel.T, wide_x.T @ wide_g
    for found, wide in zip((y, *back(g)), expected, strict=True):
        tolerance = 1e-6 if dtype == jnp.float32 else 0.05
        np.testing.assert_allclose(np.asarray(found, np.float32), wide, atol=tolerance)


def test_all_derivatives_and_vmap_work():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in ((2, 4), (4, 3)))

    def loss(product, x, kernel):
        return jnp.tanh(product(x, kernel)).sum()

    for derive in (jax.jacfwd, jax.jacrev, jax.hessian):
        found = derive(loss, argnums=(1, 2))(dense, x, kernel)
        plain = derive(loss, argnums=(1, 2))(jnp.matmul, x, kernel)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, plain
        )
    batch = jnp.stack([x, 2 * x])
    found = jax.vmap(jax.grad(loss, argnums=1), (None, 0, None))(dense, batch, kernel)
    plain = jax.vmap(jax.grad(loss, argnums=1), (None, 0, None))(
        jnp.matmul, batch, kernel
    )
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_few_rows_multiply_the_kernel_as_it_lies():
    def gradient(x, kernel, g):
        return jax.vjp(cpu.multiply_few_rows, x, kernel)[1](g)[0]

    shapes = [jnp.zeros(s) for s in ((2, 4), (4, 3), (2, 3))]
    text = jax.jit(gradient).lower(*shapes).as_text()
    assert text.count("dot_general") == 2
    assert "transpose" not in text
