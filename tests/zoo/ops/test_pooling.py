"""Pooling against slow numpy and PyTorch: borders, bins, ties and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.pooling import (
    adaptive_avg_pool,
    max_pool,
    spatial_pyramid_pool,
)


def windows(seed, count):
    """Yields images and random ways to pool them, odd and even."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        window, stride = (int(n) for n in rng.integers(1, 6, 2))
        height, width = (int(n) for n in rng.integers(window, 13, 2))
        padding = int(rng.integers(0, window // 2 + 1))
        x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        yield x, window, stride, padding


def spans(size, window, stride, padding, ceil):
    """Where each window begins and ends, in pixels of the image."""
    room = (size + 2 * padding - window) / stride
    count = (math.ceil(room) if ceil else math.floor(room)) + 1
    starts = [i * stride - padding for i in range(count)]
    # None begins right of the image and its padding.
    return [(start, start + window) for start in starts if start < size]


def slow_pool(x, reduce, window, stride, padding, ceil):
    """Calls `reduce` with the pixels of a window that are in the image, and the number
    of pixels that it has in the image and its padding."""
    rows, columns = (spans(n, window, stride, padding, ceil) for n in x.shape[1:3])
    ends = [n + padding for n in x.shape[1:3]]
    out = np.zeros((len(x), len(rows), len(columns), x.shape[-1]))
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            inner = x[:, max(top, 0) : bottom, max(left, 0) : right]
            area = (min(bottom, ends[0]) - top) * (min(right, ends[1]) - left)
            out[:, i, j] = reduce(inner.astype(np.float64), area)
    return out


@pytest.mark.parametrize("ceil", [False, True])
def test_max_pool_takes_the_largest_in_the_image(cheap_jit, ceil):
    for x, *how in windows(seed=0, count=16):
        expected = slow_pool(x, lambda v, area: v.max((1, 2)), *how, ceil)
        got = cheap_jit(lambda x, how=how: max_pool(x, *how, ceil=ceil))(x)
        np.testing.assert_array_equal(got, expected, err_msg=str((x.shape, how)))


def to_torch(x):
    torch = pytest.importorskip("torch")
    nchw = np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))
    return torch.tensor(nchw, requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_torch_agrees(jit, ours, theirs, x):
    """Compares a function's values and its gradient at `x` [B, H, W, C]."""
    theirs_x = to_torch(x)
    y = theirs(theirs_x)
    weights = np.random.default_rng(9).normal(size=from_torch(y).shape)
    weights = weights.astype(np.float32)

    @jit
    def run(x, weights):
        got, pull = jax.vjp(ours, x)
        return got, *pull(weights)

    got, gradient = run(x, weights)
    np.testing.assert_allclose(got, from_torch(y), rtol=1e-5, atol=1e-6)
    y.backward(to_torch(weights).detach())
    expected = from_torch(theirs_x.grad)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ceil", [False, True])
def test_windows_are_pytorchs(cheap_jit, ceil):
    F = pytest.importorskip("torch").nn.functional
    for x, *how in windows(seed=2, count=6):
        # Few different values: the gradient of equal ones goes to the first.
        x = np.round(x)
        assert_torch_agrees(
            cheap_jit,
            lambda x, how=how: max_pool(x, *how, ceil=ceil),
            lambda x, how=how: F.max_pool2d(x, *how, ceil_mode=ceil),
            x,
        )


def test_max_pool_has_every_derivative(cheap_jit):
    rng = np.random.default_rng(5)
    x, dx = rng.normal(size=(2, 2, 7, 6, 3)).astype(np.float32)

    def by_xla(x):
        sides = (0, 0), (1, 1), (1, 1), (0, 0)
        lowest = np.float32(-np.inf)
        return jax.lax.reduce_window(
            x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), sides
        )

    def derivatives(pool):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(pool(x) ** 3))(x)

        tangent = jax.jvp(pool, (x,), (dx,))
        return *tangent, gradient(x), jax.jvp(gradient, (x,), (dx,))[1]

    found = cheap_jit(lambda: derivatives(lambda x: max_pool(x, 3, 2, 1)))()
    for a, b in zip(found, cheap_jit(lambda: derivatives(by_xla))(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_ceil_is_what_the_papers_sizes_need():
    sizes = {(110, 3, 2, 0): 55, (26, 3, 2, 0): 13, (112, 3, 2, 0): 56, (75, 2, 2): 38}
    for (size, *how), expected in sizes.items():
        pool = jax.eval_shape(
            lambda x, how=how: max_pool(x, *how, ceil=True),
            jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32),
        )
        assert pool.shape == (1, expected, expected, 1)


def test_a_window_beyond_the_image_is_named():
    with pytest.raises(ValueError, match=r"5x5 window with padding 1 .* H of") as error:
        max_pool(jnp.zeros((1, 2, 9, 4)), 5, 2, 1)
    assert "[1, 2, 9, 4]" in str(error.value)


def test_padding_alone_is_no_window():
    with pytest.raises(ValueError, match="2x2 window needs less padding than 2, got 2"):
        max_pool(jnp.zeros((1, 4, 4, 1)), 2, 2, 2)


# Bins that divide the image, that share pixels, and more bins than pixels.
@pytest.mark.parametrize(
    ("height", "width", "size"), [(6, 9, 3), (14, 5, 3), (7, 10, 4), (2, 3, 5)]
)
def test_adaptive_pooling(height, width, size):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    largest, mean = np.zeros((2, 2, size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = slice(
                math.floor(i * height / size), math.ceil((i + 1) * height / size)
            )
            left, right = (
                math.floor(j * width / size),
                math.ceil((j + 1) * width / size),
            )
            largest[:, i, j] = x[:, rows, left:right].max((1, 2))
            mean[:, i, j] = x[:, rows, left:right].mean((1, 2))
    pyramid = spatial_pyramid_pool(x, (size,))
    np.testing.assert_array_equal(pyramid.reshape(largest.shape), largest)
    np.testing.assert_allclose(adaptive_avg_pool(x, size), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((11, 6), 4), ((3, 2), 5), ((8, 8), 4)])
def test_adaptive_bins_are_pytorchs(cheap_jit, shape, size):
    F = pytest.importorskip("torch").nn.functional
    rng = np.random.default_rng(3)
    x = np.round(rng.normal(size=(2, *shape, 3))).astype(np.float32)

    def largest(x):
        return spatial_pyramid_pool(x, (size,)).reshape(len(x), size, size, -1)

    for ours, theirs in (
        (largest, F.adaptive_max_pool2d),
        (lambda x: adaptive_avg_pool(x, size), F.adaptive_avg_pool2d),
    ):
        assert_torch_agrees(
            cheap_jit, ours, lambda x, theirs=theirs: theirs(x, size), x
        )


def test_means_are_summed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (1, 30, 30, 8)), jnp.bfloat16)
    got = adaptive_avg_pool(x, 1)
    assert got.dtype == jnp.bfloat16
    expected = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, expected)


