"""The command line: what it lists, what it takes, and what comes out."""

import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_command, write_images

from train.cli import train
from train.commands import EvaluateOptions, open_network
from train.config import TrainConfig, load_config, parse_options, save_config
from train.configs import CONFIGS, get_config
from train.data import array_source
from train.experiment import prepare_experiment

COMMANDS = (
    "resume",
    "evaluate",
    "predict",
    "visualize",
    "transfer",
    "study",
)


def test_the_usage_lists_everything():
    code, out, err = run_command()
    assert (code, err) == (0, "")
    assert run_command("--help")[1] == out
    lines = [line.split() for line in out.splitlines()]
    assert {line[0] for line in lines if len(line) == 1} >= set(CONFIGS)
    for command in (*COMMANDS, "--distributed"):
        assert command in out


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("digits_lenet", "digits_lenet5"),
        ("cifar10_resnet21", "cifar10_resnet20"),
        ("evalute", "evaluate"),
        ("resumed", "resume"),
    ],
)
def test_an_unknown_command_gets_the_nearest_ones(name, near):
    code, out, err = run_command(name)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: unknown command or experiment '{name}'; did you ")
    assert near in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [*COMMANDS, "digits_lenet5", "cifar10_plain20_tiny"])
def test_every_command_has_help(name):
    code, out, err = run_command(name, "--help")
    assert (code, err) == (0, "")
    assert f"canon-zoo train {name}" in out


