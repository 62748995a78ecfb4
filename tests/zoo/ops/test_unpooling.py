"""Max pooling with the taken pixels' numbers, and the way back, against loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.pooling import max_pool
from zoo.ops.unpooling import max_pool_with_indices, max_unpool, repeat_pixels

# Height, width, window, stride, padding, ceil.
CASES = [
    (6, 8, 2, 2, 0, False),
    (7, 9, 2, 2, 0, False),
    (7, 9, 2, 2, 0, True),
    (9, 11, 3, 3, 0, True),
    (9, 11, 3, 2, 0, True),
    (10, 11, 3, 2, 1, False),
    (10, 12, 3, 2, 1, True),
    (6, 6, 3, 1, 1, False),
    (8, 7, 2, 3, 0, False),
]
APART = [case for case in CASES if case[2] == case[3] and not case[4]]


def make_map(height, width, seed=0):
    """Few levels, so that most windows have their largest value several times."""
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 3, (2, height, width, 3)).astype(np.float32)


def slow_pool(x, window, stride, padding, ceil):
    batch, height, width, channels = x.shape
    counts = []
    for n in (height, width):
        room = n + 2 * padding - window
        count = (math.ceil(room / stride) if ceil else room // stride) + 1
        counts.append(count - (ceil and (count - 1) * stride >= n + padding))
    y = np.full((batch, *counts, channels), -np.inf, np.float32)
    indices = np.zeros(y.shape, np.int32)
    for b, i, j, c in np.ndindex(y.shape):
        for row in range(i * stride - padding, i * stride - padding + window):
            for column in range(j * stride - padding, j * stride - padding + window):
                inside = 0 <= row < height and 0 <= column < width
                if inside and x[b, row, column, c] > y[b, i, j, c]:
                    y[b, i, j, c] = x[b, row, column, c]
                    indices[b, i, j, c] = row * width + column
    return y, indices


def slow_unpool(y, indices, size):
    out = np.zeros((len(y), *size, y.shape[-1]), np.float32)
    for b, i, j, c in np.ndindex(y.shape):
        row, column = divmod(int(indices[b, i, j, c]), size[1])
        out[b, row, column, c] += y[b, i, j, c]
    return out


@pytest.mark.parametrize("case", CASES)
def test_pool(case):
    height, width, *window, ceil = case
    x = make_map(height, width)
    y, indices = slow_pool(x, *window, ceil)
    found = max_pool_with_indices(x, *window, ceil=ceil)
    np.testing.assert_array_equal(found[0], y)
    np.testing.assert_array_equal(found[1], indices)
    assert found[1].dtype == jnp.int32
    np.testing.assert_array_equal(max_pool(x, *window, ceil=ceil), y)


@pytest.mark.parametrize("case", CASES)
def test_unpool(case):
    height, width, *window, ceil = case
    _, indices = slow_pool(make_map(height, width), *window, ceil)
    y = np.random.default_rng(1).standard_normal(indices.shape).astype(np.float32)
    expected = slow_unpool(y, indices, (height, width))
    found = max_unpool(jnp.asarray(y), jnp.asarray(indices), (height, width))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("case", APART)
def test_unpool_without_scatter(case):
    height, width, *window, ceil = case
    _, indices = slow_pool(make_map(height, width), *window, ceil)
    y = np.random.default_rng(1).standard_normal(indices.shape).astype(np.float32)
    found = max_unpool(
        jnp.asarray(y), jnp.asarray(indices), (height, width), stride=window[1]
    )
    np.testing.assert_array_equal(found, slow_unpool(y, indices, (height, width)))


@pytest.mark.parametrize(
    ("case", "apart"), [(CASES[2], False), (CASES[2], True), (CASES[5], False)]
)
def test_gradients(case, apart):
    height, width, *window, ceil = case
    x = jnp.asarray(make_map(height, width))
    stride = window[1] if apart else None

    def there(x):
        return max_pool_with_indices(x, *window, ceil=ceil)[0]

    y, indices = max_pool_with_indices(x, *window, ceil=ceil)

    def back(y):
        return max_unpool(y, indices, (height, width), stride=stride)

    # Pooling gives a window's gradient to the pixel that it took, which is unpooling;
    # unpooling's gradient is what lies there.
    ct = jax.random.normal(jax.random.key(0), y.shape)
    (found,) = jax.vjp(there, x)[1](ct)
    np.testing.assert_allclose(found, slow_unpool(ct, indices, (height, width)), 1e-6)
    ct = jax.random.normal(jax.random.key(1), x.shape)
    (found,) = jax.vjp(back, y)[1](ct)
    flat = ct.reshape(2, -1, 3)
    expected = jnp.take_along_axis(flat, indices.reshape(2, -1, 3), axis=1)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("stride", [None, 2])
def test_under_jit_and_vmap(stride):
    x = jnp.asarray(make_map(7, 9))

    def both(x):
        y, indices = max_pool_with_indices(x, 2, 2, ceil=True)
        return indices, max_unpool(y * 2, indices, x.shape[1:3], stride=stride)

    expected = both(x)
    alone = x[:, None]  # A mapped axis, and a batch of one.
    for found in (
        jax.jit(both)(x),
        jax.vmap(both)(alone),
        jax.jit(jax.vmap(both))(alone),
    ):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.reshape(b.shape), b)


def test_what_is_no_number_and_what_is_lowest():
    x = jnp.array([1.0, jnp.nan, 3.0, 2.0]).reshape(1, 2, 2, 1)
    y, indices = max_pool_with_indices(x, 2, 2)
    assert np.isnan(y).all()
    assert indices.item() == 1
    x = jnp.full((1, 3, 3, 1), -jnp.inf)
    y, indices = max_pool_with_indices(x, 3, 2, 1)
    np.testing.assert_array_equal(y, jnp.full((1, 2, 2, 1), -jnp.inf))
    assert ((indices >= 0) & (indices < 9)).all()


def test_bfloat16():
    x = jnp.asarray(make_map(7, 9), jnp.bfloat16)
    y, indices = max_pool_with_indices(x, 2, 2, ceil=True)
    expected = slow_pool(np.asarray(x, np.float32), 2, 2, 0, ceil=True)
    np.testing.assert_array_equal(indices, expected[1])
    for stride in (None, 2):
        found = max_unpool(y, indices, (7, 9), stride=stride)
        assert y.dtype == found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            found.astype(np.float32), slow_unpool(*expected, (7, 9))
        )


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_repeat(factor):
    x = make_map(3, 4)
    found, pull = jax.vjp(lambda x: repeat_pixels(x, factor), jnp.asarray(x))
    np.testing.assert_array_equal(found, x.repeat(factor, 1).repeat(factor, 2))
    ct = make_map(3 * factor, 4 * factor, seed=1)
    summed = ct.reshape(2, 3, factor, 4, factor, 3).sum((2, 4))
    np.testing.assert_allclose(pull(jnp.asarray(ct))[0], summed, rtol=1e-6)


def test_bad_input():
    y, indices = max_pool_with_indices(jnp.zeros((1, 6, 6, 2)), 2, 2)
    with pytest.raises(ValueError, match=r"one shape.*\[1, 3, 3, 2\].*\[1, 2, 3, 2\]"):
        max_unpool(y, indices[:, :2], (6, 6))
    with pytest.raises(ValueError, match="windows of 2 x 2 pixels make of 8 x 6"):
        max_unpool(y, indices, (8, 6), stride=2)
    with pytest.raises(ValueError, match="does not fit into H"):
        max_pool_with_indices(jnp.zeros((1, 2, 6, 2)), 3, 2)
