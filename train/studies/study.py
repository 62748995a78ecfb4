"""The definition of a study and its results: figures, tables and expected bands."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from train.config import write_json
from zoo.paths import unknown


@dataclasses.dataclass(frozen=True)
class Job:
    """One execution of a study.

    Attributes:
      scale: A key of `Study.scales`.
      sizes: The value of that key: how much is measured at this scale.
      folder: Folder for the study's runs, figures and page. Measurements that are
        already in it are not repeated.
      dataset: Data set to use in place of the scale's own, as for `--dataset`.
    """

    scale: str
    sizes: Any
    folder: Path
    dataset: str | None = None


@dataclasses.dataclass(frozen=True)
class Band:
    """A measured number, and the interval in which it lies if the claim holds.

    Attributes:
      what: What is measured.
      value: The measured number.
      low: Lower bound; None for none.
      high: Upper bound; None for none.
      reason: Why the number is expected in the interval.
      published: The paper's corresponding number.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    reason: str = ""
    published: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is finite and within the bounds, which are inclusive."""
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return math.isfinite(self.value) and above and below

    def bounds(self) -> str:
        """Formats the interval."""
        if self.low is not None and self.high is not None:
            return f"{self.low:.3g} to {self.high:.3g}"
        if self.high is None:
            return f"at least {self.low:.3g}"
        return f"at most {self.high:.3g}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: Heading.
      header: Names of the columns.
      rows: Cells, shown as `str(cell)`.
      note: Text below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table {self.title!r}: a row has {len(row)} cells, the header "
                    f"{len(self.header)}: {[*row]}."
                )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of a study.

    Attributes:
      figures: Captions and figures.
      tables: Measured and published numbers.
      bands: The claim as numbers with their expected intervals.
      seeds: Seeds over which means and spreads were taken; empty if nothing is random.
      remarks: Which parts of the claim do not show at this scale, and where they do.
      values: Further numbers for the machine-readable result, for `save_values`.
    """

    figures: Sequence[tuple[str, Figure]]
    tables: Sequence[Table]
    bands: Sequence[Band]
    seeds: Sequence[int] = ()
    remarks: Sequence[str] = ()
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that tests a claim.

    Attributes:
      name: Name on the command line.
      claim: The claim, in one or two sentences.
      reference: Papers, with the figures and tables that are reproduced.
      run: Function that makes the measurements.
      scales: How much is measured: "smoke" (seconds, a test of the plumbing), "quick"
        (embedded data, up to six minutes on two cores), and if the study has them,
        "medium" (real data, hours on a CPU) and "full" (the paper's data and sizes).
      changes: The differences from the paper, for each scale but "smoke".
      data_scales: The scales whose data set `--dataset` may replace.
    """

    name: str
    claim: str
    reference: str
    run: Callable[[Job], Outcome]
    scales: Mapping[str, Any]
    changes: Mapping[str, str]
    data_scales: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """A study that was run, from which its page and its JSON file are written."""

    study: Study
    job: Job
    outcome: Outcome
    seconds: float
    cpu_seconds: float

    def figure_paths(self) -> list[Path]:
        """Returns the paths of the figures, in order."""
        count = len(self.outcome.figures)
        return [self.job.folder / f"figure-{i + 1}.png" for i in range(count)]

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        outcome = self.outcome
        versions = ("canon-zoo", "jax", "flax", "optax", "numpy")
        return {
            "study": self.study.name,
            "scale": self.job.scale,
            "claim": self.study.claim,
            "reference": self.study.reference,
            "changes": self.study.changes.get(self.job.scale, ""),
            "seeds": [*outcome.seeds],
            "remarks": [*outcome.remarks],
            "bands": [
                {**dataclasses.asdict(band), "holds": band.holds}
                for band in outcome.bands
            ],
            "tables": [
                {
                    "title": table.title,
                    "header": [*table.header],
                    "rows": [[str(cell) for cell in row] for row in table.rows],
                }
                for table in outcome.tables
            ],
            "values": outcome.values,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "versions": {name: metadata.version(name) for name in versions},
        }


def run_study(
    study: Study,
    folder: Path,
    *,
    scale: str = "quick",
    dataset: str | None = None,
    steps: int | None = None,
) -> Report:
    """Runs a study and writes its page, its figures and its result into a folder.

    Args:
      study: Study to run.
      folder: Folder to write `report.html`, `result.json` and `figure-N.png` into;
        made if it is missing.
      scale: A key of `study.scales`.
      dataset: Data set in place of the scale's own.
      steps: Length of the training runs in place of the scale's own.

    Raises:
      ValueError: The study has no such scale, or its data set or the length of its runs
        cannot be replaced at this scale.
    """
    from train.studies.page import write_page

    if scale not in study.scales:
        raise ValueError(unknown(f"--scale of {study.name}", scale, study.scales))
    sizes, what = study.scales[scale], f"the study {study.name} at --scale {scale}"
    if dataset and scale not in study.data_scales:
        scales = " or ".join(study.data_scales) or "no scale"
        raise ValueError(
            f"--dataset {dataset}: {what} has its own data; it takes other data at "
            f"{scales}."
        )
    if steps is not None:
        if getattr(sizes, "steps", 0) == 0:
            raise ValueError(f"--steps {steps}: {what} has no training runs to change.")
        if steps < 1:
            raise ValueError(f"--steps {steps}: expected 1 or more.")
        sizes = dataclasses.replace(sizes, steps=steps)
    folder.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    job = Job(scale, sizes, folder, dataset)
    try:
        outcome = study.run(job)
    except (ValueError, OSError):
        with contextlib.suppress(OSError):
            folder.rmdir()  # Only if it is empty.
        raise
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    report = Report(study, job, outcome, seconds, cpu_seconds)
    for path, (_, figure) in zip(report.figure_paths(), outcome.figures, strict=True):
        figure.savefig(path, dpi=120)
    save_values(folder / "result.json", report.to_json())
    write_page(folder / "report.html", [report])
    return report


def save_values(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file, with null for numbers that are not finite.

    Dataclasses are written as objects; keys that are tuples are joined by slashes.
    """

    def finite(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            value = vars(value)
        if isinstance(value, Mapping):
            return {
                "/".join(map(str, name)) if isinstance(name, tuple) else str(name): (
                    finite(each)
                )
                for name, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [finite(each) for each in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    write_json(path, finite(values), indent=1, ensure_ascii=False, allow_nan=False)
