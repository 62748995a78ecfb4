"""The folder of a run: its name, its lock, its images' fingerprints and its times."""

import contextlib
import json
import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from train.config import TrainConfig, save_config, write_json
from train.data import Source

FINGERPRINTS_FILE = "data.json"
TIMES_FILE = "times.json"
_SPLITS = {"train": "training", "eval": "evaluation"}

logger = logging.getLogger("train")


def new_run_dir(name: str) -> Path:
    """Makes the folder of a new run: runs/NAME-TIME below the current folder.

    A number is appended if another run already has that name.

    Args:
      name: The name of the experiment.

    Raises:
      ValueError: The folder cannot be made.
    """
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")
        except OSError as error:
            raise ValueError(f"cannot make the run folder {path}: {error}.") from error


@contextlib.contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Makes the folder and locks it, so that no other process writes a run there.

    The same thread may lock it again. If the process is killed, the system releases
    the lock.

    Args:
      run_dir: The folder of the run.

    Raises:
      ValueError: Another process writes a run there, or the folder cannot be written.
    """
    reason = ""
    lock = FileLock(run_dir / ".lock", is_singleton=True)
    if jax.process_index() == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            reason = (
                f"another process writes the run in {run_dir}; wait for its end, or "
                "stop it, or choose another --run-dir."
            )
        except OSError as error:
            reason = f"cannot write the run folder {run_dir}: {error}."
    if jax.process_count() > 1:
        # All processes stop if the first one does.
        refused = multihost_utils.broadcast_one_to_all(np.array(bool(reason)))
        if refused and not reason:
            reason = f"the first process cannot write {run_dir}; it says why."
    if reason:
        raise ValueError(reason)
    try:
        yield
    finally:
        lock.release()


def create_run_dir(
    run_dir: Path, config: TrainConfig, sources: Mapping[str, Source]
) -> None:
    """Writes the config and the fingerprints of the images of a new run.

    Args:
      run_dir: The folder of the run.
      config: The config of the run.
      sources: The images to train and to evaluate on, as "train" and "eval".

    Raises:
      ValueError: The folder has a run already, or cannot be written.
    """
    taken = (run_dir / "config.json").exists()
    if jax.process_count() > 1:
        # All processes look before the first one writes.
        multihost_utils.sync_global_devices("create_run_dir")
    if taken:
        raise ValueError(
            f"{run_dir} has a run already; go on with `canon-zoo train resume "
            f"{shlex.quote(str(run_dir))}`, or choose another --run-dir."
        )
    try:
        if jax.process_index() == 0:
            save_config(config, run_dir / "config.json")
    except OSError as error:
        raise ValueError(f"cannot write the run folder {run_dir}: {error}.") from error
    save_fingerprints(run_dir, sources)


def save_fingerprints(run_dir: Path, sources: Mapping[str, Source]) -> None:
    """Writes the number and the hash of the images, in the first process only.

    Args:
      run_dir: The folder of the run.
      sources: The images to train and to evaluate on, as "train" and "eval".
    """
    if jax.process_index() == 0:
        found = {name: source.fingerprint() for name, source in sources.items()}
        write_json(run_dir / FINGERPRINTS_FILE, found, indent=2)


def check_fingerprints(
    run_dir: Path, sources: Mapping[str, Source], *, changed_data: bool = False
) -> None:
    """Compares the images with those that a run began with.

    Args:
      run_dir: The folder of the run. One without fingerprints passes.
      sources: The images to train and to evaluate on, as "train" and "eval".
      changed_data: Whether to accept changed images, which is logged.

    Raises:
      ValueError: The images have changed, or the file cannot be read.
    """
    path, changes = run_dir / FINGERPRINTS_FILE, []
    if not path.exists():
        return
    for name, source in sources.items():
        now = source.fingerprint()
        try:
            before = json.loads(path.read_bytes())[name]
            count, digest = before["count"], before["sha256"]
            # Runs of earlier versions do not have this hash.
            content = before.get("content_sha256")
        except Exception as error:
            raise ValueError(
                f"{path}: cannot be read ({type(error).__name__}: {error}); without "
                "this file it is not checked that the images are the same."
            ) from error
        if (count, digest) != (now["count"], now["sha256"]):
            what = (
                f"{count} when the run began, {now['count']} now"
                if count != now["count"]
                else f"{count} as before, but other names, classes or another order"
            )
            changes.append(f"the {_SPLITS[name]} images ({what})")
        elif content and content != now.get("content_sha256"):
            changes.append(
                f"the {_SPLITS[name]} images ({count} of the same names, but files of "
                "other sizes or other annotations)"
            )
    if not changes:
        return
    changed = f"{run_dir}: what has changed since the run began: {'; '.join(changes)}."
    if not changed_data:
        raise ValueError(
            f"{changed} A run goes on as if not interrupted only with the same images; "
            "resume --changed-data goes on with those that are there."
        )
    logger.warning("%s The run goes on with those that are there.", changed)
    save_fingerprints(run_dir, sources)


class Clock:
    """Measures the wall time of a run, all of its parts together.

    Args:
      run_dir: The folder of the run, where the seconds of each part are kept.
      resuming: Whether the run had earlier parts.
      started: The time at which this part began, by `time.perf_counter`.

    Attributes:
      ran: Whether this part has run a step; if not, the part does not count.
    """

    def __init__(self, run_dir: Path, *, resuming: bool, started: float):
        self.ran = False
        self._path, self._started = run_dir / TIMES_FILE, started
        self._before = _read_times(self._path) if resuming else []

    @property
    def parts(self) -> int:
        """The number of parts so far."""
        return len(self._times())

    @property
    def seconds(self) -> float:
        """The wall time of all parts so far."""
        return sum(self._times())

    def save(self) -> None:
        """Writes the times of all parts so far, in the first process only."""
        if jax.process_index() == 0:
            write_json(self._path, self._times())

    def _times(self) -> list[float]:
        if self._before and not self.ran:
            return self._before
        return [*self._before, time.perf_counter() - self._started]


def _read_times(path: Path) -> list[float]:
    try:
        times = json.loads(path.read_bytes()) if path.exists() else []
        return [abs(float(seconds)) for seconds in times]
    except Exception as error:
        logger.warning("%s: times of earlier parts are not known (%s).", path, error)
        return []
