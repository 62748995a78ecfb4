"""Box coders against the papers' formulas, one box at a time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.box_coding import MAX_LOG_SCALE, decode, encode

SSD = (10, 10, 5, 5)
PLAIN = (1, 1, 1, 1)


def scene(seed, count=50):
    """Boxes with area, some of them left of and above the image."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-100, 400, (count, 2))
    sides = np.exp(rng.uniform(0, 6, (count, 2)))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def encode_one(box, anchor, weights, inclusive):
    """Girshick's equations 6 to 9 in float64."""
    one = float(inclusive)
    gx1, gy1, gx2, gy2 = (float(n) for n in box)
    px1, py1, px2, py2 = (float(n) for n in anchor)
    gw, gh, pw, ph = gx2 - gx1 + one, gy2 - gy1 + one, px2 - px1 + one, py2 - py1 + one
    gx, gy, px, py = gx1 + gw / 2, gy1 + gh / 2, px1 + pw / 2, py1 + ph / 2
    t = (gx - px) / pw, (gy - py) / ph, math.log(gw / pw), math.log(gh / ph)
    return [weight * value for weight, value in zip(weights, t, strict=True)]


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("weights", [PLAIN, SSD])
def test_equals_the_paper_and_goes_back(weights, inclusive):
    boxes, anchors = scene(0), scene(1)
    options = {"weights": weights, "inclusive": inclusive}
    deltas = jax.jit(partial(encode, **options))(boxes, anchors)
    assert deltas.dtype == jnp.float32
    expected = [
        encode_one(b, a, weights, inclusive)
        for b, a in zip(boxes, anchors, strict=True)
    ]
    np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-5)
    back = jax.jit(partial(decode, max_log_scale=None, **options))(deltas, anchors)
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=2e-3)


def test_equals_torchvision():
    """`BoxCoder(weights=(10, 10, 5, 5))` of torchvision 0.29, on the same numbers."""
    anchors = np.array([[0, 0, 10, 20], [-5.5, 3, 40, 12], [100, 50, 400, 300]], "f4")
    boxes = np.array([[1, 2, 12, 18], [0, 0, 40, 30], [90, 60, 380, 250]], "f4")
    expected = [
        [1.5, 0, 0.47655103, -1.1157176],
        [0.6043956, 8.333333, -0.6441643, 6.019864],
        [-0.5, -0.8, -0.16950789, -1.3721843],
    ]
    found = encode(boxes, anchors, weights=SSD)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    deltas = np.array([[1, -2, 3, 0.5], [0.1, 0, -40, 30], [5, 5, 20.7, 1]], "f4")
    expected = [
        [-3.1105947, -5.05171, 15.110595, 17.05171],
        [17.697369, -273.75003, 17.712631, 288.75003],
        [-8975.001, 147.32466, 9775.001, 452.67535],
    ]
    found = decode(deltas, anchors, weights=SSD)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_scales_are_limited():
    anchor = jnp.array([0.0, 0, 16, 16])
    box = decode(jnp.array([0.0, 0, 100, -100]), anchor)
    np.testing.assert_allclose(box, [8 - 500, 8, 8 + 500, 8], rtol=1e-5)
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(62.5)
    wide = decode(jnp.array([0.0, 0, 5, 5]), anchor, max_log_scale=None)
    assert wide[2] - wide[0] == pytest.approx(16 * math.exp(5), rel=1e-5)
    # The limit is on the scale itself, whatever the weights.
    weighted = decode(jnp.array([0.0, 0, 100, 0]), anchor, weights=SSD)
    assert weighted[2] == pytest.approx(508)


def test_deltas_of_classes_and_batches():
    anchors, deltas = scene(2, 6), np.random.default_rng(3).normal(size=(2, 6, 3, 4))
    many = decode(deltas, anchors[None, :, None])
    assert many.shape == (2, 6, 3, 4)
    mapped = jax.vmap(jax.vmap(decode, (0, None)), (0, None), 0)
    per_class = jnp.moveaxis(jnp.asarray(deltas), 2, 1)
    np.testing.assert_allclose(
        jnp.moveaxis(mapped(per_class, anchors), 1, 2), many, rtol=1e-6, atol=1e-4
    )
    halves = jnp.asarray(deltas[0, :, 0], jnp.bfloat16)
    assert decode(halves, anchors).dtype == jnp.float32


def test_degenerate_boxes_give_finite_values_and_gradients():
    nasty = np.array(
        [
            [0, 0, 0, 0],
            [5, 5, 5, 9],
            [9, 9, 5, 5],
            [-10, -10, -5, -5],
            [0, 0, 1e4, 1e4],
            [3, 3, 4, 4],
        ],
        np.float32,
    )
    one, other = (g.reshape(-1, 4) for g in np.broadcast_arrays(nasty[:, None], nasty))
    for inclusive in (False, True):
        for function in (
            partial(encode, weights=SSD, inclusive=inclusive),
            partial(decode, weights=SSD, inclusive=inclusive),
        ):
            # The other way round, any box is a delta too.
            values = function(jnp.asarray(one), jnp.asarray(other))
            assert np.isfinite(values).all()
            grads = jax.grad(lambda a, b, f=function: f(a, b).sum(), (0, 1))(
                jnp.asarray(one), jnp.asarray(other)
            )
            assert all(np.isfinite(g).all() for g in grads)
    assert not encode(nasty[:1], nasty[:1]).any()


def test_gradients_are_those_of_differences():
    anchor = scene(4, 1)[0]
    deltas = jnp.array([0.3, -0.2, 0.1, 0.4])
    exact = jax.jacobian(decode)(deltas, anchor)
    for i in range(4):
        step = jnp.zeros(4).at[i].set(1e-2)
        slope = (decode(deltas + step, anchor) - decode(deltas - step, anchor)) / 2e-2
        np.testing.assert_allclose(exact[:, i], slope, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("function", "first", "anchors", "weights", "message"),
    [
        (encode, (5, 3), (5, 4), PLAIN, r"encode takes .* got boxes \[5, 3\]"),
        (decode, (5, 4), (4, 5), PLAIN, r"decode takes .* got anchors \[4, 5\]"),
        (decode, (), (4,), PLAIN, r"got deltas \[\]"),
        (
            decode,
            (4,),
            (4,),
            (0.1, 0.1, 0.2),
            r"weights=\(0.1, 0.1, 0.2\) must be four",
        ),
        (encode, (4,), (4,), (1, 1, 0, 1), r"must be four numbers above 0"),
    ],
)
def test_bad_input(function, first, anchors, weights, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros(first), jnp.zeros(anchors), weights=weights)
