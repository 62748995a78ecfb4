"""Weights files: safetensors with a card, and PyTorch's own."""

import dataclasses
import errno
import json
import os
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import zoo
from zoo.paths import flatten
from zoo.spec import Card, Preprocess
from zoo.weights import load_safetensors, read_state_dict, save_safetensors

PREPROCESS = Preprocess(size=8, channels=1, mean=(0.1,), std=(0.3,))
CARD = Card(
    model="lenet5_modern",
    num_classes=2,
    overrides={"init": "glorot"},
    preprocess=PREPROCESS,
    class_names=("cat", "dog"),
    source="a test",
    versions={"jax": "0"},
)


@pytest.fixture
def variables() -> dict:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "params": {
            "backbone": {"kernel": kernel.T, "bias": jnp.ones(3, jnp.bfloat16)},
            "head": {"scale": np.float32(0.5)},
        },
        "batch_stats": {"backbone": {"mean": np.zeros(2, np.float16)}},
    }


def assert_same(got: dict, expected: dict) -> None:
    got, expected = flatten(got), flatten(expected)
    assert sorted(got) == sorted(expected)
    for path, leaf in expected.items():
        assert isinstance(got[path], np.ndarray)
        assert got[path].dtype == leaf.dtype
        np.testing.assert_array_equal(got[path], np.asarray(leaf))


def test_variables_and_card_come_back(tmp_path, variables):
    path = tmp_path / "new" / "model.safetensors"
    save_safetensors(path, variables, CARD)
    loaded, card = load_safetensors(path)
    assert_same(loaded, variables)
    assert card == CARD
    assert os.listdir(path.parent) == ["model.safetensors"]


def test_the_file_is_plain_safetensors_with_paths_and_a_json_card(tmp_path, variables):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, variables, CARD)
    with safetensors.safe_open(path, "numpy") as file:
        assert "params/backbone/kernel" in file.keys()  # noqa: SIM118
        assert json.loads(file.metadata()["zoo"])["class_names"] == ["cat", "dog"]


def test_the_torch_layout_has_torchs_names_and_comes_back(tmp_path):
    _, variables = zoo.create("lenet5_modern", num_classes=2)
    path = tmp_path / "model.safetensors"
    save_safetensors(path, variables, CARD, layout="torch")
    arrays = read_state_dict(path)
    kernel = np.asarray(variables["params"]["backbone"]["conv1"]["kernel"])
    np.testing.assert_array_equal(arrays["conv1.weight"], kernel.transpose(3, 2, 0, 1))
    assert sorted(arrays)[-2:] == ["ip2.bias", "ip2.weight"]
    loaded, card = load_safetensors(path)
    assert_same(loaded, variables)
    assert card == CARD


def test_a_full_disk_leaves_the_old_file(tmp_path, variables, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, variables, CARD)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_safetensors(path, {"params": {"a": np.ones(9)}}, CARD)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_what_cannot_be_saved_is_an_error(tmp_path, variables):
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got '\.npz'"):
        save_safetensors(tmp_path / "model.npz", variables, CARD)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="layout must be one of"):
        save_safetensors(path, variables, CARD, layout="caffe")
    card = Card("lenet5_modern", 2, {"dtype": jnp.bfloat16}, PREPROCESS)
    with pytest.raises(ValueError, match="the card is not plain JSON"):
        save_safetensors(path, variables, card)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 4, 40, -3])
def test_a_cut_safetensors_file_is_an_error(tmp_path, variables, size):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, variables, CARD)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or inc"):
        load_safetensors(path)


def test_files_without_a_card(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"params/a/kernel": np.ones(2)}, path)
    loaded, card = load_safetensors(path)
    assert_same(loaded, {"params": {"a": {"kernel": np.ones(2)}}})
    assert card is None
    safetensors.numpy.save_file({"fc.weight": np.ones(2)}, path)
    with pytest.raises(ValueError, match=r"'fc\.weight' is no name of the zoo"):
        load_safetensors(path)


def test_a_damaged_card_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    for text in ("{", "{}"):
        safetensors.numpy.save_file({"params/a": np.ones(2)}, path, {"zoo": text})
        with pytest.raises(ValueError, match="its card cannot be read"):
            load_safetensors(path)


def test_a_card_of_another_model_is_named_with_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    card = dataclasses.replace(CARD, model="cat").to_json()
    arrays = {"fc.weight": np.ones(2)}
    safetensors.numpy.save_file(arrays, path, {"zoo": json.dumps(card)})
    with pytest.raises(ValueError, match=r"safetensors does not fit its card: unknown"):
        load_safetensors(path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.th"):
        read_state_dict(tmp_path / "gone.th")
    path = tmp_path / "weights.h5"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.h5: .*\.safetensors, .*got '\.h5'"):
        read_state_dict(path)


def test_without_torch_the_error_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"canon-zoo\[torch\]'`, or use a .safet"):
        read_state_dict(path)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
def test_torch_files_are_read_wrapped_or_not(tmp_path, wrapper, suffix):
    torch = pytest.importorskip("torch")
    state = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}
    path = tmp_path / f"weights{suffix}"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    arrays = read_state_dict(path)
    assert sorted(arrays) == ["fc.bias", "fc.weight"]
    np.testing.assert_array_equal(
        arrays["fc.weight"], np.arange(6, dtype=np.float32).reshape(2, 3)
    )


class Payload:
    """A pickle of it runs a command when it is opened."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, by):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    payload = {"fc.weight": Payload(f"touch {trace}")}
    if by == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pth is refused: .*\.system"):
        read_state_dict(path)
    assert not trace.exists()


def test_damaged_torch_files_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"no pickle at all", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pth is damaged or incomplete"):
            read_state_dict(path)


def test_torch_files_with_something_else_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match="no state dict, but list"):
        read_state_dict(path)
    torch.save({"epoch": 3, "note": "text"}, path)
    with pytest.raises(ValueError, match=r"weights\.pth: no state dict.*'note' \(str"):
        read_state_dict(path)
