"""The weights of the package: whole, small, at hand, and as good as they say."""

import hashlib
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from train_weights import RECIPES, measure, store

import zoo
from train.configs import CONFIGS
from zoo.paths import flatten
from zoo.weights import list_trained, trained

ROOT = Path(__file__).parents[3]
CARRIED = [(m, w.name) for m in zoo.list_models() for w in list_trained(m)]
MOST_BYTES = 8_000_000
# CIFAR-10 is not embedded; a folder of public data has it.
CIFAR10 = Path(os.environ.get("ZOO_TEST_DATA") or "/nonexistent") / "cifar10-test.zip"
EMBEDDED = [model for model, _ in CARRIED if RECIPES[model].quick[0] != "cifar10"]


def test_there_is_a_file_for_each_recipe():
    files = {p.name for p in trained.FOLDER.glob("*-*")}
    stems = {f"{model}-{recipe.weights}" for model, recipe in RECIPES.items()}
    assert files == {s + end for s in stems for end in (".json", ".safetensors")}
    assert {recipe.config.split()[0] for recipe in RECIPES.values()} <= {*CONFIGS}
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    packaged = packaged["setuptools"]["package-data"]["zoo.weights.trained"]
    assert {p.suffix for p in trained.FOLDER.glob("*-*")} == {p[1:] for p in packaged}


def test_they_are_small_together():
    sizes = [p.stat().st_size for p in trained.FOLDER.glob("*-*")]
    assert sum(sizes) <= MOST_BYTES


@pytest.mark.parametrize(("model", "weights"), CARRIED)
def test_a_record_fits_its_file(model, weights, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    record = trained.read_record(model, weights)
    path = trained.find_trained(model, weights)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]
    assert (path.stat().st_size, record["licence"]) == (record["bytes"], "Apache-2.0")
    assert len(record["commit"]) == 40
    _, variables, card = zoo.create_with_card(model, weights=weights)
    leaves = flatten(variables).values()
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert card.class_names
    percent = f"{record['measured'][record['metric']]:.2%}"
    assert percent in card.accuracy
    (line,) = [x for x in zoo.describe(model).splitlines() if f"{weights}: " in x]
    assert percent in line
    assert zoo.weights.load(model, path).card == card


@pytest.mark.parametrize("model", EMBEDDED)
def test_a_part_of_the_data_gives_the_recorded_result(model):
    recipe = RECIPES[model]
    expected = trained.read_record(model, recipe.weights)["quick"]
    found = measure(model, recipe.weights, *recipe.quick)
    assert found[recipe.metric] == pytest.approx(expected[recipe.metric], abs=0.01)
    assert expected[recipe.metric] > 0.8


@pytest.mark.apart
@pytest.mark.parametrize("model", [model for model, _ in CARRIED])
def test_all_data_give_the_recorded_result(model):
    recipe = RECIPES[model]
    expected = trained.read_record(model, recipe.weights)["measured"]
    dataset, split = recipe.dataset
    if dataset == "cifar10":
        if not CIFAR10.exists():
            pytest.skip("ZOO_TEST_DATA has no CIFAR-10")
        dataset = f"imagefolder:{CIFAR10}"
    found = measure(model, recipe.weights, dataset, split)
    assert found[recipe.metric] == pytest.approx(expected[recipe.metric], abs=0.002)


def test_int8_kernels_are_multiplied_by_their_scales(tmp_path):
    _, variables, card = zoo.create_with_card("lenet5_modern")
    stored = store(variables, small=False)
    dense = flatten(stored)["params/backbone/ip1/kernel"]
    assert dense.dtype == np.int8
    path = tmp_path / "small.safetensors"
    zoo.weights.save_safetensors(path, stored, card)
    loaded = flatten(zoo.weights.load("lenet5_modern", path).variables)
    for name, value in flatten(variables).items():
        bound = np.abs(value).max() / 127 / 2 + 1e-6
        np.testing.assert_allclose(loaded[name], value, atol=bound, err_msg=name)
    del stored["params"]["backbone"]["ip1"]["kernel"]
    zoo.weights.save_safetensors(path, stored, card)
    with pytest.raises(ValueError, match="ip1/kernel:scale is the scale of an int8 ar"):
        zoo.weights.load("lenet5_modern", path)
