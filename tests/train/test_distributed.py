"""One, four and twice two devices train alike and count alike."""

import subprocess
import sys

import numpy as np
import pytest
from processes import free_port, run_together
from tiny_runs import (
    ROOT,
    environment,
    forced_devices,
    read_arrays,
    read_rows,
    run_command,
    write_images,
)

import zoo

# Async dispatch on forced host devices now and then misses a rendezvous of XLA's.
TRAIN = """
import json, runpy, sys
import jax
jax.config.update("jax_cpu_enable_async_dispatch", False)
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    # 27 to train, 15 to evaluate: neither divides by the batches or the devices.
    return write_images(tmp_path_factory.mktemp("images"), {"train": 9, "test": 5})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def options_for(images):
    return (
        *("digits_lenet5_modern", "--dataset", f"imagefolder:{images}"),
        *("--batch-size", "8", "--data.eval-batch-size", "8", "--log-every", "1"),
        *("--epochs", "2", "--eval-every", "1", "--save-every", "1"),
        *("--augment", "affine", "--optim.ema-decay", "0.9"),
    )


def train(folder, images, cache, *options, devices=1, processes=1):
    """Trains by the command line; returns its exit codes and what it printed."""
    command = [sys.executable, "-c", TRAIN]
    options = (*options_for(images), *options)
    # Once more where XLA gave up waiting for one of its own threads.
    for attempt in (1, 2):
        run_dir = folder / str(attempt)
        more = {"XLA_FLAGS": forced_devices(devices)}
        if processes > 1:
            more["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
            more["JAX_NUM_PROCESSES"] = str(processes)
            command = [sys.executable, "-c", TRAIN, "--distributed"]
        codes, output = run_together(
            processes * [[*command, *options, "--run-dir", str(run_dir)]],
            [
                environment(cache, JAX_PROCESS_ID=str(i), **more)
                for i in range(processes)
            ],
        )
        if codes is not None and not any(code < 0 for code in codes):
            break
    return codes, output, run_dir


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = run_command(*options_for(images), "--run-dir", run_dir)
    assert code == 0, err
    return run_dir


def assert_agree(run_dir, alone):
    ours, theirs = read_rows(run_dir), read_rows(alone)
    assert len(ours) == len(theirs) == 8
    for row, expected in zip(ours, theirs, strict=True):
        assert row.pop("kind") == expected.pop("kind")
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert ours[-1]["count"] == 15
    state, expected = read_arrays(run_dir, 6), read_arrays(alone, 6)
    assert state.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(state[path], leaf, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param({"devices": 4}, (), marks=pytest.mark.apart),
        pytest.param(
            {"devices": 4}, ("--data.placement", "stream"), marks=pytest.mark.apart
        ),
        pytest.param({"devices": 2, "processes": 2}, (), marks=pytest.mark.apart),
        ({"devices": 1, "processes": 2}, ("--data.placement", "stream")),
    ],
    ids=["4 devices", "4, streaming", "2 processes", "2 processes, streaming"],
)
def test_any_number_of_devices_takes_the_same_steps(
    images, cache, alone, tmp_path, shape, options
):
    codes, output, run_dir = train(tmp_path, images, cache, *options, **shape)
    assert set(codes) == {0}, output
    assert_agree(run_dir, alone)
    assert (run_dir / "report.html").exists()
    # What several devices wrote, one reads.
    model, variables = zoo.create("lenet5_modern", weights=str(run_dir))
    logits = model.apply(variables, np.zeros((1, 28, 28, 1), np.float32))
    _, expected = zoo.create("lenet5_modern", weights=str(alone))
    again = model.apply(expected, np.zeros((1, 28, 28, 1), np.float32))
    np.testing.assert_allclose(logits, again, atol=1e-4)


@pytest.mark.apart
def test_a_batch_that_does_not_divide_is_said_so(images, cache, tmp_path):
    codes, output, run_dir = train(
        tmp_path, images, cache, "--batch-size", "6", devices=4
    )
    assert codes == [1]
    message = "error: data.batch_size=6 does not divide by the 4 devices"
    assert output.strip().splitlines()[-1].startswith(message)
    assert not run_dir.exists()


@pytest.mark.apart
def test_without_a_coordinator_the_flag_says_what_is_missing(cache):
    done = subprocess.run(
        [sys.executable, "-m", "train", "--distributed", "digits_lenet5"],
        cwd=ROOT,
        env=environment(cache),
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --distributed: ")
    assert "JAX_COORDINATOR_ADDRESS" in done.stderr
    assert len(done.stderr.splitlines()) == 1
