"""Sampling: exact numbers, even chances, and the hardest negatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.sampling import mine_hard_negatives, sample_balanced, take

KEY = jax.random.key(0)


def make_labels(positives, negatives, ignored):
    labels = np.repeat([1, 0, -1], [positives, negatives, ignored]).astype(np.int32)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (100, 200, (8, 24)),  # enough of all
        (3, 200, (3, 29)),  # negatives take the places of positives
        (100, 5, (8, 5)),  # but not the other way round
        (0, 200, (0, 32)),
        (100, 0, (8, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_counts_are_torchvision_s(positives, negatives, expected):
    labels = make_labels(positives, negatives, 40)
    run = jax.jit(partial(sample_balanced, count=32, positive_fraction=0.25))
    drawn = run(KEY, labels)
    assert tuple(int(mask.sum()) for mask in drawn) == expected
    assert not (drawn[0] & (labels != 1)).any()
    assert not (drawn[1] & (labels != 0)).any()


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(7, 0.5, (3, 4)), (5, 0, (0, 5)), (5, 1, (5, 0)), (900, 0.5, (20, 30))],
)
def test_numbers_at_the_edges(count, fraction, expected):
    labels = make_labels(20, 30, 10)
    drawn = sample_balanced(KEY, labels, count=count, positive_fraction=fraction)
    assert tuple(int(mask.sum()) for mask in drawn) == expected


def test_every_place_is_as_likely():
    labels = make_labels(20, 40, 10)
    draw = partial(sample_balanced, count=16, positive_fraction=0.25)
    keys = jax.random.split(KEY, 4_000)
    positive, negative = jax.jit(jax.vmap(draw, (0, None)))(keys, labels)
    assert (positive.sum(1) == 4).all()
    shares = np.asarray(positive.mean(0))[labels == 1]
    np.testing.assert_allclose(shares, 4 / 20, atol=0.035)  # 5 standard deviations
    shares = np.asarray(negative.mean(0))[labels == 0]
    np.testing.assert_allclose(shares, 12 / 40, atol=0.04)


def test_take_lists_places():
    mask = np.zeros(20, bool)
    mask[[3, 7, 8, 19]] = True
    indices, valid = jax.jit(take, static_argnums=1)(mask, 6)
    assert indices.dtype == jnp.int32
    assert indices.tolist() == [3, 7, 8, 19, 0, 0]
    assert valid.tolist() == [True] * 4 + [False] * 2
    indices, valid = take(jnp.asarray(mask), 2)
    assert (indices.tolist(), valid.tolist()) == ([3, 7], [True, True])
    indices, valid = take(jnp.zeros(5, bool), 3)
    assert not indices.any()
    assert not valid.any()


def slow_mining(losses, positive, candidates, ratio):
    order = sorted(range(len(losses)), key=lambda i: -losses[i])
    free = [i for i in order if candidates[i] and not positive[i]]
    chosen = np.zeros(len(losses), bool)
    chosen[free[: int(ratio * positive.sum())]] = True
    return chosen.tolist()


def test_the_hardest_negatives_are_chosen():
    run = jax.jit(mine_hard_negatives, static_argnames="ratio")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        losses = rng.uniform(size=80).round(1).astype(np.float32)  # with ties
        positive = rng.uniform(size=80) < (0, 0.05, 0.5)[seed % 3]
        candidates = rng.uniform(size=80) < 0.8
        found = run(losses, positive, candidates, ratio=3)
        assert found.tolist() == slow_mining(losses, positive, candidates, 3)
    nothing = np.zeros(80, bool)
    assert not run(losses, positive, nothing, ratio=3).any()
    assert not run(losses, nothing, candidates, ratio=3).any()


def test_mining_of_a_batch_has_no_derivative():
    rng = np.random.default_rng(0)
    losses = jnp.asarray(rng.uniform(size=(3, 50)), jnp.float32)
    positive = rng.uniform(size=(3, 50)) < 0.1
    mine = jax.vmap(partial(mine_hard_negatives, ratio=2))
    found = mine(losses, positive, ~positive)
    for row, one, p in zip(found, losses, positive, strict=True):
        assert row.tolist() == slow_mining(np.asarray(one), p, ~p, 2)

    def loss(losses):
        return jnp.where(mine(losses, positive, ~positive), losses, 0).sum()

    assert (jax.grad(loss)(losses) == found).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample_balanced(
                KEY, jnp.zeros((2, 3)), count=4, positive_fraction=0.5
            ),
            r"takes labels \[A\], got \[2, 3\]",
        ),
        (
            lambda: sample_balanced(KEY, jnp.zeros(3), count=0, positive_fraction=2),
            "count=0 must be 1 or more, and positive_fraction=2 0 to 1",
        ),
        (
            lambda: mine_hard_negatives(
                jnp.zeros(3), jnp.zeros(3, bool), jnp.zeros(4, bool), ratio=3
            ),
            r"three arrays \[A\], got \[\[3\], \[3\], \[4\]\]",
        ),
        (
            lambda: mine_hard_negatives(*[jnp.zeros(3, bool)] * 3, ratio=-1),
            "ratio=-1 must not be negative",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
