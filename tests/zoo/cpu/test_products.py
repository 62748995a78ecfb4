"""Products with few rows, against the plain ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import cpu


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_multiplied_by_the_transposed_kernel(rows, dtype):
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(rows, 5)), dtype)
    kernel = jnp.asarray(rng.normal(size=(7, 5)), dtype)
    found = cpu.multiply_transposed(g, kernel)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 0.05
    wide = np.asarray(g, np.float32) @ np.asarray(kernel, np.float32).T
    np.testing.assert_allclose(np.asarray(found, np.float32), wide, atol=tolerance)
