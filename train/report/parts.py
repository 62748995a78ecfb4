"""The parts of a report, made by templates: tables, charts, matrices and pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from PIL import Image

from train.figures import Series, heat_map, line_chart
from zoo.figures.pictures import png_uri

MAX_ROWS = 20  # further classes are folded
MAX_NUMBERED = 20  # the confusion matrix of more classes is a heat map
MAX_PAIRS = 10
THUMBNAIL = 256

Numbers = dict[str, tuple[str, str]]  # name -> (number, remark)


class Section(NamedTuple):
    """A section of a page.

    Attributes:
      title: The heading, in plain text.
      body: The HTML below it, such as the macros return.
    """

    title: str
    body: Markup


class Evaluation(NamedTuple):
    """The evaluation of a trained model, as a report shows it.

    Attributes:
      numbers: The numbers at the top.
      sections: The sections of the page.
    """

    numbers: Numbers
    sections: Sequence[Section]


class Picture(NamedTuple):
    """An image with a caption.

    Attributes:
      image: The image.
      alt: The alternative text.
      caption: The text below the image, which is escaped unless it is `Markup`.
      source: Where the image comes from, such as its file.
      size: The largest width and height in pixels; a larger image is reduced.
    """

    image: Image.Image
    alt: str
    caption: str = ""
    source: str = ""
    size: int = THUMBNAIL

    @property
    def enlarged(self) -> bool:
        """Whether the page enlarges the image, with square pixels."""
        return max(self.image.size) < self.size / 2

    @property
    def uri(self) -> str:
        """The image as a PNG within the page."""
        image = self.image.copy()
        image.thumbnail((self.size, self.size))
        return png_uri(image)


def percent(share: float) -> str:
    """Formats a share as a percentage."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def breakable(value: object) -> Markup:
    """Escapes a text, and allows line breaks after underscores."""
    if isinstance(value, Markup):
        return value
    return escape(str(value)).replace("_", Markup("_<wbr>"))


ENVIRONMENT = Environment(
    loader=PackageLoader("train.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["breakable"] = breakable
macros = ENVIRONMENT.get_template("macros.html").module


def table_section(
    title: str, header: Sequence[str], rows: Sequence[Sequence], note: str = ""
) -> Section:
    """Makes a section with one table, whose cells are shown as `str(cell)`."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"table {title!r} has a row of {len(row)} cells, {list(row)}, under a "
                f"header of {len(header)}"
            )
    return Section(title, macros.table(header, rows, note))


def plot_section(
    title: str,
    series: Series,
    x_label: str,
    y_label: str,
    note: str = "",
    log_x: bool = False,
) -> Section:
    """Makes a section with one plot of series: name -> (x values, y values)."""
    chart = line_chart(series, x_label, y_label, log_x=log_x)
    return Section(title, macros.charts([chart], note))


def class_table(
    header: Sequence[str],
    names: Sequence[str],
    shares: Sequence[float | None],
    intervals: Sequence[tuple[float, float]] | None = None,
    counts: Sequence[str] = (),
    absent: str = "",
    note: str = "Lowest first.",
) -> Markup:
    """Makes a table of the share of each class, the lowest first.

    Args:
      header: The titles of the four columns: class, bar, share, count.
      names: K class names.
      shares: K shares in [0, 1], None for a class that does not occur.
      intervals: K confidence intervals; None for no intervals.
      counts: K texts for the last column.
      absent: The text in the last column for a class that does not occur.
      note: The text below the table.
    """
    order = np.argsort([2 if s is None else s for s in shares], kind="stable")
    rows = [
        (names[c], "", "–", absent)
        if shares[c] is None
        else (
            names[c],
            macros.bar(shares[c], intervals and intervals[c]),
            percent(shares[c]),
            counts[c],
        )
        for c in order
    ]
    return macros.table(header, rows, note, MAX_ROWS)


def confusion_matrix(
    confusion: np.ndarray, names: Sequence[str], shown: np.ndarray | None = None
) -> Markup:
    """Draws a confusion matrix: a table of numbers, or a heat map of many classes.

    The opacity of a cell is the square root of its share of the row, so that rare
    mistakes stay visible.

    Args:
      confusion: Counts [K, K], row = truth, column = prediction.
      names: K class names.
      shown: The numbers to show, int [K, K]; the counts if None.
    """
    totals = confusion.sum(axis=1, keepdims=True)
    strength = np.sqrt(confusion / np.maximum(totals, 1))
    if len(confusion) > MAX_NUMBERED:
        return heat_map(strength)
    shown = confusion if shown is None else shown
    return macros.matrix(shown.tolist(), strength.tolist(), names)


def confused_pairs(confusion: np.ndarray, names: Sequence[str]) -> Markup:
    """Makes a table of the most frequent errors.

    Args:
      confusion: Counts [K, K], row = truth, column = prediction.
      names: K class names.
    """
    totals = confusion.sum(axis=1)
    errors = confusion * ~np.eye(len(names), dtype=bool)
    pairs = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:MAX_PAIRS]:
        true, predicted = np.unravel_index(cell, errors.shape)
        if count := errors[true, predicted]:
            often = (f"{count:,}/{totals[true]:,}", percent(count / totals[true]))
            pairs.append((names[true], names[predicted], *often))
    return macros.table(("truth", "predicted as", "times", "share"), pairs)
