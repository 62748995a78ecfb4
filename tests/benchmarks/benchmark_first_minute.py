"""Measures the seconds from `import zoo` to the first answer of five typical calls.

# about four minutes on two cores; writes the numbers and the table of the README
python tests/benchmarks/benchmark_first_minute.py
# some of the calls, and fewer rounds; writes nothing
python tests/benchmarks/benchmark_first_minute.py --calls boxes --rounds 1

Each call runs in processes of its own: first with an empty cache of compiled programs
("cold"), then with the cache that the first process filled ("warm"). Numbers go to
first_minute.json beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import readme
from benchmark_rounds import machine, say, where

OUT = Path(__file__).parent / "first_minute.json"
ROOT = Path(__file__).parents[2]
# Title, code before the first answer, and code of an answer.
CALLS = {
    "classes": (
        '`zoo.make_predictor("lenet5", weights="digits")`',
        'ask = zoo.make_predictor("lenet5", weights="digits")',
        "ask(image)",
    ),
    "boxes": (
        '`zoo.make_predictor("ssd96_small", weights="digits_canvas")`',
        'ask = zoo.make_predictor("ssd96_small", weights="digits_canvas")',
        "ask(image)",
    ),
    "mask": (
        '`zoo.make_predictor("unet_small", weights="digits_canvas")`',
        'ask = zoo.make_predictor("unet_small", weights="digits_canvas")',
        "ask(image)",
    ),
    "photograph": (
        '`zoo.create("resnet50")`, `zoo.make_classifier`',
        'model, variables = zoo.create("resnet50"); '
        'classify = zoo.make_classifier(model, zoo.get_spec("resnet50").preprocess)',
        "np.asarray(classify(variables, image[None]).classes)",
    ),
    "features": (
        '`zoo.create("resnet18", num_classes=0)`, `zoo.features`',
        'model, variables = zoo.create("resnet18", num_classes=0); '
        "inputs = np.zeros((1, 224, 224, 3), np.float32)",
        'np.asarray(zoo.features(model, variables, inputs, ["stage4"])["stage4"])',
    ),
}
PARTS = ("import", "create", "first answer", "second answer")
PROGRAM = """
import json, time
start = time.perf_counter()
import zoo
times = [time.perf_counter() - start]
import numpy as np
image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
for code in {codes!r}:
    start = time.perf_counter()
    exec(code)
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def main(arguments: list[str]) -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--calls", nargs="+", choices=CALLS, default=[*CALLS], help="default: all")
    add("--rounds", type=int, default=3, help="number of processes of each kind")
    add("--readme", action="store_true", help="write the table without measuring")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be 1 or more.")
    if options.readme:
        readme.write_block("first_minute", render(json.loads(OUT.read_text())))
        return
    result = {"machine": machine(), "rounds": options.rounds}
    found = {name: measure(name, options.rounds) for name in options.calls}
    result["calls"] = found
    table = render(result)
    if [*found] == [*CALLS]:
        OUT.write_text(json.dumps(result, indent=2) + "\n")
        readme.write_block("first_minute", table)
        say(f"wrote {OUT}")
    else:
        print(table)


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Measures a call.

    Args:
      name: A key of `CALLS`.
      rounds: The number of processes of each kind.

    Returns:
      The median seconds of each of `PARTS`, by "cold" and "warm".
    """
    _, make, ask = CALLS[name]
    program = PROGRAM.format(codes=(make, ask, ask))
    times: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            ours = ("JAX_", "PYTHON")
            env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
            # Python's own cache is that of an installed package: it is filled.
            env |= {"ZOO_CACHE": cache, "PYTHONPATH": str(ROOT)}
            env |= {"PYTHONPYCACHEPREFIX": f"{cache}/pyc"}
            subprocess.run([sys.executable, "-c", "import zoo"], env=env, check=True)
            for kind in times:
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    env=env,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                times[kind].append(json.loads(done.stdout.splitlines()[-1]))
    say(f"{name}: {times}")
    return {
        kind: {
            part: round(statistics.median(each[i] for each in rows), 3)
            for i, part in enumerate(PARTS)
        }
        for kind, rows in times.items()
    }


def render(result: dict) -> str:
    """Renders the table."""
    lines = [
        f"Seconds on {where(result['machine'], ('jax',))}: medians of "
        f"{result['rounds']} new processes each, with an empty cache of compiled "
        "programs (cold) and with the cache that they filled (warm). "
        "`python tests/benchmarks/benchmark_first_minute.py` reproduces it.",
        "",
        "| call | | `import zoo` | create | first answer | together | second answer |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, kinds in result["calls"].items():
        for kind, parts in kinds.items():
            *first, second = (parts[part] for part in PARTS)
            cells = [CALLS[name][0] if kind == "cold" else "", kind]
            cells += [f"{value:.2f}" for value in (*first, sum(first))]
            lines.append(f"| {' | '.join([*cells, f'{second:.3f}'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
