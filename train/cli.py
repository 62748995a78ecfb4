"""The command line: canon-zoo train CONFIG | resume | evaluate | predict | transfer."""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro
from tyro.conf import Positional

import zoo
from train import commands, rcnn
from train.checkpoint import CheckpointError
from train.choose import choose
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, load_config
from train.configs import CONFIGS, get_config
from train.configs.my_data import RECIPES
from train.data.pipeline import WorkerError
from train.fit import NonFiniteLossError, Result, fit, resume_run
from train.report import write_run_report
from train.run_dir import new_run_dir
from zoo.compilation_cache import use_compilation_cache
from zoo.paths import unknown

logger = logging.getLogger("train")

COMMANDS = {
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "landmarks": commands.landmarks,
    "alignment": commands.alignment,
    "rcnn": rcnn.rcnn,
    "study": commands.study,
    "visualize": commands.visualize,
}

# The usual recipe for a small set: a new head on frozen features (--freeze), a low
# rate where the whole network is trained.
TRANSFER = TrainConfig(
    model=ModelConfig(name=""),
    data=DataConfig(dataset="", batch_size=32),
    optim=OptimConfig(learning_rate=0.01, schedule="cosine"),
    epochs=20,
    eval_every=5,
    save_every=5,
)


def usage() -> str:
    """Returns the list of the commands and the experiments."""
    lines = [
        "usage: canon-zoo train NAME [options]     train one of the experiments below",
        "       canon-zoo train my_images --dataset imagefolder:DIR   your own data:",
        "             (or my_boxes, my_masks)      it is looked at first",
        "       canon-zoo train resume RUN         go on with an interrupted run",
        "       canon-zoo train evaluate RUN       or --model, --weights and --dataset",
        "       canon-zoo train predict RUN IMAGE ...",
        "       canon-zoo train predict RUN A.jpg B.jpg    of a face network",
        "       canon-zoo train landmarks FOLDER   of faces, for their alignment",
        "       canon-zoo train alignment          its errors on drawn faces",
        "       canon-zoo train visualize RUN      or --model, --weights and --dataset",
        "       canon-zoo train transfer --from RUN_OR_WEIGHTS --dataset D --freeze P",
        "       canon-zoo train rcnn --dataset voc:PATH    R-CNN on a classifier",
        "       canon-zoo train study NAME         a claim of the lecture; or --list",
        "",
        "--distributed before any of them joins the other processes of a run. Slurm,",
        "Open MPI, Kubernetes and TPUs say themselves who they are; elsewhere set",
        "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
        "",
        "Each has --help. The experiments; NAME_tiny is a few steps on digits:",
    ]
    return "\n".join([*lines, *(f"  {name}" for name in CONFIGS)])


def main(arguments: list[str]) -> None:
    """Runs one command."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    prog = f"canon-zoo train {name}"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "resume":
        resume(parse_resume(rest, prog))
    elif name in COMMANDS:
        tyro.cli(COMMANDS[name], args=rest, prog=prog)
    elif name == "transfer":
        text = transfer.__doc__
        config = tyro.cli(
            TrainConfig, default=TRANSFER, args=rest, prog=prog, description=text
        )
        transfer(config)
    elif name in RECIPES and not {"-h", "--help"} & {*rest}:

        def parse(default: TrainConfig) -> TrainConfig:
            return tyro.cli(TrainConfig, default=default, args=rest, prog=prog)

        train(choose(RECIPES[name](), parse), name)
    elif name.removesuffix("_tiny") in CONFIGS:
        config = tyro.cli(TrainConfig, default=get_config(name), args=rest, prog=prog)
        train(config, name)
    else:
        known = [*CONFIGS, *COMMANDS, "resume", "transfer"]
        raise ValueError(unknown("command or experiment", name, known))


@dataclasses.dataclass(frozen=True)
class Resume:
    """Resumes an interrupted run, bit for bit as if nothing had happened.

    Options of the training, such as --data.batch-size, replace the run's for the
    remaining steps.
    """

    run: Positional[Path]
    """Folder of the run."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    step: int | None = None
    """Step of the checkpoint to resume from; the last undamaged one if not given."""
    changed_data: bool = False
    """Resume even if the images differ from those that the run began with."""


