"""Runs the studies at a scale and writes which expectations hold: studies.json.

# all studies at the quick scale
python tests/benchmarks/benchmark_studies.py
# some studies
python tests/benchmarks/benchmark_studies.py NAME ...
python tests/benchmarks/benchmark_studies.py --scale medium NAME --dataset D
# writes the table to README.md without measuring
python tests/benchmarks/benchmark_studies.py --readme

Each study takes minutes. Its page and measurements go to runs/study-NAME-SCALE in the
current folder; measurements that are there already are reused. The table goes to
README.md beside this file. The exit code is 1 if an expectation does not hold.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmark_rounds import machine, where
from readme import write_block

from train.cli import use_compilation_cache
from train.studies import STUDIES, Band, get_study, run_study

RESULTS = Path(__file__).parent / "studies.json"


def summarize(result: dict[str, Any], place: str) -> dict[str, Any]:
    """Selects what is stored of a study's result, and adds the machine."""
    kept = ("scale", "changes", "seeds", "remarks", "bands", "seconds", "cpu_seconds")
    return {name: result[name] for name in kept} | {"machine": place}


def render(found: dict[str, Any]) -> str:
    """Makes the table from the content of studies.json."""
    lines = [
        "The claims of the lecture as numbers; "
        "`python tests/benchmarks/benchmark_studies.py` reproduces them, and "
        "`python -m train study NAME` makes one study's page.",
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
            what = re.sub(r"\b1 (image|pixel)s\b", r"1 \1", band["what"])
            cells = (what, value, bounds, holds, band["published"])
            lines.append(f"| `{name}` | {scale} | {' | '.join(cells)} |")
    times = ", ".join(
        f"`{key}` {study['cpu_seconds']:,.0f} s" for key, study in found.items()
    )
    machines = "; ".join(dict.fromkeys(study["machine"] for study in found.values()))
    lines += [
        "",
        "CPU time, with compilation, without measurements reused from earlier runs: "
        f"{times}. On {machines}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs studies, and writes the file and the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="studies; default: all")
    add("--scale", default="quick", help="quick, medium or full; default: quick")
    add("--dataset", help="data set; default: the study's own")
    add("--readme", action="store_true", help="write the table without measuring")
    options = parser.parse_args()
    if options.readme:
        write_block("studies", render(json.loads(RESULTS.read_text())))
        return
    use_compilation_cache()
    missed, place = 0, where(machine(), ("jax",))
    for name in options.names or STUDIES:
        folder = Path("runs") / f"study-{name}-{options.scale}"
        report = run_study(
            get_study(name), folder, scale=options.scale, dataset=options.dataset
        )
        result = json.loads((folder / "result.json").read_text())
        # Read now, as another process may have measured another study meanwhile.
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        found[f"{name}/{options.scale}"] = summarize(result, place)
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
