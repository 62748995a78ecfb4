"""Figures of the studies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.studies.runner import Curve

COLORS = ("#0072b2", "#d55e00", "#00835f", "#a8518a", "#7a6a00", "#56b4e9", "#444444")


def new_figure(columns: int = 1, rows: int = 1, *, height: float = 3.4, **options):
    """Returns a figure and its axes [rows, columns], without the upper and right line.

    Args:
      columns: Number of axes side by side.
      rows: Number of axes one above the other.
      height: Height of a row, in inches.
      **options: Options of `Figure.subplots`.
    """
    width = min(11, 5.6 * columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def draw_spread(
    axis: Axes,
    x: Sequence[float],
    curves: Sequence[Sequence[float]],
    *,
    label: str,
    color: str,
    style: str = "-",
) -> None:
    """Draws the mean of some curves, and the band between the lowest and highest."""
    values = np.asarray(curves, float)
    axis.plot(x, values.mean(0), style, color=color, label=label)
    if len(values) > 1:
        lowest, highest = values.min(0), values.max(0)
        axis.fill_between(x, lowest, highest, color=color, alpha=0.2, linewidth=0)


def draw_errors(
    axis: Axes, curves: Sequence[Curve], field: str = "train_error", **options: Any
) -> None:
    """Draws an error of some runs in percent, up to the end of the shortest run.

    Args:
      axis: Axis to draw on.
      curves: Runs of several seeds.
      field: "train_error" or "test_error".
      **options: Options of `draw_spread`.
    """
    shortest = min(len(curve.step) for curve in curves)
    errors = [100 * np.array(getattr(curve, field)[:shortest]) for curve in curves]
    draw_spread(axis, curves[0].step[:shortest], errors, **options)
    axis.set(xlabel="step", ylim=(0, 100))


def format_spread(values: Sequence[float]) -> str:
    """Formats shares as percentages, "mean ± standard deviation"."""
    values = 100 * np.asarray(values, float)
    if len(values) == 1:
        return f"{values[0]:.1f} %"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f} %"
