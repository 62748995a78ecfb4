"""How long a run takes, all of its parts together."""

import json
import logging
import time
from pathlib import Path

import jax

FILE = "times.json"

logger = logging.getLogger("train")


class Clock:
    """Measures a part of a run, and knows of those before it.

    Args:
      run_dir: Folder of the run, where the seconds of each part are kept.
      resuming: Whether parts came before.

      started: When this part began, by `time.perf_counter`.

    Attributes:
      ran: Whether this part has run a step; else it does not count.
    """

    def __init__(self, run_dir: Path, *, resuming: bool, started: float):
        self.ran = False
        self._path, self._started = run_dir / FILE, started
        self._before = _read(self._path) if resuming else []

    @property
    def parts(self) -> int:
        """Number of parts until now."""
        return len(self._times())

    @property
    def seconds(self) -> float:
        """Time of all parts until now."""
        return sum(self._times())

    def save(self) -> None:
        """Writes what this part has taken until now; the first process does."""
        if jax.process_index() == 0:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._times()) + "\n")
            temporary.replace(self._path)

    def _times(self) -> list[float]:
        if self._before and not self.ran:
            return self._before
        return [*self._before, time.perf_counter() - self._started]


def format_rate(rate: float) -> str:
    """Writes images per second: whole ones, or three digits of fewer than ten."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def _read(path: Path) -> list[float]:
    try:
        times = json.loads(path.read_bytes()) if path.exists() else []
        return [abs(float(seconds)) for seconds in times]
    except Exception as error:
        logger.warning("%s: times of earlier parts are not known (%s).", path, error)
        return []
