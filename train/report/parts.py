"""What the sections of a report are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import numpy as np
from PIL import Image

from train.figures import Series, line_chart, png_uri

NONE = "<p>There are none.</p>"
MOST_ROWS = 20  # further classes fold away
MOST_PAIRS, THUMBNAIL = 10, 256
Card = tuple[str, str]


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
    return Section(title, table(header, [map(text, row) for row in rows], note))


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
    return Section(title, f'<div class="charts">{chart}</div><p>{text(note)}</p>')


class Evaluation(Protocol):
    """How a trained model does on one set of images, as the page shows it."""

    def cards(self) -> Mapping[str, Card]:
        """Returns headline numbers: name -> (number, remark), both as HTML."""

    def sections(self) -> list[Section]:
        """Returns the parts of the page."""


def confidence_interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a proportion; (0, 1) without examples.

    It stays within [0, 1] and holds for few examples and for proportions near 0 or 1.

    Args:
        correct: Number of successes, 0..count.
        count: Number of trials.

    Reference:
        Wilson, "Probable inference, the law of succession", JASA 22 (1927).
    """
    if not 0 <= correct <= count:
        raise ValueError(
            f"correct must lie in 0..count, got correct={correct} and count={count}"
        )
    if count == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, weight = correct / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / weight
    variance = share * (1 - share) / count + z**2 / (4 * count**2)
    half = z * math.sqrt(variance) / weight
    # The bounds at no and at full success are exact; rounding must not pass them.
    return max(0.0, middle - half), min(1.0, middle + half)


def table(header: Sequence[str], rows: Sequence, note: str = "") -> str:
    """Returns a table of cells that are HTML already, and a note in plain text."""
    if not rows:
        return NONE
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div><p>{text(note)}</p>'


def class_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> str:
    """Returns a table of one row a class, of which many fold away."""
    shown = table(header, rows[:MOST_ROWS], note)
    if rows[MOST_ROWS:]:
        rest = f"<summary>{len(rows) - MOST_ROWS} more classes</summary>"
        shown += f"<details>{rest}{table(header, rows[MOST_ROWS:])}</details>"
    return shown


def bar(share: float, interval: tuple[float, float] | None = None) -> str:
    """Draws a share in [0, 1] as a bar, with the band of its interval."""
    drawn = f'<span class="bar"><i style="width:{100 * share:.1f}%"></i>'
    if interval:
        low, high = (100 * bound for bound in interval)
        drawn += f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>'
    return f"{drawn}</span>"


def confused_pairs(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Returns a table of the errors that are most frequent.

    Args:
        confusion: Counts [K, K], row = truth, column = prediction.
        names: K names.
    """
    totals = confusion.sum(axis=1)
    errors = confusion * ~np.eye(len(names), dtype=bool)
    pairs = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:MOST_PAIRS]:
        true, predicted = np.unravel_index(cell, errors.shape)
        if count := errors[true, predicted]:
            often = (f"{count:,}/{totals[true]:,}", percent(count / totals[true]))
            pair = breakable(names[true]), breakable(names[predicted])
            pairs.append((*pair, *often))
    return table(("truth", "predicted as", "times", "share"), pairs)


def picture_card(
    picture: Image.Image, alt: str, caption: str, size: int = THUMBNAIL
) -> str:
    """Returns a figure of at most `size` pixels; the caption is HTML, `alt` is not."""
    small = ' class="pixels"' if max(picture.size) < size / 2 else ""
    picture = picture.copy()
    picture.thumbnail((size, size))
    return (
        f'<figure><img{small} src="{png_uri(picture)}" alt="{text(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def percent(share: float) -> str:
    """Writes a share as a percentage, as HTML."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def breakable(value: object) -> str:
    """Escapes a name, which may break behind its underscores; not for attributes."""
    return text(value).replace("_", "_<wbr>")


def text(value: object) -> str:
    """Escapes what is shown as it is."""
    return escape(str(value))
