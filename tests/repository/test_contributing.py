"""The worked examples for contributors do what they say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zoo
from train.config import DataConfig, OptimConfig
from train.data import fit_source, load_dataset
from train.data.datasets import FORMATS
from train.studies import run_study
from zoo.paths import flatten

TEXT = (Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md").read_text()


def run_example(kind):
    """Runs the code of an example; returns its names."""
    (code,) = re.findall(rf"^```python {kind}\n(.*?)^```$", TEXT, re.S | re.M)
    names = {"__name__": f"example_{kind}"}
    exec(compile(code, f"CONTRIBUTING.md, {kind}", "exec"), names)
    return names


def test_a_model_keeps_the_contract():
    (spec,) = run_example("model")["SPECS"]
    model = spec.build(num_classes=spec.num_classes)
    images = jnp.zeros((2, *spec.preprocess.shape))
    variables = model.init(jax.random.key(0), images)
    assert model.apply(variables, images).shape == (2, 10)
    flat = flatten(variables["params"])
    assert {path.split("/")[0] for path in flat} == {"backbone", "head"}
    assert sum(value.size for value in flat.values()) == spec.params
    layers = zoo.list_layers(model, spec.preprocess.shape)
    assert sum(layer.macs for layer in layers) == spec.macs
    rules = {rule.module for rule in spec.torch_rules(model)}
    assert rules == {path.rpartition("/")[0] for path in flat}
    endpoints = model.apply(variables, images, method="endpoints")
    assert [*endpoints] == ["conv1", "conv2", "pool", "logits"]
    headless = spec.build(num_classes=0)
    params = {"backbone": variables["params"]["backbone"]}
    assert headless.apply({"params": params}, images).shape == (2, 32)


def test_a_data_set_is_opened_by_its_name(tmp_path, monkeypatch):
    for name, row in run_example("dataset")["FORMAT"].items():
        monkeypatch.setitem(FORMATS, name, row)
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (20, 30), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    (tmp_path / "train.csv").write_text("0.png,dog\n1.png,cat\n2.png,dog\n")
    source = load_dataset(f"csv:{tmp_path}", "train", color="rgb")
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    fitted = fit_source(source, zoo.get_spec("cifar_resnet20").preprocess)
    assert fitted[2]["image"].shape == (32, 32, 3)
    assert len(load_dataset(f"csv:{tmp_path}", "train[:67%]")) == 2
    with pytest.raises(ValueError, match=r"test\.csv does not exist"):
        load_dataset(f"csv:{tmp_path}", "test")
    (tmp_path / "train.csv").write_text("0.png\n")
    with pytest.raises(ValueError, match=r"train\.csv:1: .* must be FILE,CLASS"):
        load_dataset(f"csv:{tmp_path}", "train")


def test_a_task_trains_and_measures():
    (kind,) = run_example("task")["TASK"].values()
    task = kind.create(zoo.get_spec("lenet5_modern"), OptimConfig(), DataConfig(""))
    model, variables = zoo.create("lenet5_modern", num_classes=4)
    images = jax.random.uniform(jax.random.key(0), (6, 28, 28, 1))
    batch = {"label": jnp.array([0, 1, 2, 3, 3, 0]), "valid": jnp.ones(6, bool)}
    rngs = {"dropout": jax.random.key(1)}

    def loss(params):
        return task.objective(model, {"params": params}, images, batch, rngs)[0]

    params = variables["params"]
    gradient = jax.grad(loss)(params)
    moved = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
    assert loss(moved) < loss(params)
    state, each = task.evaluate(model, variables, images, task.empty(4), batch)
    found = task.collect(state, each, ("bad", "fair", "good", "best")).metrics
    errors = np.abs(np.asarray(each["predicted"]) - np.asarray(batch["label"]))
    assert found["mean_error"] == pytest.approx(errors.mean())
    assert task.format_metrics(found).endswith(f"{errors.mean():.2f} grades off")


def test_a_study_writes_its_page(tmp_path):
    study = run_example("study")["STUDY"]
    report = run_study(study, tmp_path, scale="smoke")
    assert all(band.holds for band in report.outcome.bands)
    assert study.claim in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figure-1.png").stat().st_size > 0
