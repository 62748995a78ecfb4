"""config.json as people write it by hand: strict, and each refusal names its field."""

import copy
import dataclasses
import json

import pytest

from train.config import DataConfig, load_config, save_config
from train.configs import get_config


@pytest.fixture
def path(tmp_path):
    save_config(get_config("camvid_frrn"), tmp_path / "config.json")
    return tmp_path / "config.json"


def change(path, place, value):
    content = json.loads(path.read_text())
    inside = content
    for name in place.split(".")[:-1]:
        inside = inside[name]
    inside[place.rpartition(".")[2]] = copy.deepcopy(value)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("optim.nesterov", "false", "'false' is no bool"),
        ("optim.nesterov", 0, "0 is no bool"),
        ("epochs", 3.9, "3.9 is no int"),
        ("epochs", 3.0, "3.0 is no int"),
        ("epochs", True, "True is no int"),
        ("epochs", "3", "'3' is no int"),
        ("data.classes", "cat", "'cat' is no list"),
        ("data.classes", ["cat", 1], "1 is no str"),
        ("data.size", [3.5, 2], "3.5 is no int"),
        ("data.dataset", None, "None is no str"),
        ("data.dataset", 5, "5 is no str"),
        ("data.values", {"0": 1}, "{'0': 1} is no list"),
        ("model.weights", 3, "3 is no str"),
        ("optim.boundaries", [0.5, "x"], "'x' is no finite number"),
        ("optim.learning_rate", float("nan"), "nan is no finite number"),
        ("optim.learning_rate", 10**400, "000... is no finite number"),
        ("optim.clip_norm", "1", "'1' is no finite number"),
        ("optim.schedule", "cosin", "cosin not in literal"),
        ("optim.schedule", ["cosine"], "not in literal"),
        ("model", None, "None is no object"),
        ("data", [], "[] is no object"),
    ],
)
def test_nothing_is_converted_and_the_field_is_named(path, place, value, message):
    change(path, place, value)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is looked at below)
        load_config(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert f"$.{place}" in str(error.value)


def test_whole_numbers_are_numbers_too(path):
    change(path, "optim.learning_rate", 1)
    change(path, "optim.clip_norm", 2)
    change(path, "data.values", [0, 255])
    config = load_config(path)
    assert (config.optim.learning_rate, config.optim.clip_norm) == (1.0, 2.0)
    assert isinstance(config.optim.learning_rate, float)
    assert config.data.values == (0, 255)


def test_several_mistakes_are_said_at_once(path):
    change(path, "epochs", 1.5)
    change(path, "optim.momentum", "high")
    with pytest.raises(
        ValueError, match=r"no finite number @ \$\.optim.*1\.5 is no int"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"null", "None is no object with fields"),
        (b"[]", r"\[\] is no object with fields"),
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion"),
        (b'{"model": "\xff"}', "can't decode byte"),
        (b'{"epochs": 1, "epochs": 2}', "field 'epochs' is there twice"),
        (b'{"epochs": ' + b"1" * 5000 + b"}", "limit"),
    ],
)
def test_files_that_are_no_config(path, data, message):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(path)


def test_older_files_lack_newer_fields(path):
    content = json.loads(path.read_text())
    for name in ("values", "orientation"):
        del content["data"][name]
    path.write_text(json.dumps(content))
    assert load_config(path).data.orientation == DataConfig("x").orientation == "auto"


@pytest.mark.parametrize("values", [(0, 256), (-1,), (3, 3)])
@pytest.mark.parametrize("name", ["ignored", "values"])
def test_values_of_masks_are_checked(name, values):
    config = get_config("camvid_frrn")
    data = dataclasses.replace(config.data, **{name: values})
    with pytest.raises(ValueError, match=f"data.{name} must be different numbers"):
        dataclasses.replace(config, data=data)


# As the first version of the trainer wrote it, field by field.
FIRST_VERSION = """{
  "model": {"name": "cifar_resnet20", "weights": null, "layers": [],
            "dtype": "float32", "options": []},
  "data": {"dataset": "digits", "train_split": "train", "eval_split": "test",
           "data_dir": null, "classes": [], "ignored": [], "values": [],
           "orientation": "auto", "per_class": 2, "color": "rgb", "batch_size": 8,
           "eval_batch_size": 72, "crop": "center", "align": "auto", "mirror": false,
           "augment": ["pad_crop:4", "flip"], "geometry": [], "fit": "", "size": [],
           "eval_size": [], "max_boxes": 100, "difficult": false,
           "placement": "auto", "device_megabytes": 1024, "workers": 0,
           "on_bad_image": "stop"},
  "optim": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": false,
            "weight_decay": 0.0001, "decay": "all", "decay_also": [],
            "schedule": "step", "boundaries": [0.5, 0.75], "factor": 0.1,
            "power": 0.9, "gamma": 0.0001, "warmup_steps": 0, "warmup_rate": 0.01,
            "clip_norm": null, "filter_rms": null, "accumulate": 1, "loss": "",
            "aux_loss": "", "label_smoothing": 0.0, "ema_decay": null, "freeze": [],
            "unfreeze": [], "rates": []},
  "epochs": 10, "steps": 3, "seed": 0, "eval_every": 5, "save_every": 5,
  "log_every": 1, "run_dir": ""
}"""


def test_a_config_of_the_first_version_opens(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(FIRST_VERSION)
    assert load_config(path) == get_config("cifar10_resnet20_tiny")
