"""Measures training and inference of ResNet-20, beside PyTorch on the same machine.

# about 5 minutes on two cores; writes the numbers
python tests/benchmarks/benchmark.py
# prints the table of the README from them
python tests/benchmarks/benchmark.py --table
# writes it there
python tests/benchmarks/benchmark.py --readme

The sides take turns in rounds and are alone on the machine, with as many threads as
there are cores; nothing else should run. Numbers go to benchmarks.json beside it.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmark_table
import jax
import numpy as np
import readme
from benchmark_rounds import Call, machine, say, side_process, summarize
from benchmark_zoo import (
    ACCELERATOR,
    FULL,
    QUICK,
    BareStep,
    Inference,
    Plan,
    make_config,
    measure_accelerator,
    measure_start,
    time_fit,
    train_cifar10,
    write_images,
)
from huge_pages import restart_with_huge_pages

import zoo
from train.experiment import prepare_experiment

OUT = Path(__file__).parent / "benchmarks.json"


def main(arguments: list[str]) -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=OUT, metavar="JSON", help="file of the numbers")
    add("--table", action="store_true", help="print the table and measure nothing")
    add("--readme", action="store_true", help="write it to the README instead")
    add("--quick", action="store_true", help="few small steps: a test of the plumbing")
    add(
        "--train-cifar10",
        metavar="DIR",
        help="on an accelerator: also the paper's schedule on CIFAR-10 in DIR",
    )
    options = parser.parse_args(arguments)
    if options.table or options.readme:
        table = benchmark_table.render(json.loads(options.out.read_text()))
        if options.readme:
            readme.write_block("benchmark", table)
        else:
            print(table)
        return
    on_cpu = jax.default_backend() == "cpu"
    if options.train_cifar10 and on_cpu:
        parser.error("--train-cifar10 takes 12 hours on two cores; use an accelerator.")
    plan = QUICK if options.quick else FULL if on_cpu else ACCELERATOR
    with tempfile.TemporaryDirectory() as folder:
        found = measure(plan, Path(folder), options.train_cifar10)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    say(f"wrote {options.out}")


def measure(plan: Plan, folder: Path, cifar10: str | None) -> dict[str, Any]:
    """Measures everything.

    Args:
      plan: How much.
      folder: Empty; for the images and the runs.
      cifar10: Where CIFAR-10 is, to train with the paper's schedule too.
    """
    began = time.perf_counter()
    on_cpu = jax.default_backend() == "cpu"
    found = {"machine": machine(), "plan": dataclasses.asdict(plan), "absent": {}}
    data = write_images(folder / "images.zip", plan)
    start = measure_start(plan, data, folder)
    bare = BareStep(prepare_experiment(make_config(20, data, plan)), plan)
    found["start"] = start | bare.compilation()
    with contextlib.ExitStack() as stack:
        theirs = None
        if not on_cpu:
            found["absent"]["torch"] = "compared on the CPU alone"
        elif importlib.util.find_spec("torch") is None:
            found["absent"]["torch"] = "not installed"
        else:
            theirs = stack.enter_context(side_process("benchmark_torch"))
            found["same_network"] = check_same_network(theirs, bare)
            found["machine"]["torch"] = found["same_network"].pop("version")
        found |= measure_rounds(plan, data, folder, bare, theirs)
    if on_cpu:
        found["absent"]["accelerator"] = "no GPU or TPU here"
    else:
        found["accelerator"] = measure_accelerator(plan, data, folder)
    if cifar10:
        found["cifar10"] = train_cifar10(cifar10, folder)
    found["minutes"] = (time.perf_counter() - began) / 60
    return found


def check_same_network(theirs: Call, bare: BareStep) -> dict[str, Any]:
    """Starts the PyTorch side with equal weights and holds the first losses together.

    Raises:
      AssertionError: The parameters or the losses of two steps differ.
    """
    experiment = bare.experiment
    optim, preprocess = experiment.config.optim, experiment.card.preprocess
    weights = zoo.weights.to_torch(experiment.card.model, experiment.variables)
    facts = {
        "blocks": experiment.model.backbone.blocks[0],
        "threads": bare.plan.threads,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "lr": optim.learning_rate,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
    }
    arrays = bare.arrays
    version, params = theirs("start", weights, arrays["image"], arrays["label"], facts)
    our_params = sum(p.size for p in jax.tree.leaves(experiment.variables["params"]))
    assert params == our_params, f"{params} parameters in PyTorch, {our_params} here"
    losses = {
        "zoo": bare.losses(2),
        "torch": theirs("call", "losses", bare.orders[0], 2),
    }
    # The first loss says that the networks are equal, the second one the updates.
    np.testing.assert_allclose(losses["torch"], losses["zoo"], rtol=1e-3)
    np.testing.assert_allclose(losses["torch"][0], losses["zoo"][0], rtol=1e-5)
    return {"version": version, "parameters": params, "losses": losses}


def measure_rounds(
    plan: Plan,
    data: Path,
    folder: Path,
    bare: BareStep,
    theirs: Call | None,
) -> dict[str, Any]:
    """Lets the sides take turns; returns the numbers of training and inference."""
    experiment = bare.experiment
    config = make_config(20, data, plan)
    inference = Inference(experiment, bare.arrays["image"])
    sizes = dict(zip((1, plan.batch_size), plan.calls, strict=True))
    eager = ("torch_eager", "torch_eager_channels_last") if theirs else ()
    trained = (*eager, "torch_compile") if theirs and plan.compiled else eager
    groups = {"train": {}, **{f"inference_{size}": {} for size in sizes}}

    def note(group: str, side: str, seconds: float) -> None:
        groups[group].setdefault(side, []).append(seconds)
        say(f"round {i + 1}/{plan.rounds} {group} {side}: {seconds * 1e3:.2f} ms")

    for i in range(plan.rounds):
        note("train", "fit", time_fit(config, folder / f"fit{i}"))
        note("train", "step", bare.time())
        for side in trained:
            note("train", side, theirs("call", "train", side, bare.orders))
        for size, calls in sizes.items():
            group = f"inference_{size}"
            note(group, "zoo", inference.time(size, calls))
            for side in eager:
                note(group, side, theirs("call", "infer", side, size, calls))
    return {
        "train": summarize(groups["train"], plan.batch_size, "fit"),
        "inference": {
            str(size): summarize(groups[f"inference_{size}"], size, "zoo")
            for size in sizes
        },
    }


if __name__ == "__main__":
    restart_with_huge_pages()  # The memory of all sides.
    main(sys.argv[1:])
