"""The loop: what is logged and saved when, and what stops it."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from tiny_runs import (
    flat,
    make_config,
    read_arrays,
    read_rows,
    signal_during,
    write_images,
)

import zoo
from train.checkpoint import Checkpoints
from train.config import ModelConfig, load_config
from train.fit import NonFiniteLossError, fit, resume_run
from train.history import History, read_history
from train.report import write_run_report


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), {"train": 9, "test": 5})


@pytest.fixture(scope="module")
def config(images):
    return make_config(
        images,
        augment=("pad_crop:2",),
        epochs=4,
        eval_every=2,
        log_every=2,
        freeze=("backbone/**",),
        unfreeze=("2:backbone/ip1/**",),
        ema_decay=0.5,
    )


@pytest.fixture(scope="module")
def result(config, tmp_path_factory):
    return fit(config, tmp_path_factory.mktemp("run") / "run")


def test_a_run_folder_tells_the_whole_story(result, config):
    run_dir = result.run_dir
    assert load_config(run_dir / "config.json") == config
    rows = read_history(run_dir)
    train = [r for r in rows if r["kind"] == "train"]
    assert [r["step"] for r in train] == [2, 4, 6, 8, 10, 12]
    assert [r["epoch"] for r in train] == [s / 3 for s in (2, 4, 6, 8, 10, 12)]
    assert train[0].keys() == {
        *("kind", "step", "epoch", "loss", "accuracy", "learning_rate", "grad_norm"),
        "images_per_second",
    }
    evaluations = [r for r in rows if r["kind"] == "eval"]
    assert [(r["step"], r["epoch"]) for r in evaluations] == [(6, 2), (12, 4)]
    assert evaluations[-1]["count"] == 15
    with Checkpoints(run_dir) as checkpoints:
        assert {9, 12} <= set(checkpoints.steps()) <= {6, 9, 12}
    assert [*(run_dir / "events").iterdir()]


def test_the_result_is_what_was_logged_and_saved(result):
    assert result.finished
    assert int(result.state.step) == 12
    last = read_rows(result.run_dir)[-1]
    assert {k: last[k] for k in result.metrics} == result.metrics
    assert result.evaluated.confusion.sum() == 15
    wrong = (
        result.evaluated.predictions.predicted != result.experiment.eval_source.labels
    )
    assert 15 - wrong.sum() == result.metrics["correct"]
    assert 0 < result.first_step_seconds < result.seconds
    _, variables, step = None, *zoo.weights.read_checkpoint(result.run_dir, 12)[::2]
    assert step == 12
    expected = flat(result.state.eval_variables())
    for path, leaf in flat(variables).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_thawed_layers_move_from_their_epoch_on(result):
    start = flat(result.experiment.variables["params"])
    early, late = (read_arrays(result.run_dir, s) for s in (9, 12))
    for path, before in start.items():
        name = "['params']" + "".join(f"['{p}']" for p in path.split("/"))
        still = path.startswith("backbone/conv")
        assert (early[name].tobytes() == before.tobytes()) == still, path
        assert (late[name].tobytes() == before.tobytes()) == still, path
    slots = {k for k in late if k.startswith("['opt_state']") and "conv" in k}
    assert not slots


def test_frozen_layers_wait_for_their_epoch(config, tmp_path):
    short = dataclasses.replace(config, steps=6, epochs=2)
    result = fit(short, tmp_path / "run", quiet=True)
    before, after = (
        flat(v["params"])
        for v in (result.experiment.variables, result.state.variables())
    )
    moved = {k for k in before if before[k].tobytes() != after[k].tobytes()}
    assert moved == {"head/ip2/kernel", "head/ip2/bias"}


def test_the_same_seed_gives_the_same_run_and_another_does_not(config, tmp_path):
    short = dataclasses.replace(config, steps=2)
    folders = [tmp_path / n for n in ("one", "two", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        fit(dataclasses.replace(short, seed=seed), folder, quiet=True)
    one, two, other = (read_rows(folder) for folder in folders)
    assert one == two
    assert one[0]["loss"] != other[0]["loss"]


def test_an_infinite_loss_names_step_images_and_the_last_good_state(images, tmp_path):
    config = make_config(images, weight_decay=0.0)
    folder = tmp_path / "run"
    fit(config, folder, quiet=True)
    text = json.loads((folder / "config.json").read_text())
    text["optim"]["learning_rate"], text["epochs"] = 1e30, 5
    (folder / "config.json").write_text(json.dumps(text))
    with pytest.raises(NonFiniteLossError) as caught:
        resume_run(folder)
    message = str(caught.value)
    assert "step 10 (counted from 0)" in message
    assert f"{images}/train/" in message
    assert f"The last good checkpoint is {folder}/checkpoints/9." in message
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 9
    # Nothing is lost: with a sane rate the run goes on.
    text["optim"]["learning_rate"] = 0.01
    (folder / "config.json").write_text(json.dumps(text))
    assert resume_run(folder).finished


def test_a_last_step_that_ruins_the_network_is_not_saved(images, tmp_path):
    config = make_config(images, learning_rate=1e30, batch_size=27, epochs=1)
    with pytest.raises(NonFiniteLossError, match=r"step 0 .* checkpoint is none"):
        fit(config, tmp_path / "run", quiet=True)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert not checkpoints.steps()


def test_nothing_is_written_for_a_config_that_does_not_fit(images, tmp_path):
    for changes, message in (
        ({"augment": ("fliip",)}, "unknown augmentation 'fliip'"),
        ({"freeze": ("**",)}, "freeze every parameter"),
        ({"freeze": ("neck/**",)}, "matches no parameter"),
        ({"unfreeze": ("1:neck/**",)}, "matches no parameter"),
        ({"rates": ("neck/**=2",)}, "matches no parameter"),
        ({"batch_size": 28}, "batch_size=28 is more than the 27 images"),
        ({"eval_split": "validation"}, "no split 'validation'"),
        ({"model": ModelConfig("lenet5"), "label_smoothing": 0.1}, "no label smooth"),
    ):
        with pytest.raises(ValueError, match=message.replace("*", r"\*")):
            fit(make_config(images, **changes), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_bfloat16_trains_and_opens_as_float32(images, tmp_path):
    model = ModelConfig("lenet5_modern", dtype="bfloat16")
    fit(make_config(images, model=model, steps=2), tmp_path / "run", quiet=True)
    assert {v.dtype for k, v in read_arrays(tmp_path / "run", 2).items() if v.ndim} == {
        np.dtype("float32")
    }
    opened, _ = zoo.create("lenet5_modern", weights=str(tmp_path / "run"))
    assert opened.backbone.config.dtype == np.float32


def test_a_signal_stops_after_a_step_and_saves(config, tmp_path):
    longer = dataclasses.replace(config, steps=999, eval_every=999, save_every=999)
    before = signal.getsignal(signal.SIGINT)
    with signal_during(tmp_path / "run", signal.SIGINT, rows=2):
        result = fit(longer, tmp_path / "run", quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert not result.finished
    step = int(result.state.step)
    assert 4 <= step < 999
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() == step
    assert result.evaluated is None
    with pytest.raises(ValueError, match=f"stopped after step {step} and has no"):
        result.metrics  # noqa: B018
    text = write_run_report(result).read_text()
    assert f"{step} of {result.experiment.total_steps}" in text
    assert "Confusion matrix" not in text


def test_history_takes_back_what_came_after_and_what_was_cut_off(tmp_path):
    with History(tmp_path) as history:
        for step in (1, 2, 3):
            history.log("train", step, step / 2, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste')
    assert [r["step"] for r in read_history(tmp_path)] == [1, 2, 3]
    with History(tmp_path, resume_from=2) as history:
        history.log("train", 3, 1.5, {"loss": 9.0})
    rows = read_history(tmp_path)
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 0.5), (3, 9.0)]
