"""Curves and heat maps of the report, as SVG.

The SVG carries no colours of its own: the page's style sheet gives each series
`s0`, `s1`, ... its colour, so that one drawing serves light and dark pages.
"""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from zoo.figures.pictures import HIT, MISS, png_uri

COLORS = 5  # series colours that the style sheet knows; further ones are dashed
WIDTH, HEIGHT = 480, 270  # close to the size on screen, so text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 72, 468, 10, 228  # where the axes are
MOST_NUMBERED = 20  # a matrix of more classes is drawn as a heat map
MOST_POINTS = 300  # longer series are averaged down to this many points
STYLE = """
:root{color-scheme:light dark;--page:#f6f6f3;--card:#fff;--ink:#1c1e21;--soft:#5f646b;
--line:#dedfdb;--s0:#0072b2;--s1:#d55e00;--s2:#00835f;--s3:#a8518a;--s4:#7a6a00}
@media(prefers-color-scheme:dark){:root{--page:#14161a;--card:#1d2026;--ink:#e9e9e6;
--soft:#a2a8b0;--line:#363b44;--s0:#58b4f0;--s1:#ff9350;--s2:#3fcf9f;--s3:#e79ac9;
--s4:#e3cf57}}
*{box-sizing:border-box}body{max-width:68rem;margin:auto;padding:1rem;color:var(--ink);
background:var(--page);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:1rem 0 0}h2{margin:0 0 .8rem;font-size:1.25rem}p{color:var(--soft);margin:0}
section,dl>div{background:var(--card);border:1px solid var(--line);border-radius:10px}
section{padding:1.2rem;margin:1rem 0}dl>div{padding:.7rem 1rem}dt{color:var(--soft)}
dd{margin:0;font-size:1.45rem;font-weight:650}figure{margin:0}figcaption{line-height:1.4}
small{display:block;font-size:.8rem;font-weight:400;color:var(--soft)}
dl,.charts,.cards{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,9.6rem),1fr))}
.charts{gap:1.6rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.wide img{display:block;max-width:100%;margin:.8rem 0 .2rem}
.cards img{display:block;width:100%;height:9rem;object-fit:contain;margin-bottom:.4rem}
.scroll,pre{overflow:auto;overflow-wrap:normal}pre{max-height:40rem;font-size:.8rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;border-bottom:1px solid var(--line)}
.matrix th,.matrix td{text-align:center;padding:.4rem;border:2px solid var(--card)}
.matrix span{display:block;max-width:8rem;max-height:6rem;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}.matrix [scope=row]{text-align:right}
td.strong{color:#fff}.zero{color:var(--soft)}image,.pixels{image-rendering:pixelated}
svg{display:block;width:100%;max-width:36rem;height:auto}path{fill:none}
text{font-size:12px;fill:var(--soft);text-anchor:middle}.y{text-anchor:end}
.grid,.tick{stroke:var(--line)}circle{fill:currentColor}.line{stroke:currentColor;
stroke-width:2;stroke-linecap:round;stroke-linejoin:round}.dash{stroke-dasharray:6 5}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}
.s4{color:var(--s4)}.legend span{margin-right:1rem}.legend span::before{content:"● "}
.bar{display:block;position:relative;width:9rem;height:.8rem;background:var(--line)}
.bar *{position:absolute;top:0;bottom:0;background:var(--s0)}
.bar b{background:var(--ink);opacity:.35}
@media(max-width:40rem){section{padding:.8rem}svg text{font-size:15px}
dd{font-size:1.3rem}table{font-size:.85rem}.matrix{font-size:.7rem}.bar{width:5rem}
.matrix span{max-width:5rem}.matrix [scope=col]{writing-mode:vertical-rl}
.matrix th,.matrix td{padding:.25rem;border-width:1px}}
"""
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def line_chart(
    series: Series,
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> str:
    """Draws curves as an HTML `<figure>` of a legend and an inline SVG.

    Args:
        series: Name -> (x values, y values). Values that are not finite become
            gaps, and the legend counts them.
        x_label: What the horizontal axis shows, with its unit.
        y_label: What the vertical axis shows, with its unit.
        log_x: Logarithmic horizontal axis.
        log_y: Logarithmic vertical axis.
        from_zero: Let the vertical axis include zero.

    Returns:
        HTML in which all names and labels are escaped.

    Raises:
        ValueError: x and y differ in length, or a logarithmic axis gets a value
            that is not positive.
    """
    curves = {name: _clean(name, *values) for name, values in series.items()}
    thinned = {name: _thin(x, y) for name, (x, y) in curves.items() if len(x)}
    x, y = np.hstack([np.zeros((2, 0)), *map(np.stack, thinned.values())])
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if not len(y):
        return f"<p>{html.escape(y_label)}: there are no finite values to draw.</p>"
    x_axis = _Axis(x, LEFT, RIGHT, log=log_x)
    y_axis = _Axis([*y, 0.0][: len(y) + from_zero], BOTTOM, TOP, log=log_y, pad=0.05)

    drawing, legend, ends = [_frame(x_axis, y_axis, x_label)], [], []
    for number, (name, (_, y)) in enumerate(curves.items()):
        look = f"s{number % COLORS}" + (" dash" if number >= COLORS else "")
        finite = np.isfinite(y)
        lost = "" if finite.all() else f" ({(~finite).sum()} not finite)"
        if len(y):
            legend.append(f'<span class="{look}">{html.escape(name)}{lost}</span>')
        if finite.any():
            ends.append(f"{name} ends at {y[finite][-1]:.4g}")
            curve = _curve(name, *thinned[name], x_axis, y_axis)
            drawing.append(f'<g class="{look}">{curve}</g>')
    if len(legend) == 1 and "not finite" not in legend[0]:
        legend = []  # the caption says it all
    scale = " (logarithmic)" if log_y else ""
    alt = html.escape(f"{y_label} against {x_label}: {'; '.join(ends)}")
    return (
        f'<figure class="chart"><figcaption>{html.escape(y_label)}{scale}</figcaption>'
        f'<p class="legend">{"".join(legend)}</p>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">'
        f"{''.join(drawing)}</svg></figure>"
    )


class _Axis:
    """Maps values to pixels between `start` and `stop` and chooses round ticks."""

    def __init__(self, values, start: float, stop: float, *, log=False, pad=0.0):
        if log and min(values) <= 0:
            raise ValueError(
                f"a logarithmic axis needs positive values, got {min(values):g}"
            )
        self.log, self.start, self.stop = log, start, stop
        low, high = self._scale(min(values)), self._scale(max(values))
        margin = pad * (high - low)
        if low == high:
            margin = 0.3 if log else abs(low) / 2 or 0.5
        self.low, self.high = low - margin, high + margin

    def _scale(self, values):
        return np.log10(values) if self.log else values

    def place(self, values):
        share = (self._scale(values) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> np.ndarray:
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 5))
        step = next(d * power for d in (1, 2, 5, 10) if d * power >= span / 5)
        step = math.ceil(step) if self.log else step  # whole decades
        first, last = math.floor(self.low / step), math.ceil(self.high / step)
        ticks = step * np.arange(first, last + 1.0)
        if self.log:
            digits = (1,) if span > 2.5 else (1, 2, 5) if span > 0.7 else range(1, 10)
            ticks = np.array([digit * 10**k for k in ticks for digit in digits])
        off_center = abs(self.place(ticks) - (self.start + self.stop) / 2)
        return ticks[off_center <= abs(self.stop - self.start) / 2 + 0.01]


