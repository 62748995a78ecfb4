"""Nothing of a run is lost or mixed up: damage, clashes and refusals."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
from damage import clashes, flips, kills
from tiny_runs import (
    ROOT,
    environment,
    forced_devices,
    make_config,
    read_rows,
    run_command,
    run_python,
    write_images,
)

import zoo
from train.checkpoint import CheckpointError, list_steps
from train.fit import fit, resume_run
from train.history import read_history
from train.run_dir import new_run_dir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), {"train": 9, "test": 3})


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of nine steps in three epochs, and checkpoints of the steps 6 and 9."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(make_config(images), folder, quiet=True)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change_state(folder):
    """Changes a byte in the middle of a step's largest file."""
    files = (p for p in (folder / "state").rglob("*") if p.is_file())
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_single_flipped_bits_are_noticed(tmp_path):
    found = flips(tmp_path, 40, seed=0)
    assert found["unnoticed"] == 0
    assert found["noticed"] > 30


@pytest.mark.apart
def test_many_flipped_bits_are_noticed(tmp_path):
    assert flips(tmp_path, 1000, seed=1)["unnoticed"] == 0


def test_a_damaged_step_is_skipped_and_named(run, caplog):
    change_state(run / "checkpoints" / "9")
    assert resume_run(run).finished
    assert "checkpoint 9 is damaged and skipped" in caplog.text
    assert list_steps(run) == [6, 9]
    zoo.create("lenet5_modern", weights=run / "checkpoints" / "9")


def test_a_damaged_step_that_is_asked_for_is_refused_and_nothing_is_lost(run):
    change_state(run / "checkpoints" / "6")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be read.*\[9\]"):
        resume_run(run, step=6)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert list_steps(run) == [6, 9]


def test_all_steps_damaged_is_an_error(run):
    for step in (6, 9):
        change_state(run / "checkpoints" / str(step))
    with pytest.raises(
        CheckpointError, match=r"each of the steps \[6, 9\] of .* is bad"
    ):
        resume_run(run)


def test_weights_of_a_damaged_step_are_refused(run):
    best = zoo.weights.read_checkpoint(run)[2]
    change_state(run / "checkpoints" / str(best))
    with pytest.raises(ValueError, match=f"checkpoints/{best} is damaged; undamaged"):
        zoo.create("lenet5_modern", weights=run)
    code, _, err = run_command("evaluate", run)
    assert code == 1
    assert f"checkpoints/{best} is damaged" in err


@pytest.mark.parametrize("content", [b"", b"null", b'{"accuracy": 0.1}', b"\xff"])
def test_damaged_metrics_of_a_step_do_not_stop_a_run(run, content, caplog):
    (run / "checkpoints" / "6" / "metrics" / "metrics").write_bytes(content)
    zoo.create("lenet5_modern", weights=run)
    assert "step 6 is ignored in the choice" in caplog.text
    assert resume_run(run).finished
    assert "checkpoint 6 is damaged; it is kept as" in caplog.text
    assert (run / "checkpoints" / "damaged-6" / "state").is_dir()


def test_a_resume_that_is_refused_changes_nothing(run, images):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    config = json.loads((run / "config.json").read_text())
    config["data"]["batch_size"] = 1000
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="batch_size=1000 is more than"):
        resume_run(run, step=6)
    for path, content in before.items():
        if path.name != "config.json":
            assert path.read_bytes() == content


def test_a_bad_line_in_the_middle_is_named_and_no_row_is_lost(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3][:20] + "\n"
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4 is damaged"):
        resume_run(run, step=6)
    assert path.read_text() == "".join(lines)
    assert list_steps(run) == [6, 9]
    path.write_text("".join(lines[:3] + lines[4:]) + '{"kind": "tr')
    assert resume_run(run, step=6).finished
    assert len(read_history(run)) == len(lines) - 1


# Runs commands while no file may become larger than a limit, as if the disk were full.
FULL = """
import json, resource, signal, sys
from train.__main__ import train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# A module's compiled code that is cut off would stay in the environment.
sys.dont_write_bytecode = True
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        train(arguments)
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)
    print("---", file=sys.stderr)
"""


