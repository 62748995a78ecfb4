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
from benchmark_rounds import Call, machine, say, start_side, summarize
from benchmark_zoo import (
    FULL,
    QUICK,
    BareStep,
    Inference,
    Plan,
    make_config,
    measure_start,
    time_fit,
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
    add("--quick", action="store_true", help="a short run, for tests")
    options = parser.parse_args(arguments)
    if options.table or options.readme:
        table = benchmark_table.render(json.loads(options.out.read_text()))
        if options.readme:
            readme.write_block("benchmark", table)
        else:
            print(table)
        return
    if jax.default_backend() != "cpu":
        parser.error("measures CPUs only; gpu.py measures GPUs.")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(QUICK if options.quick else FULL, Path(folder))
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    say(f"wrote {options.out}")


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Measures everything.

    Args:
      plan: How much to measure.
      folder: Empty folder for the images and the runs.
    """
    began = time.perf_counter()
    found = {"machine": machine(), "plan": dataclasses.asdict(plan), "absent": {}}
    data = write_images(folder / "images.zip", plan)
    start = measure_start(plan, data, folder)
    bare = BareStep(prepare_experiment(make_config(20, data, plan)), plan)
    found["start"] = start | bare.compilation()
    with contextlib.ExitStack() as stack:
        theirs = None
        if importlib.util.find_spec("torch") is None:
            found["absent"]["torch"] = "not installed"
        else:
            theirs = stack.enter_context(start_torch(bare))
            found["same_network"] = check_same_network(theirs, bare)
            found["machine"]["torch"] = theirs("version")
        found |= measure_rounds(plan, data, folder, bare, theirs)
    found["minutes"] = (time.perf_counter() - began) / 60
    return found


def start_torch(bare: BareStep) -> contextlib.AbstractContextManager[Call]:
    """Starts the PyTorch side with the same weights."""
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
    images, labels = bare.arrays["image"], bare.arrays["label"]
    return start_side("benchmark_torch:Side", weights, images, labels, facts)


def check_same_network(theirs: Call, bare: BareStep) -> dict[str, Any]:
    """Compares the parameters and the first losses of both sides.

    Raises:
      AssertionError: The parameters or the losses of two steps differ.
    """
    params = theirs("parameters")
    leaves = jax.tree.leaves(bare.experiment.variables["params"])
    our_params = sum(leaf.size for leaf in leaves)
    assert params == our_params, f"{params} parameters in PyTorch, {our_params} here"
    losses = {
        "zoo": bare.losses(2),
        "torch": theirs("losses", bare.orders[0], 2),
    }
    # The first loss compares the networks, the second one the updates.
    np.testing.assert_allclose(losses["torch"], losses["zoo"], rtol=1e-3)
    np.testing.assert_allclose(losses["torch"][0], losses["zoo"][0], rtol=1e-5)
    return {"parameters": params, "losses": losses}


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
            note("train", side, theirs("train", side, bare.orders))
        for size, calls in sizes.items():
            group = f"inference_{size}"
            note(group, "zoo", inference.time(size, calls))
            for side in eager:
                note(group, side, theirs("infer", side, size, calls))
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