def _clean(name: str, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y as float64 [N], with NaN in y wherever either is not finite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        shapes = f"x of shape {x.shape} and y of shape {y.shape}"
        raise ValueError(f"series {name!r} has {shapes}; expected equal lengths")
    return x, np.where(np.isfinite(x) & np.isfinite(y), y, np.nan)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours until `MOST_POINTS` remain; a NaN is not averaged away."""
    bins = np.array_split(np.arange(len(x)), min(len(x), MOST_POINTS))
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str) -> str:
    """Draws grid lines, tick labels and the label of the horizontal axis."""
    left, right = x_axis.start, x_axis.stop
    bottom = max(y_axis.start, y_axis.stop)
    parts = [f'<path class="tick" d="M{left} {bottom}H{right}"/>']
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="y" x="{left - 6}" y="{y + 4:.1f}">{tick:g}</text>')
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts.append(f'<path class="tick" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}">{tick:g}</text>')
    label = f'x="{(left + right) / 2}" y="{bottom + 36}">{html.escape(x_label)}'
    return "".join(parts) + f"<text {label}</text>"


def _curve(name: str, x, y, x_axis: _Axis, y_axis: _Axis) -> str:
    """Draws one series: a path that breaks at NaN, and dots where they are few."""
    path, dots, pen = "", [], "M"
    for value_x, value_y in zip(x, y, strict=True):
        if np.isnan(value_y):
            pen = "M"
            continue
        at_x, at_y = f"{x_axis.place(value_x):.1f}", f"{y_axis.place(value_y):.1f}"
        # The empty h0 makes a round dot of a lone point between two gaps.
        path += f"{pen}{at_x} {at_y}" + ("h0" if pen == "M" else "")
        pen = "L"
        tip = html.escape(f"{name}: {value_y:.4g} at {value_x:.4g}")
        dots.append(f'<circle cx="{at_x}" cy="{at_y}" r="3"><title>{tip}</title>')
    circles = "</circle>".join([*dots, ""]) if len(dots) <= 40 else ""
    return f'<path class="line" d="{path}"/>{circles}'


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Draws a confusion matrix: a table of counts, or a heat map of many classes.

    A cell is painted by the square root of its share of the row, so that rare
    mistakes stay visible.

    Args:
        confusion: Counts [K, K], row = truth, column = prediction.
        class_names: K names; the HTML has them escaped.
    """
    strength = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    if len(confusion) > MOST_NUMBERED:
        return _heat_map(strength)
    names = [html.escape(name) for name in class_names]
    heads = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    table = f'<table class="matrix"><tr><td>truth ↓ predicted →</td>{heads}</tr>'
    for i, name in enumerate(names):
        table += f'<tr><th scope="row"><span>{name}</span></th>'
        for j, count in enumerate(confusion[i]):
            look = "strong" if strength[i, j] > 0.7 else "weak" if count else "zero"
            paint = (*(HIT if i == j else MISS), round(float(strength[i, j]), 2))
            table += f'<td class="{look}" style="background:rgba{paint}">{count}</td>'
        table += "</tr>"
    return f'<div class="scroll" tabindex="0">{table}</table></div>'


def _heat_map(strength: np.ndarray) -> str:
    """Draws cells of strength [K, K] in [0, 1] without numbers."""
    k, side = len(strength), 410
    pixels = np.empty((k, k, 4), np.uint8)
    pixels[..., :3] = np.where(np.eye(k, dtype=bool)[..., None], HIT, MISS)
    pixels[..., 3] = np.round(255 * strength)
    x_axis, y_axis = (_Axis((0, k), at, at + side) for at in (LEFT, TOP))
    return (
        f'<svg class="heat" viewBox="0 0 {LEFT + side + 20} {TOP + side + 42}" '
        f'role="img" aria-label="Confusion matrix of {k} classes">'
        f"{_frame(x_axis, y_axis, 'predicted class')}"
        f'<text transform="translate(14 {TOP + side / 2}) rotate(-90)">truth</text>'
        f'<image x="{LEFT}" y="{TOP}" width="{side}" height="{side}" '
        f'href="{png_uri(Image.fromarray(pixels))}"/></svg>'
    )
