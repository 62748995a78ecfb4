"""Reads variables from checkpoints of training runs, and from other orbax trees."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.spec import Card, primary_metric
from zoo.transfer import merge
from zoo.weights.checksums import check_checksums, check_step

logger = logging.getLogger("zoo")


def read_checkpoint(
    path: str | os.PathLike, step: int | None = None
) -> tuple[dict[str, Any], Card, int]:
    """Reads the variables that evaluation used, on any number of devices.

    These are the moving averages of a run that has some, except for frozen parameters.

    Args:
      path: A run folder, its folder `checkpoints`, or the folder of one step in it.
      step: Number of the step; None for the one with the best accuracy (AP50 for
        detectors, mean IoU for segmentation) or, if none was stored, the last one.

    Returns:
      `(variables, card, step)`: numpy arrays, their card, and the step.

    Raises:
      FileNotFoundError: There is no such folder, no checkpoint in it, or no such step.
      ValueError: The checkpoint is damaged; the message names the undamaged ones.
    """
    root, choices = _list_steps(path)
    if step is None:
        step = _choose(root, choices)
    elif step not in choices:
        raise FileNotFoundError(f"{path} has no step {step}; there are: {choices}.")
    try:
        return (*_read_step(root / str(step)), step)
    except Exception as error:
        # Orbax passes on errors of every type from its dependencies.
        steps = _list_steps(root)[1]
        others = [s for s in steps if s != step and _is_readable(root / str(s))]
        hint = f"undamaged steps: {others}" if others else "no other step is undamaged"
        raise ValueError(
            f"{root / str(step)} is damaged; {hint}. {_reason(error)}"
        ) from error


def read_card(path: str | os.PathLike) -> Card:
    """Reads the card of a checkpoint without its variables, see `read_checkpoint`.

    Raises:
      FileNotFoundError: See `read_checkpoint`.
      ValueError: The card is damaged.
    """
    root, steps = _list_steps(path)
    folder = root / str(_choose(root, steps))
    check_step(folder, ("card",))
    return _read_card(folder)


def find_tree(path: Path) -> Path | None:
    """Finds an orbax checkpoint of a tree that was not written by `train`.

    Args:
      path: Folder of the checkpoint, of a step of a checkpoint manager, or of all its
        steps, to find the last one.
    """
    path = path.expanduser().resolve()
    steps = [p for p in path.iterdir() if p.name.isdigit() and p.is_dir()]
    last = max(steps, key=lambda p: int(p.name), default=path)
    if any((p / "card").is_dir() for p in (path, *steps)):
        return None
    folders = (path, path / "default", last, last / "default")
    return next((p for p in folders if (p / "_METADATA").is_file()), None)


def read_tree(folder: Path) -> dict[str, Any]:
    """Reads "params" and "batch_stats" of an orbax checkpoint of a tree.

    Raises:
      ValueError: It is damaged, or has no "params".
    """
    try:
        return _read_arrays(folder, ("params", "batch_stats"))
    except Exception as error:
        raise ValueError(f"{folder} cannot be read: {_reason(error)}") from error


def _list_steps(path: str | os.PathLike) -> tuple[Path, list[int]]:
    """Returns the folder of the steps' folders, and the steps that `path` refers to."""
    root, own = _find_steps_folder(Path(path).expanduser().resolve())
    # Orbax renames the folder of a step to its number when it is complete.
    steps = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit())
    if not steps:
        raise FileNotFoundError(
            f"{root} holds no complete checkpoint: expected the folder of a run of "
            "`canon-zoo train`, or an orbax checkpoint of a tree with 'params'."
        )
    return root, steps if own is None else [own]


def _find_steps_folder(path: Path) -> tuple[Path, int | None]:
    """Returns the folder of the steps' folders, and the step that `path` itself is."""
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}.")
    if path.name.isdigit() and (path / "card").is_dir():
        return path.parent, int(path.name)
    return (path / "checkpoints" if (path / "checkpoints").is_dir() else path), None


def _choose(root: Path, steps: list[int]) -> int:
    found = {}
    for step in steps:
        file = root / str(step) / "metrics" / "metrics"
        if not file.is_file():
            continue
        try:
            check_checksums(file.parent)
            found[step] = primary_metric(_read_json(file))
            if not isinstance(found[step], int | float | None):
                raise ValueError(f"{file} is damaged: {found[step]!r} is no number.")
        except ValueError as error:
            found.pop(step, None)
            logger.warning("step %d is ignored in the choice: %s", step, error)
    known = [step for step in steps if found.get(step) is not None]
    return max(known, key=lambda step: (found[step], step)) if known else steps[-1]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds {str(found)[:60]}.")
    return found


def _read_card(folder: Path) -> Card:
    file = folder / "card" / "metadata"
    try:
        return Card.from_json(_read_json(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read_step(folder: Path) -> tuple[dict[str, Any], Card]:
    if not check_step(folder, ("card", "state")):
        check_store(folder / "state")
    card = _read_card(folder)
    state = _read_arrays(folder / "state", ("params", "batch_stats", "ema"))
    averages = state.get("ema") or {}
    params = merge(state["params"], averages.get("params") or {})
    variables = {"params": params}
    if "batch_stats" in state:
        statistics = averages.get("batch_stats") or {}
        variables["batch_stats"] = merge(state["batch_stats"], statistics)
    return variables, card


def _read_arrays(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Reads some entries of a saved tree, without others such as the optimizer state.

    Raises:
      ValueError: The tree has no "params".
    """
    import orbax.checkpoint as ocp
    from etils import epath

    directory = epath.Path(folder)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        saved = handler.metadata(directory).tree
        if not isinstance(saved, Mapping) or not saved.get("params"):
            found = [*saved] if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"a tree with 'params' is expected, got {found}.")
        wanted = {k: saved[k] for k in names if saved.get(k)}
        # As numpy: the state may have been saved on other devices.
        args = ocp.args.PyTreeRestore(
            item=jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), wanted),
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
            ),
            partial_restore=True,
        )
        return handler.restore(directory, args=args)
    finally:
        handler.close()


def check_store(folder: Path) -> None:
    """Reads every stored value sequentially.

    Orbax reads them concurrently, and prints a long message for each if one is damaged.
    """
    import tensorstore

    files = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": files}).result()
    for key in store.list().result():
        store.read(key).result()


def _is_readable(folder: Path) -> bool:
    try:
        _read_step(folder)
    except Exception:
        return False
    return True


def _reason(error: Exception) -> str:
    """Returns the first sentence of an error, without tensorstore's settings."""
    text = re.split(r" \[tensorstore_spec|\n", str(error))[0]
    return f"{type(error).__name__}: {text[:500]}"
