"""Whole sets on the device and streams: the same steps, to the bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_runs import flat

from train.config import DataConfig, OptimConfig
from train.data import array_source, load_resident
from train.loaders import ResidentLoader, StreamLoader, make_loader
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import (
    make_mesh,
    make_prepare,
    make_run_steps,
    make_train_step,
    put_replicated,
)
from train.tasks import Classification, softmax_cross_entropy
from zoo.layers import Classifier, make_head
from zoo.ops import augment
from zoo.spec import Preprocess

PREPROCESS = Preprocess(size=8, channels=1, mean=(0.5,), std=(0.5,))


class Flat(nn.Module):
    """Two dense layers on all pixels, whose result depends on every bit of them."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(16, name="dense")(images.reshape(len(images), -1))
        return {"dense": jnp.tanh(x)}


def make_source(count=23):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return array_source(images, np.arange(count) % 3)


def make_step():
    """Returns a step that says beside its metrics which images it saw."""
    model = Classifier(Flat(), make_head(3))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    config = OptimConfig(learning_rate=0.1, schedule="cosine")
    schedule = make_schedule(config, 100)
    tx = make_optimizer(config, schedule, variables["params"])
    train_step = make_train_step(
        model,
        Classification(softmax_cross_entropy),
        tx,
        schedule=schedule,
        prepare=make_prepare(PREPROCESS, augment.compose(("pad_crop:1",))),
        seed=1,
    )

    def step(state, batch):
        state, scalars = train_step(state, batch)
        return state, {**scalars, "first": batch["index"][0]}

    return create_state(variables, tx), step


def make(kind, mesh, batch_size=4, count=23):
    config = DataConfig("arrays", batch_size=batch_size)
    source = make_source(count)
    if kind == "stream":
        return StreamLoader(config, source, PREPROCESS, mesh, 5)
    data = load_resident(source, PREPROCESS)
    return ResidentLoader(data, mesh, batch_size, 5)


def make_run(kind, step, mesh, loader):
    return make_run_steps(step, mesh, loader.data, most=5, loop=kind == "loop")


def walk(kind, counts, **shape):
    """Runs steps in calls of so many each; returns the state and the metrics."""
    mesh = make_mesh(jax.devices()[:1])
    loader = make(kind, mesh, **shape)
    state, step = make_step()
    state = put_replicated(state, mesh)
    run = make_run(kind, step, mesh, loader)
    start, found = 0, []
    for count in counts:
        state, scalars = run(state, itertools.islice(loader, count))
        assert {v.shape for v in scalars.values()} == {(count,)}
        found.append(scalars)
        start += count
    assert int(state.step) == start
    return flat(state.params), {
        k: np.concatenate([s[k] for s in found]) for k in found[0]
    }


@pytest.mark.parametrize(
    ("batch_size", "count"),
    [
        (4, 23),
        pytest.param(5, 5, marks=pytest.mark.apart),
        pytest.param(7, 23, marks=pytest.mark.apart),
    ],
)
def test_all_loaders_take_the_same_steps(batch_size, count):
    whole = count // batch_size
    counts = [whole, whole]
    params, scalars = walk("single", counts, batch_size=batch_size, count=count)
    for kind in ("stream", "loop"):
        other, values = walk(kind, counts, batch_size=batch_size, count=count)
        assert (values["first"] == scalars["first"]).all()
        # XLA compiles the body of a loop as it likes: the last bits may differ.
        exact = kind == "stream"
        for name, expected in {**params, **scalars}.items():
            found = {**other, **values}[name]
            if exact:
                np.testing.assert_array_equal(found, expected, err_msg=name)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["single", "loop", "stream"])
def test_steps_in_one_call_are_those_of_many(kind):
    params, scalars = walk(kind, [3, 2, 5])
    again, values = walk(kind, [1, 1, 1, 2, 1, 4])
    for name in scalars:
        np.testing.assert_array_equal(values[name], scalars[name], err_msg=name)
    for path in params:
        np.testing.assert_array_equal(again[path], params[path], err_msg=path)


def test_an_epoch_has_whole_batches_of_different_images():
    loader = make("single", make_mesh(jax.devices()[:1]))
    epochs = [
        np.concatenate([loader.indices(5 * e + i) for i in range(5)]) for e in (0, 1)
    ]
    assert all(len(set(order.tolist())) == 20 for order in epochs)
    assert all(min(order) >= 0 and max(order) < 23 for order in epochs)
    assert (epochs[0] != epochs[1]).any()
    stream = make("stream", make_mesh(jax.devices()[:1]))
    assert (stream.indices(7) == loader.indices(7)).all()
    assert (next(loader)["index"] == loader.indices(0)).all()
    assert (next(loader)["index"] == loader.indices(1)).all()


@pytest.mark.parametrize("kind", ["single", "loop", "stream"])
def test_donated_states_are_gone(kind):
    mesh = make_mesh(jax.devices()[:1])
    loader = make(kind, mesh)
    original, step = make_step()
    kept = {k: v.copy() for k, v in flat(original.params).items()}
    state = put_replicated(original, mesh)
    run = make_run(kind, step, mesh, loader)
    after, _ = run(state, itertools.islice(loader, 2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        run(state, itertools.islice(loader, 1))
    # What the run began from is still there, and is what it was.
    for path, leaf in flat(original.params).items():
        np.testing.assert_array_equal(leaf, kept[path], err_msg=path)
        assert (flat(after.params)[path] != leaf).any()


def test_the_stream_says_where_it_is():
    mesh = make_mesh(jax.devices()[:1])
    params, _ = walk("stream", [7])
    loader = make("stream", mesh)
    state, step = make_step()
    run = make_run("stream", step, mesh, loader)
    state, _ = run(state, itertools.islice(loader, 4))
    position = loader.stream.get_state()
    other = make("stream", mesh)
    other.stream.set_state(position)
    state, _ = run(state, itertools.islice(other, 3))
    for path, leaf in flat(state.params).items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)


@pytest.mark.parametrize(
    ("placement", "megabytes", "kind"),
    [
        ("auto", 1, ResidentLoader),
        ("auto", 0, StreamLoader),
        ("device", 0, ResidentLoader),
        ("stream", 1, StreamLoader),
    ],
)
def test_the_config_says_where_the_set_lives(placement, megabytes, kind):
    config = DataConfig(
        "arrays", batch_size=4, placement=placement, device_megabytes=megabytes
    )
    mesh = make_mesh(jax.devices()[:1])
    assert type(make_loader(config, make_source(), PREPROCESS, mesh, 0)) is kind