def list_fields(config=TrainConfig, prefix=""):
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.type):
            yield from list_fields(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_field_is_an_option_with_words_and_units():
    _, out, _ = run_command("digits_lenet5", "--help")
    text = re.sub(r"[│\s]+", " ", out)
    for name in list_fields():
        option = "--" + name.replace("_", "-")
        found = re.search(rf"{option} ?(\S* .{{40}})", text)
        assert found, option
    # What has a unit says it.
    for words in (
        "Length in epochs",
        "Length in steps",
        "Epochs between evaluations",
        "Epochs between checkpoints",
        "Steps between logged",
        "Images per step",
        "in megabytes",
        "warm-up, in steps",
        "fractions of the whole training",
    ):
        assert words in text


def test_help_of_the_other_commands_names_units():
    _, out, _ = run_command("evaluate", "--help")
    assert "Images per step" in out
    assert "last undamaged one" in run_command("resume", "--help")[1]


def test_unknown_options_are_refused_with_the_nearest_ones():
    code, _, err = run_command("digits_lenet5", "--lerning-rate", "0.1")
    assert code != 0
    assert "--learning-rate" in err
    code, _, err = run_command("digits_lenet5", "--schedule", "cosin")
    assert code != 0
    assert "cosin" in err


@pytest.mark.parametrize("name", [*CONFIGS, "digits_lenet5_tiny"])
def test_configs_come_back_from_json_as_they_were(name, tmp_path):
    config = get_config(name)
    optim = dataclasses.replace(
        config.optim, boundaries=(0.25, 0.5), clip_norm=None, rates=("a/**=0.1",)
    )
    config = dataclasses.replace(config, optim=optim, seed=3)
    save_config(config, tmp_path / "config.json")
    again = load_config(tmp_path / "config.json")
    assert again == config
    assert isinstance(again.optim.boundaries, tuple)
    assert again.optim.clip_norm is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["optim"].update(lerning_rate=1), "lerning_rate.*optim"),
        (lambda c: c.update(epoch=1), "epoch"),
        (lambda c: c.pop("model"), "model"),
        (lambda c: c["optim"].update(schedule="cosin"), "schedule"),
        (lambda c: c["optim"].update(learning_rate="fast"), "learning_rate"),
        (lambda c: c["data"].update(batch_size=0), "data.batch_size must be > 0, got"),
    ],
)
def test_a_config_that_is_none_names_the_place(change, message, tmp_path):
    path = tmp_path / "config.json"
    save_config(get_config("digits_lenet5"), path)
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    path.write_text(json.dumps(text)[:50])
    with pytest.raises(ValueError, match=str(path)):
        load_config(path)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--batch-size", "0"), "data.batch_size"),
        (("--data.workers", "-1"), "data.workers"),
        (("--optim.accumulate", "5"), "optim.accumulate"),
        (("--optim.label-smoothing", "1"), "optim.label_smoothing"),
        (("--optim.ema-decay", "1"), "optim.ema_decay"),
        (("--optim.boundaries", "0.7", "0.3"), "optim.boundaries"),
        (("--optim.momentum", "1"), "optim.momentum"),
        (("--optim.clip-norm", "0"), "optim.clip_norm"),
        (("--optim.warmup-steps", "-2"), "optim.warmup_steps"),
        (("--learning-rate", "-0.1"), "optim.learning_rate"),
        (("--epochs", "0"), "epochs"),
        (("--steps", "-1"), "steps"),
        (("--log-every", "0"), "log_every"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_values_out_of_range_are_named(options, name):
    code, _, err = run_command("digits_lenet5", *options)
    assert code != 0
    assert f"{name} must be" in re.sub(r"[│\s]+", " ", err)


def test_model_options_are_literals_or_text():
    found = parse_options(("shortcut=B", "remat=True", "width=2", "x=a=b"))
    assert found == {"shortcut": "B", "remat": True, "width": 2, "x": "a=b"}
    with pytest.raises(ValueError, match="'remat' must be name=value"):
        parse_options(("remat",))


@pytest.mark.parametrize(
    "name",
    [
        "digits_lenet5",
        "digits_lenet5_modern",
        pytest.param("cifar10_resnet20", marks=pytest.mark.apart),
    ],
)
def test_tiny_experiments_run(name, tmp_path, tmp_path_factory):
    config = get_config(f"{name}_tiny")
    data_dir = tmp_path_factory.getbasetemp() / "digits"
    config = dataclasses.replace(
        config,
        run_dir=str(tmp_path / "run"),
        data=dataclasses.replace(config.data, data_dir=str(data_dir)),
    )
    result = train(config, name)
    assert result.finished
    assert int(result.state.step) == 3
    assert result.metrics["count"] == 364
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, the images it was trained on, and what it said."""
    root = tmp_path_factory.mktemp("trained")
    images = write_images(root / "images", {"train": 9, "test": 5})
    code, out, err = run_command(
        *("digits_lenet5_modern", "--dataset", f"imagefolder:{images}"),
        *("--batch-size", "8", "--epochs", "2", "--augment", "--learning-rate", "0.02"),
        *("--optim.label-smoothing", "0.3", "--data.on-bad-image", "skip"),
        *("--run-dir", root / "Ann's run"),
    )
    assert code == 0, err
    return root / "Ann's run", images, out


def test_training_says_what_came_out_and_what_is_next(trained):
    run_dir, _, out = trained
    assert re.search(r"\d\.\d\d% right, \d+ of 15 images, .* \(split 'test'\)", out)
    for command in ("evaluate", "predict", "transfer --from"):
        line = next(line for line in out.splitlines() if f"train {command} " in line)
        assert str(run_dir) in shlex.split(line)
    assert f'zoo.create("lenet5_modern", weights="{run_dir}")' in out


def test_evaluating_a_run_gives_its_own_metrics(trained):
    run_dir, *_ = trained
    code, out, err = run_command("evaluate", run_dir)
    assert (code, err) == (0, "")
    rows = [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    best = max(evaluations, key=lambda row: (row["accuracy"], row["step"]))
    assert f"{best['accuracy']:.2%} ({best['correct']} of 15)" in out
    assert f"loss      {best['loss']:.4f}" in out


def test_evaluating_on_other_splits_and_sets(trained):
    run_dir, images, _ = trained
    code, out, _ = run_command("evaluate", run_dir, "--split", "train")
    assert code == 0
    assert "of 27)" in out
    code, out, _ = run_command(
        *("evaluate", "--model", "lenet5_modern", "--weights", run_dir),
        *("--dataset", f"imagefolder:{images}"),
    )
    assert code == 0
    assert "of 15)" in out


def test_unreadable_images_are_treated_as_in_training(trained, tmp_path):
    run_dir, images, _ = trained
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "test" / "a" / "00.png").write_bytes(b"no image")
    command = "evaluate", run_dir, "--dataset", f"imagefolder:{tmp_path / 'images'}"
    code, out, err = run_command(*command)
    assert code == 0, err
    assert "of 14)" in out
    code, _, err = run_command(*command, "--on-bad-image", "stop")
    assert code == 1
    assert "00.png" in err
    page = tmp_path / "page.html"
    code, _, err = run_command(
        *("visualize", *command[1:], "--layers", "conv1", "--channels", "1"),
        *("--out", page),
    )
    assert code == 0, err
    assert "14 of 14" in page.read_text()


def test_a_run_and_other_weights_are_not_both_evaluated(trained):
    run_dir, *_ = trained
    for flag in ("--model", "--weights"):
        code, _, err = run_command("evaluate", run_dir, flag, "lenet5")
        assert code == 1
        assert f"{flag} lenet5" in err
        assert str(run_dir) in err


def test_options_of_evaluating_replace_those_of_the_run(trained, tmp_path):
    config = load_config(trained[0] / "config.json")
    data = dataclasses.replace(
        config.data, landmark_noise=3.0, eval_split="train", orientation="stored"
    )
    run_dir = tmp_path / "run"
    shutil.copytree(trained[0], run_dir)
    save_config(dataclasses.replace(config, data=data), run_dir / "config.json")

    def opened(**options):
        return open_network(EvaluateOptions(run_dir, **options)).data

    assert opened().landmark_noise == 3.0
    assert opened(landmark_noise=0.0).landmark_noise == 0.0
    # The split and the colors are those of the run's own data set alone.
    other = opened(dataset=config.data.dataset)
    assert (other.eval_split, other.orientation) == ("test", "stored")
    assert (other.landmark_noise, other.color) == (3.0, "gray")
    with pytest.raises(ValueError, match=r"eval_batch_size .* 0"):
        opened(batch_size=0)


def test_options_of_another_task_are_refused_in_training(trained):
    config = load_config(trained[0] / "config.json")
    for name, value in (("mirror", True), ("align", "3d"), ("landmark_noise", 5.0)):
        data = dataclasses.replace(config.data, **{name: value})
        flag = name.replace("_", "-")
        with pytest.raises(ValueError, match=rf"--{flag}.*lenet5_modern.*{value}"):
            prepare_experiment(dataclasses.replace(config, data=data))


def test_an_empty_evaluation_set_is_refused_before_training(trained):
    config = load_config(trained[0] / "config.json")
    images = np.zeros((8, 28, 28, 1), np.uint8)
    sources = [
        array_source(images[:count], np.zeros(count, int), "abc", name="noise")
        for count in (8, 0)
    ]
    with pytest.raises(ValueError, match=r"eval_split=test.*noise"):
        prepare_experiment(config, sources)


def test_only_a_new_folder_is_removed_after_a_refusal(tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("own", "new"):
        code, _, err = run_command(
            *("digits_lenet5_modern", "--dataset", f"imagefolder:{tmp_path / 'none'}"),
            *("--run-dir", tmp_path / name),
        )
        assert code == 1
        assert "none" in err
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_predicting_draws_a_picture(trained, tmp_path):
    run_dir, images, _ = trained
    image = images / "test" / "b" / "00.png"
    code, out, err = run_command("predict", run_dir, image, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert re.match(rf"{re.escape(str(image))}: [abc] \d+\.\d%", out)
    with Image.open(tmp_path / "out" / "00.png") as picture:
        picture.load()
        assert min(picture.size) > 50


def test_photographs_are_turned_in_predicting_as_in_training(trained, tmp_path):
    run_dir, images, _ = trained
    exif = Image.Exif()
    exif[0x0112] = 3
    names = []
    for c in "abc":
        with Image.open(images / "test" / c / "00.png") as image:
            image.save(tmp_path / f"{c}.png")
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(tmp_path / f"{c}-turned.png", exif=exif)
        names += [tmp_path / f"{c}.png", tmp_path / f"{c}-turned.png"]
    code, out, err = run_command("predict", run_dir, *names, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    said = [line.partition(": ")[2].partition(" (")[0] for line in out.splitlines()]
    assert said[::2] == said[1::2]
    assert len(set(said)) == 3
    # Where a run was told to take images as they are stored, so does predicting.
    config = load_config(run_dir / "config.json")
    stored = dataclasses.replace(config.data, orientation="stored")
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    save_config(dataclasses.replace(config, data=stored), copy / "config.json")
    _, out, _ = run_command("predict", copy, *names, "--out", tmp_path / "out")
    said = [line.partition(": ")[2].partition(" (")[0] for line in out.splitlines()]
    assert said[::2] != said[1::2]


def test_options_of_training_are_those_of_evaluating(trained):
    run_dir, images, _ = trained
    code, out, err = run_command(
        *("evaluate", run_dir, "--data.orientation", "stored"),
        *("--data.max-boxes", "3", "--dataset", f"imagefolder:{images}"),
    )
    assert (code, err) == (0, "")
    assert "of 15)" in out


def test_resuming_a_finished_run_says_the_same(trained):
    run_dir, _, said = trained
    code, out, _ = run_command("resume", run_dir)
    assert code == 0
    assert out in said


def test_transfer_takes_the_model_from_the_run(trained, tmp_path):
    run_dir, images, _ = trained
    code, out, err = run_command(
        *("transfer", "--from", run_dir, "--dataset", f"imagefolder:{images}"),
        *("--classes", "a", "c", "--freeze", "backbone/**", "--batch-size", "6"),
        *("--epochs", "1", "--run-dir", tmp_path / "run"),
    )
    assert code == 0, err
    assert "lenet5_modern on imagefolder" in out
    config = load_config(tmp_path / "run" / "config.json")
    assert config.model.name == "lenet5_modern"
    assert config.data.classes == ("a", "c")
