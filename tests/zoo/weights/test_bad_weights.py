"""Weights that do not fit, are damaged or are not finite: said, and nothing is lost."""

import dataclasses
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import zoo
from zoo.paths import flatten, unflatten
from zoo.registry import registered
from zoo.spec import Card, Weights
from zoo.weights import from_torch, load, save_safetensors, to_torch
from zoo.weights.fit import guess_models

NAME = "lenet5_modern"
CLASSES = 3


@pytest.fixture(scope="module")
def variables() -> dict:
    rng = np.random.default_rng(0)
    pre = zoo.get_spec(NAME).preprocess
    images = jnp.ones((1, *pre.shape))
    model = zoo.build(NAME, num_classes=CLASSES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(params=["ours", "torch", "card"])
def write(request, tmp_path, variables):
    """Writes arrays changed by a function, with our names or PyTorch's."""

    def write(change) -> tuple[str, str]:
        path = tmp_path / "net.safetensors"
        if request.param == "torch":
            arrays, name = to_torch(NAME, variables), "conv2.weight"
        else:
            arrays, name = flatten(variables), "params/backbone/conv2/kernel"
        metadata = {}
        if request.param == "card":
            pre = zoo.get_spec(NAME).preprocess
            save_safetensors(path, variables, Card(NAME, CLASSES, {}, pre))
            with safetensors.safe_open(path, "numpy") as file:
                metadata = file.metadata()
            del metadata["zoo_crc32"]  # As a tool does that changes arrays.
        arrays = dict(arrays)
        change(arrays, name)
        safetensors.numpy.save_file(arrays, path, metadata)
        return str(path), name

    return write


def refusal(path, name=NAME, **options) -> str:
    with pytest.raises(ValueError, match=r"\.safetensors") as caught:
        zoo.create(name, weights=str(path), **options)
    return str(caught.value)


def test_a_missing_and_an_extra_array_are_named(write):
    def change(arrays, name):
        arrays[name.replace("conv2", "conv3")] = arrays.pop(name)

    path, name = write(change)
    error = refusal(path)
    assert path in error
    assert f"missing (1): {name} [" in error
    assert f"unexpected (1): {name.replace('conv2', 'conv3')} [" in error


def test_another_shape_is_named_with_both(write):
    def change(arrays, name):
        arrays[name] = arrays[name][..., :-1].copy()

    path, name = write(change)
    error = refusal(path)
    assert f"other shape (1): {name} is [" in error
    assert ", the network needs [" in error


def test_another_type_is_named(write):
    def change(arrays, name):
        arrays[name] = arrays[name].astype(np.int32)

    path, name = write(change)
    assert f"not floating point (1): {name} is int32" in refusal(path)


def test_nan_and_infinity_are_logged_with_their_arrays_and_counts(write, caplog):
    def change(arrays, name):
        arrays[name] = arrays[name].copy()
        arrays[name].flat[[1, 5, 7]] = np.nan, np.inf, -np.inf

    path, _ = write(change)
    _, found = zoo.create(NAME, weights=path)
    assert np.isnan(found["params"]["backbone"]["conv2"]["kernel"]).sum() == 1
    words = "NaN or infinite (1): params/backbone/conv2/kernel has 3 of 25000"
    assert f"{path} for {NAME}: {words}" in caplog.text


def test_a_huge_but_finite_number_is_not_logged(write, caplog):
    def change(arrays, name):
        arrays[name] = np.full_like(arrays[name], np.finfo(np.float32).max)

    zoo.create(NAME, weights=write(change)[0])
    assert "NaN" not in caplog.text


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_cut_file_is_named(write, size):
    path, _ = write(lambda arrays, name: None)
    with open(path, "r+b") as file:
        file.truncate(size % os.path.getsize(path))
    assert f"{path} is damaged or incomplete" in refusal(path)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "alexnet_tv"])
def test_the_file_of_another_network_is_recognized(write, name):
    path, _ = write(lambda arrays, name: None)
    error = refusal(path, name)
    assert f"of {NAME}" in error


def test_a_networks_own_file_with_another_shape_is_not_taken_for_anothers(write):
    path, _ = write(lambda arrays, name: arrays.update({name: arrays[name][:1].copy()}))
    assert "names of" not in refusal(path)


@pytest.mark.parametrize(
    ("name", "guesses"),
    [
        ("alexnet_tv", ["alexnet_tv"]),
        ("vgg13", ["vgg13"]),
        ("vgg16_bn", ["vgg16_bn"]),
        ("googlenet_tv", ["googlenet_tv"]),
        ("resnet34", ["resnet34"]),
        ("resnet101", ["resnet101", "resnet101_v1"]),
        ("cifar_resnet32", ["cifar_resnet32"]),
    ],
)
def test_names_tell_the_network(name, guesses):
    rules = zoo.get_spec(name).torch_rules(zoo.build(name))
    wanted = {path.split("/", 1)[1].rsplit("/", 1)[0] for path in shapes(name)}
    ours = [f"params/{module}/kernel" for module in wanted]
    torch = [f"{rule.key}.weight" for rule in rules if rule.module in wanted]
    assert set(guesses) <= set(guess_models(torch))
    assert guess_models(torch)[0] in guesses
    assert set(guesses) <= set(guess_models(ours))
    assert guess_models(["features.0.weight", "nobody.knows"]) == []
    assert guess_models([]) == []


