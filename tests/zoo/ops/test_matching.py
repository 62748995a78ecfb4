"""Matching against the papers' rules, one pair at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import boxes as ops
from zoo.ops.matching import match_bipartite, match_by_iou

RPN = {"positive": 0.7, "negative": 0.3, "low_quality": True}
HEAD = {"positive": 0.5, "negative": 0.5, "low_quality": False}
FAST = {"positive": 0.5, "negative": (0.1, 0.5), "low_quality": False}


def scene(seed, anchors=70, boxes=9):
    """Anchors on a grid, boxes near some of them; ties, padding and nasty boxes."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(-4, 12, (anchors, 2)) * 4
    grid = np.concatenate([corners, corners + rng.integers(1, 6, (anchors, 2)) * 4], 1)
    objects = grid[rng.integers(0, anchors, boxes)] + rng.integers(-3, 4, (boxes, 4))
    objects[1] = objects[0]  # identical: its anchors tie
    objects[2] = grid[5]
    objects[3, 2:] = objects[3, :2]  # without area
    objects[4] = [900, 900, 950, 950]  # far from every anchor
    grid[10] = grid[11] = grid[5]
    grid[20, 2:] = grid[20, :2]
    valid = rng.uniform(size=boxes) > 0.2
    return grid.astype(np.float32), objects.astype(np.float32), valid


@partial(jax.jit, static_argnames="inclusive")
def pairwise_iou(anchors, boxes, inclusive):
    return ops.iou(anchors[:, None], boxes[None], inclusive=inclusive)


def overlaps(anchors, boxes, valid, inclusive=False):
    """float32 [A, N], 0 with padding."""
    return np.asarray(pairwise_iou(anchors, boxes, inclusive)) * valid


def slow_match(table, positive, negative, low_quality, usable=None):
    """The rules of Faster R-CNN and of torchvision's `Matcher`."""
    if usable is None:
        usable = np.ones(len(table), bool)
    low, high = negative if isinstance(negative, tuple) else (0, negative)
    result = []
    best_of_box = [
        max((row[n] for row, u in zip(table, usable, strict=True) if u), default=0)
        for n in range(table.shape[1])
    ]
    for row, is_usable in zip(table, usable, strict=True):
        most = max(row, default=0)
        match = -1 if low <= most < high else -2
        best = any(v > 0 and v == best_of_box[n] for n, v in enumerate(row))
        if most > 0 and (most >= np.float32(positive) or (low_quality and best)):
            match = int(np.argmax(row))
        result.append(match if is_usable else -2)
    return result


def slow_bipartite(table, positive):
    """Caffe's `MatchBBox`: the largest pair of all, again and again."""
    table, result = table.copy(), np.full(len(table), -1)
    rest = table.copy()
    while rest.size and rest.max() > 0:
        anchor, box = np.unravel_index(np.argmax(rest), rest.shape)
        result[anchor] = box
        rest[anchor], rest[:, box] = 0, 0
    for anchor, row in enumerate(table):
        if result[anchor] < 0 and row.size and row.max() >= positive:
            result[anchor] = np.argmax(row)
    return result.tolist()


@pytest.mark.parametrize("options", [RPN, HEAD, FAST], ids=["rpn", "head", "fast"])
@pytest.mark.parametrize("inclusive", [False, True])
def test_equals_the_rules(options, inclusive):
    run = jax.jit(partial(match_by_iou, inclusive=inclusive, **options))
    kinds = set()
    for seed in range(6):
        anchors, boxes, valid = scene(seed)
        table = overlaps(anchors, boxes, valid, inclusive)
        found = run(anchors, boxes, valid)
        assert found.dtype == jnp.int32
        assert found.tolist() == slow_match(table, **options)
        kinds |= {*np.minimum(found, 0).tolist()}
    assert kinds == ({0, -1} if options is HEAD else {0, -1, -2})


def test_anchors_that_are_not_usable_are_ignored_and_best_of_no_box():
    run = jax.jit(partial(match_by_iou, **RPN))
    for seed in range(3):
        anchors, boxes, valid = scene(seed)
        table = overlaps(anchors, boxes, valid)
        usable = np.ones(len(anchors), bool)
        usable[::3] = False
        usable[table.argmax(0)] = False
        found = run(anchors, boxes, valid, usable=usable)
        assert found.tolist() == slow_match(table, **RPN, usable=usable)
        assert (found[~usable] == -2).all()
    nothing = np.zeros(len(anchors), bool)
    found = run(anchors, boxes, valid, usable=nothing)
    assert (found == -2).all()


def test_every_object_that_an_anchor_meets_has_an_anchor():
    anchors = np.array([[0, 0, 100, 100], [200, 0, 300, 100]], np.float32)
    boxes = np.array([[10, 10, 20, 20], [220, 0, 240, 20], [500, 500, 520, 520]], "f4")
    valid = np.ones(3, bool)
    run = jax.jit(partial(match_by_iou, **RPN))
    assert run(anchors, boxes, valid).tolist() == [0, 1]
    strict = jax.jit(partial(match_by_iou, **{**RPN, "low_quality": False}))
    assert strict(anchors, boxes, valid).tolist() == [-1, -1]
    # What lies far from all makes no anchor positive.
    assert run(anchors, boxes[2:], valid[2:]).tolist() == [-1, -1]


