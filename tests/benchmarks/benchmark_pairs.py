"""What the benchmarks of detectors and of segmentation share: turns, file, table.

A benchmark names its networks, their cells such as "detect_1" or "train_4" (the number
is of images), and a module for each side. That has a class `Side(name, threads)` with
`versions` and the method `time(variant, kind, images, seconds)`.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import readme
from benchmark_rounds import (
    Call,
    machine,
    same_machine,
    say,
    side_process,
    summarize,
    where,
)

VARIANTS = {"torch_eager": "torch eager", "torch_eager_channels_last": "channels last"}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is measured, and where it goes.

    Attributes:
      title: Of the table: what is measured, on what.
      command: That measures.
      out: The file of the numbers.
      block: Name of the block of the README.
      networks: Names and their cells.
      kinds: What each kind of cell is called.
      zoo: Module of the zoo's side.
      torch: Module of PyTorch's.
      quick: Networks and cells of a test of the plumbing.
    """

    title: str
    command: str
    out: Path
    block: str
    networks: dict[str, tuple[str, ...]]
    kinds: dict[str, str]
    zoo: str
    torch: str
    quick: dict[str, tuple[str, ...]]

    def main(self, arguments: list[str]) -> None:
        """Measures, or shows what was measured."""
        parser = argparse.ArgumentParser(description=self.title)
        add = parser.add_argument
        add("names", nargs="*", help="of networks; all if none")
        add("--cells", nargs="+", metavar="CELL", help="all if none")
        add("--rounds", type=int, default=3, help="turns of each side")
        add("--seconds", type=float, default=2.0, help="of a turn, at least")
        add("--out", type=Path, default=self.out, metavar="JSON")
        add("--table", action="store_true", help="print the table")
        add("--readme", action="store_true", help="write it to the README")
        add("--quick", action="store_true", help="a test of the plumbing")
        options = parser.parse_args(arguments)
        found = json.loads(options.out.read_text()) if options.out.exists() else {}
        if options.readme:
            readme.write_block(self.block, self.render(found))
        elif options.table:
            print(self.render(found))
        else:
            self._measure_all(options, found)

    def _measure_all(self, options: argparse.Namespace, found: dict[str, Any]) -> None:
        known = self.quick if options.quick else self.networks
        for name in options.names:
            if name not in known:
                raise SystemExit(f"error: {name!r} is none of {[*known]}.")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        here = machine()
        if not same_machine(found.get("machine", here), here):
            say("the numbers in the file are of another machine; they are replaced.")
            found.clear()
        rounds, seconds = (
            (1, 0.0) if options.quick else (options.rounds, options.seconds)
        )
        for name in options.names or known:
            cells = tuple(c for c in known[name] if c in (options.cells or known[name]))
            network = found.setdefault("networks", {}).setdefault(name, {})
            for versions, numbers in self.measure(name, cells, rounds, seconds):
                found["machine"] = {**here, **versions}
                found["rounds"] = rounds
                for part, values in numbers.items():
                    network[part] = {**network.get(part, {}), **values}
                options.out.write_text(json.dumps(found, indent=1) + "\n")
            say(f"wrote {name} to {options.out}")

    def measure(
        self, name: str, cells: tuple[str, ...], rounds: int, seconds: float
    ) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """Lets both sides take turns; gives versions and numbers after each cell."""
        with contextlib.ExitStack() as stack:

            def begin(module: str) -> tuple[Call, dict[str, str]]:
                process = stack.enter_context(side_process("benchmark_pairs"))
                return process, process("start", module, name, os.cpu_count())

            (ours, versions), (theirs, more) = begin(self.zoo), begin(self.torch)
            versions = {**versions, **more}
            sides = {"zoo": ours, **dict.fromkeys(VARIANTS, theirs)}
            for cell in cells:
                kind, images = cell.rsplit("_", 1)
                took: dict[str, list[float]] = {}
                for i in range(rounds):
                    for side, process in sides.items():
                        found = process("time_side", side, kind, int(images), seconds)
                        took.setdefault(side, []).append(found)
                        say(f"{name} {cell} {i + 1}/{rounds} {side}: {found:.3f} s")
                peak = {
                    "zoo": ours("peak_megabytes"),
                    "torch": theirs("peak_megabytes"),
                }
                numbers = {
                    "cells": {cell: summarize(took, int(images), "zoo")},
                    "peak_megabytes": {cell: peak},
                }
                yield versions, numbers

    def render(self, found: dict[str, Any]) -> str:
        """Makes the table."""
        facts = found["machine"]
        names = ("jax", "torch", "torchvision")
        lines = [
            f"{self.title} On {where(facts, names)}; medians of {found['rounds']} "
            "rounds in which the sides take turns, each with all cores; a column named "
            "by another side has our speed divided by its. The last column is each "
            "process's peak memory up to then, ours and PyTorch's; "
            f"`{self.command}` makes it again.",
            "",
            f"| network | what | images/s | {' | '.join(VARIANTS.values())} | MiB |",
            f"| --- | --- |{' ---: |' * (2 + len(VARIANTS))}",
        ]
        for name, network in found["networks"].items():
            # In the order of the kinds, whatever was measured first.
            for cell, numbers in sorted(
                network["cells"].items(),
                key=lambda item: [*self.kinds].index(item[0].rsplit("_", 1)[0]),
            ):
                kind, images = cell.rsplit("_", 1)
                rate = numbers["images_per_second"]["zoo"]["median"]
                ratios = [
                    f"{numbers['ratio'][side]['median']:.2f}" for side in VARIANTS
                ]
                peak = network["peak_megabytes"][cell]
                row = (
                    f"`{name}`",
                    f"{self.kinds[kind]}, batch {images}",
                    f"{rate:,.2f}",
                    *ratios,
                    f"{peak['zoo']:,.0f}, {peak['torch']:,.0f}",
                )
                lines.append(f"| {' | '.join(row)} |")
        return "\n".join(lines)


# What a side's process keeps between its turns.
_side: list[Any] = []


def start(module: str, name: str, threads: int) -> dict[str, str]:
    """Creates the side of a module in this process; returns its versions."""
    _side[:] = [importlib.import_module(module).Side(name, threads)]
    return _side[0].versions


def time_side(variant: str, kind: str, images: int, seconds: float) -> float:
    """Returns the seconds of a call, or of a training step, of this process's side."""
    return _side[0].time(variant, kind, images, seconds)


def peak_megabytes() -> float:
    """Returns the most memory that this process has had, in MiB."""
    import resource

    # In KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
