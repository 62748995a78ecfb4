"""Measures the first call, bfloat16, compilation and training memory of all networks.

For detectors and segmentation networks, only the memory is measured.

# everything that is missing in tests/benchmarks/networks.json
python tests/benchmarks/measure_networks.py
# the same for networks that match a pattern
python tests/benchmarks/measure_networks.py 'vgg*'
# everything again, about an hour
python tests/benchmarks/measure_networks.py --again
python tests/benchmarks/measure_networks.py --parts training_mebibytes
# prints the tables
python tests/benchmarks/measure_networks.py --table
# writes them to README.md
python tests/benchmarks/measure_networks.py --readme

Each network has a new process. Nothing else should run during the timed parts,
`first_call_seconds` and `training_step_seconds`. Numbers of another machine or another
version of jax are replaced.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import measure_networks_table
import readme
from benchmark_rounds import machine, same_machine, say, side_process

import zoo

OUT = Path(__file__).parent / "networks.json"
# Networks whose training step is compiled, too; deeper ones take far longer. FITTED
# and LARGE are those whose training memory is measured.
TRAINED = (
    "alexnet_tv",
    "vgg16",
    "googlenet_tv",
    "resnet50",
    "resnet152",
    "resnet200_v2",
    "cifar_resnet20",
    "cifar_resnet110",
    "cifar_resnet164_v2",
)
FITTED = ("alexnet_tv", "vgg16", "googlenet_tv", "resnet50", "resnet152")
BATCHES = (8, 32, 256)
# Networks with large images.
LARGE = (
    "ssd300_vgg16",
    "faster_rcnn_resnet50_fpn",
    "fcn_resnet50",
    "unet",
    "segnet",
    "frrn_a",
    "pspnet_resnet50",
)
LARGE_BATCHES = (1, 8)
# With one image, batch norm would see a single value in the coarsest bin.
PSPNET_BATCHES = (2, 8)
TIMED = ("first_call_seconds", "training_step_seconds")
PARTS = (*TIMED, "bfloat16_deviation", "training_mebibytes")


def main(arguments: list[str]) -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        default=["*"],
        help="shell patterns of networks; default: all",
    )
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    add("--again", action="store_true", help="replace numbers in the file")
    add("--out", type=Path, default=OUT, metavar="JSON", help="file of the numbers")
    add("--table", action="store_true", help="print the tables and measure nothing")
    add("--readme", action="store_true", help="write them to README.md instead")
    add("--quick", action="store_true", help="a batch of 2 only, for tests")
    options = parser.parse_args(arguments)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.table or options.readme:
        tables = measure_networks_table.render(found)
        if options.readme:
            readme.write_block("networks", tables)
        else:
            print(tables)
        return
    names = [
        name
        for pattern in options.names
        for name in zoo.list_models(pattern) or [pattern]
    ]
    for name in names:
        zoo.get_spec(name)  # An unknown name is an error before any measurement.
    todo = {name: choose(name, options.parts, options.quick) for name in names}
    measure(todo, found, options.out, again=options.again, quick=options.quick)


def measure(
    todo: dict[str, list[str]],
    found: dict[str, Any],
    out: Path,
    *,
    again: bool,
    quick: bool,
) -> None:
    """Measures networks, and writes the file after each.

    Args:
      todo: Parts to measure, by network.
      found: Content of the file.
      out: The file.
      again: Whether to measure parts that are in the file.
      quick: Whether to measure one small batch only.
    """
    here = machine()
    if not same_machine(found.get("machine", here), here):
        say("the numbers in the file are of another machine; they are replaced.")
        found.clear()
    found["machine"] = here
    networks = found.setdefault("networks", {})
    if not again:
        known = {name: networks.get(name, {}) for name in todo}
        todo = {n: [p for p in parts if p not in known[n]] for n, parts in todo.items()}
    todo = {name: parts for name, parts in todo.items() if parts}
    for i, (name, parts) in enumerate(todo.items(), start=1):
        say(f"{i}/{len(todo)} {name}")
        with side_process("measure_networks_one") as process:
            batches = (2,) if quick else choose_batches(name)
            new = process("measure", name, tuple(parts), batches)
        say(f"  {new}")
        networks[name] = {**networks.get(name, {}), **new}
        order = [name for name in zoo.list_models() if name in networks]
        found["networks"] = networks = {name: networks[name] for name in order}
        out.write_text(json.dumps(found, indent=1) + "\n")


def choose_batches(name: str) -> tuple[int, ...]:
    """Chooses the batch sizes whose training memory is measured."""
    if name.startswith("pspnet"):
        return PSPNET_BATCHES
    return LARGE_BATCHES if name in LARGE else BATCHES


def choose(name: str, parts: list[str], quick: bool) -> list[str]:
    """Chooses the parts that are measured for a network."""
    if zoo.get_spec(name).task != "classification":
        return [p for p in parts if p == "training_mebibytes" and name in LARGE]
    fitted = name in FITTED or (quick and "remat" in zoo.list_options(name))
    left_out = set()
    if quick or name not in TRAINED:
        left_out.add("training_step_seconds")
    if not fitted:
        left_out.add("training_mebibytes")
    return [part for part in parts if part not in left_out]


if __name__ == "__main__":
    main(sys.argv[1:])
