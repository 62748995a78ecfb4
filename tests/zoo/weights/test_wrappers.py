"""State dicts as people have them: wrapped, with prefixes, of half precision, odd."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import zoo
from zoo.paths import flatten
from zoo.spec import Card
from zoo.weights import convert, load, read_state_dict, save_safetensors, to_torch

NAME = "lenet5_modern"


@pytest.fixture(scope="module")
def variables() -> dict:
    return jax.device_get(zoo.create(NAME, num_classes=3)[1])


@pytest.fixture(scope="module")
def state(variables) -> dict:
    torch = pytest.importorskip("torch")
    return {k: torch.tensor(v) for k, v in to_torch(NAME, variables).items()}


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def assert_equal(got, expected) -> None:
    got, expected = flatten(got), flatten(expected)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


WRAPPED = {
    "compiled.pth": lambda s: prefixed("_orig_mod.", s),
    "parallel.pth": lambda s: prefixed("module.", s),
    "both.pth": lambda s: prefixed("module._orig_mod.", s),
    "deep.pth": lambda s: prefixed("a.b.c.", s),
    "lightning.ckpt": lambda s: {"epoch": 3, "state_dict": prefixed("model.", s)},
    "tutorial.pth": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}},
    "net.pth": lambda s: {"net": s, "acc": 93.0, "epoch": 7},
    "ema.pth": lambda s: {"model_ema": {"n_averaged": s["conv1.bias"][0]} | s},
    "nested.pth": lambda s: {"model": {"state_dict": s}},
    "unknown.pth": lambda s: {"generator_of_mine": s, "step": 4},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_and_prefixes_are_taken_off_and_said(
    tmp_path, state, variables, name, caplog
):
    torch = pytest.importorskip("torch")
    torch.save(WRAPPED[name](state), tmp_path / name)
    assert_equal(load(NAME, tmp_path / name).variables, variables)
    assert "removed the prefix" in caplog.text or "are its entry" in caplog.text


def test_what_was_trained_goes_before_its_average(tmp_path, state, variables, caplog):
    torch = pytest.importorskip("torch")
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"model_ema": other, "model": state}, tmp_path / "two.pth")
    assert_equal(load(NAME, tmp_path / "two.pth").variables, variables)
    assert "are its entry model" in caplog.text


def test_prefixes_are_taken_off_safetensors_too(tmp_path, variables):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(prefixed("model.", to_torch(NAME, variables)), path)
    assert_equal(load(NAME, path).variables, variables)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {"a": s, "b": s}, r"no state dict.*'a' \(dict\), 'b' \(dict\)"),
        (lambda s: {"epoch": 3}, r"no state dict.*'epoch' \(int\)"),
        (lambda s: [1], "no state dict, but list"),
        (lambda s: {}, "no state dict, but dict with the entries none"),
        (
            lambda s: {**prefixed("model.", s), "loss.weight": s["conv1.bias"]},
            r"begin with 'model.' would fit without, but 1 of 9 .*'loss.weight'",
        ),
        (lambda s: dict(enumerate(s.values())), "found by name, got 0"),
    ],
)
def test_what_is_no_state_dict_is_said(tmp_path, state, content, message):
    torch = pytest.importorskip("torch")
    torch.save(content(state), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        load(NAME, tmp_path / "x.pth")


def odd_tensors() -> dict:
    torch = pytest.importorskip("torch")
    plain = torch.ones(2, 3)
    return {
        "sparse": plain.to_sparse(),
        "quantized": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "meta": torch.empty(2, 3, device="meta"),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "float8": plain.to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta", "conjugate", "float8"])
@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_are_named(tmp_path, state, kind):
    torch = pytest.importorskip("torch")
    torch.save({**state, "conv1.weight": odd_tensors()[kind]}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth"):
        load(NAME, tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["ours", "torch", "pth", "orbax"])
def test_parameters_are_float32_whatever_the_file_has(tmp_path, variables, dtype, kind):
    half = jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(dtype)), variables)
    card = Card(NAME, 3, {}, zoo.get_spec(NAME).preprocess)
    path = tmp_path / "net.safetensors"
    if kind == "pth":
        torch = pytest.importorskip("torch")
        path = tmp_path / "net.pth"
        exact = {k: torch.tensor(v) for k, v in to_torch(NAME, variables).items()}
        kinds = {k: v.to(getattr(torch, dtype)) for k, v in exact.items()}
        torch.save(kinds, path)
    elif kind == "orbax":
        path = tmp_path / "saved"
        if dtype == "float64":
            pytest.skip("jax has no float64 here")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, half)
    else:
        save_safetensors(path, half, card, layout="zoo" if kind == "ours" else "torch")
    _, found = zoo.create(NAME, weights=path)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    assert_equal(found, jax.tree.map(lambda x: x.astype(np.float32), half))
    if "param_dtype" in zoo.list_options(NAME):
        _, found = zoo.create(NAME, weights=path, param_dtype=jnp.bfloat16)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"bfloat16"}


def test_conversion_keeps_the_types(tmp_path, variables):
    half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16), variables)
    card = Card(NAME, 3, {}, zoo.get_spec(NAME).preprocess)
    save_safetensors(tmp_path / "half.safetensors", half, card)
    convert(NAME, tmp_path / "half.safetensors", tmp_path / "two.safetensors")
    found = read_state_dict(tmp_path / "two.safetensors")
    assert {array.dtype for array in found.values()} == {np.dtype("float16")}


def test_a_number_too_large_for_the_type_is_logged(tmp_path, variables, caplog):
    large = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), variables)
    large["params"]["head"]["ip2"]["bias"][1] = 1e300
    card = Card(NAME, 3, {}, zoo.get_spec(NAME).preprocess)
    save_safetensors(tmp_path / "net.safetensors", large, card)
    load(NAME, tmp_path / "net.safetensors")
    assert "NaN or infinite (1): params/head/ip2/bias has 1 of 3" in caplog.text


@pytest.mark.parametrize("manager", [False, True])
def test_a_users_own_orbax_checkpoint_is_read(tmp_path, variables, manager):
    if manager:
        with ocp.CheckpointManager(tmp_path / "own") as saves:
            for step in (1, 2):
                tree = {**variables, "opt_state": {"m": np.full(3, step, np.float32)}}
                saves.save(step, args=ocp.args.StandardSave(tree))
    else:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "own", variables)
    loaded = load(NAME, tmp_path / "own")
    assert_equal(loaded.variables, variables)
    assert loaded.card.num_classes == 3


def test_an_orbax_checkpoint_without_params_is_said(tmp_path, variables):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "own", {"weights": variables["params"]})
    with pytest.raises(ValueError, match=r"'params' is expected, got \['weights'\]"):
        load(NAME, tmp_path / "own")
