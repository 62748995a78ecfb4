"""RoIAlign and RoI pooling against the operators' definitions, one value at a time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from platforms import run_as_on

from zoo.ops.roi import assign_levels, multiscale_roi_align, roi_align, roi_max_pool

# In pixels of an image of 64 x 96 at stride 4: inside, of whole cells, smaller than a
# cell, of no area, inside out, over the border, outside, far outside, all of it.
ROIS = np.array(
    [
        [3.3, 9.1, 41.7, 50.2],
        [8, 4, 24, 40],
        [10.1, 10.2, 11, 12.9],
        [20, 20, 20, 20],
        [50, 40, 30, 20],
        [-9.5, -7.2, 30, 22.4],
        [80, 50, 110.5, 72.3],
        [-90, -90, -60, -70],
        [500, 20, 700, 60],
        [0, 0, 96, 64],
        [0, 0, 95, 63],
        [0, 0, 0, 0],
        [-3000, -3000, 4000, 4000],
    ],
    np.float32,
)


def make_features(seed=0, height=16, width=24, channels=3):
    random = np.random.default_rng(seed)
    return random.normal(size=(height, width, channels)).astype(np.float32)


def interpolate(features, y, x):
    """The value at a point as torchvision's kernels take it."""
    height, width, channels = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = math.floor(y), math.floor(x)
    value = 0
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if wy and wx:
                value = value + wy * wx * features[row, column].astype(np.float64)
    return value


def slow_align(features, rois, scale, *, size=7, ratio=2, aligned=False):
    """torchvision's loops."""
    result = np.zeros((len(rois), size, size, features.shape[2]))
    offset = 0.5 if aligned else 0
    for r, roi in enumerate(rois.astype(np.float64)):
        x1, y1, x2, y2 = roi * scale - offset
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        for i in range(size):
            for j in range(size):
                for a in range(ratio):
                    for b in range(ratio):
                        y = y1 + height / size * (i + (a + 0.5) / ratio)
                        x = x1 + width / size * (j + (b + 0.5) / ratio)
                        result[r, i, j] += interpolate(features, y, x)
    return result / ratio**2


