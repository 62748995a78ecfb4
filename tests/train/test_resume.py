"""A run that was killed, stopped or finished goes on as if nothing had happened."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from tiny_runs import (
    ROOT,
    assert_same_state,
    environment,
    make_config,
    read_rows,
    run_command,
    run_python,
    signal_during,
    to_file,
    write_images,
)

from train.checkpoint import CheckpointError, Checkpoints
from train.config import ModelConfig, load_config
from train.fit import fit, resume_run

# Trains as its arguments say, and kills itself as if the power had gone: after a step
# is logged, or while a checkpoint is being written.
VICTIM = """
import os, signal, sys, threading
from pathlib import Path
from train.cli import use_compilation_cache
from train.checkpoint import Checkpoints
from train.config import load_config
from train.history import History
from train.fit import fit

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(folder):
    while not [*folder.glob("checkpoints/*.orbax-checkpoint-tmp")]:
        pass
    die()

if __name__ == "__main__":
    config, folder, how, when = sys.argv[1:]
    use_compilation_cache()
    if how == "save":
        threading.Thread(target=watch, args=[Path(folder)], daemon=True).start()
    log = History.log
    def log_and_die(self, kind, step, *rest):
        log(self, kind, step, *rest)
        if kind == how and step == int(when):
            self._file.write('{"kind": "tra')
            self._file.flush()
            die()
    History.log = log_and_die
    save = Checkpoints.save
    def save_and_wait(self, *rest):
        save(self, *rest)
        self.wait()
    if how != "save":
        Checkpoints.save = save_and_wait
    fit(load_config(Path(config)), folder)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 27 to train: three whole batches of 8 and three images left over.
    return write_images(tmp_path_factory.mktemp("images"), {"train": 9, "test": 3})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config(images):
    """Nine steps in three epochs, with all that a step's randomness can touch."""
    return make_config(
        images,
        augment=("affine",),
        schedule="cosine",
        ema_decay=0.9,
        freeze=("backbone/**",),
        unfreeze=("1:backbone/ip1/**", "2:backbone/conv2/**"),
    )


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(config, folder, quiet=True)
    return folder


def kill(config, folder, cache, how, when=0):
    """Runs a victim; returns the complete steps that it left."""
    file = to_file(config, folder.with_suffix(".json"))
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, file, folder, how, str(when)],
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.wait(timeout=240) == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        # Processes that read images do not notice.
        os.killpg(process.pid, signal.SIGKILL)
    with Checkpoints(folder) as checkpoints:
        return list(checkpoints.steps())


def assert_same_run(folder, other, step=9):
    assert_same_state(folder, other, step)
    assert read_rows(folder) == read_rows(other)


@pytest.mark.parametrize(
    ("how", "when", "left"),
    [
        pytest.param("train", 1, [], marks=pytest.mark.apart),
        ("train", 5, [3]),
        pytest.param("eval", 9, [3, 6], marks=pytest.mark.apart),
    ],
    ids=["before any checkpoint", "within an epoch", "before the last save"],
)
def test_a_killed_run_goes_on_to_the_bit(
    config, uninterrupted, tmp_path, cache, how, when, left
):
    folder = tmp_path / "run"
    assert kill(config, folder, cache, how, when) == left
    result = resume_run(folder)
    assert result.finished
    assert_same_run(folder, uninterrupted)


@pytest.mark.apart
def test_a_run_killed_while_it_saves_goes_on_to_the_bit(
    config, uninterrupted, tmp_path, cache
):
    folder = tmp_path / "run"
    left = kill(config, folder, cache, "save")
    assert 9 not in left
    assert [*folder.glob("checkpoints/*.orbax-checkpoint-tmp")]
    # By the door that a user takes, in a process of its own.
    done = run_python("-m", "train", "resume", folder, env=environment(cache))
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()
    assert_same_run(folder, uninterrupted)