def slow_pyramid(x, levels):
    """[H, W, C] -> [bins, C], one bin at a time."""
    height, width, _ = x.shape
    bins = []
    for n in levels:
        for i in range(n):
            for j in range(n):
                rows = range(
                    math.floor(i * height / n), math.ceil((i + 1) * height / n)
                )
                columns = range(
                    math.floor(j * width / n), math.ceil((j + 1) * width / n)
                )
                bins.append(np.max([x[r, c] for r in rows for c in columns], axis=0))
    return np.array(bins)


# The 14-layer and the 19-layer network's, and images that are not square.
@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(18, 18, (6, 3, 2, 1)), (14, 14, (7, 3, 2, 1)), (9, 13, (3, 1)), (1, 2, (2,))],
)
def test_pyramid(height, width, levels):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    got = spatial_pyramid_pool(x, levels)
    assert got.shape == (2, sum(n * n for n in levels), 3)
    for image, bins in zip(x, got, strict=True):
        np.testing.assert_array_equal(bins, slow_pyramid(image, levels))


def test_pyramid_at_every_place():
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    got = spatial_pyramid_pool(x, (3, 2), window=5)
    assert got.shape == (2, 5, 3, 13, 3)
    for b, i, j in np.ndindex(2, 5, 3):
        expected = slow_pyramid(x[b, i : i + 5, j : j + 5], (3, 2))
        np.testing.assert_array_equal(got[b, i, j], expected)
    # The one place where it fits is the image.
    once = spatial_pyramid_pool(x[:, :5, :5], (3, 2), window=5)
    np.testing.assert_array_equal(
        once[:, 0, 0], spatial_pyramid_pool(x[:, :5, :5], (3, 2))
    )


def test_gradient_of_the_pyramid():
    # In a map of distinct values, each bin's weight goes to the pixel of its largest.
    x = np.random.default_rng(0).permutation(25 * 2).reshape(1, 5, 5, 2)
    x = x.astype(np.float32)
    bins, pull = jax.vjp(lambda x: spatial_pyramid_pool(x, (3, 1)), jnp.asarray(x))
    weights = np.random.default_rng(1).normal(size=bins.shape).astype(np.float32)
    expected = np.zeros_like(x)
    for k, c in np.ndindex(bins.shape[1:]):
        expected[x == bins[0, k, c]] += weights[0, k, c]
    np.testing.assert_allclose(pull(weights)[0], expected, rtol=1e-6)


def test_a_pyramid_beyond_the_image_is_named():
    with pytest.raises(ValueError, match=r"14x14 window does not fit into \[1, 14, 9"):
        spatial_pyramid_pool(jnp.zeros((1, 14, 9, 2)), (2, 1), window=14)
