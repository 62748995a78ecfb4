"""The page of one or several studies: one self-contained HTML file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from train.report import page
from train.report.parts import Picture, Section, macros, table_section
from train.studies.study import Report


def write_page(path: Path, reports: Sequence[Report]) -> Path:
    """Writes the page of some studies atomically.

    Args:
      path: Path of the page.
      reports: Reports in the order in which they are shown.

    Returns:
      `path`.
    """
    sections = [section for report in reports for section in _sections(report)]
    if len(reports) == 1:
        (report,) = reports
        title, subtitle = report.study.name, f"scale {report.job.scale}"
    else:
        title, subtitle = "The lecture's claims", f"{len(reports)} studies"
        header = ("study", "claim", "bands that hold", "CPU time")
        link = Markup('<a href="#{0}">{0}</a>')
        rows = [
            (
                link.format(r.study.name),
                r.study.claim,
                _held([r]),
                f"{r.cpu_seconds:.0f} s",
            )
            for r in reports
        ]
        sections.insert(0, table_section("Overview", header, rows))
    numbers = {
        "bands that hold": (_held(reports), ""),
        "time": (
            f"{sum(r.seconds for r in reports):.0f} s",
            f"{sum(r.cpu_seconds for r in reports):.0f} s of CPU",
        ),
    }
    return page.write_page(path, title, subtitle, numbers, sections)


def _sections(report: Report) -> Iterator[Section]:
    """Yields the sections of a study: its figures, bands, tables and circumstances."""
    study, outcome = report.study, report.outcome
    pictures = []
    for path, (caption, _) in zip(report.figure_paths(), outcome.figures, strict=True):
        with Image.open(path) as image:
            image.load()
        pictures.append(Picture(image, caption, caption, size=max(image.size)))
    body = [
        macros.paragraph(study.claim),
        *(macros.paragraph(Markup("<b>{}</b>").format(r)) for r in outcome.remarks),
        macros.gallery(pictures, look="wide"),
    ]
    title = Markup('<span id="{0}">{0}</span>').format(study.name)
    yield Section(title, Markup().join(body))
    header = ("what", "measured", "expected", "", "published", "reason")
    rows = [
        (
            band.what,
            f"{band.value:.4g}",
            band.bounds(),
            "holds" if band.holds else Markup("<b>does not hold</b>"),
            band.published,
            band.reason,
        )
        for band in outcome.bands
    ]
    yield table_section("Expected and measured", header, rows)
    for table in outcome.tables:
        yield table_section(table.title, table.header, table.rows, table.note)
    about = [
        ("scale", report.job.scale),
        ("changed to fit", study.changes.get(report.job.scale, "")),
        ("seeds", ", ".join(map(str, outcome.seeds)) or "nothing is random"),
        ("reference", study.reference),
    ]
    yield table_section("How it was measured", ("", ""), about)


def _held(reports: Sequence[Report]) -> str:
    """Formats how many bands of some studies hold."""
    bands = [band for report in reports for band in report.outcome.bands]
    return f"{sum(band.holds for band in bands)} of {len(bands)}"
