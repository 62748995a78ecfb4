"""Box arithmetic against slow references, on boxes of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import boxes as ops

RNG = np.random.default_rng(0)
CORNERS = RNG.integers(-20, 60, (40, 4)).astype(np.float32)
PROPER = np.concatenate(
    [
        np.minimum(CORNERS[:, :2], CORNERS[:, 2:]),
        np.maximum(CORNERS[:, :2], CORNERS[:, 2:]),
    ],
    axis=1,
)
NASTY = np.array(
    [[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 5, 5], [-10, -10, -5, -5], [0, 0, 1e4, 1e4]],
    np.float32,
)
ALL = np.concatenate([PROPER, NASTY, PROPER[:3]])


def pixels(box, inclusive):
    """The unit squares that a box of whole numbers covers."""
    x1, y1, x2, y2 = (int(n) for n in box)
    one = 1 if inclusive else 0
    return {(x, y) for x in range(x1, x2 + one) for y in range(y1, y2 + one)}


@pytest.mark.parametrize("inclusive", [False, True])
def test_areas_and_ious_count_pixels(inclusive):
    few = np.concatenate([PROPER[:15], NASTY[:4]])
    areas = ops.area(few, inclusive=inclusive)
    ious = ops.iou(few[:, None], few[None], inclusive=inclusive)
    for i, a in enumerate(few):
        mine = pixels(a, inclusive)
        assert areas[i] == len(mine), a
        for j, b in enumerate(few):
            theirs = pixels(b, inclusive)
            union = len(mine | theirs)
            expected = len(mine & theirs) / union if union else 0
            assert ious[i, j] == pytest.approx(expected, abs=1e-6), (a, b)


def test_clip_moves_corners_onto_the_border():
    clipped = np.asarray(ops.clip(ALL, 30, 40))
    assert clipped.shape == ALL.shape
    np.testing.assert_array_equal(clipped[:, ::2], np.clip(ALL[:, ::2], 0, 40))
    np.testing.assert_array_equal(clipped[:, 1::2], np.clip(ALL[:, 1::2], 0, 30))
    stacked = ops.clip(jnp.stack([ALL, ALL]), jnp.float32(30), jnp.float32(40))
    np.testing.assert_array_equal(stacked[1], clipped)


def test_conversions_go_there_and_back():
    assert ops.to_cxcywh(jnp.array([2.0, 4, 8, 6])).tolist() == [5, 5, 6, 2]
    np.testing.assert_allclose(ops.from_cxcywh(ops.to_cxcywh(ALL)), ALL, atol=1e-3)


def test_gradients_are_finite_for_empty_boxes():
    grads = jax.grad(lambda b: ops.iou(b[:, None], ALL[None]).sum())(jnp.asarray(ALL))
    assert np.isfinite(grads).all()