def shapes(name) -> dict:
    pre = zoo.get_spec(name).preprocess
    images = jax.ShapeDtypeStruct((1, *pre.shape), jnp.float32)
    model = zoo.build(name)
    return flatten(jax.eval_shape(model.init, jax.random.key(0), images))


def test_an_unknown_name_of_weights_gets_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown weights of alexnet_tv 'imagenett'; did you mean im"
    ):
        zoo.create("alexnet_tv", weights="imagenett")
    with pytest.raises(
        ValueError, match=r"unknown weights of alexnet 'imagenet'; there"
    ):
        zoo.create("alexnet", weights="imagenet")


def test_a_wrong_hash_is_said_and_nothing_is_kept(tmp_path, variables, monkeypatch):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(to_torch(NAME, variables), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    wrong = Weights("letters", path.as_uri(), "0" * 64, "", "", "")
    spec = dataclasses.replace(zoo.get_spec(NAME), weights=(wrong,))
    words = f"net.safetensors has the hash {digest}, exp"
    with registered(spec), pytest.raises(ValueError, match=words):
        zoo.create(NAME, weights="letters")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_refusal_changes_nothing_of_the_callers(variables):
    before = jax.tree.map(np.copy, variables)
    state = to_torch(NAME, variables)
    broken = {**state, "conv9.weight": np.ones(1)}
    kept = dict(broken)
    with pytest.raises(ValueError, match="unexpected"):
        from_torch(NAME, broken)
    assert broken.keys() == kept.keys()
    assert all(broken[key] is kept[key] for key in kept)
    # What succeeds leaves them alone as well.
    found = from_torch(NAME, state)
    found["params"]["backbone"]["conv1"]["bias"][:] = 7
    assert state.keys() == to_torch(NAME, variables).keys()
    for path, leaf in flatten(before).items():
        np.testing.assert_array_equal(flatten(variables)[path], leaf)
        assert (
            path == "params/backbone/conv1/bias" or (flatten(found)[path] == leaf).all()
        )


def test_a_refused_file_is_not_written_to(write):
    path, _ = write(lambda arrays, name: arrays.pop(name))
    with open(path, "rb") as file:
        before = file.read()
    refusal(path)
    with open(path, "rb") as file:
        assert file.read() == before


@pytest.fixture
def saved(request, tmp_path):
    """A file of constant variables for the paper's classes, and its model's name."""
    name = request.param
    classes = zoo.get_spec(name).num_classes
    flat = {path: np.full(x.shape, 0.5, x.dtype) for path, x in shapes(name).items()}
    names = tuple(f"class {i}" for i in range(classes))
    pre = zoo.get_spec(name).preprocess
    card = Card(name, classes, {}, pre, names, "x", "MIT", accuracy="99 %")
    save_safetensors(tmp_path / "net.safetensors", unflatten(flat), card)
    return name, tmp_path / "net.safetensors"


HEADS = {"cifar_resnet20": "fc", "lenet5_modern": "ip2"}


@pytest.mark.parametrize("saved", HEADS, indirect=True)
def test_another_number_of_classes_gives_a_new_head_and_says_so(saved, caplog):
    name, path = saved
    key = jax.random.key(3)
    model, found, card = zoo.create_with_card(
        name, weights=path, num_classes=37, key=key
    )
    assert "37" in caplog.text
    assert (card.num_classes, card.class_names, card.accuracy) == (37, (), "")
    assert card.licence == "MIT"
    head = found["params"]["head"][HEADS[name]]
    assert head["kernel"].shape[1] == 37
    assert np.std(np.asarray(head["kernel"])) > 0
    backbone = map(np.asarray, jax.tree.leaves(found["params"]["backbone"]))
    assert all((leaf == 0.5).all() for leaf in backbone)
    pre = card.preprocess
    images = jax.ShapeDtypeStruct((2, *pre.shape), jnp.float32)
    assert jax.eval_shape(model.apply, found, images).shape == (2, 37)


@pytest.mark.parametrize("saved", [NAME], indirect=True)
def test_the_new_head_follows_the_key(saved):
    kernels = []
    for seed in (3, 3, 4):
        key = jax.random.key(seed)
        _, found = zoo.create(NAME, weights=saved[1], num_classes=37, key=key)
        kernels.append(found["params"]["head"]["ip2"]["kernel"])
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()


@pytest.mark.parametrize("saved", HEADS, indirect=True)
def test_no_head_and_the_same_number_of_classes(saved, caplog):
    name, path = saved
    classes = zoo.get_spec(name).num_classes
    model, found, card = zoo.create_with_card(name, weights=path, num_classes=classes)
    assert (len(card.class_names), card.accuracy) == (classes, "99 %")
    assert (jax.tree.leaves(found["params"]["head"])[0] == 0.5).all()
    model, found, card = zoo.create_with_card(name, weights=path, num_classes=0)
    assert [*found["params"]] == ["backbone"]
    assert model.head is None
    assert (card.num_classes, card.class_names) == (0, ())
    assert "head" not in caplog.text
    with pytest.raises(ValueError, match=r"num_classes must be 0 .*, got -1"):
        zoo.create(name, weights=path, num_classes=-1)


def test_classes_that_contradict_the_file_are_an_error_of_load(write):
    path, _ = write(lambda arrays, name: None)
    words = (
        "num_classes=3, which contradicts num_classes=10|is .*3.*, the network needs"
    )
    with pytest.raises(ValueError, match=words):
        load(NAME, path, num_classes=10)
