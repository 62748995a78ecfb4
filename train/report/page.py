"""The report of a run: one HTML page that needs no other file and no network."""

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path

import numpy as np

from train.figures import STYLE, Series, draw_confusion, line_chart, png_uri, to_pil

NONE = "<p>There are none.</p>"
KINDS = ("train", "eval")
MOST_ROWS = 20  # further classes fold away
MOST_PAIRS, MOST_MISTAKES, THUMBNAIL = 10, 24, 256
# The policy makes sure of it: the page runs no script and loads nothing.
HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>"""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


@dataclass(frozen=True)
class Section:
    """A heading (plain text) and the HTML below it, which is shown as it is."""

    title: str
    body: str


def table_section(
    title: str, header: Sequence[str], rows: Sequence[Sequence], note: str = ""
) -> Section:
    """Makes a section of one table; every cell is shown as `str(cell)`."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"table {title!r} has a row of {len(row)} cells, {list(row)}, under a "
                f"header of {len(header)}"
            )
    return Section(title, _table(header, [map(_text, row) for row in rows], note))


def plot_section(
    title: str,
    series: Series,
    x_label: str,
    y_label: str,
    note: str = "",
    log_x: bool = False,
) -> Section:
    """Makes a section of one plot of the series name -> (x values, y values)."""
    chart = line_chart(series, x_label, y_label, log_x=log_x)
    return Section(title, f'<div class="charts">{chart}</div><p>{_text(note)}</p>')


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
            those of the same name that the page computes: accuracy, best accuracy,
            loss, examples, throughput.
        config: The run's configuration; may be nested.
        model_table: The model as a table in plain text.
        history: Lines of `metrics.jsonl`, of kind "train" and "eval".
        evaluation: How the trained model did, or None if that was not measured.
        sections: Further parts of the page, shown after the evaluation.

    Returns:
        Path of the page.
    """
    cards = _headline(history, evaluation)
    cards |= {name: (_text(value), "") for name, value in summary.items()}
    settings = [map(_text, setting) for setting in _flatten(config)]
    versions = [(name, metadata.version(name)) for name in PACKAGES]
    versions.insert(0, ("python", platform.python_version()))
    parts = [
        Section("Training", _training(history)),
        *(_evaluation(evaluation) if evaluation else ()),
        *sections,
        Section("Model", f'<pre tabindex="0">{_text(model_table)}</pre>'),
        Section("Configuration", _table(("setting", "value"), settings)),
        Section("Versions", _table(("package", "version"), versions)),
    ]
    run_dir = Path(run_dir)
    time = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    page = HEAD.format(title=_text(title), style=STYLE)
    page += f"<h1>{_text(title)}</h1><p>{_text(run_dir.name)}, {_text(time)}</p><dl>"
    for name, (value, remark) in cards.items():
        number = f"{value}<small>{remark}</small>"
        page += f"<div><dt>{_text(name)}</dt><dd>{number}</dd></div>"
    sections = (f"<h2>{_text(part.title)}</h2>{part.body}" for part in parts)
    page += f"</dl><section>{'</section><section>'.join(sections)}</section>"
    page += "</body></html>\n"
    run_dir.mkdir(parents=True, exist_ok=True)
    path, unfinished = run_dir / "report.html", run_dir / "report.html.unfinished"
    try:
        # A file name may hold bytes that are not text: they become question marks.
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _headline(history, evaluation) -> dict[str, tuple[str, str]]:
    """Returns name -> (number, remark), both as HTML."""
    cards = {}
    epochs, accuracies = _column(history, "eval", "accuracy")
    if evaluation:
        low, high = confidence_interval(evaluation.correct, evaluation.count)
        interval = f"95 % interval {_percent(low)} to {_percent(high)}"
        cards["accuracy"] = (_percent(evaluation.accuracy), interval)
    elif accuracies.size:
        cards["accuracy"] = (_percent(accuracies[-1]), "last evaluation in training")
    # Without an interval: the best of many looks is biased upwards.
    if np.isfinite(accuracies).any():
        best = np.nanargmax(accuracies)
        cards["best accuracy"] = (_percent(accuracies[best]), f"epoch {epochs[best]:g}")
    if evaluation:
        cards["loss"] = (f"{evaluation.loss:.4g}", "evaluation")
        cards["examples"] = (f"{evaluation.count:,}", "evaluated")
    else:
        losses = [(k, loss) for k in KINDS for loss in _column(history, k, "loss")[1]]
        for kind, loss in losses[-1:]:
            cards["loss"] = (f"{loss:.4g}", f"last {kind}")
    _, speeds = _column(history, "train", "images_per_second")
    if np.isfinite(speeds).any():
        cards["throughput"] = (f"{np.nanmedian(speeds):,.0f}", "images/s, median")
    return cards


def _training(history) -> str:
    """Draws loss, accuracy, learning rate and throughput against epoch."""
    if not history:
        return "<p>No measurements were logged.</p>"
    loss = {kind: _column(history, kind, "loss") for kind in KINDS}
    accuracy = {kind: _column(history, kind, "accuracy", 100) for kind in KINDS}
    accuracy["eval, top 5"] = _column(history, "eval", "top5", 100)
    # Over more than two decades a linear axis would show the first steps only.
    values = np.concatenate([values for _, values in loss.values()])
    values = values[np.isfinite(values)]
    log_y = len(values) > 0 and 0 < 100 * values.min() < values.max()
    charts = line_chart(loss, "epoch", "loss", log_y=log_y)
    charts += line_chart(accuracy, "epoch", "accuracy (%)")
    rate = {"train": _column(history, "train", "learning_rate")}
    charts += line_chart(rate, "epoch", "learning rate", from_zero=True)
    speed = {"train": _column(history, "train", "images_per_second")}
    charts += line_chart(speed, "epoch", "throughput (images/s)", from_zero=True)
    return f'<div class="charts">{charts}</div>'


def _table(header, rows, note="") -> str:
    """Returns a table of cells that are HTML already, and a note in plain text."""
    if not rows:
        return NONE
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div><p>{_text(note)}</p>'


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _text(value) -> str:
    return escape(str(value))