def slow_pool(features, rois, scale, size=7):
    """The loops of Fast R-CNN's Caffe layer."""
    height, width, channels = features.shape
    result = np.zeros((len(rois), size, size, channels), np.float32)

    def half_away(value):
        return int(math.copysign(math.floor(abs(value) + 0.5), value))

    for r, roi in enumerate(rois):
        x1, y1, x2, y2 = (half_away(float(np.float32(n) * scale)) for n in roi)
        h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(size):
            for j in range(size):
                top, left = y1 + i * h // size, x1 + j * w // size
                low = y1 - (-(i + 1) * h // size)
                right = x1 - (-(j + 1) * w // size)
                rows = slice(min(max(top, 0), height), min(max(low, 0), height))
                columns = slice(min(max(left, 0), width), min(max(right, 0), width))
                bin_ = features[rows, columns]
                if bin_.size:
                    result[r, i, j] = bin_.max((0, 1))
    return result


def slow_gradient(function, features, rois, weights):
    """Of sum(weights * function), which is linear in the features, cell by cell."""
    result = np.zeros(features.shape[:2])
    for y, x in np.ndindex(result.shape):
        one = np.zeros((*features.shape[:2], 1), np.float32)
        one[y, x] = 1
        result[y, x] = (function(one, rois) * weights).sum()
    return result


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "ratio"), [(7, 2), (5, 1), (2, 3)])
def test_align_equals_the_definition(size, ratio, aligned, cheap_jit):
    features = make_features()
    run = partial(
        roi_align,
        output_size=size,
        spatial_scale=0.25,
        sampling_ratio=ratio,
        aligned=aligned,
    )
    found = cheap_jit(run)(features, ROIS)
    assert found.shape == (len(ROIS), size, size, 3)
    options = {"size": size, "ratio": ratio, "aligned": aligned}
    expected = slow_align(features, ROIS, 0.25, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_align_on_maps_of_few_cells(cheap_jit):
    options = {"output_size": 2, "spatial_scale": 1 / 32}
    align = cheap_jit(partial(roi_align, **options))
    for height, width in ((1, 1), (1, 5), (2, 2)):
        features = make_features(1, height, width)
        expected = slow_align(features, ROIS, 1 / 32, size=2)
        np.testing.assert_allclose(align(features, ROIS), expected, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_of_align(aligned, cheap_jit):
    features = make_features(2, 8, 9, 1)
    rois = np.concatenate([ROIS[:11], ROIS[:1]])
    weights = make_features(3, len(rois) * 3, 3).reshape(len(rois), 3, 3, 3)[..., :1]
    options = {"output_size": 3, "spatial_scale": 1 / 8, "aligned": aligned}

    def loss(features, rois):
        return (roi_align(features, rois, **options) * weights).sum()

    by_features, by_rois = cheap_jit(jax.grad(loss, (0, 1)))(features, rois)
    expected = slow_gradient(
        lambda f, r: slow_align(f, r, 1 / 8, size=3, aligned=aligned),
        features,
        rois,
        weights,
    )
    np.testing.assert_allclose(by_features[..., 0], expected, atol=1e-4)
    assert not by_rois.any()


@pytest.mark.parametrize("function", [roi_align, roi_max_pool])
def test_both_ways_of_adding_gradients_are_the_same(function):
    """CPUs and accelerators run different code; both run here."""
    features = make_features(4)
    run = jax.grad(lambda f: (function(f, ROIS, spatial_scale=0.25) ** 2).sum())
    expected = jax.jit(run)(features)
    np.testing.assert_allclose(run_as_on("tpu", run, features), expected, atol=1e-4)


def test_regions_of_no_number_are_zero_and_leave_gradients_alone(cheap_jit):
    features = make_features(5)
    rois = np.array([[np.nan] * 4, [0, 0, np.inf, 10], ROIS[0]], np.float32)

    def loss(features):
        pooled = roi_align(features, rois, spatial_scale=0.25)
        return pooled[2].sum(), pooled

    grads, pooled = cheap_jit(jax.grad(loss, has_aux=True))(features)
    assert np.isfinite(pooled).all()
    assert np.isfinite(grads).all()
    assert not pooled[0].any()


def test_features_of_half_precision(cheap_jit):
    features = jnp.asarray(make_features(6), jnp.bfloat16)
    align = partial(roi_align, spatial_scale=0.25)
    found = cheap_jit(align)(features, ROIS)
    assert found.dtype == jnp.bfloat16
    exact = cheap_jit(align)(features.astype(jnp.float32), ROIS)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2, atol=1e-6)
    grads = jax.eval_shape(lambda f: jax.vjp(align, f, ROIS)[1](found), features)
    assert grads[0].dtype == jnp.bfloat16


def test_levels_are_those_of_the_pyramid_s_paper():
    sides = [0, 1, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    boxes = np.array([[3, 3, 3 + s, 3 + s] for s in sides], np.float32)
    found = jax.jit(partial(assign_levels, min_level=2, max_level=5))(boxes)
    assert found.dtype == jnp.int32
    assert found.tolist() == [2, 2, 2, 3, 3, 4, 4, 5, 5]
    small = {"canonical_size": 56, "canonical_level": 2}
    found = assign_levels(boxes[None], min_level=1, max_level=3, **small)
    assert found.tolist() == [[1, 1, 2, 3, 3, 3, 3, 3, 3]]
    nasty = np.array([[9, 9, 5, 5], [-50, -50, 400, 10], [0, 0, 112, 448]], np.float32)
    assert assign_levels(nasty, min_level=2, max_level=5).tolist() == [2, 3, 4]


def pyramid():
    levels = [make_features(i, 64 >> i, 96 >> i) for i in range(4)]
    rng = np.random.default_rng(7)
    corners, sides = rng.uniform(-50, 300, (30, 2)), 2 ** rng.uniform(2, 9, (30, 2))
    rois = np.concatenate([corners, corners + sides], axis=1)
    return levels, np.concatenate([rois, ROIS]).astype(np.float32)


def test_regions_of_a_pyramid_are_aligned_in_their_level(cheap_jit):
    levels, rois = pyramid()
    strides = (4, 8, 16, 32)
    run = partial(multiscale_roi_align, strides=strides)
    found = cheap_jit(run)(levels, rois)
    places = assign_levels(rois, min_level=2, max_level=5) - 2
    assert {*places.tolist()} == {0, 1, 2, 3}
    for i, stride in enumerate(strides):
        mine = np.asarray(places == i)
        expected = slow_align(levels[i], rois[mine], 1 / stride)
        np.testing.assert_allclose(found[mine], expected, atol=2e-5)
    # The gradients of levels lie in their own parts of the table.
    grads = cheap_jit(jax.grad(lambda levels: run(levels, rois).sum()))(levels)
    for i, stride in enumerate(strides):
        mine = partial(roi_align, spatial_scale=1 / stride)
        total = cheap_jit(
            jax.grad(lambda f, r=rois[places == i], m=mine: m(f, r).sum())
        )
        np.testing.assert_allclose(grads[i], total(levels[i]), atol=1e-4)


@pytest.mark.parametrize("size", [7, 2])
def test_pool_equals_the_definition(size, cheap_jit):
    features = make_features(8)
    rois = np.concatenate([ROIS, ROIS + 2, ROIS - np.array([[10, 6, 6, 10]])])
    rois = rois.astype(np.float32)
    run = partial(roi_max_pool, output_size=size, spatial_scale=0.25)
    found = cheap_jit(run)(features, rois)
    np.testing.assert_array_equal(found, slow_pool(features, rois, 0.25, size))


def test_pool_rounds_halves_away_from_zero(cheap_jit):
    """At stride 4, 2 and 10 are half cells: 1 and 3. Half to even would be 0 and 2."""
    features = np.arange(100, dtype=np.float32).reshape(10, 10, 1)
    rois = np.array([[2, 2, 10, 10], [-2, -2, 2, 2]], np.float32)
    pool = cheap_jit(partial(roi_max_pool, output_size=1, spatial_scale=0.25))
    assert pool(features, rois).ravel().tolist() == [33, 11]
    assert pool(-features, rois).ravel().tolist() == [-11, 0]


def test_gradient_of_pool(cheap_jit):
    """Each bin's goes to its largest cell, and to one alone of equal ones."""
    features = make_features(9, 12, 14, 2)
    weights = make_features(10, len(ROIS) * 3, 3, 2).reshape(len(ROIS), 3, 3, 2)

    def pool(features):
        return roi_max_pool(features, ROIS, output_size=3, spatial_scale=0.25)

    grads = cheap_jit(jax.grad(lambda f: (pool(f) * weights).sum()))(features)
    expected = np.zeros_like(features)
    pooled = np.asarray(cheap_jit(pool)(features))
    for r, i, j, c in np.ndindex(pooled.shape):
        places = np.argwhere(features[..., c] == pooled[r, i, j, c])
        if len(places):
            expected[(*places[0], c)] += weights[r, i, j, c]
    np.testing.assert_allclose(grads, expected, atol=1e-4)

    flat = cheap_jit(
        jax.grad(lambda f: roi_max_pool(f, ROIS[:1], spatial_scale=0.25).sum())
    )(jnp.ones((16, 24, 1)))
    assert flat.sum() == 49
    assert {*flat.ravel().tolist()} <= {*range(50)}


@pytest.mark.parametrize("function", [roi_align, roi_max_pool])
def test_work_on_a_batch(function, cheap_jit):
    features = np.stack([make_features(i) for i in range(2)])
    rois = np.stack([ROIS, ROIS[::-1] + 3])
    run = partial(function, output_size=3, spatial_scale=0.25)

    def value_and_grad(features, rois):
        return run(features, rois), jax.grad(lambda f: run(f, rois).sum())(features)

    many = cheap_jit(jax.vmap(value_and_grad))(features, rois)
    one = cheap_jit(value_and_grad)
    for i in range(2):
        for found, expected in zip(many, one(features[i], rois[i]), strict=True):
            np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize("function", [roi_align, roi_max_pool])
def test_no_regions(function, cheap_jit):
    run = partial(function, rois=jnp.zeros((0, 4)), spatial_scale=1)
    assert jax.eval_shape(run, make_features()).shape == (0, 7, 7, 3)
    grads = cheap_jit(jax.grad(lambda f: run(f).sum()))(make_features())
    assert not grads.any()


def test_memory_does_not_grow_with_the_samples():
    """Beside the result and the table, indices and weights alone are kept."""
    features = jax.ShapeDtypeStruct((50, 68, 64), jnp.float32)
    rois = jax.ShapeDtypeStruct((300, 4), jnp.float32)
    run = partial(roi_align, spatial_scale=1 / 16)
    result = 4 * 300 * 49 * 64
    value = jax.jit(run).lower(features, rois).compile()
    assert value.memory_analysis().temp_size_in_bytes < result / 4
    grad = jax.jit(jax.grad(lambda f, r: (run(f, r) ** 2).sum()))
    memory = grad.lower(features, rois).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * result


@pytest.mark.parametrize(
    ("features", "rois", "options", "message"),
    [
        ((2, 5, 5, 3), (2, 4), {}, r"maps \[H, W, C\], of one C, got \[\[2, 5, 5, 3\]"),
        ((5, 0, 3), (2, 4), {}, r"roi_align: a feature map has no cells"),
        ((5, 5, 3), (2, 5), {}, r"rois \[R, 4\], got \[2, 5\]"),
        ((5, 5, 3), (2, 4), {"output_size": 0}, "output_size=0 and"),
        ((5, 5, 3), (2, 4), {"sampling_ratio": -1}, "sampling_ratio=-1 must be 1 or"),
    ],
)
def test_bad_input(features, rois, options, message):
    with pytest.raises(ValueError, match=message):
        roi_align(jnp.zeros(features), jnp.zeros(rois), spatial_scale=1, **options)


@pytest.mark.parametrize("strides", [(), (4, 8, 16), (4, 8, 16, 64), (3, 6, 12, 24)])
def test_bad_strides(strides):
    levels, rois = pyramid()
    with pytest.raises(ValueError, match=r"must be powers of 2, .* of 4 levels"):
        multiscale_roi_align(levels, rois, strides=strides)
    levels[1] = levels[1][..., :2]
    with pytest.raises(ValueError, match="of one C"):
        multiscale_roi_align(levels, rois, strides=(4, 8, 16, 32))
