"""Checkpoints: which are kept, what is in them, and what damage does."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_runs import flat, read_arrays

import zoo
from train.checkpoint import CheckpointError, Checkpoints
from train.config import OptimConfig
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import make_mesh
from zoo.spec import Card, Preprocess

CARD = Card("lenet5_modern", 3, {}, Preprocess(28, 1, (0.0,), (256 / 255,)))


@pytest.fixture(scope="module")
def everywhere():
    return NamedSharding(make_mesh(jax.devices()[:1]), P())


def make_state(step=0, *, width=3, ema=True, frozen=()):
    """A small state whose every number says the step."""
    params = {
        "backbone": {"conv": {"kernel": jnp.full((2, width), 1.0 + step)}},
        "head": {"fc": {"bias": jnp.full(3, 2.0 + step)}},
    }
    config = OptimConfig()
    tx = make_optimizer(config, make_schedule(config, 10), params)
    state = create_state({"params": params}, tx, frozen=frozen, ema=ema)
    return state.replace(step=jnp.asarray(step, jnp.int32))


def save(run_dir, accuracies, **state):
    with Checkpoints(run_dir) as checkpoints:
        for step, accuracy in accuracies.items():
            metrics = None if accuracy is None else {"accuracy": accuracy}
            checkpoints.save(make_state(step, **state), step, CARD, metrics)
        checkpoints.wait()
        return checkpoints.steps()


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.7}, [2, 4, 5]),
        ({1: 0.1, 2: 0.2, 3: 0.3}, [2, 3]),
        ({1: 0.5, 2: None, 3: None, 4: None}, [1, 3, 4]),
        ({1: None, 2: None, 3: None}, [2, 3]),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path, accuracies, kept):
    assert save(tmp_path, accuracies) == kept
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.latest() == kept[-1]


def test_as_many_as_wanted_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, accuracy in enumerate((0.1, 0.9, 0.2, 0.3, 0.4, 0.5)):
            checkpoints.save(make_state(step), step, CARD, {"accuracy": accuracy})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4, 5]


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_restored_is_what_was_saved(tmp_path, everywhere, ema):
    frozen = ("backbone/**",)
    save(tmp_path, {1: 0.5, 2: 0.4}, ema=ema, frozen=frozen)
    like = make_state(ema=ema, frozen=frozen)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            found = checkpoints.restore(like, everywhere, step)
            expected = make_state(step, ema=ema, frozen=frozen)
            assert jax.tree.structure(found) == jax.tree.structure(expected)
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            leaves = jax.tree.leaves(found)
            assert {leaf.sharding for leaf in leaves} == {everywhere}


def test_saving_may_go_on_while_the_state_is_donated(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1, CARD)
        jax.tree.map(lambda x: x.delete(), state)
        checkpoints.wait()
    kernel = read_arrays(tmp_path, 1)["['params']['backbone']['conv']['kernel']"]
    assert (kernel == 2).all()


def test_the_card_and_the_position_of_the_stream_are_inside(tmp_path, everywhere):
    class Stream:
        def __init__(self, position):
            self.position = position

        def get_state(self):
            return {"next_index": self.position}

        def set_state(self, state):
            self.position = state["next_index"]

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7), 7, CARD, {"accuracy": 0.5}, Stream(7))
        checkpoints.wait()
        stream = Stream(0)
        checkpoints.restore(make_state(), everywhere, 7, stream)
        assert stream.position == 7
    card = tmp_path / "checkpoints" / "7" / "card" / "metadata"
    assert Card.from_json(json.loads(card.read_text())) == CARD


def test_a_run_folder_opens_as_a_model(tmp_path):
    model, variables = zoo.create("lenet5_modern", num_classes=3)
    tx = make_optimizer(OptimConfig(), make_schedule(OptimConfig(), 9), variables)
    state = create_state(variables, tx, ema=True)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 4, CARD, {"accuracy": 0.5})
    same, opened = zoo.create("lenet5_modern", weights=str(tmp_path))
    assert same.head.num_classes == model.head.num_classes == 3
    for path, leaf in flat(variables["params"]).items():
        np.testing.assert_array_equal(flat(opened["params"])[path], leaf + 1)


def damage(run_dir, step):
    folder = run_dir / "checkpoints" / str(step) / "state"
    files = [f for f in folder.rglob("*") if f.is_file() and f.parent.name == "d"]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("accuracies", [{1: 0.9, 2: 0.1, 3: 0.2}, {3: 0.2}])
def test_a_damaged_checkpoint_is_named_with_the_other_ones(
    tmp_path, everywhere, accuracies
):
    save(tmp_path, accuracies)
    damage(tmp_path, 3)
    others = [s for s in accuracies if s != 3] or "none"
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(make_state(), everywhere, 3)
        message = str(caught.value)
        assert f"{tmp_path}/checkpoints/3 cannot be read" in message
        assert f"Other complete steps: {others};" in message
        assert "\n" not in message
        if others != "none":
            found = checkpoints.restore(make_state(), everywhere, 2)
            assert int(found.step) == 2


def test_what_was_half_written_is_nobodys(tmp_path, everywhere):
    save(tmp_path, {1: 0.5, 2: 0.6})
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(make_state(3), 3, CARD, {"accuracy": 0.7})
        checkpoints.wait()
        assert int(checkpoints.restore(make_state(), everywhere, 3).step) == 3


def test_a_step_that_is_saved_stays_as_it_is(tmp_path):
    save(tmp_path, {1: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(9), 1, CARD)
        checkpoints.wait()
    assert read_arrays(tmp_path, 1)["['step']"] == 1


def test_going_on_from_an_earlier_step_drops_the_later_ones(tmp_path):
    save(tmp_path, {1: 0.9, 2: 0.1, 3: 0.2})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.drop_after(2)
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(make_state(13), 3, CARD)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
    kernel = read_arrays(tmp_path, 3)["['params']['backbone']['conv']['kernel']"]
    assert (kernel == 14).all()


def test_a_full_disk_says_so_and_leaves_the_last_good_one(
    tmp_path, everywhere, monkeypatch
):
    save(tmp_path, {1: 0.5})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, {2: 0.7})
    message = str(caught.value)
    assert "No space left on device" in message
    assert f"The last good checkpoint is {tmp_path}/checkpoints/1." in message
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert int(checkpoints.restore(make_state(), everywhere, 1).step) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("in the folder's place")
    message = f"cannot write {tmp_path}/checkpoints: .*exists"
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path)
