"""The page of one study or of several: one HTML file that needs no other."""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from train.studies.study import Band, Report, Table

STYLE = """
body{max-width:68rem;margin:auto;padding:1rem;font:16px/1.5 system-ui,sans-serif;
color:#1c1e21;background:#f6f6f3;overflow-wrap:break-word}
a{color:#0072b2}
section{background:#fff;border:1px solid #dedfdb;border-radius:10px;padding:1.2rem;
margin:1rem 0}h1,h2,h3{line-height:1.25}h2{margin-top:0}p.soft,figcaption,td.soft
{color:#5f646b}figure{margin:1rem 0}figure img{max-width:100%;height:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;
font-size:.92rem}th,td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid #dedfdb}.yes{color:#00663f}.no{color:#b3261e;font-weight:650}
"""


def write_page(path: Path, reports: Sequence[Report]) -> Path:
    """Writes the page of some studies, whole or not at all.

    Args:
      path: Path of the page.
      reports: Studies in the order in which they are shown.

    Returns:
      `path`.
    """
    title = reports[0].study.name if len(reports) == 1 else "The lecture's claims"
    body = "".join(_section(report) for report in reports)
    if len(reports) > 1:
        overview = f"<h1>{escape(title)}</h1>{_overview(reports)}"
        body = f"<section>{overview}</section>{body}"
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _overview(reports: Sequence[Report]) -> str:
    rows = []
    for report in reports:
        bands = report.outcome.bands
        held = sum(band.holds for band in bands)
        name = escape(report.study.name)
        rows.append(
            (
                f'<a href="#{name}">{name}</a>',
                escape(report.study.claim),
                _mark(held == len(bands), f"{held} of {len(bands)}"),
                f"{report.cpu_seconds:.0f} s",
            )
        )
    return _table(("study", "claim", "bands that hold", "CPU time"), rows)


def _section(report: Report) -> str:
    study, outcome = report.study, report.outcome
    about = [
        ("Scale", report.job.scale),
        ("Changed to fit", study.changes.get(report.job.scale, "")),
        ("Seeds", ", ".join(map(str, outcome.seeds)) or "nothing is random"),
        ("Reference", study.reference),
        ("Time", f"{report.seconds:.0f} s, {report.cpu_seconds:.0f} s of CPU"),
    ]
    parts = [
        f"<h2>{escape(study.name)}</h2><p>{escape(study.claim)}</p>",
        *(f"<p><b>{escape(remark)}</b></p>" for remark in outcome.remarks),
        *(_figure(caption, figure) for caption, figure in outcome.figures),
        "<h3>Expected and measured</h3>" + _bands(outcome.bands),
        *(_titled_table(table) for table in outcome.tables),
        "<h3>How</h3>",
        *(f'<p class="soft">{n}: {escape(text)}</p>' for n, text in about if text),
    ]
    return f'<section id="{escape(study.name)}">{"".join(parts)}</section>'


def _bands(bands: Sequence[Band]) -> str:
    header = ("what", "measured", "expected", "", "published", "reason")
    rows = [
        (
            escape(band.what),
            f"{band.value:.4g}",
            escape(band.bounds()),
            _mark(band.holds, "holds" if band.holds else "does not hold"),
            escape(band.published),
            escape(band.reason),
        )
        for band in bands
    ]
    return _table(header, rows)


def _mark(good: bool, text: str) -> str:
    return f'<span class="{"yes" if good else "no"}">{escape(text)}</span>'


def _titled_table(table: Table) -> str:
    rows = [[escape(str(cell)) for cell in row] for row in table.rows]
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{_table(table.header, rows)}{note}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(caption: str, figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
