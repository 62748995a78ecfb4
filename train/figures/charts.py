"""Line charts and heat maps as SVG, drawn by matplotlib.

The colors in an SVG are variables of the page's style sheet, so that one drawing fits
light and dark pages.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from zoo.figures.pictures import HIT, MISS

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]

MAX_POINTS = 300  # longer series are averaged
MAX_MARKERS = 40  # longer series have no markers
# The variable of the style sheet that replaces each color of a drawing.
_SERIES = ("#0072b2", "#d55e00", "#00835f", "#a8518a", "#7a6a00")
_TEXT, _LINES = "#5f646b", "#dedfdb"
_VARIABLES = {color: f"--s{i}" for i, color in enumerate(_SERIES)}
_VARIABLES |= {_TEXT: "--soft", _LINES: "--line"}
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LINES,
    "axes.labelcolor": _TEXT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "grid.color": _LINES,
    "lines.dash_capstyle": "round",
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "svg.fonttype": "none",
    "svg.hashsalt": "chart",  # the same drawing each time
    "text.parse_math": False,
    "xtick.bottom": False,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "ytick.left": False,
}


class Chart(NamedTuple):
    """A chart with its title and legend.

    Attributes:
      title: The quantity that is drawn.
      legend: The style sheet's class and the name of each series.
      svg: The drawing; empty if no value is finite.
    """

    title: str
    legend: list[tuple[str, str]]
    svg: Markup


def line_chart(
    series: Series,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> Chart:
    """Draws curves.

    Args:
      series: Name -> (x values, y values). Values that are not finite become gaps,
        which the legend counts.
      x_label: The quantity on the horizontal axis, with its unit.
      y_label: The quantity on the vertical axis, with its unit.
      log_x: Whether the horizontal axis is logarithmic.
      log_y: Whether the vertical axis is logarithmic.
      from_zero: Whether the vertical axis includes zero.

    Returns:
      The chart.

    Raises:
      ValueError: x and y differ in length, or a logarithmic axis gets a value that is
        not positive.
    """
    curves = {name: _clean(name, *values) for name, values in series.items()}
    title = y_label + (" (logarithmic)" if log_y else "")
    finite = [np.stack(xy)[:, np.isfinite(xy[1])] for xy in curves.values()]
    x, y = np.hstack([np.zeros((2, 0)), *finite])
    if not len(y):
        return Chart(title, [], Markup())
    for values, log in ((x, log_x), (y, log_y)):
        if log and values.min() <= 0:
            raise ValueError(
                f"a logarithmic axis needs positive values, got {values.min():g}"
            )
    legend, ends = [], []
    with _style():
        axes = _make_axes(480, 270, (0.15, 0.155, 0.825, 0.81))
        axes.grid(axis="y", clip_on=False)
        axes.set_xlabel(x_label)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        for i, (name, (x, y)) in enumerate(curves.items()):
            if not len(y):
                continue
            known, dashed = np.isfinite(y), i >= len(_SERIES)
            lost = "" if known.all() else f" ({(~known).sum()} not finite)"
            look = f"s{i % len(_SERIES)}" + (" dashed" if dashed else "")
            legend.append((look, name + lost))
            if known.any():
                ends.append(f"{name} ends at {y[known][-1]:.4g}")
                _plot(axes, x, y, _SERIES[i % len(_SERIES)], dashed)
        for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
            _place_ticks(axis, log)
        if from_zero:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0), high)
        svg = _to_svg(axes, f"{y_label} against {x_label}: {'; '.join(ends)}")
    if len(legend) == 1 and "not finite" not in legend[0][1]:
        legend = []  # the title is enough
    return Chart(title, legend, svg)


def heat_map(strength: np.ndarray) -> Markup:
    """Draws the confusion matrix of many classes, without numbers.

    Args:
      strength: float [K, K], the opacity of each cell in [0, 1].

    Returns:
      An SVG.
    """
    k = len(strength)
    pixels = np.empty((k, k, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(k, dtype=bool)[..., None], HIT, MISS)
    pixels[..., 3] = np.round(255 * strength)
    with _style():
        axes = _make_axes(502, 462, (0.143, 0.11, 0.81, 0.87))
        image = axes.imshow(pixels, interpolation="none", extent=(0, k, k, 0))
        image.set_clip_on(False)
        axes.set(xlabel="predicted class", ylabel="truth")
        return _to_svg(axes, f"Confusion matrix of {k} classes")


@contextlib.contextmanager
def _style():
    # Imported late: matplotlib takes a second.
    from matplotlib import style

    # The user's own settings, such as those of a notebook, have no effect.
    with style.context(["default", _STYLE]):
        yield


def _make_axes(width: int, height: int, place: tuple[float, ...]):
    """Makes axes in a figure; its size is in pixels, `place` relative to it."""
    from matplotlib.figure import Figure

    return Figure((width / 72, height / 72)).add_axes(place)


def _place_ticks(axis, log: bool) -> None:
    """Places about five ticks on an axis, at round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = axis.get_view_interval()
    locator = MaxNLocator(5, steps=(1, 2, 5, 10))
    if log:
        locator = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,))
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def _plot(axes, x: np.ndarray, y: np.ndarray, color: str, dashed: bool) -> None:
    """Draws one series; points between gaps always have a marker."""
    bins = np.array_split(np.arange(len(x)), min(len(x), MAX_POINTS))
    # The mean of a bin with a NaN is NaN, so that gaps stay visible.
    x, y = (np.array([values[b].mean() for b in bins]) for values in (x, y))
    gap = np.isnan(np.pad(y, 1, constant_values=np.nan))
    marked = np.full(len(y), len(y) <= MAX_MARKERS) | (gap[:-2] & gap[2:])
    options = {"linestyle": "--" if dashed else "-", "marker": "o", "clip_on": False}
    axes.plot(x, y, color=color, markevery=np.flatnonzero(marked), **options)


def _to_svg(axes, alt: str) -> Markup:
    """Returns the figure of the axes as inline SVG."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    axes.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    box = Markup(re.search(r'viewBox="[^"]*"', svg)[0])
    svg = svg[svg.index("<defs>") :]  # without the declarations of a file
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)  # the same in every chart
    svg = re.sub(r"\s+", " ", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup('<svg {} role="img" aria-label="{}">').format(box, alt) + Markup(svg)


def _clean(name: str, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y as float64 [N], with NaN in y wherever either is not finite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        shapes = f"x of shape {x.shape} and y of shape {y.shape}"
        raise ValueError(f"series {name!r} has {shapes}; expected equal lengths")
    return x, np.where(np.isfinite(x) & np.isfinite(y), y, np.nan)
