"""Measures classifiers beside PyTorch's.

# about an hour on two cores
python tests/benchmarks/benchmark_classifiers.py
python tests/benchmarks/benchmark_classifiers.py resnet50 --cells inference_1 train_8
# prints the table of the README
python tests/benchmarks/benchmark_classifiers.py --table
# writes it there
python tests/benchmarks/benchmark_classifiers.py --readme

Cells that classifiers.json already has for this machine are skipped unless they are
named, so a stopped run can be continued. All sides have the same weights and images,
and their logits are compared before anything is timed. The sides take turns, each with
all cores; nothing else should run. Without torch and torchvision, only the zoo is
measured.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmark_classifiers_table
import numpy as np
import readme
from benchmark_rounds import (
    Call,
    machine,
    same_machine,
    say,
    start_side,
    summarize,
)
from huge_pages import restart_with_huge_pages

import zoo

OUT = Path(__file__).parent / "classifiers.json"
EAGER = ("torch_eager", "torch_eager_channels_last")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
      networks: Names; torchvision has each of them.
      cells: Kind and batch, such as "train_8".
      small_cells: Cells of the networks for CIFAR.
      rounds: Number of turns of each side.
      seconds: Shortest time of a turn, which has at least one call.
      dtype: Type of the computation.
      threads: Threads of PyTorch; XLA takes all cores.
      compiled: Whether to measure torch.compile.
    """

    networks: tuple[str, ...] = (
        "alexnet_tv",
        "vgg11_bn",
        "vgg16",
        "googlenet_tv",
        "resnet18",
        "resnet34",
        "resnet50",
        "cifar_resnet56",
    )
    cells: tuple[str, ...] = ("inference_1", "inference_16", "train_8")
    small_cells: tuple[str, ...] = ("inference_1", "inference_128", "train_128")
    rounds: int = 5
    seconds: float = 2.0
    dtype: str = "float32"
    threads: int = os.cpu_count()
    compiled: bool = True


CPU = Plan()
GPU = Plan(
    networks=("resnet50",),
    cells=("inference_1", "inference_256", "train_256"),
    dtype="bfloat16",
)
QUICK = Plan(
    networks=("alexnet_tv",),
    cells=("inference_1", "train_2"),
    rounds=1,
    seconds=0.0,
    threads=1,
    compiled=False,
)


def main(arguments: list[str]) -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", help="networks; default: those of the platform")
    add("--cells", nargs="+", metavar="CELL", help="such as inference_1 or train_8")
    add("--rounds", type=int, help="number of turns of each side")
    add("--seconds", type=float, help="shortest time of a turn")
    add("--out", type=Path, default=OUT, metavar="JSON", help="file of the numbers")
    add("--table", action="store_true", help="print the table and measure nothing")
    add("--readme", action="store_true", help="write it to the README instead")
    add("--quick", action="store_true", help="a short run, for tests")
    options = parser.parse_args(arguments)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.table or options.readme:
        table = benchmark_classifiers_table.render(found)
        if options.readme:
            readme.write_block("classifiers", table)
        else:
            print(table)
        return
    # On a GPU this process and the sides' share the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    here = machine()
    plan = QUICK if options.quick else CPU if here["platform"] == "cpu" else GPU
    plan = dataclasses.replace(
        plan,
        networks=tuple(options.names) or plan.networks,
        cells=tuple(options.cells or plan.cells),
        small_cells=tuple(options.cells or plan.small_cells),
        rounds=options.rounds or plan.rounds,
        seconds=options.seconds or plan.seconds,
    )
    for cell in plan.cells:
        kind, _, batch = cell.partition("_")
        if kind not in ("inference", "train") or not batch.isdecimal():
            parser.error(f"{cell!r} is no cell, such as inference_1 or train_8.")
    known = found.setdefault(here["platform"], {"networks": {}})
    if not same_machine(known.get("machine", here), here):
        say("the numbers in the file are of another machine; they are replaced.")
        known["networks"].clear()
    for name in plan.networks:
        zoo.get_spec(name)
        network = known["networks"].setdefault(name, {"cells": {}})
        cells = plan.small_cells if name.startswith("cifar") else plan.cells
        if not options.names and not options.cells:
            cells = tuple(cell for cell in cells if cell not in network["cells"])
        for cell, numbers, facts, versions in measure(name, cells, plan):
            known["machine"] = {**known.get("machine", {}), **here, **versions}
            known["plan"] = {"dtype": plan.dtype}
            network |= {**facts, "cells": {**network["cells"], cell: numbers}}
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            say(f"wrote {name} {cell} to {options.out}")


def measure(
    name: str, cells: Sequence[str], plan: Plan
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]]:
    """Measures one network on all sides.

    Yields:
      Each cell with its numbers, facts of the network, and versions of packages.
    """
    if not cells:
        return
    absent: dict[str, str] = {}
    versions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def begin(side: str, *arguments: Any) -> Call:
            return stack.enter_context(start_side(side, *arguments))

        ours = begin("benchmark_classifiers_jax:Side", name, plan.dtype)
        sides = {"zoo": ours}
        params = {"zoo": ours("parameters")}
        products = {"zoo": ours("products_per_second", plan.seconds)}
        try:
            arguments = name, plan.dtype, plan.threads
            theirs = begin("benchmark_classifiers_torch:Side", *arguments)
        except (ImportError, RuntimeError) as error:
            # Not installed, or torchvision is built for another torch.
            absent["torch"] = f"{error}".splitlines()[0]
        else:
            params["torch"], versions = theirs("parameters"), theirs("versions")
            check_same(ours, theirs, params, plan.dtype)
            products["torch"] = theirs("products_per_second", plan.seconds)
            variants = (*EAGER, "torch_compile") if plan.compiled else EAGER
            sides |= dict.fromkeys(variants, theirs)
        macs = zoo.get_spec(name).macs
        facts = {"parameters": params, "macs": macs, "absent": absent}
        for cell in cells:
            numbers = measure_rounds(name, cell, plan, sides, absent)
            yield cell, {**numbers, "products_per_second": products}, facts, versions


def check_same(ours: Call, theirs: Call, params: dict[str, int], dtype: str) -> None:
    """Compares the parameters and the logits of both networks.

    Raises:
      AssertionError: The parameters or the logits differ.
    """
    assert params["zoo"] == params["torch"], params
    found, expected = ours("logits", 2), theirs("logits", 2)
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def measure_rounds(
    name: str, cell: str, plan: Plan, sides: dict[str, Call], absent: dict[str, str]
) -> dict[str, Any]:
    """Lets the sides take turns; returns the numbers of a cell.

    Args:
      name: Name of the network.
      cell: Kind and batch.
      plan: How much to measure.
      sides: Functions that call a side's methods in its process.
      absent: Receives the error if `torch.compile` fails.
    """
    kind, batch = cell.split("_")
    seconds: dict[str, list[float]] = {}
    for i in range(plan.rounds):
        for side, process in sides.items():
            variant = (side,) if side.startswith("torch") else ()
            if side in absent:
                continue
            turn = (*variant, kind, int(batch), plan.seconds)
            try:
                took = process("time", *turn)
            except Exception as error:
                if side != "torch_compile":
                    raise
                absent[side] = f"{type(error).__name__}: {error}"[:200]
                continue
            seconds.setdefault(side, []).append(took)
            say(f"{name} {cell} round {i + 1}/{plan.rounds} {side}: {took:.4f} s")
    return summarize(seconds, int(batch), "zoo")


if __name__ == "__main__":
    restart_with_huge_pages()  # The memory of all sides.
    main(sys.argv[1:])
