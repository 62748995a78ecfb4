"""The report of a run, written into its folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import jax

import zoo
from train.config import to_json
from train.history import read_history
from train.report import Section, write_report
from train.run import Result


def write_run_report(result: Result, sections: Sequence[Section] = ()) -> Path | None:
    """Writes report.html into the run folder; the first process does.

    Args:
      result: The result of `fit`.
      sections: Sections beside those that every report has.
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
    }
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    evaluation = experiment.task.report(result) if result.finished else None
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
            environment={"devices": devices},
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
