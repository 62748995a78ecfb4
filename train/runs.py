"""From a config to a finished run folder, and what to say about it."""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

import zoo
from train.config import TrainConfig, to_json
from train.data import Source
from train.examples import make_evaluation
from train.fit import Result, fit
from train.history import read_history
from train.report import Section, write_report
from train.run_dir import new_run_dir

logger = logging.getLogger("train")


def run(
    config: TrainConfig,
    name: str = "run",
    *,
    sources: tuple[Source, Source] | None = None,
    quiet: bool = False,
) -> Result:
    """Trains in a new folder and writes its report.

    Args:
      config: What to do; without a `run_dir` the folder is runs/NAME-TIME below the
        current one.
      name: Of the experiment.
      sources: Images to train and to evaluate on, such as `array_source` makes them;
        None to open what the config names.
      quiet: Show no progress bar and no evaluations.
    """
    use_compilation_cache()
    if jax.process_count() > 1 and not config.run_dir:
        raise ValueError("a run of several processes needs --run-dir, the same in all.")
    run_dir = Path(config.run_dir) if config.run_dir else new_run_dir(name)
    config = dataclasses.replace(config, run_dir=str(run_dir))
    try:
        result = fit(config, run_dir, sources=sources, quiet=quiet)
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Where what was asked for was refused, it is empty.
    report(result)
    return result


def use_compilation_cache() -> None:
    """Keeps compiled steps between runs, unless jax has been told where already.

    They go to $ZOO_CACHE/xla, or ~/.cache/canon-zoo/xla; nowhere, which the log says,
    where that folder cannot be written.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("ZOO_CACHE", "~/.cache/canon-zoo")) / "xla"
        try:
            cache = cache.expanduser()
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
        except (OSError, RuntimeError) as error:
            logger.warning(
                "compiled steps are not kept: %s. ZOO_CACHE names another folder.",
                error,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # Small steps too: a run of a tiny network is mostly compilation.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def report(result: Result, sections: Sequence[Section] = ()) -> Path | None:
    """Writes report.html into the run folder; the first process does.

    Args:
      result: Of `fit`.
      sections: What to show beside what every report has.
    """
    if jax.process_index():
        return None
    experiment = result.experiment
    card, config = experiment.card, experiment.config
    history = read_history(result.run_dir)
    step, total = int(result.state.step), experiment.total_steps
    summary = {
        "model": card.model,
        "training images": f"{len(experiment.train_source):,}",
        "steps": f"{step:,}" if result.finished else f"{step:,} of {total:,}",
        "wall time": _duration(result.seconds)
        + (f" in {result.parts} parts" if result.parts > 1 else ""),
        "until the first step": _duration(result.first_step_seconds),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **card.versions,
    }
    evaluation = make_evaluation(result) if result.finished else None
    try:
        return write_report(
            result.run_dir,
            title=f"{card.model} on {config.data.dataset}",
            summary=summary,
            config=to_json(config),
            model_table=zoo.describe(
                card.model, num_classes=card.num_classes, **card.overrides
            ),
            history=history,
            evaluation=evaluation,
            sections=sections,
        )
    except OSError as error:
        run = shlex.quote(str(result.run_dir))
        raise OSError(
            f"the run in {run} is saved, and only its report cannot be written: "
            f"{error}. `canon-zoo train resume {run}` writes it."
        ) from error


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def next_steps(result: Result) -> str:
    """Says what came out, where it is and what can be done with it."""
    run_dir, task = result.run_dir, result.experiment.task
    run = shlex.quote(str(run_dir))
    if not result.finished:
        return (
            f"Stopped after step {int(result.state.step)}; the state is saved.\n"
            f"Go on with:  canon-zoo train resume {run}"
        )
    split = result.experiment.eval_source.split
    shown = "A.png B.png" if task.name == "verification" else "IMAGE.png"
    return (
        f"{task.say(result.metrics)} (split {split!r}).\n"
        f"The run is in {run_dir}; open {run_dir / 'report.html'} in a browser.\n"
        "Next:\n"
        f"  canon-zoo train evaluate {run}\n"
        f"  canon-zoo train predict {run} {shown}\n"
        f"  canon-zoo train transfer --from {run} --dataset FORMAT:PATH "
        "--freeze 'backbone/**'\n"
        "and in Python:\n"
        f'  zoo.create("{result.experiment.card.model}", '
        f"weights={json.dumps(str(run_dir), ensure_ascii=False)})"
    )