def test_a_full_disk_costs_the_report_or_stops_the_run_and_says_where(run, images):
    (run / "report.html").write_text("the last one")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    other = run.parent / "other"
    options = ("--dataset", f"imagefolder:{images}", "--batch-size", "8")
    options += ("--steps", "40", "--log-every", "1", "--run-dir", str(other))
    commands = [
        (20_000, ("resume", str(run))),
        (4000, ("digits_lenet5_modern", *options)),
    ]
    # It must not keep compiled programs, which would be cut for all later tests.
    env = environment(run.parent, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9")
    done = run_python("-c", FULL, json.dumps(commands), env=env)
    assert "Traceback" not in done.stderr
    reporting, training, _ = done.stderr.split("---\n")

    assert f"error: the run in {run} is saved, and only its report cannot" in reporting
    assert "File too large" in reporting
    assert f"`canon-zoo train resume {run}` writes it" in reporting
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {
        p for p in after if p.parent.name == "events"
    }
    code, _, err = run_command("resume", run)
    assert code == 0, err
    assert (run / "report.html").stat().st_size > 20_000

    assert "error: the metrics of step" in training
    assert f"cannot be written in {other}: File too large" in training
    assert f"`canon-zoo train resume {other}` goes on" in training
    assert resume_run(other).finished
    assert [row["step"] for row in read_rows(other) if row["kind"] == "train"] == [
        *range(1, 41)
    ]


HOLD = """
import sys, time
from pathlib import Path
from train.run_dir import lock_run_dir
with lock_run_dir(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_run_is_written_by_one_process_and_a_dead_ones_lock_is_free(run):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        cwd=ROOT,
        env=environment(run.parent),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        before = (run / "metrics.jsonl").read_bytes()
        with pytest.raises(ValueError, match="another process writes the run"):
            resume_run(run, step=6)
        assert (run / "metrics.jsonl").read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    assert resume_run(run, step=6).finished


def test_names_of_new_folders_are_unique_and_an_unused_one_goes(
    images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = [new_run_dir("a") for _ in range(5)]
    assert len({*names}) == 5
    assert all(name.is_dir() for name in names)
    bad = ("--dataset", f"imagefolder:{images}", "--batch-size", "999")
    code, _, err = run_command("digits_lenet5_modern", *bad)
    assert code == 1, err
    assert sorted((tmp_path / "runs").iterdir()) == sorted(
        tmp_path / name for name in names
    )


def test_resume_takes_options_and_says_what_is_other(run, images, caplog):
    caplog.set_level(logging.INFO)
    code, _, err = run_command(
        *("resume", run, "--step", "6", "--data.batch-size", "9", "--steps", "8")
    )
    assert code == 0, err
    assert "data.batch_size is 9 and not 8" in caplog.text
    assert "steps is 8 and not 0" in caplog.text
    assert json.loads((run / "config.json").read_text())["data"]["batch_size"] == 9
    steps = [row["step"] for row in read_rows(run) if row["kind"] == "train"]
    assert steps == [*range(1, 9)]
    code, _, err = run_command("resume", run, "--seed", "4")
    assert (code, "a run keeps its seed" in err) == (1, True)
    code, _, err = run_command("resume", images)
    assert (code, "is no run folder" in err) == (1, True)


@pytest.mark.apart
def test_a_run_goes_on_with_another_number_of_devices(run, tmp_path):
    env = environment(tmp_path, XLA_FLAGS=forced_devices(3))
    command = ("-m", "train", "resume", str(run), "--step", "6")
    done = run_python(*command, env=env)
    assert done.returncode == 1
    assert "data.batch_size=8 does not divide by the 3 devices" in done.stderr
    assert "such as 6 or 9" in done.stderr
    # Evaluation, in batches of 8, pads; training takes what fits.
    done = run_python(*command, "--data.batch-size", "9", env=env)
    assert done.returncode == 0, done.stderr
    (last,) = [r for r in read_history(run) if r["kind"] == "eval" and r["step"] == 9]
    assert last["count"] == 9


@pytest.mark.apart
def test_killed_runs_leave_no_process_and_go_on(tmp_path):
    found = kills(tmp_path, 3, seed=0)
    assert found == {
        "killed": 3,
        "orphans": 0,
        "not_resumed": 0,
        "worker_tracebacks": 0,
    }


@pytest.mark.apart
def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    found = clashes(tmp_path, 4)
    assert found["folders"] == 4
    assert (found["failed"], found["mixed"]) == (0, 0)
    assert found["succeeded"] >= 1