@pytest.mark.apart
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_stream_goes_on_to_the_bit(images, tmp_path, cache, workers):
    config = make_config(images, placement="stream", workers=workers, steps=5)
    fit(config, tmp_path / "whole", quiet=True)
    assert kill(config, tmp_path / "run", cache, "train", 4) == [3]
    resume_run(tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", 5)


def test_a_stream_with_workers_goes_on_where_it_was(images, tmp_path):
    config = make_config(images, placement="stream", workers=1, steps=5)
    fit(config, tmp_path / "run", quiet=True)
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    resume_run(tmp_path / "run", step=3)
    assert_same_run(tmp_path / "run", tmp_path / "whole", 5)


@pytest.mark.apart
def test_a_network_with_batch_norm_goes_on_to_the_bit(tmp_path):
    images = write_images(
        tmp_path / "images", {"train": 6, "test": 2}, size=32, mode="RGB"
    )
    config = make_config(images, model=ModelConfig("cifar_resnet20"), epochs=2)
    fit(config, tmp_path / "whole", quiet=True)
    fit(config, tmp_path / "run", quiet=True)
    resume_run(tmp_path / "run", step=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole", 4)


def test_a_run_goes_on_from_any_of_its_steps(config, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    fit(config, folder, quiet=True)
    with Checkpoints(folder) as checkpoints:
        first, *_ = steps = checkpoints.steps()
    assert first < 9
    # The last one is lost: its place must be filled again.
    state = folder / "checkpoints" / "9" / "state"
    for file in state.rglob("*"):
        if file.parent.name == "d":
            file.write_bytes(b"lost")
    with pytest.raises(CheckpointError, match=rf"checkpoints/9 .*{first}"):
        resume_run(folder, step=9)
    with pytest.raises(CheckpointError, match=f"has no step 4; it has .*{steps[0]}"):
        resume_run(folder, step=4)
    # Without a step it goes on from the last undamaged one.
    assert resume_run(folder).finished
    assert_same_run(folder, uninterrupted)


def test_a_finished_run_stays_as_it_is(uninterrupted, config, tmp_path):
    before = read_rows(uninterrupted)
    result = resume_run(uninterrupted)
    assert result.finished
    assert int(result.state.step) == 9
    assert read_rows(uninterrupted) == before
    last = before[-1]
    assert last["kind"] == "eval"
    assert result.metrics["loss"] == last["loss"]


def test_a_run_is_not_resumed_with_fewer_steps_than_it_has_done(uninterrupted):
    before = (uninterrupted / "config.json").read_bytes()
    code, _, err = run_command("resume", uninterrupted, "--steps", 2)
    assert code == 1
    assert re.search(r"9 steps.*--steps .*2", err)
    assert (uninterrupted / "config.json").read_bytes() == before


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is no run folder"):
        resume_run(tmp_path)


def test_sigterm_saves_and_leaves_in_peace(images, tmp_path):
    folder = tmp_path / "run"
    options = (
        *("--dataset", f"imagefolder:{images}"),
        *("--batch-size", "8", "--augment", "affine"),
        *("--steps", "4000", "--eval-every", "2000", "--save-every", "2000"),
        *("--run-dir", str(folder), "--log-every", "1"),
        *("--optim.ema-decay", "0.9", "--schedule", "constant"),
    )
    with signal_during(folder, signal.SIGTERM, rows=3):
        code, out, err = run_command("digits_lenet5_modern", *options)
    assert code == 0, err
    with Checkpoints(folder) as checkpoints:
        (step,) = checkpoints.steps()
    assert 0 < step < 4000
    assert f"Stopped after step {step}" in out
    assert f"canon-zoo train resume {folder}" in out
    # Not all of the 4,000: a few steps more must be those of a run without a stop.
    shorter = load_config(folder / "config.json")
    shorter = dataclasses.replace(shorter, steps=step + 4)
    fit(shorter, tmp_path / "other", quiet=True)
    to_file(shorter, folder / "config.json")
    assert resume_run(folder).finished
    assert_same_run(folder, tmp_path / "other", step + 4)
