"""Checkpoints of a run: asynchronous, atomic, the last ones and the best."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers

from train.state import TrainState
from zoo.spec import Card, primary_metric
from zoo.weights.checkpoints import check_store
from zoo.weights.checksums import check_checksums, check_step, write_checksums

logger = logging.getLogger("train")

NUMBER = int | float | None  # the types of a metric


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read."""


class _Checksums:
    """A mixin for handlers that writes checksums before a step gets its final name."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_checksums(directory)


class _SummedState(_Checksums, ocp.StandardCheckpointHandler):
    pass


class _SummedJson(_Checksums, ocp.JsonCheckpointHandler):
    pass


def _make_handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state = _SummedState()
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    files = {"card": "metadata", "data": "metadata", "metrics": "metrics"}
    for item, filename in files.items():
        handler = _SummedJson(filename)
        registry.add(item, ocp.args.JsonSave, handler)
        registry.add(item, ocp.args.JsonRestore, handler)
    return registry


def list_steps(run_dir: Path) -> list[int]:
    """Lists the completely saved steps, in ascending order."""
    folder = run_dir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def find_sound_step(run_dir: Path) -> int | None:
    """Finds the last undamaged step, and logs the damaged ones that it skips."""
    for step in reversed(list_steps(run_dir)):
        try:
            check_step(run_dir / "checkpoints" / str(step))
        except (ValueError, OSError) as error:
            logger.warning("checkpoint %d is damaged and skipped: %s", step, error)
        else:
            return step
    return None


class Checkpoints:
    """The checkpoints of a run folder; close it, or use it as a context.

    Each step's folder has the items `state`, `card` (see `zoo.spec.Card`), `data` (the
    position of a streamed data set) and `metrics`, each with checksums of its files. A
    save that is interrupted leaves a temporary folder, which is never read. A step with
    damaged metrics is renamed to `damaged-STEP`, which is logged.

    Args:
      run_dir: The folder of the run.
      keep: The number of the last checkpoints to keep, besides the best one.
    """

    def __init__(self, run_dir: Path, keep: int = 2):
        self.folder = (run_dir / "checkpoints").resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.folder}: {error}.") from error
        _set_damaged_aside(self.folder)
        # Orbax also logs pages of tracebacks for the errors that it raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda m: primary_metric(m) if m else float("-inf"),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(keep), best]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            # The policy decides what is kept, but without `best_fn` orbax does not
            # write the metrics, and a resumed run would forget its best step.
            best_fn=primary_metric,
        )
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, handler_registry=_make_handlers()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> Sequence[int]:
        """Lists the completely saved steps, in ascending order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the last completely saved step; None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        step: int,
        card: Card,
        metrics: dict[str, float] | None = None,
        batches: Any = None,
    ) -> None:
        """Starts an asynchronous save; once it returns, the state may be donated.

        Args:
          state: The state at this step.
          step: The number of the step; a step that is already saved stays as it is.
          card: The card of the variables.
          metrics: The metrics of the evaluation at this step, if there was one.
          batches: The iterator of a streamed data set, whose position is saved too.

        Raises:
          CheckpointError: This save or the one before it failed, for instance because
            the disk is full; earlier checkpoints are unchanged.
        """
        if step in self._manager.all_steps():
            return
        items = {
            "state": ocp.args.StandardSave(_as_dict(state)),
            "card": ocp.args.JsonSave(card.to_json()),
        }
        if batches is not None:
            items["data"] = ocp.args.JsonSave(batches.get_state())
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until all saves are on disk.

        Raises:
          CheckpointError: A save failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def restore(
        self, like: TrainState, sharding: NamedSharding, step: int, batches: Any = None
    ) -> TrainState:
        """Restores a state, which may have been saved on other devices.

        Args:
          like: A state of the same structure, or its shapes.
          sharding: The sharding of the restored state.
          step: The step to read.
          batches: The iterator to set to its saved position.

        Raises:
          CheckpointError: The checkpoint is damaged, or belongs to another config.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            _as_dict(like),
        )
        items = {"state": ocp.args.StandardRestore(abstract)}
        if batches is not None:
            items["data"] = ocp.args.JsonRestore()
        try:
            if not check_step(self.folder / str(step)):
                check_store(self.folder / str(step) / "state")
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            others = [s for s in self.steps() if s != step]
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be read: "
                f"{_first_line(error)}. Other complete steps: {others or 'none'}; "
                "resume from one of them with --step."
            ) from error
        if batches is not None:
            batches.set_state(found["data"])
        # Empty collections are not stored in a checkpoint.
        return like.replace(**{k: found["state"][k] for k in _as_dict(like)})

    def drop_after(self, step: int) -> None:
        """Deletes the steps after the one from which the run resumes."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def close(self) -> None:
        """Waits for pending saves, and releases the folder."""
        self._manager.close()

    def _failed(self, error: Exception) -> CheckpointError:
        last = self.latest()
        good = f"{self.folder / str(last)}" if last is not None else "none"
        return CheckpointError(
            f"saving in {self.folder} failed: {_first_line(error)}. "
            f"The last good checkpoint is {good}."
        )


def _set_damaged_aside(folder: Path) -> None:
    """Renames steps with damaged metrics, which orbax reads when it opens a folder."""
    steps = list_steps(folder.parent) if jax.process_index() == 0 else ()
    for step in steps:
        path = folder / str(step)
        try:
            check_checksums(path / "metrics")
            for file in (path / "metrics" / "metrics", path / "_CHECKPOINT_METADATA"):
                content = json.loads(file.read_bytes()) if file.exists() else {}
                good = isinstance(content, dict)
                if not good or not isinstance(primary_metric(content), NUMBER):
                    raise ValueError(f"{file} is not as it was written.")
        except (ValueError, OSError) as error:
            aside = folder / f"damaged-{step}"
            number = 2
            while aside.exists():
                aside, number = folder / f"damaged-{step}-{number}", number + 1
            path.rename(aside)
            logger.warning(
                "checkpoint %d is damaged; it is kept as %s. %s", step, aside, error
            )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("set_damaged_aside")


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {k: v for k, v in vars(state).items() if jax.tree.leaves(v)}


def _first_line(error: Exception) -> str:
    # Drops the long dump of settings that tensorstore appends to its messages.
    text = re.split(r" \[tensorstore_spec|\n", str(error).strip())[0]
    return f"{type(error).__name__}: {text[:600]}"
