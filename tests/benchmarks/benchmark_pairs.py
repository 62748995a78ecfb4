"""What the benchmarks of detectors and of segmentation share: turns, file, table.

A benchmark names its networks, their cells such as "detect_1" or "train_4" (kind and
number of images), and a module for each side. The module has a class `Side(name,
threads)` with the attribute `versions` and the method `time(variant, kind, images,
seconds)`.
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
    start_side,
    summarize,
    where,
)

VARIANTS = {"torch_eager": "torch eager", "torch_eager_channels_last": "channels last"}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is measured, and where it goes.

    Attributes:
      title: First sentence of the table's caption: what is measured.
      command: Command that measures.
      out: File of the numbers.
      block: Name of the table's block in README.md.
      networks: Networks and their cells.
      kinds: Kinds of cells and their titles in the table.
      zoo: Module of the zoo's side.
      torch: Module of PyTorch's side.
      quick: Networks and cells of a short run, for tests.
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
        add("names", nargs="*", help="networks; default: all")
        add("--cells", nargs="+", metavar="CELL", help="default: all")
        add("--rounds", type=int, default=3, help="number of turns of each side")
        add("--seconds", type=float, default=2.0, help="shortest time of a turn")
        add("--out", type=Path, default=self.out, metavar="JSON", help="numbers")
        add("--table", action="store_true", help="print it, no measuring")
        add("--readme", action="store_true", help="write it to README.md")
        add("--quick", action="store_true", help="a short run, for tests")
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
        """Lets both sides take turns; yields versions and numbers of each cell."""
        with contextlib.ExitStack() as stack:

            def begin(module: str) -> tuple[Call, dict[str, str]]:
                arguments = module, name, os.cpu_count()
                side = start_side("benchmark_pairs:create_side", *arguments)
                call = stack.enter_context(side)
                return call, call("versions")

            (ours, versions), (theirs, more) = begin(self.zoo), begin(self.torch)
            versions = {**versions, **more}
            sides = {"zoo": ours, **dict.fromkeys(VARIANTS, theirs)}
            for cell in cells:
                kind, images = cell.rsplit("_", 1)
                took: dict[str, list[float]] = {}
                for i in range(rounds):
                    for side, process in sides.items():
                        found = process("time", side, kind, int(images), seconds)
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
        stand_in = (
            " torchvision's NMS and RoIAlign are a slow Python script here, because "
            "its compiled operators are missing: ratios of whole detectors and of "
            "training steps say little about compiled ones."
            if facts.get("torchvision_operators") == "python"
            else ""
        )
        lines = [
            f"{self.title} On {where(facts, names)}; medians of {found['rounds']} "
            "rounds in which the sides take turns, each with all cores. The columns of "
            "PyTorch give the zoo's speed divided by PyTorch's. The last column is the "
            "peak memory of each process until then, the zoo's and PyTorch's."
            f"{stand_in} `{self.command}` reproduces it.",
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


def create_side(module: str, name: str, threads: int) -> Any:
    """Creates the side of a module, which can state the peak memory of its process."""
    side = importlib.import_module(module).Side(name, threads)
    side.peak_megabytes = peak_megabytes
    return side


def peak_megabytes() -> float:
    """Returns the peak memory of this process, in MiB."""
    import resource

    # In KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
