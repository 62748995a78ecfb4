"""From a model's name and a source of weights to variables that fit."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import zoo
from zoo.paths import flatten
from zoo.registry import registered
from zoo.spec import Card, Preprocess, Weights
from zoo.weights import (
    Loaded,
    convert,
    load,
    load_safetensors,
    read_state_dict,
    save_safetensors,
    to_torch,
)
from zoo.weights.torch_format import move_from_torch

NAME = "lenet5_modern"
PREPROCESS = Preprocess(size=28, channels=1, mean=(0.25,), std=(0.5,))
CARD = Card(NAME, 3, {"init": "glorot"}, PREPROCESS, ("a", "b", "c"), "a test")


def random_variables(name: str, **overrides) -> dict:
    rng = np.random.default_rng(0)
    pre = zoo.get_spec(name).preprocess
    images = jnp.ones((1, *pre.shape))
    module = zoo.build(name, **overrides)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def variables() -> dict:
    return random_variables(NAME, num_classes=3)


@pytest.fixture
def ours(tmp_path, variables):
    save_safetensors(tmp_path / "ours.safetensors", variables, CARD)
    return tmp_path / "ours.safetensors"


@pytest.fixture
def plain(tmp_path, variables):
    """A safetensors file as PyTorch's users write it: without a card."""
    path = tmp_path / "plain.safetensors"
    safetensors.numpy.save_file(to_torch(NAME, variables), path)
    return path


