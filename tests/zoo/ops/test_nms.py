"""Non-maximum suppression against the greedy algorithm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.nms import BLOCK, nms

THRESHOLDS = [round(0.05 * i, 2) for i in range(1, 20)]


def iou(box, others, inclusive):
    one = np.float32(inclusive)
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    shared, mine, theirs = (
        np.prod(np.maximum(side + one, 0), axis=-1, dtype=np.float32)
        for side in (high - low, box[2:] - box[:2], others[:, 2:] - others[:, :2])
    )
    union = mine + theirs - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def greedy(boxes, scores, threshold, classes=None, valid=None, inclusive=False):
    """The algorithm as papers write it: one box at a time."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if (valid is not None and not valid[i]) or np.isnan(scores[i]):
            continue
        rivals = [j for j in kept if classes is None or classes[i] == classes[j]]
        found = iou(boxes[i], boxes[np.array(rivals, int)], inclusive)
        if not (found > np.float32(threshold)).any():
            kept.append(int(i))
    return kept


def scene(seed, count):
    """Boxes that overlap a lot, of few different scores, some of them the same."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-40, 40, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (count, 2))], axis=1)
    boxes = np.round(boxes, rng.integers(0, 3)).astype(np.float32)
    boxes[count // 2 :: 5] = boxes[0]  # identical
    boxes[count // 3 :: 7, 2:] = boxes[count // 3 :: 7, :2]  # without area
    scores = rng.uniform(size=count).round(2).astype(np.float32)
    return boxes, scores, rng.integers(0, 3, count), rng.uniform(size=count) > 0.2


@partial(jax.jit, static_argnames=("max_outputs", "inclusive"))
def jitted(boxes, scores, classes=None, valid=None, **options):
    return nms(boxes, scores, classes=classes, valid=valid, **options)


def chosen(kept):
    return np.asarray(kept.indices)[np.asarray(kept.valid)].tolist()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_equals_the_greedy_algorithm_at_every_threshold(threshold):
    for seed, count in enumerate((1, 2, 60, 90)):
        boxes, scores, *_ = scene(seed, count)
        found = jitted(boxes, scores, iou_threshold=threshold, max_outputs=count)
        assert chosen(found) == greedy(boxes, scores, threshold)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 88])
def test_equals_the_greedy_algorithm_across_blocks(count, inclusive):
    boxes, scores, classes, valid = scene(count, count)
    for threshold in (0.3, 0.7):
        found = jitted(
            boxes,
            scores,
            classes,
            valid,
            iou_threshold=threshold,
            max_outputs=count,
            inclusive=inclusive,
        )
        expected = greedy(boxes, scores, threshold, classes, valid, inclusive)
        assert chosen(found) == expected


def test_gives_the_best_few_and_marks_the_rest():
    boxes, scores, *_ = scene(3, 700)
    expected = greedy(boxes, scores, 0.5)
    for places in (5, len(expected), 699):
        found = jitted(boxes, scores, iou_threshold=0.5, max_outputs=places)
        assert found.indices.shape == found.valid.shape == (places,)
        assert chosen(found) == expected[:places]
        assert not np.asarray(found.indices)[~np.asarray(found.valid)].any()


def test_a_chain_of_overlaps_is_decided_from_its_start():
    """Each box overlaps the next alone: every second one stays."""
    boxes = np.array([[10 * i, 0, 10 * i + 15, 10] for i in range(600)], np.float32)
    scores = np.linspace(1, 0, 600, dtype=np.float32)
    found = jitted(boxes, scores, iou_threshold=0.1, max_outputs=600)
    assert chosen(found) == [*range(0, 600, 2)]


def test_nothing_valid_and_no_boxes():
    boxes, scores, *_ = scene(0, 20)
    nothing = np.zeros(20, bool)
    few = partial(jitted, iou_threshold=0.5, max_outputs=4)
    assert not few(boxes, scores, valid=nothing).valid.any()
    scores[:] = np.nan
    assert not few(boxes, scores).valid.any()
    found = few(
        np.eye(2, 4, dtype=np.float32),
        np.array([0.5, -np.inf], np.float32),
        valid=np.array([False, True]),
    )
    assert chosen(found) == [1]
    found = few(jnp.zeros((0, 4)), jnp.zeros(0))
    assert found.valid.tolist() == [False] * 4


def test_works_on_a_batch():
    scenes = [scene(seed, 300) for seed in range(3)]
    boxes, scores, classes, valid = (
        np.stack(part) for part in zip(*scenes, strict=True)
    )
    found = jax.jit(
        jax.vmap(
            lambda b, s, c, v: nms(
                b, s, iou_threshold=0.4, max_outputs=300, classes=c, valid=v
            )
        )
    )(boxes, scores, classes, valid)
    for i, (b, s, c, v) in enumerate(scenes):
        kept = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert chosen(kept) == greedy(b, s, 0.4, c, v)


def test_memory_does_not_grow_with_the_square():
    def temporary(count):
        shapes = jax.ShapeDtypeStruct((count, 4), jnp.float32)
        scores = jax.ShapeDtypeStruct((count,), jnp.float32)
        run = partial(nms, iou_threshold=0.7, max_outputs=300)
        memory = jax.jit(run).lower(shapes, scores).compile().memory_analysis()
        return memory.temp_size_in_bytes

    few, many = temporary(3_000), temporary(12_000)
    assert many < 5 * few
    assert many < 12_000**2 / 4


@pytest.mark.parametrize(
    ("boxes", "scores", "options", "message"),
    [
        ((5, 3), (5,), {}, r"boxes \[N, 4\] and scores \[N\], got \[5, 3\] and \[5\]"),
        ((5, 4), (4,), {}, r"got \[5, 4\] and \[4\]"),
        ((5, 4), (5,), {"iou_threshold": 1.5}, "iou_threshold=1.5 must be 0 to 1"),
        ((5, 4), (5,), {"max_outputs": 0}, "max_outputs=0 1 or more"),
    ],
)
def test_bad_input(boxes, scores, options, message):
    options = {"iou_threshold": 0.5, "max_outputs": 3} | options
    with pytest.raises(ValueError, match=message):
        nms(jnp.zeros(boxes), jnp.zeros(scores), **options)
