"""The metrics of a run: JSON lines, and the same for TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter


class History:
    """Writes metrics.jsonl and TensorBoard events; close it, or use it as a context.

    In a run of several processes the first one writes.

    Args:
      run_dir: The folder of the run.
      resume_from: The step from which a run goes on; rows of later steps are removed.
    """

    def __init__(self, run_dir: Path, *, resume_from: int | None = None):
        self._file = self._events = None
        if jax.process_index():
            return
        path = run_dir / "metrics.jsonl"
        if resume_from is not None:
            kept = [row for row in read_history(run_dir) if row["step"] <= resume_from]
            temporary = path.with_suffix(".tmp")
            with temporary.open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        self._file = path.open("a")
        purge = None if resume_from is None else resume_from + 1
        self._events = SummaryWriter(str(run_dir / "events"), purge_step=purge)

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()
            self._events.close()

    def log(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one row.

        Args:
          kind: "train" or "eval".
          step: The number of steps done.
          epoch: The number of epochs done.
          values: The metrics by name.
        """
        if not self._file:
            return
        row = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)


def format_rate(rate: float) -> str:
    """Formats images per second: whole ones, or three digits of fewer than ten."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line that was cut off is left out.

    Raises:
      ValueError: Another line is damaged; the message names it.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, last], start=1):
        row = _read_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number <= len(lines):
            raise ValueError(
                f"{path}, line {number} is damaged: {line[:60]!r} is no row of "
                "metrics. Put it right or remove the line; nothing was changed."
            )
    return rows


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if known and "kind" in row and "epoch" in row else None
