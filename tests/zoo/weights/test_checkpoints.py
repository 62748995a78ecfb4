"""Variables out of a training run's checkpoints."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from zoo.spec import Card, Preprocess
from zoo.weights import read_card, read_checkpoint
from zoo.weights.checksums import write_checksums

CARD = Card(
    model="cifar_resnet20",
    num_classes=2,
    overrides={"shortcut": "B"},
    preprocess=Preprocess(size=8, channels=1, mean=(0.1,), std=(0.3,)),
    class_names=("cat", "dog"),
)


def make_state(step: int, ema: dict | None = None) -> dict:
    """A state as the trainer saves it; the numbers tell the step."""
    state = {
        "step": jnp.int32(step),
        "params": {
            "backbone": {
                "conv": {"kernel": jnp.full((3, 3, 1, 4), step, jnp.bfloat16)}
            },
            "head": {"fc": {"kernel": jnp.full((4, 2), step, jnp.float32)}},
        },
        "batch_stats": {"backbone": {"bn": {"mean": jnp.full(4, step / 2)}}},
        "opt_state": ({"head": {"fc": {"kernel": jnp.zeros((4, 2))}}}, None, ()),
    }
    return state if ema is None else {**state, "ema": ema}


def write_run(
    run,
    states: dict[int, dict],
    metrics: dict[int, dict] | None = None,
    *,
    checksums: bool = True,
):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["accuracy"])
    with ocp.CheckpointManager(run / "checkpoints", options=options) as manager:
        for step, state in states.items():
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                card=ocp.args.JsonSave(CARD.to_json()),
            )
            manager.save(step, args=items, metrics=(metrics or {}).get(step))
    for item in (run / "checkpoints").glob("[0-9]*/*/") if checksums else ():
        write_checksums(item)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", {step: make_state(step) for step in (1, 2, 3)})
    return tmp_path / "run"


def test_the_models_part_is_read_as_numpy(run):
    variables, card, step = read_checkpoint(run)
    assert (card, step) == (CARD, 3)
    assert sorted(variables) == ["batch_stats", "params"]
    kernel = variables["params"]["backbone"]["conv"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, np.full((3, 3, 1, 4), 3))
    mean = variables["batch_stats"]["backbone"]["bn"]["mean"]
    np.testing.assert_array_equal(mean, np.full(4, 1.5, np.float32))


def test_every_folder_of_a_run_is_understood(run, monkeypatch):
    assert read_checkpoint(run / "checkpoints")[2] == 3
    assert read_checkpoint(run / "checkpoints" / "1")[2] == 1
    assert read_checkpoint(run, step=2)[2] == 2
    monkeypatch.chdir(run)
    variables, _, step = read_checkpoint("checkpoints/2")
    assert step == 2
    assert variables["params"]["head"]["fc"]["kernel"][0, 0] == 2


def test_the_best_accuracy_is_chosen_and_of_equal_ones_the_last(tmp_path):
    states = {step: make_state(step) for step in (1, 2, 3, 4)}
    metrics = {step: {"accuracy": a} for step, a in ((1, 0.5), (2, 0.8), (3, 0.8))}
    metrics[4] = {"accuracy": 0.1}
    write_run(tmp_path, states, metrics)
    variables, _, step = read_checkpoint(tmp_path)
    assert step == 3
    assert variables["params"]["head"]["fc"]["kernel"][0, 0] == 3


def test_moving_averages_replace_what_they_average(tmp_path):
    averages = {
        "params": {"head": {"fc": {"kernel": jnp.full((4, 2), 9.0)}}},
        "batch_stats": {"backbone": {"bn": {"mean": jnp.full(4, 8.0)}}},
    }
    write_run(tmp_path, {1: make_state(1, averages)})
    variables, _, _ = read_checkpoint(tmp_path)
    assert variables["params"]["head"]["fc"]["kernel"][0, 0] == 9
    assert variables["batch_stats"]["backbone"]["bn"]["mean"][0] == 8
    # Frozen: without an average.
    assert variables["params"]["backbone"]["conv"]["kernel"][0, 0, 0, 0] == 1


def test_a_network_without_batch_norm_has_no_batch_stats(tmp_path):
    write_run(tmp_path, {1: {**make_state(1), "batch_stats": {}}})
    variables, _, _ = read_checkpoint(tmp_path)
    assert sorted(variables) == ["params"]


def test_steps_that_were_not_finished_do_not_count(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    assert read_checkpoint(run)[2] == 3
    with pytest.raises(FileNotFoundError, match=r"no step 4; there are: \[1, 2, 3\]"):
        read_checkpoint(run, step=4)


def damage_manifest(step):
    (step / "state" / "manifest.ocdbt").write_bytes(b"")


def damage_numbers(step):
    for file in (step / "state").glob("**/d/*"):
        file.write_bytes(file.read_bytes()[:20])


def damage_card(step):
    (step / "card" / "metadata").write_text('{"model": ')


def remove_structure(step):
    (step / "state" / "_METADATA").unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_manifest, "manifest.ocdbt"),
        (damage_numbers, "state/d/"),
        (damage_card, "card/metadata"),
        (remove_structure, "_METADATA"),
    ],
)
@pytest.mark.parametrize("path", ["", "checkpoints/3"])
def test_a_damaged_step_is_named_with_those_that_are_not(run, damage, named, path):
    damage(run / "checkpoints" / "3")
    damage_card(run / "checkpoints" / "1")
    with pytest.raises(ValueError, match="is damaged; undamaged steps:") as error:
        read_checkpoint(run / path)
    message = str(error.value)
    assert f"{run / 'checkpoints' / '3'} is damaged; undamaged steps: [2]" in message
    assert named in message
    assert "tensorstore_spec" not in message
    assert read_checkpoint(run, step=2)[2] == 2


def test_a_damaged_single_step_says_that_there_is_no_other(tmp_path):
    write_run(tmp_path, {5: make_state(5)})
    damage_manifest(tmp_path / "checkpoints" / "5")
    with pytest.raises(ValueError, match="no other step is undamaged"):
        read_checkpoint(tmp_path)


def test_folders_without_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        read_checkpoint(tmp_path)


def test_steps_of_earlier_versions_are_read_and_what_they_lack_is_said(
    tmp_path, caplog
):
    write_run(tmp_path, {5: make_state(5)}, checksums=False)
    assert read_checkpoint(tmp_path)[2] == 5
    assert "checkpoints/5 has no checksums" in caplog.text


def test_a_damaged_card_or_metric_without_checksums_is_named(tmp_path, caplog):
    metrics = {step: {"accuracy": step / 10} for step in (1, 2)}
    states = {step: make_state(step) for step in (1, 2)}
    write_run(tmp_path, states, metrics, checksums=False)
    file = tmp_path / "checkpoints/2/metrics/metrics"
    file.write_text('{"accuracy": "high"}')
    assert read_checkpoint(tmp_path)[2] == 1
    assert f"{file} is damaged: 'high' is no number" in caplog.text
    file = tmp_path / "checkpoints/1/card/metadata"
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps({**content, "num_classes": "many"}))
    for read in (read_checkpoint, read_card):
        with pytest.raises(ValueError, match=r"card/metadata: not a model card: num_c"):
            read(tmp_path)


def test_nothing_is_printed_or_logged(run, capfd, caplog):
    read_checkpoint(run)
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelname != "DEBUG"] == []


def test_a_damaged_step_prints_nothing_but_its_error(run, capfd, caplog):
    damage_numbers(run / "checkpoints" / "3")
    caplog.clear()
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(run)
    assert capfd.readouterr() == ("", "")
    assert [r for r in caplog.records if r.levelname != "DEBUG"] == []
