"""Which images a run is trained and evaluated on; a resumed one must have the same."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import jax

from train.data import Source

FILE = "data.json"
_WHAT = {"train": "training", "eval": "evaluation"}

logger = logging.getLogger("train")


def save_fingerprints(run_dir: Path, sources: Mapping[str, Source]) -> None:
    """Writes number and hash of the images into a run folder; the first process does.

    Args:
      run_dir: Its folder.
      sources: What it is trained and evaluated on, as "train" and "eval".
    """
    if jax.process_index():
        return
    found = {name: source.fingerprint() for name, source in sources.items()}
    temporary = run_dir / f"{FILE}.tmp"
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    temporary.replace(run_dir / FILE)


def check_fingerprints(
    run_dir: Path, sources: Mapping[str, Source], *, changed_data: bool = False
) -> None:
    """Compares the images with those that a run began with.

    Args:
      run_dir: Folder of the run. One without fingerprints passes.
      sources: See `save_fingerprints`.
      changed_data: Whether to go on with other images; it is logged.

    Raises:
      ValueError: They are others, or the file cannot be read.
    """
    path, changes = run_dir / FILE, []
    if not path.exists():
        return
    for name, source in sources.items():
        now = source.fingerprint()
        try:
            before = json.loads(path.read_bytes())[name]
            count, digest = before["count"], before["sha256"]
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
            changes.append(f"the {_WHAT[name]} images ({what})")
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
