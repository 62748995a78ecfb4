"""The report of a run: one HTML page that needs no other file and no network."""

from train.report.classification import evaluate_classifier
from train.report.detection import evaluate_detector
from train.report.page import write_page, write_report, write_run_report
from train.report.parts import (
    Evaluation,
    Picture,
    Section,
    macros,
    plot_section,
    table_section,
)
from train.report.segmentation import evaluate_segmentation
from train.report.verification import evaluate_verification

__all__ = [
    "Evaluation",
    "Picture",
    "Section",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_segmentation",
    "evaluate_verification",
    "macros",
    "plot_section",
    "table_section",
    "write_page",
    "write_report",
    "write_run_report",
]