@pytest.mark.parametrize("positive", [0.5, 0.3])
def test_bipartite_equals_the_rules(positive):
    run = jax.jit(partial(match_bipartite, positive=positive))
    for seed in range(8):
        anchors, boxes, valid = scene(seed, 40)
        found = run(anchors, boxes, valid)
        assert found.dtype == jnp.int32
        expected = slow_bipartite(overlaps(anchors, boxes, valid), positive)
        assert found.tolist() == expected
    # More boxes than anchors, all of them the same: nothing is matched twice.
    anchors, boxes, valid = scene(9, 40, 60)
    few = anchors[:25]
    expected = slow_bipartite(overlaps(few, boxes, valid), positive)
    assert run(few, boxes, valid).tolist() == expected
    same = np.tile(few[5], (30, 1))
    found = jax.jit(match_bipartite)(few, same, np.ones(30, bool))
    assert sorted(n for n in found.tolist() if n >= 0)[:3] == [0, 1, 2]
    expected = slow_bipartite(overlaps(few, same, np.ones(30, bool)), 0.5)
    assert found.tolist() == expected


def test_bipartite_keeps_an_anchor_for_the_weaker_object():
    """Both objects like anchor 0 best; threshold matching alone would lose one."""
    anchors = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 40, 40]], np.float32)
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 6]], np.float32)
    found = jax.jit(match_bipartite)(anchors, boxes, np.ones(2, bool))
    assert found.tolist() == [0, -1, 1]


def test_no_objects_and_no_anchors():
    anchors, boxes, _ = scene(0)
    for function in (partial(match_by_iou, **RPN), match_bipartite):
        function = jax.jit(function)
        nothing = np.zeros(len(boxes), bool)
        assert (function(anchors, boxes, nothing) == -1).all()
        none = jnp.zeros((0, 4)), jnp.zeros(0, bool)
        assert (function(anchors, *none) == -1).all()
        assert function(jnp.zeros((0, 4)), boxes, ~nothing).shape == (0,)
    # At thresholds of 0, no object is still no match.
    loose = {"positive": 0, "negative": 0, "low_quality": False}
    match = jax.jit(partial(match_by_iou, **loose))
    assert (match(anchors, boxes, nothing) < 0).all()


def test_work_on_a_batch():
    scenes = [scene(seed) for seed in range(4)]
    scenes[2][2][:] = False
    batch = [np.stack(part) for part in zip(*scenes, strict=True)]
    for function in (partial(match_by_iou, **RPN), match_bipartite):
        found, run = jax.jit(jax.vmap(function))(*batch), jax.jit(function)
        for row, one in zip(found, scenes, strict=True):
            assert row.tolist() == run(*one).tolist()


def test_what_matches_has_no_derivative():
    anchors, boxes, valid = scene(0)

    def loss(anchors, function):
        matches = function(anchors, boxes, valid)
        return jnp.where(matches[:, None] >= 0, anchors, 0).sum()

    for function in (partial(match_by_iou, **RPN), match_bipartite):
        grad = jax.jit(jax.grad(partial(loss, function=function)))(jnp.array(anchors))
        assert ((grad == 0) | (grad == 1)).all()
        assert grad.any()


def test_memory_grows_with_the_anchors_alone():
    def temporary(boxes):
        shapes = (
            jax.ShapeDtypeStruct((20_000, 4), jnp.float32),
            jax.ShapeDtypeStruct((boxes, 4), jnp.float32),
            jax.ShapeDtypeStruct((boxes,), bool),
        )
        run = jax.jit(partial(match_by_iou, **RPN)).lower(*shapes).compile()
        return run.memory_analysis().temp_size_in_bytes

    assert temporary(400) < 1.5 * temporary(20) < 4e6


@pytest.mark.parametrize(
    ("anchors", "boxes", "valid", "options", "message"),
    [
        ((5, 3), (2, 4), (2,), {}, r"valid \[N\], got \[5, 3\], \[2, 4\] and \[2\]"),
        ((5, 4), (2, 4), (3,), {}, r"got \[5, 4\], \[2, 4\] and \[3\]"),
        ((5, 4), (2, 4), (2,), {"negative": 0.8}, "negative=0.8, positive=0.7"),
        ((5, 4), (2, 4), (2,), {"negative": (0.4, 0.1)}, r"negative=\(0.4, 0.1\)"),
        ((5, 4), (2, 4), (2,), {"usable": jnp.ones(4)}, r"must be \[5\] .* got \[4\]"),
    ],
)
def test_bad_input(anchors, boxes, valid, options, message):
    arrays = jnp.zeros(anchors), jnp.zeros(boxes), jnp.zeros(valid, bool)
    with pytest.raises(ValueError, match=message):
        match_by_iou(*arrays, **{**RPN, **options})
