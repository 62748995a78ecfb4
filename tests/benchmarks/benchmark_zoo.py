"""The zoo's side of the benchmark: what is measured, and how."""

import dataclasses
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_rounds import seconds_per_call
from PIL import Image

import zoo
from train import fit
from train.config import TrainConfig
from train.configs import get_config
from train.data import epoch_order, load_resident
from train.experiment import Experiment
from train.steps import (
    jit_step,
    make_run_steps,
    put_batch,
    put_replicated,
    replicated,
)
from zoo.preprocess import normalize

ROOT = Path(__file__).parents[2]
NEVER = 10**6
UNTIMED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
      rounds: Number of turns of each side.
      steps: Timed training steps of a turn.
      batches: Number of batches in the training set.
      batch_size: Batch size of training and of the larger inference.
      calls: Calls of inference in a turn, by batch size.
      starts: New processes for each state of the compilation cache.
      threads: Threads of PyTorch; XLA takes all cores.
      compiled: Whether to measure torch.compile.
    """

    rounds: int = 3
    steps: int = 10
    batches: int = 50
    batch_size: int = 128
    calls: tuple[int, int] = (100, 5)
    starts: int = 1
    threads: int = os.cpu_count()
    compiled: bool = True


FULL = Plan()
QUICK = Plan(1, 2, 6, 8, (2, 2), 1, threads=1, compiled=False)


def write_images(path: Path, plan: Plan) -> Path:
    """Writes noise of CIFAR's shape as a zip file of PNG images."""
    rng = np.random.default_rng(0)
    counts = {"train": plan.batches * plan.batch_size, "test": plan.batch_size}
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in counts.items():
            # Ten classes, each of them in both splits.
            for i in range(max(count, 10)):
                png = io.BytesIO()
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(png, "png", compress_level=1)
                archive.writestr(f"{split}/{i % 10}/{i:05}.png", png.getvalue())
    return path


def make_config(depth: int, data: Path, plan: Plan) -> TrainConfig:
    """The paper's recipe on the written images, for the steps of one turn."""
    config = get_config(f"cifar10_resnet{depth}")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            dataset=f"imagefolder:{data}",
            batch_size=plan.batch_size,
            eval_batch_size=plan.batch_size,
        ),
        optim=dataclasses.replace(config.optim, warmup_steps=0),
        steps=plan.steps + UNTIMED_STEPS,
        eval_every=NEVER,
        save_every=NEVER,
        log_every=1,  # The largest cost that logging can have.
    )


def time_fit(config: TrainConfig, run_dir: Path) -> float:
    """Trains; returns seconds per step, with all that `fit` does between steps.

    The clock runs from the beginning of the third step (the first one compiles, the
    second one finds the pace) until the evaluation at the end begins.
    """
    began, ended = [], []

    def make(*arguments, **options):
        run_steps = make_run_steps(*arguments, **options)

        def clocked_run(state, batches):
            if int(state.step) == UNTIMED_STEPS:
                began.append(time.perf_counter())
            return run_steps(state, batches)

        return clocked_run

    class ClockedEvaluator(fit.Evaluator):
        def __call__(self, variables):
            ended.append(time.perf_counter())
            return super().__call__(variables)

    with (
        mock.patch.object(fit, "make_run_steps", make),
        mock.patch.object(fit, "Evaluator", ClockedEvaluator),
    ):
        fit.fit(config, run_dir, quiet=True)
    return (ended[0] - began[0]) / (config.steps - UNTIMED_STEPS)


