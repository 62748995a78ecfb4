"""The training loop: `fit` trains, and `resume_run` resumes a run bit for bit."""

import contextlib
import dataclasses
import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from train.checkpoint import CheckpointError, Checkpoints, find_sound_step, list_steps
from train.config import TrainConfig, load_config, save_config
from train.data import Source
from train.evaluate import Evaluator
from train.experiment import prepare_experiment
from train.history import History, format_rate
from train.loaders import make_loader
from train.run import Result
from train.run_dir import Clock, check_fingerprints, create_run_dir, lock_run_dir
from train.state import change_frozen
from train.steps import RunSteps, make_run_steps, put_replicated, replicated

logger = logging.getLogger("train")

SECONDS_PER_CALL = 1.0  # Between two checks of the losses, the clock and signals.


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


def fit(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    resume: int | None = None,
    sources: tuple[Source, Source] | None = None,
    quiet: bool = False,
    changed_data: bool = False,
) -> Result:
    """Trains a network; evaluates, logs and saves checkpoints along the way.

    Args:
      config: The config of the run.
      run_dir: The folder of the run; a new one unless resuming.
      resume: The step of the checkpoint to resume from, or 0 to restart a run that has
        no checkpoint; None for a new run.
      sources: Images to train and to evaluate on; None to open what the config names.
      quiet: Show no progress bar and no evaluations.
      changed_data: Whether to resume even if the images differ from those that the run
        began with.

    Raises:
      ValueError: The config is inconsistent, the folder is not new, another process
        writes to it, or a resumed run has done more steps than the config asks for or
        has other images.
      NonFiniteLossError: The loss is not finite; the message names the step, the
        images and the last good checkpoint.
      CheckpointError: A checkpoint cannot be written or read.
    """
    started = time.perf_counter()
    run_dir, start = Path(run_dir), resume or 0
    # 1. Open the data and the model; all checks come before anything is written.
    experiment = prepare_experiment(config, sources)
    mesh, task = experiment.mesh, experiment.task
    steps_per_epoch, total = experiment.steps_per_epoch, experiment.total_steps
    if start > total:
        raise ValueError(
            f"{run_dir} has done {start} steps, and --steps or --epochs ask for "
            f"{total}; expected {start} or more."
        )
    images = {"train": experiment.train_source, "eval": experiment.eval_source}
    if resume is not None:
        check_fingerprints(run_dir, images, changed_data=changed_data)
    loader = make_loader(
        config.data,
        experiment.train_source,
        experiment.train_preprocess,
        mesh,
        config.seed,
        start=start,
    )
    evaluate = Evaluator(
        experiment.model,
        task,
        experiment.eval_source,
        experiment.card.preprocess,
        mesh,
        config.data.eval_batch_size,
        max_boxes=config.data.max_boxes,
    )

    def compile_step(step: int) -> RunSteps:
        train_step = experiment.make_step(step)
        return make_run_steps(train_step, mesh, loader.data, most=steps_per_epoch)

    evaluated = None
    first_step_seconds = 0.0

    with contextlib.ExitStack() as stack:
        # 2. Create or restore the state, and only then write.
        stack.enter_context(lock_run_dir(run_dir))
        if resume is None:
            create_run_dir(run_dir, experiment.config, images)
        clock = Clock(run_dir, resuming=resume is not None, started=started)
        checkpoints = stack.enter_context(Checkpoints(run_dir, config.keep))
        state = experiment.create_state(start)
        # A run that was interrupted before its first checkpoint starts anew.
        if start or resume in checkpoints.steps():
            state = checkpoints.restore(state, replicated(mesh), start, loader.stream)
        else:
            state = put_replicated(state, mesh)
        history = stack.enter_context(History(run_dir, resume_from=resume))
        if resume is not None:
            checkpoints.drop_after(resume)
            if jax.process_index() == 0:
                save_config(config, run_dir / "config.json")
        stopping = stack.enter_context(catch_signals())
        bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or jax.process_index() != 0,
        )
        stack.enter_context(bar)
        step, pace = start, 1
        run_steps = compile_step(step)

        while step < total:
            # 3. Run steps for about a second, but not past the end of an epoch.
            epoch_end = (step // steps_per_epoch + 1) * steps_per_epoch
            count, stop = _agree(min(pace, epoch_end - step, total - step), stopping())
            if stop:
                break
            before = time.perf_counter()
            state, scalars = run_steps(state, itertools.islice(loader, count))
            elapsed = time.perf_counter() - before
            clock.ran = True
            if first_step_seconds:
                pace = max(1, round(count * SECONDS_PER_CALL / elapsed))
            else:
                first_step_seconds = time.perf_counter() - started

            # 4. Stop at a loss that is not finite, before the state is saved.
            finite = np.isfinite(scalars["loss"]) & np.isfinite(scalars["grad_norm"])
            for i in np.flatnonzero(~finite)[:1]:
                raise _non_finite(step + i, loader, experiment, checkpoints)

            # 5. Log.
            rate = count * config.data.batch_size / elapsed
            for i in range(count):
                done = step + i + 1
                if done % config.log_every == 0 or done == total:
                    values = {k: float(v[i]) for k, v in scalars.items()}
                    values["images_per_second"] = rate
                    history.log("train", done, done / steps_per_epoch, values)
            step += count
            bar.update(count)
            speed = f"{format_rate(rate)} images/s"
            bar.set_postfix_str(f"loss {scalars['loss'][-1]:.3f}, {speed}")

            # 6. At the end of an epoch: unfreeze layers, and adapt the optimizer state
            #    to them; evaluate; save.
            epoch, left = divmod(step, steps_per_epoch)
            if left == 0 and experiment.frozen(step) != experiment.frozen(step - 1):
                state = change_frozen(
                    state, experiment.optimizer, experiment.frozen(step)
                )
                state = put_replicated(state, mesh)
                run_steps = compile_step(step)
            evaluated = None
            if step == total or (left == 0 and epoch % config.eval_every == 0):
                evaluated = evaluate(state.eval_variables())
                found = evaluated.metrics
                if not np.isfinite([*found.values()]).all():
                    raise _non_finite(step - 1, loader, experiment, checkpoints)
                history.log("eval", step, step / steps_per_epoch, found)
                if not bar.disable:
                    line = f"epoch {step / steps_per_epoch:g}: "
                    bar.write(line + task.format_metrics(found))
            if step == total or (left == 0 and epoch % config.save_every == 0):
                found = evaluated and evaluated.metrics
                checkpoints.save(state, step, experiment.card, found, loader.stream)
                clock.save()

        # 7. Save after a signal, and wait for the disk.
        if step < total:
            checkpoints.save(state, step, experiment.card, None, loader.stream)
            clock.save()
        checkpoints.wait()
    finished = step == total
    if finished and evaluated is None:  # The run was already finished.
        evaluated = evaluate(state.eval_variables())
    return Result(
        run_dir,
        experiment,
        state,
        finished,
        evaluated if finished else None,
        clock.seconds,
        first_step_seconds,
        clock.parts,
    )


def resume_run(
    run_dir: Path | str,
    *,
    step: int | None = None,
    config: TrainConfig | None = None,
    sources: tuple[Source, Source] | None = None,
    changed_data: bool = False,
) -> Result:
    """Resumes a run; the result is bit-identical to that of an uninterrupted run.

    Args:
      run_dir: The folder that `fit` made.
      step: The step of the checkpoint to resume from; None for the last undamaged one.
      config: The config of the remaining steps, which replaces the folder's, for
        instance with a batch size that fits other devices. None for the folder's,
        which alone keeps the result bit-identical.
      sources: The images that `fit` was given, if it was given any.
      changed_data: Resume even if the images differ from those that the run began with.

    Raises:
      ValueError: The folder is not a run folder, it has done more steps than the
        config asks for, or the images have changed.
      CheckpointError: There is no such checkpoint, or it cannot be read.
    """
    run_dir = Path(run_dir)
    before = load_config(run_dir / "config.json")
    config = before if config is None else config
    for line in _list_changes(before, config):
        logger.warning("from here on %s.", line)
    with lock_run_dir(run_dir):  # Locked early, so that no other process adds steps.
        steps = list_steps(run_dir)
        if step is None:
            step = find_sound_step(run_dir)
            if step is None and steps:
                raise CheckpointError(f"each of the steps {steps} of {run_dir} is bad.")
            step = step or 0
        elif step not in steps:
            raise CheckpointError(f"{run_dir} has no step {step}; it has {steps}.")
        return fit(
            config, run_dir, resume=step, sources=sources, changed_data=changed_data
        )


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop checks."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers in the main thread only.
        yield flag.is_set
        return

    def handle(number, frame):
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _list_changes(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """Yields a phrase for each field of a config whose value has changed."""
    for field in dataclasses.fields(before):
        name = f"{prefix}{field.name}"
        old, new = getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(old):
            yield from _list_changes(old, new, f"{name}.")
        elif old != new:
            yield f"{name} is {new!r} and not {old!r}"


def _agree(count: int, stop: bool) -> tuple[int, bool]:
    """Returns the number of steps and the stop flag that all processes agree on."""
    if jax.process_count() == 1:
        return count, stop
    both = multihost_utils.process_allgather(np.array([-count, stop]))
    count, stop = np.abs(both.max(axis=0))
    return int(count), bool(stop)


def _non_finite(step, loader, experiment, checkpoints) -> NonFiniteLossError:
    checkpoints.wait()
    source, indices = experiment.train_source, loader.indices(step)
    images = ", ".join(source.provenance(int(i)) for i in indices[:5])
    last = checkpoints.latest()
    good = "none" if last is None else checkpoints.folder / str(last)
    return NonFiniteLossError(
        f"the loss, its gradient or what came of it is not finite at step {step} "
        f"(counted from 0) of {experiment.total_steps}. Its batch of "
        f"{len(indices)} images begins with {images}. "
        f"The last good checkpoint is {good}."
    )
