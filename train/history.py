"""The history of a run's metrics, as JSON lines and as TensorBoard events."""

import contextlib
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class History:
    """Writes metrics.jsonl and TensorBoard events; close it, or use it as a context.

    In a run of several processes only the first one writes.

    Args:
      run_dir: The folder of the run.
      resume_from: The step from which a run resumes; rows of later steps are removed.
    """

    def __init__(self, run_dir: Path, *, resume_from: int | None = None):
        self._run_dir, self._file = run_dir, None
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
        (run_dir / "events").mkdir(exist_ok=True)
        # Not tensorboardX's SummaryWriter: a full disk kills its thread, and the next
        # write then blocks forever.
        self._events = EventsWriter(str(run_dir / "events" / "events"))
        if resume_from is not None:
            start = SessionLog(status=SessionLog.START)  # hides events of later steps
            self._write_event(step=resume_from + 1, session_log=start)

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            # Each row is flushed when written; closing fails only if a row has failed.
            for file in (self._file, self._events):
                with contextlib.suppress(OSError):
                    file.close()

    def log(self, kind: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one row.

        Args:
          kind: "train" or "eval".
          step: The number of steps done.
          epoch: The number of epochs done.
          values: The metrics by name.

        Raises:
          OSError: The row cannot be written, for instance because the disk is full.
        """
        if not self._file:
            return
        row = {"kind": kind, "step": step, "epoch": epoch, **values}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._write_event(step=step, summary=scalar(f"{kind}/{name}", value))
            self._events.flush()
        except OSError as error:
            run = shlex.quote(str(self._run_dir))
            raise OSError(
                f"the metrics of step {step} cannot be written in {self._run_dir}: "
                f"{error.strerror or error}. What was saved before stays; "
                f"`canon-zoo train resume {run}` goes on from there."
            ) from error

    def _write_event(self, **fields: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), **fields))


def format_rate(rate: float) -> str:
    """Formats images per second: as an integer, or with three digits below ten."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, without an incomplete last line.

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