class BareStep:
    """The jitted step of an experiment, and batches that lie ready on the device."""

    def __init__(self, experiment: Experiment, plan: Plan):
        self.experiment, self.plan = experiment, plan
        self.arrays = load_resident(experiment.train_source, experiment.card.preprocess)
        order = epoch_order(len(self.arrays["label"]), plan.batch_size, 0)
        count = min(plan.steps, plan.batches)
        self.orders = np.stack([order[i] for i in range(count)])
        self.batches = [
            put_batch(
                {k: v[o] for k, v in self.arrays.items()} | {"index": o},
                experiment.mesh,
            )
            for o in self.orders
        ]
        self.step = jit_step(experiment.make_step(0), replicated(experiment.mesh))
        self.state = self.create_state()

    def create_state(self) -> Any:
        """Creates the state before the first step."""
        # Copies: the step donates what it is given.
        state = jax.tree.map(np.array, self.experiment.create_state())
        return put_replicated(state, self.experiment.mesh)

    def compilation(self) -> dict[str, float]:
        """Compiles without a cache; returns seconds and what XLA says of memory."""
        began = time.perf_counter()
        lowered = self.step.lower(self.state, self.batches[0])
        traced = time.perf_counter()
        memory = lowered.compile().memory_analysis()
        return {
            "trace_seconds": traced - began,
            "compile_seconds": time.perf_counter() - traced,
            "temporary_megabytes": memory.temp_size_in_bytes / 2**20,
            "argument_megabytes": memory.argument_size_in_bytes / 2**20,
        }

    def time(self) -> float:
        """Trains in a Python loop; returns seconds per step."""
        self._run(2)
        began = time.perf_counter()
        self._run(self.plan.steps)
        return (time.perf_counter() - began) / self.plan.steps

    def _run(self, steps: int) -> None:
        for i in range(steps):
            batch = self.batches[i % len(self.batches)]
            self.state, scalars = self.step(self.state, batch)
        jax.block_until_ready((self.state, scalars))

    def losses(self, steps: int) -> list[float]:
        """Trains on the first batch without augmentation; returns each step's loss."""
        config = self.experiment.config
        plain = dataclasses.replace(
            config, data=dataclasses.replace(config.data, augment=())
        )
        step = jax.jit(dataclasses.replace(self.experiment, config=plain).make_step(0))
        state, losses = self.create_state(), []
        for _ in range(steps):
            state, scalars = step(state, self.batches[0])
            losses.append(float(scalars["loss"]))
        return losses


class Inference:
    """The jitted network, from uint8 images to logits."""

    def __init__(self, experiment: Experiment, images: np.ndarray):
        model, preprocess = experiment.model, experiment.card.preprocess
        self._variables, self._images = experiment.variables, images
        self._apply = jax.jit(
            lambda v, x: model.apply(v, normalize(x, preprocess)),
            compiler_options=zoo.cpu.compiler_options(),
        )

    def time(self, batch: int, calls: int) -> float:
        """Classifies one batch again and again; returns seconds per call."""
        images = jnp.asarray(self._images[:batch])

        def call():
            jax.block_until_ready(self._apply(self._variables, images))

        return seconds_per_call(call, calls)


def measure_start(plan: Plan, data: Path, folder: Path) -> dict[str, Any]:
    """Starts training in new processes, without and with a filled compilation cache.

    Returns:
      Seconds from the start of the process until its first step is logged, and the
      most memory that one of these processes had.
    """
    seconds, peaks = {"cold": [], "warm": []}, []
    for i in range(plan.starts):
        for cache in seconds:
            run_dir = folder / f"{cache}{i}"
            found, peak = _start(plan, data, folder / f"cache{i}", run_dir)
            seconds[cache].append(found)
            peaks.append(peak)
    return {"first_step_seconds": seconds, "peak_rss_megabytes": max(peaks)}


def _start(plan: Plan, data: Path, cache: Path, run_dir: Path) -> tuple[float, float]:
    """Returns seconds until the first step, and the peak of memory in megabytes."""
    command = [sys.executable, "-m", "train", "cifar10_resnet20"]
    command += ["--dataset", f"imagefolder:{data}", "--run-dir", str(run_dir)]
    command += ["--batch-size", str(plan.batch_size)]
    command += ["--data.eval-batch-size", str(plan.batch_size)]
    command += ["--steps", "2", "--log-every", "1"]
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    # On a GPU the measuring process has the rest of the memory.
    env |= {"ZOO_CACHE": str(cache), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    log, rows = run_dir.with_suffix(".log"), run_dir / "metrics.jsonl"
    began = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)
        while not (rows.exists() and rows.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()}")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        # Of this child alone, where getrusage has the largest of all children.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()}")
    # Linux counts in units of 1024 bytes, macOS in bytes.
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
