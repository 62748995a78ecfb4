"""The report of a run: one HTML page that needs no other file and no network."""

from train.report.classification import ClassifierEvaluation, Mistake
from train.report.detection import Boxes, DetectorEvaluation, Finding, Shown
from train.report.page import write_report
from train.report.parts import (
    Evaluation,
    Section,
    confidence_interval,
    plot_section,
    table_section,
)
from train.report.segmentation import SegmentationEvaluation, SegmentedImage
from train.report.verification import ShownPair, VerificationEvaluation

__all__ = [
    "Boxes",
    "ClassifierEvaluation",
    "DetectorEvaluation",
    "Evaluation",
    "Finding",
    "Mistake",
    "Section",
    "SegmentationEvaluation",
    "SegmentedImage",
    "Shown",
    "ShownPair",
    "VerificationEvaluation",
    "confidence_interval",
    "plot_section",
    "table_section",
    "write_report",
]
