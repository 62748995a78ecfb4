"""The report of a run: one HTML page that needs no other file and no network."""

from train.report.classification import ClassifierEvaluation, Mistake
from train.report.page import write_report
from train.report.parts import (
    Evaluation,
    Section,
    confidence_interval,
    plot_section,
    table_section,
)

__all__ = [
    "ClassifierEvaluation",
    "Evaluation",
    "Mistake",
    "Section",
    "confidence_interval",
    "plot_section",
    "table_section",
    "write_report",
]
