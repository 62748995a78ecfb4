"""Measures speed and training on one GPU; about ten minutes on an H200.

# all parts that are missing in the folder gpu/ beside this file
python tests/benchmarks/gpu.py --cifar10 cifar10
# some parts
python tests/benchmarks/gpu.py classifiers operators
# prints the tables
python tests/benchmarks/gpu.py --table

Each part runs another command and has its own file, so a stopped run can be continued.
torch and torchvision must be CUDA builds.

- classifiers: ResNet-50 in bfloat16, inference and training, beside PyTorch's eager
  mode and `torch.compile`, channels last.
- operators: suppression and RoIAlign beside torchvision's compiled operators.
- detectors: SSD and Faster R-CNN, from pixels to boxes and a training step.
- cifar10: ResNet-20 trained by the paper's recipe, to 91.25 % of the test images.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / "gpu"
BENCHMARKS = {
    "classifiers": ("benchmark_classifiers.py", ()),
    "operators": ("benchmark_detection_ops.py", ("--seconds", "4")),
    "detectors": ("benchmark_detectors.py", ("--rounds", "2", "--seconds", "1")),
}
PARTS = (*BENCHMARKS, "cifar10")


def main() -> None:
    """Measures missing parts, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=PARTS, metavar="PART", help="default: all"
    )
    parser.add_argument("--cifar10", default="cifar10", help="data set CIFAR-10")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="results")
    parser.add_argument("--minutes", type=float, default=10, help="time limit")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown parts {unknown}; there are {[*PARTS]}.")
    if options.table:
        print(render(options.folder))
        return
    import jax

    if jax.default_backend() != "gpu":
        parser.error(f"needs a GPU; jax has {jax.devices()}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    for part in options.parts:
        done = options.folder / f"{part}.done"
        if done.exists():
            print(f"{part}: measured already")
            continue
        command = make_command(part, options.folder, options.cifar10)
        try:
            # The processes of the benchmark's sides need the memory.
            subprocess.run(
                command,
                check=True,
                timeout=max(1, end - time.monotonic()),
                env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"{part}: stopped after {options.minutes:g} minutes; run it again")
        done.touch()


def make_command(part: str, folder: Path, cifar10: str) -> list[str]:
    """Makes the command of a part."""
    if part == "cifar10":
        run = folder / "cifar10_resnet20"
        if (run / "config.json").exists():
            return [sys.executable, "-m", "train", "resume", str(run)]
        options = ["--dataset", cifar10, "--run-dir", str(run), "--log-every", "1000"]
        return [sys.executable, "-m", "train", "cifar10_resnet20", *options]
    script, options = BENCHMARKS[part]
    out = str(folder / f"{part}.json")
    return [sys.executable, str(HERE / script), "--out", out, *options]


def render(folder: Path) -> str:
    """Joins the tables of the parts, and says what is missing."""
    parts = []
    for part, (script, _) in BENCHMARKS.items():
        out = folder / f"{part}.json"
        command = [sys.executable, str(HERE / script), "--out", str(out), "--table"]
        if out.exists():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            parts.append(done.stdout)
        else:
            parts.append(f"{part}: not measured\n")
    metrics = folder / "cifar10_resnet20" / "metrics.jsonl"
    accuracy = [
        row["accuracy"]
        for line in (metrics.read_text().splitlines() if metrics.exists() else ())
        if "accuracy" in (row := json.loads(line)) and row.get("kind") == "eval"
    ]
    best = f"{100 * max(accuracy):.2f} %" if accuracy else "not measured"
    return "\n".join([*parts, f"CIFAR-10, ResNet-20, best test accuracy: {best}"])


if __name__ == "__main__":
    main()
