"""Runs the studies at a scale and writes which bands hold: studies.json.

python tests/benchmarks/benchmark_studies.py                  all quick ones
python tests/benchmarks/benchmark_studies.py NAME ...         some of them
python tests/benchmarks/benchmark_studies.py --scale medium NAME --dataset D

Each needs minutes. The pages go into runs/study-NAME-SCALE below the current folder,
where what was measured before is not measured again. README.md beside this file gets
the table. The exit code is 1 where a band does not hold.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmark_rounds import machine, where
from readme import write_block

from train.cli import use_compilation_cache
from train.studies import STUDIES, Band, get_study, run_study

RESULTS = Path(__file__).parent / "studies.json"


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Takes what is kept of a study's result."""
    kept = ("scale", "changes", "seeds", "remarks", "bands", "seconds", "cpu_seconds")
    return {name: result[name] for name in kept} | {
        "machine": where(machine(), ("jax",)),
    }


def render(found: dict[str, Any]) -> str:
    """Makes the table of README.md from the content of studies.json."""
    lines = [
        "The claims of the lecture as numbers; "
        "`python tests/benchmarks/benchmark_studies.py` makes them again, and "
        "`python -m train study NAME` one study's page.",
        "",
        "| study | scale | what | measured | expected | holds | published |",
        "| --- | --- | --- | ---: | --- | --- | --- |",
    ]
    for key, study in found.items():
        name, _, scale = key.partition("/")
        for band in study["bands"]:
            bounds = Band(band["what"], 0, band["low"], band["high"]).bounds()
            value = "-" if band["value"] is None else f"{band['value']:.3g}"
            holds = "yes" if band["holds"] else "**no**"
            cells = (band["what"], value, bounds, holds, band["published"])
            lines.append(f"| `{name}` | {scale} | {' | '.join(cells)} |")
    times = ", ".join(
        f"`{key}` {study['cpu_seconds']:,.0f} s" for key, study in found.items()
    )
    machines = "; ".join(dict.fromkeys(study["machine"] for study in found.values()))
    lines += [
        "",
        "CPU time, compilation included, of what was not measured in an earlier run: "
        f"{times}. On {machines}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the studies that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--dataset")
    options = parser.parse_args()
    use_compilation_cache()
    missed = 0
    for name in options.names or STUDIES:
        folder = Path("runs") / f"study-{name}-{options.scale}"
        report = run_study(
            get_study(name), folder, scale=options.scale, dataset=options.dataset
        )
        result = json.loads((folder / "result.json").read_text())
        # Read now, as another process may have measured another study meanwhile.
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[f"{name}/{options.scale}"] = summarize(result)
        order = [*STUDIES]
        found = dict(
            sorted(found.items(), key=lambda x: order.index(x[0].split("/")[0]))
        )
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_block("studies", render(found))
        for band in report.outcome.bands:
            missed += not band.holds
            print(
                name, "ok" if band.holds else "MISSED", band.what, f"{band.value:.4g}"
            )
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
