"""The report of a run: one HTML page that needs no other file and no network."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from train.figures import STYLE, Series, line_chart
from train.history import format_rate
from train.report.parts import (
    Card,
    Evaluation,
    Section,
    breakable,
    percent,
    table,
    text,
)

KINDS = ("train", "eval")
# Of each headline measure: its name, and the curves of its chart: (kind, key) by name.
MEASURES = {
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
# What every task logs of a training step; the rest are parts of its loss.
COMMON = ("kind", "step", "epoch", "loss", "grad_norm", "learning_rate")
# The policy makes sure of it: the page runs no script and loads nothing.
HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>"""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


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
) -> Path:
    """Writes `report.html` into a run's folder, whole or not at all.

    Args:
        run_dir: Folder of the run; made if it is missing.
        title: Heading of the page.
        summary: Further headline numbers, e.g. {"duration": "3 min"}. They replace
            those of the same name that the page computes, such as accuracy, best
            accuracy, loss, examples, throughput.
        config: The run's configuration; may be nested.
        model_table: The model as a table in plain text.
        history: Lines of `metrics.jsonl`, of kind "train" and "eval".
        evaluation: How the trained model did, or None if that was not measured.
        sections: Further parts of the page, shown after the evaluation.

    Returns:
        Path of the page.
    """
    cards = _headline(history, evaluation)
    cards |= {name: (breakable(value), "") for name, value in summary.items()}
    settings = [map(breakable, setting) for setting in _flatten(config)]
    versions = [(name, metadata.version(name)) for name in PACKAGES]
    versions.insert(0, ("python", platform.python_version()))
    parts = [
        Section("Training", _training(history)),
        *(evaluation.sections() if evaluation else ()),
        *sections,
        Section("Model", f'<pre tabindex="0">{text(model_table)}</pre>'),
        Section("Configuration", table(("setting", "value"), settings)),
        Section("Versions", table(("package", "version"), versions)),
    ]
    run_dir = Path(run_dir)
    return write_page(run_dir / "report.html", title, run_dir.name, cards, parts)


def write_page(
    path: Path,
    title: str,
    remark: str,
    cards: Mapping[str, Card],
    sections: Sequence[Section],
) -> Path:
    """Writes a page that needs no other file, whole or not at all.

    Args:
        path: Of the page; its folder is made if it is missing.
        title: Heading of the page.
        remark: What stands below it, before the time.
        cards: Headline numbers: name -> (number, remark), both as HTML.
        sections: The parts of the page.

    Returns:
        `path`.
    """
    time = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = HEAD.format(title=text(title), style=STYLE)
    page += f"<h1>{breakable(title)}</h1><p>{breakable(remark)}, {text(time)}</p><dl>"
    for name, (value, remark) in cards.items():
        number = f"{value}<small>{remark}</small>"
        page += f"<div><dt>{text(name)}</dt><dd>{number}</dd></div>"
    parts = (f"<h2>{text(part.title)}</h2>{part.body}" for part in sections)
    page += f"</dl><section>{'</section><section>'.join(parts)}</section>"
    page += "</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        # A file name may hold bytes that are not text: they become question marks.
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _headline(history, evaluation) -> dict[str, Card]:
    """Returns name -> (number, remark), both as HTML."""
    key, (name, _) = _measure(history)
    epochs, values = _column(history, "eval", key)
    cards = {}
    if evaluation:
        cards |= evaluation.cards()
    elif values.size:
        cards[name] = (percent(values[-1]), "last evaluation in training")
    # Without an interval: the best of many looks is biased upwards.
    if np.isfinite(values).any():
        best = np.nanargmax(values)
        cards[f"best {name}"] = (percent(values[best]), f"epoch {epochs[best]:g}")
    losses = [(k, loss) for k in KINDS for loss in _column(history, k, "loss")[1]]
    for kind, loss in losses[-1:]:
        cards.setdefault("loss", (f"{loss:.4g}", f"last {kind}"))
    _, speeds = _column(history, "train", "images_per_second")
    if np.isfinite(speeds).any():
        cards["throughput"] = (format_rate(np.nanmedian(speeds)), "images/s, median")
    return cards


def _measure(history) -> tuple[str, tuple[str, dict[str, tuple[str, str]]]]:
    """Finds the headline measure of a history, with what `MEASURES` has of it."""
    known = {key for line in history for key in line}
    key = next((key for key in MEASURES if key in known), "accuracy")
    return key, MEASURES[key]


def _training(history) -> str:
    """Draws losses, headline measure, learning rate and throughput against epoch."""
    if not history:
        return "<p>No measurements were logged.</p>"
    _, (name, curves) = _measure(history)
    loss = {kind: _column(history, kind, "loss") for kind in KINDS}
    measure = {label: _column(history, *of, 100) for label, of in curves.items()}
    charts = line_chart(loss, "epoch", "loss", log_y=_spans_decades(loss))
    keys = [key for line in history if line["kind"] == "train" for key in line]
    others = {*COMMON, "images_per_second", *(key for _, key in curves.values())}
    parts = [key for key in dict.fromkeys(keys) if key not in others]
    if parts:
        losses = {key: _column(history, "train", key) for key in parts}
        log_y = _spans_decades(losses)
        charts += line_chart(losses, "epoch", "parts of the loss", log_y=log_y)
    charts += line_chart(measure, "epoch", f"{name} (%)")
    rate = {"train": _column(history, "train", "learning_rate")}
    charts += line_chart(rate, "epoch", "learning rate", from_zero=True)
    speed = {"train": _column(history, "train", "images_per_second")}
    charts += line_chart(speed, "epoch", "throughput (images/s)", from_zero=True)
    return f'<div class="charts">{charts}</div>'


def _spans_decades(series: Series) -> bool:
    """Over more than two decades a linear axis would show the first steps only."""
    values = np.concatenate([values for _, values in series.values()])
    values = values[np.isfinite(values)]
    return len(values) > 0 and 0 < 100 * values.min() < values.max()


def _column(history, kind, key, scale=1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns epochs and values of one measurement; lines without it are left out."""
    lines = [line for line in history if line["kind"] == kind and key in line]
    values = np.array([line[key] for line in lines], np.float64)  # None becomes NaN
    return np.array([line["epoch"] for line in lines], np.float64), scale * values


def _flatten(config: Mapping, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
