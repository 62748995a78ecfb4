"""The command line: python -m train CONFIG | resume | evaluate | predict | transfer."""

import logging
import os
import sys

import jax
import tyro

from train import commands, regions
from train.checkpoint import CheckpointError
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.configs import CONFIGS, get_config
from train.loop import NonFiniteLossError
from train.runs import use_compilation_cache
from zoo.registry import unknown

COMMANDS = {
    "resume": commands.resume,
    "evaluate": commands.evaluate,
    "predict": commands.predict,
    "digits_transfer": commands.digits_transfer,
    "rcnn": regions.rcnn,
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
    """Lists the commands and the experiments."""
    lines = [
        "usage: python -m train NAME [options]     train one of the experiments below",
        "       python -m train resume RUN         go on with an interrupted run",
        "       python -m train evaluate RUN       or --model, --weights and --dataset",
        "       python -m train predict RUN IMAGE ...",
        "       python -m train visualize RUN      or --model, --weights and --dataset",
        "       python -m train transfer --from RUN_OR_WEIGHTS --dataset D --freeze P",
        "       python -m train digits_transfer    the embedded transfer study",
        "       python -m train rcnn --dataset voc:PATH    R-CNN on a classifier",
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
    prog = f"python -m train {name}"
    if name in ("-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        tyro.cli(COMMANDS[name], args=rest, prog=prog)
    elif name == "transfer":
        text = commands.transfer.__doc__
        config = tyro.cli(
            TrainConfig, default=TRANSFER, args=rest, prog=prog, description=text
        )
        commands.transfer(config)
    elif name.removesuffix("_tiny") in CONFIGS:
        config = tyro.cli(TrainConfig, default=get_config(name), args=rest, prog=prog)
        commands.train(config, name)
    else:
        known = [*CONFIGS, *COMMANDS, "transfer"]
        raise ValueError(unknown("command or experiment", name, known))


def join_processes() -> None:
    """Makes this process one of several that train together.

    Raises:
      ValueError: Nothing says how many there are, or which one this is.
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


def run() -> None:
    """Runs the command that the program was started with; its end is the program's."""
    use_compilation_cache()
    # Orbax warns of each save that follows no evaluation.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        arguments = sys.argv[1:]
        if arguments[:1] == ["--distributed"]:
            join_processes()
            arguments = arguments[1:]
        main(arguments)
    # What a user can put right is said in words; anything else is a bug and is shown.
    except (ValueError, OSError, CheckpointError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
