"""The page of a report: one HTML file that needs no other file and no network."""

import datetime
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

import zoo
from train.config import to_json
from train.figures import Series, line_chart
from train.history import format_rate, read_history
from train.report.parts import (
    ENVIRONMENT,
    Evaluation,
    Numbers,
    Section,
    macros,
    percent,
)
from train.run import Result

KINDS = ("train", "eval")
# The name of each primary metric, and the curves of its chart: name -> (kind, key).
METRICS = {
    "verification_accuracy": (
        "verification accuracy",
        {
            "eval": ("eval", "verification_accuracy"),
            "eval, identification": ("eval", "identification"),
            "train, identification": ("train", "identification"),
        },
    ),
    "accuracy": (
        "accuracy",
        {
            "train": ("train", "accuracy"),
            "eval": ("eval", "accuracy"),
            "eval, top 5": ("eval", "top5"),
        },
    ),
    "ap50": ("AP50", {"eval": ("eval", "ap50")}),
    "mean_iou": (
        "mean IoU",
        {
            "eval": ("eval", "mean_iou"),
            "eval, pixels right": ("eval", "pixel_accuracy"),
            "train, pixels right": ("train", "pixel_accuracy"),
        },
    ),
}
# The columns that every task logs in training; other columns are parts of the loss.
COMMON = (
    *("kind", "step", "epoch", "loss", "grad_norm", "learning_rate"),
    "images_per_second",
)
PACKAGES = (
    *("canon-zoo", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("numpy", "pillow", "matplotlib"),
)


def write_run_report(result: Result) -> Path | None:
    """Writes report.html into the run folder, in the first process only.

    Args:
      result: The result of `fit`.
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


def write_report(
    run_dir: str | os.PathLike,
    *,
    title: str,
    summary: Mapping[str, str],
    config: Mapping,
    model_table: str,
    history: Sequence[Mapping],
    evaluation: Evaluation | None,
    sections: Sequence[Section] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Writes the file `report.html` of a run atomically.

    Args:
      run_dir: The folder of the run; made if it is missing.
      title: The heading of the page.
      summary: Further numbers at the top, such as {"duration": "3 min"}. They replace
        computed numbers of the same name, such as accuracy, loss or throughput.
      config: The configuration of the run, which may be nested.
      model_table: The table of the model in plain text.
      history: The lines of `metrics.jsonl`, of kind "train" and "eval".
      evaluation: The evaluation of the trained model; None if there is none.
      sections: Further sections, after those of the evaluation.
      environment: What the run used, such as {"devices": "1 x cpu"}; shown at the end,
        before the versions of Python and of packages.

    Returns:
      The path of the page.
    """
    numbers = _compute_numbers(history, evaluation)
    numbers |= {name: (value, "") for name, value in summary.items()}
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    used = [*(environment or {}).items(), *versions.items()]
    parts = [
        Section("Training", _training(history)),
        *(evaluation.sections if evaluation else ()),
        *sections,
        Section("Model", macros.preformatted(model_table)),
        Section(
            "Configuration", macros.table(("setting", "value"), [*_flatten(config)])
        ),
        Section("Environment", macros.table(("", ""), used)),
    ]
    run_dir = Path(run_dir)
    return write_page(run_dir / "report.html", title, run_dir.name, numbers, parts)


def write_page(
    path: Path,
    title: str,
    subtitle: str,
    numbers: Numbers,
    sections: Sequence[Section],
) -> Path:
    """Writes a self-contained page atomically.

    Args:
      path: The path of the page; its folder is made if it is missing.
      title: The heading of the page.
      subtitle: The text below the heading, before the time.
      numbers: The numbers at the top: name -> (number, remark).
      sections: The sections of the page.

    Returns:
      `path`.
    """
    time = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = ENVIRONMENT.get_template("page.html").render(
        title=title, subtitle=subtitle, time=time, numbers=numbers, sections=sections
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        # Bytes of a file name that are not text become question marks.
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _compute_numbers(history, evaluation: Evaluation | None) -> Numbers:
    """Returns the numbers at the top of a run's report."""
    key, (name, _) = _primary_metric(history)
    epochs, values = _column(history, "eval", key)
    numbers = {}
    if evaluation:
        numbers |= evaluation.numbers
    elif values.size:
        numbers[name] = (percent(values[-1]), "last evaluation in training")
    # Without an interval: the best of many evaluations is biased upwards.
    if np.isfinite(values).any():
        best = np.nanargmax(values)
        numbers[f"best {name}"] = (percent(values[best]), f"epoch {epochs[best]:g}")
    losses = [(k, loss) for k in KINDS for loss in _column(history, k, "loss")[1]]
    for kind, loss in losses[-1:]:
        numbers.setdefault("loss", (f"{loss:.4g}", f"last {kind}"))
    _, rates = _column(history, "train", "images_per_second")
    if np.isfinite(rates).any():
        numbers["throughput"] = (format_rate(np.nanmedian(rates)), "images/s, median")
    return numbers


def _primary_metric(history) -> tuple[str, tuple[str, dict[str, tuple[str, str]]]]:
    """Returns the key of the primary metric in a history, and its row of `METRICS`."""
    known = {key for line in history for key in line}
    key = next((key for key in METRICS if key in known), "accuracy")
    return key, METRICS[key]


def _training(history) -> str:
    """Draws the loss, primary metric, learning rate and throughput over the epochs."""
    if not history:
        return macros.paragraph("No measurements were logged.")
    _, (name, curves) = _primary_metric(history)
    loss = {kind: _column(history, kind, "loss") for kind in KINDS}
    charts = [line_chart(loss, "epoch", "loss", log_y=_spans_decades(loss))]
    keys = [key for line in history if line["kind"] == "train" for key in line]
    others = {*COMMON, *(key for _, key in curves.values())}
    parts = {
        key: _column(history, "train", key)
        for key in dict.fromkeys(keys)
        if key not in others
    }
    if parts:
        log_y = _spans_decades(parts)
        charts.append(line_chart(parts, "epoch", "parts of the loss", log_y=log_y))
    metric = {label: _column(history, *of, 100) for label, of in curves.items()}
    charts.append(line_chart(metric, "epoch", f"{name} (%)"))
    for key, label in (
        ("learning_rate", "learning rate"),
        ("images_per_second", "throughput (images/s)"),
    ):
        series = {"train": _column(history, "train", key)}
        charts.append(line_chart(series, "epoch", label, from_zero=True))
    return macros.charts(charts)


def _spans_decades(series: Series) -> bool:
    """Whether values span more than two decades, so that a linear axis hides most."""
    values = np.concatenate([values for _, values in series.values()])
    values = values[np.isfinite(values)]
    return len(values) > 0 and 0 < 100 * values.min() < values.max()


def _column(history, kind, key, scale=1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs and values of one measurement; lines without it are left out."""
    lines = [line for line in history if line["kind"] == kind and key in line]
    values = np.array([line[key] for line in lines], np.float64)  # None becomes NaN
    return np.array([line["epoch"] for line in lines], np.float64), scale * values


def _flatten(config: Mapping, prefix: str = ""):
    """Yields the settings of a configuration as (path, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
