"""The lecture's claims as experiments, by name; each has its own file."""

from pathlib import Path

from train.studies import (
    batch_norm,
    degradation,
    depth,
    detectors,
    few_images,
    generic_features,
    initialization,
    residual_gradients,
    skips,
    sliding_window,
    visualization,
    which_layer,
)
from train.studies.page import write_page
from train.studies.study import Band, Report, Study, run_study
from zoo.paths import unknown

__all__ = [
    "STUDIES",
    "Band",
    "Report",
    "Study",
    "get_study",
    "run_studies",
    "run_study",
    "write_page",
]

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        initialization,
        batch_norm,
        degradation,
        residual_gradients,
        depth,
        few_images,
        which_layer,
        generic_features,
        sliding_window,
        skips,
        detectors,
        visualization,
    )
}


def get_study(name: str) -> Study:
    """Returns a study.

    Raises:
      ValueError: There is no study of that name; the message has the nearest names.
    """
    if name not in STUDIES:
        raise ValueError(unknown("study", name, [*STUDIES, "all"]))
    return STUDIES[name]


def run_studies(folder: Path, *, scale: str = "quick") -> list[Report]:
    """Runs all studies that have a scale, each in its own folder.

    Args:
      folder: Folder for the studies' folders and for `report.html`, the page of all
        studies.
      scale: "smoke", "quick", "medium" or "full".
    """
    reports = [
        run_study(study, folder / name, scale=scale)
        for name, study in STUDIES.items()
        if scale in study.scales
    ]
    if not reports:
        raise ValueError(f"--scale {scale}: no study has it.")
    write_page(folder / "report.html", reports)
    return reports