@pytest.fixture
def published(tmp_path, plain, monkeypatch):
    """The plain file as registered weights that are fetched from a URL."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    weights = Weights(
        name="letters",
        url=plain.as_uri(),
        sha256=hashlib.sha256(plain.read_bytes()).hexdigest()[:12],
        accuracy="99 % of x",
        source="its author",
        licence="MIT",
        preprocess=PREPROCESS,
        class_names=("x", "y", "z"),
    )
    spec = dataclasses.replace(zoo.get_spec(NAME), weights=(weights,))
    with registered(spec):
        yield weights


def assert_same(got: dict, expected: dict) -> None:
    got, expected = flatten(got), flatten(expected)
    assert sorted(got) == sorted(expected)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(got[path], leaf)


def test_our_own_file_with_its_card(ours, variables):
    loaded = load(NAME, ours)
    assert_same(loaded.variables, variables)
    assert loaded.card == CARD
    assert load(NAME, str(ours)).card == CARD


def test_a_file_with_torchs_names_gets_the_models_card(plain, variables):
    loaded = load(NAME, plain, dtype=jnp.bfloat16)
    assert_same(loaded.variables, variables)
    spec = zoo.get_spec(NAME)
    assert loaded.card == Card(
        NAME,
        3,
        {"dtype": "bfloat16"},
        spec.preprocess,
        source="file plain.safetensors",
    )


def test_our_names_without_a_card(tmp_path, variables):
    path = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(flatten(variables), path)
    loaded = load(NAME, path)
    assert_same(loaded.variables, variables)
    assert (loaded.card.model, loaded.card.num_classes) == (NAME, 3)


def test_published_weights_by_name_and_by_hash(published, plain, variables):
    for source in ("letters", plain):
        loaded = load(NAME, source)
        assert_same(loaded.variables, variables)
        assert loaded.card.class_names == ("x", "y", "z")
        assert loaded.card.preprocess == PREPROCESS
        assert loaded.card.source == f"its author, {published.url}"
        assert (loaded.card.licence, loaded.card.accuracy) == ("MIT", "99 % of x")


def test_a_torch_file(tmp_path, variables):
    torch = pytest.importorskip("torch")
    state = {k: torch.tensor(v) for k, v in to_torch(NAME, variables).items()}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    loaded = load(NAME, tmp_path / "net.pth")
    assert_same(loaded.variables, variables)
    assert loaded.card.source == "file net.pth"


def test_a_run_folder(tmp_path, variables):
    with ocp.CheckpointManager(tmp_path / "run" / "checkpoints") as manager:
        state = {"step": jnp.int32(1), **variables, "opt_state": ()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.asarray, state)),
            card=ocp.args.JsonSave(CARD.to_json()),
        )
        manager.save(1, args=items)
    loaded = load(NAME, tmp_path / "run")
    assert_same(loaded.variables, variables)
    assert loaded.card == CARD
    with pytest.raises(ValueError, match=f"run holds weights of {NAME}, not of lenet5"):
        load("lenet5", tmp_path / "run")


def test_a_source_that_is_neither_a_name_nor_a_path(published):
    with pytest.raises(ValueError, match=r"did you mean letters.* Nor is there a file"):
        load(NAME, "leters")
    with pytest.raises(ValueError, match=r"'imagenet'; there are none\. Nor is there"):
        load("zfnet", "imagenet")
    with pytest.raises(ValueError, match=r"unknown model 'lenet6'.* lenet5"):
        load("lenet6", "letters")
    with pytest.raises(ValueError, match="unknown option of lenet5_modern 'shortcut'"):
        load(NAME, "letters", shortcut="A")


def test_weights_of_another_model_are_refused(ours):
    with pytest.raises(ValueError, match=f"holds weights of {NAME}, not of lenet5"):
        load("lenet5", ours)


def test_options_may_not_contradict_the_card(ours, tmp_path):
    with pytest.raises(
        ValueError, match=r"num_classes=3, which contradicts num_cl.*=10"
    ):
        load(NAME, ours, num_classes=10)
    # How to compute and how to initialize are free.
    assert load(NAME, ours, num_classes=3, dtype=jnp.bfloat16, init="glorot")

    variables = random_variables("cifar_resnet20")
    path = tmp_path / "a.safetensors"
    preprocess = zoo.get_spec("cifar_resnet20").preprocess
    save_safetensors(path, variables, Card("cifar_resnet20", 10, {}, preprocess))
    assert load("cifar_resnet20", path, shortcut="A", scan=True)
    with pytest.raises(
        ValueError, match="shortcut='A', which contradicts shortcut='B'"
    ):
        load("cifar_resnet20", path, shortcut="B")


def test_variables_that_are_not_the_models_are_listed(tmp_path, plain, variables):
    path = tmp_path / "odd.safetensors"
    flat = flatten(variables)
    flat["params/backbone/conv9/bias"] = flat.pop("params/backbone/conv1/bias")
    safetensors.numpy.save_file(flat, path, {"zoo": json.dumps(CARD.to_json())})
    with pytest.raises(ValueError, match=r"odd\.safetensors does not fit") as error:
        load(NAME, path)
    assert "missing (1): params/backbone/conv1/bias [20]" in str(error.value)
    assert "unexpected (1): params/backbone/conv9/bias [20]" in str(error.value)
    with pytest.raises(ValueError, match=r"plain\.safetensors: cifar_resnet20: the st"):
        load("cifar_resnet20", plain)


@pytest.mark.parametrize("layout", ["zoo", "torch"])
def test_convert_writes_either_layout(tmp_path, published, variables, layout):
    target = tmp_path / "out" / "net.safetensors"
    convert(NAME, "letters", target, layout=layout)
    arrays = read_state_dict(target)
    expected = flatten(variables) if layout == "zoo" else to_torch(NAME, variables)
    assert sorted(arrays) == sorted(expected)
    loaded, card = load_safetensors(target)
    assert_same(loaded, variables)
    assert card.class_names == ("x", "y", "z")
    assert_same(load(NAME, target).variables, variables)


def test_create_takes_what_load_takes(ours, variables):
    model, created = zoo.create(NAME, weights=str(ours), dtype=jnp.bfloat16)
    assert_same(created, variables)
    assert model.apply(created, jnp.ones((1, 28, 28, 1))).shape == (1, 3)


def test_arrays_are_not_held_twice_on_their_way(monkeypatch, variables):
    given = to_torch(NAME, variables)
    kept = dict(given)
    model, moved = move_from_torch(NAME, given)
    loaded = Loaded(moved, CARD, model)
    assert given == {}
    monkeypatch.setattr(zoo.weights, "load", lambda *args, **options: loaded)
    _, created = zoo.create(NAME, weights="x")
    assert jax.tree.leaves(loaded.variables) == []
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(created))
    assert_same(created, variables)
    assert_same(to_torch(NAME, created), kept)


def test_options_with_which_a_file_was_made_are_taken_again(tmp_path):
    options = {"widths": (4, 4, 4, 4, 4), "dense": 8}
    _, variables, card = zoo.create_with_card("zfnet64_small", **options)
    path = tmp_path / "small.safetensors"
    save_safetensors(path, variables, card)
    assert load("zfnet64_small", path, **options).card.overrides["dense"] == 8
    with pytest.raises(ValueError, match=r"made with widths=\[4, 4, .*, which contrad"):
        load("zfnet64_small", path, widths=(4, 4, 4, 4, 8))


def test_classes_that_are_none_follow_from_the_file(tmp_path):
    _, variables = zoo.create("lenet5_modern", num_classes=7)
    state = zoo.weights.to_torch("lenet5_modern", variables, num_classes=None)
    path = tmp_path / "torch.safetensors"
    safetensors.numpy.save_file(state, path)
    loaded = load("lenet5_modern", path, num_classes=None)
    assert loaded.card.num_classes == 7