def parse_resume(arguments: list[str], prog: str) -> Resume:
    """Parses the arguments of `resume`, whose defaults are those of the run.

    Args:
      arguments: The arguments of the command.
      prog: The name of the command, for its help.

    Raises:
      ValueError: No run is named, its config cannot be read, or an option would change
        what is fixed for a run, such as its model.
    """
    names = [a for a in arguments if not a.startswith("-")]
    folders = [Path(name) for name in names if (Path(name) / "config.json").exists()]
    if not folders and "--help" not in arguments and "-h" not in arguments:
        if not names:
            raise ValueError(f"name the folder of a run: {prog} RUN.")
        load_config(Path(names[0]) / "config.json")
    before = load_config(folders[0] / "config.json") if folders else TRANSFER
    found = tyro.cli(
        Resume,
        default=Resume(folders[0] if folders else tyro.MISSING, before),
        args=arguments,
        prog=prog,
    )
    for name in ("model", "seed", "run_dir"):
        old, new = getattr(before, name), getattr(found.config, name)
        if old != new:
            raise ValueError(f"a run keeps its {name}: {old}, not {new}.")
    return found


def train(config: TrainConfig, name: str) -> Result:
    """Trains in a new folder, writes the report, and prints the result.

    Args:
      config: The config of the run; without a `run_dir` the folder is runs/NAME-TIME
        below the current one.
      name: The name of the experiment.
    """
    if jax.process_count() > 1 and not config.run_dir:
        raise ValueError("a run of several processes needs --run-dir, the same in all.")
    devices = jax.devices()
    print(
        f"{name}: {config.model.name} on {config.data.dataset}, {len(devices)} x "
        f"{devices[0].device_kind} ({devices[0].platform})."
    )
    existed = bool(config.run_dir) and Path(config.run_dir).exists()
    run_dir = Path(config.run_dir) if config.run_dir else new_run_dir(name)
    config = dataclasses.replace(config, run_dir=str(run_dir))
    try:
        result = fit(config, run_dir)
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # It is empty if the config was refused.
    write_run_report(result)
    print(describe_result(result))
    return result


def resume(options: Resume) -> None:
    """Resumes an interrupted run, and writes its report."""
    result = resume_run(
        options.run,
        step=options.step,
        config=options.config,
        changed_data=options.changed_data,
    )
    write_run_report(result)
    print(describe_result(result))


def transfer(config: TrainConfig) -> None:
    """Trains a network that starts from other weights: --from, --dataset, --freeze."""
    source = config.model.weights
    if source is None:
        raise ValueError("transfer needs --from RUN_OR_WEIGHTS.")
    if not config.model.name:
        if not Path(source).is_dir():
            raise ValueError(f"{source} is no run folder: say --model.name too.")
        card = zoo.weights.read_card(source)
        model = dataclasses.replace(config.model, name=card.model)
        config = dataclasses.replace(config, model=model)
    train(config, f"transfer-{config.model.name}")


def describe_result(result: Result) -> str:
    """Describes a run: its metrics, its folder and the commands that use it."""
    run_dir, task = result.run_dir, result.experiment.task
    run = shlex.quote(str(run_dir))
    if not result.finished:
        return (
            f"Stopped after step {int(result.state.step)}; the state is saved.\n"
            f"Go on with:  canon-zoo train resume {run}"
        )
    split = result.experiment.eval_source.split
    return (
        f"{task.format_metrics(result.metrics)} (split {split!r}).\n"
        f"The run is in {run_dir}; open {run_dir / 'report.html'} in a browser.\n"
        "Next:\n"
        f"  canon-zoo train evaluate {run}\n"
        f"  canon-zoo train predict {run} {task.predict_arguments}\n"
        f"  canon-zoo train transfer --from {run} --dataset FORMAT:PATH "
        "--freeze 'backbone/**'\n"
        "and in Python:\n"
        f'  zoo.create("{result.experiment.card.model}", '
        f"weights={json.dumps(str(run_dir), ensure_ascii=False)})"
    )


def join_processes() -> None:
    """Joins the processes that train together.

    Raises:
      ValueError: The number of processes or the index of this one is not known.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        count, index = (int(os.environ[n]) if n in os.environ else None for n in names)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: {error} Set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            f"{' and '.join(names)} where no cluster does."
        ) from error


def run(arguments: list[str]) -> None:
    """Runs a command, and exits with a message where the user made an error."""
    use_compilation_cache()
    # Orbax warns of each save that follows no evaluation.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if arguments[:1] == ["--distributed"]:
            join_processes()
            arguments = arguments[1:]
        main(arguments)
    # Errors that a user can correct are messages; any other one shows its traceback.
    except (
        *(ValueError, OSError, ImportError),
        *(CheckpointError, NonFiniteLossError, WorkerError),
    ) as error:
        sys.exit(f"error: {error}")
