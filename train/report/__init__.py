"""The report of a run: one HTML page that needs no other file and no network."""

from train.fit import Result
from train.report.classification import evaluate_classifier
from train.report.detection import evaluate_detector
from train.report.page import write_page, write_report
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
    "macros",
    "make_evaluation",
    "plot_section",
    "table_section",
    "write_page",
    "write_report",
]


def make_evaluation(result: Result) -> Evaluation:
    """Makes the part of a run's report that depends on its task."""
    make = {
        "classification": evaluate_classifier,
        "detection": evaluate_detector,
        "segmentation": evaluate_segmentation,
        "verification": evaluate_verification,
    }
    return make[result.experiment.task.name](result)
