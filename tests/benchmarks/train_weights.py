"""Trains the weights that the package carries, and measures them.

python tests/benchmarks/train_weights.py [MODEL ...] [--runs FOLDER]

A run that was interrupted is resumed, and one that is complete is not trained again.
Arrays are stored as float16 and batch statistics as float32. The networks of more than
500,000 parameters have kernels of int8 with a scale for each output channel (of a
locally connected layer, for each channel of each position), because all of these files
together shall take at most 8 MB. What is measured is the stored file.
"""

import argparse
import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import zoo
from train.__main__ import train as run
from zoo.paths import flatten, unflatten
from zoo.weights.trained import FOLDER

ROOT = Path(__file__).parents[2]
MOST_FLOAT16 = 500_000


class Recipe(NamedTuple):
    """How weights are trained and measured.

    Attributes:
      weights: Name of the weights.
      config: Name of the experiment, and further arguments of `python -m train`.
      dataset: What they are measured on, and its split.
      quick: A smaller set, and its split, on which a test measures them again.
      metric: The primary metric.
      words: The metric in words.
    """

    weights: str
    config: str
    dataset: tuple[str, str]
    quick: tuple[str, str]
    metric: str
    words: str


CANVAS = ("digits_canvas", "test"), ("digits_canvas", "test[:40]")
DIGITS = (("digits", "test"),) * 2
RECIPES = {
    "lenet5": Recipe("digits", "digits_lenet5", *DIGITS, "top-1", "accuracy"),
    "lenet5_modern": Recipe(
        "digits", "digits_lenet5_modern", *DIGITS, "top-1", "accuracy"
    ),
    "ssd96_small": Recipe(
        "digits_canvas", "digits_detection_ssd", *CANVAS, "ap50", "AP50"
    ),
    "yolo96_small": Recipe(
        "digits_canvas", "digits_detection_yolo", *CANVAS, "ap50", "AP50"
    ),
    "faster_rcnn_small": Recipe(
        "digits_canvas", "digits_detection_faster_rcnn", *CANVAS, "ap50", "AP50"
    ),
    "unet_small": Recipe(
        "digits_canvas", "digits_segmentation_unet", *CANVAS, "mean iou", "mean IoU"
    ),
    "cifar_resnet20": Recipe(
        "cifar10_20epochs",
        "cifar10_resnet20_20epochs",
        *(("cifar10", "test"),) * 2,
        "top-1",
        "accuracy",
    ),
    "deepface_small": Recipe(
        "faces_synthetic",
        "faces_deepface_small",
        ("faces_synthetic", "test"),
        ("faces_synthetic_tiny", "test"),
        "verification accuracy",
        "verification accuracy",
    ),
}


def main() -> None:
    """Trains and measures the weights of some models, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", default=[*RECIPES], metavar="MODEL", help="default: all"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/trained"), help="runs")
    arguments = parser.parse_args()
    for model in arguments.models:
        if model not in RECIPES:
            parser.error(f"MODEL {model!r} must be one of {[*RECIPES]}.")
        run_dir = arguments.runs / RECIPES[model].config.split()[0]
        train(model, run_dir)
        write(model, run_dir)


def train(model: str, run_dir: Path) -> None:
    """Trains a network, or resumes its run."""
    command = [sys.executable, "-m", "train"]
    if run_dir.is_dir():
        command += ["resume", str(run_dir)]
    else:
        command += [*RECIPES[model].config.split(), "--run-dir", str(run_dir)]
    subprocess.run(command, check=True, cwd=ROOT)
    commit = run_dir / "commit"
    if not commit.exists():
        head = ["git", "rev-parse", "HEAD"]
        commit.write_text(subprocess.check_output(head, cwd=ROOT, text=True))


def write(model: str, run_dir: Path) -> None:
    """Stores and measures the variables of a run's last step, and writes the record."""
    recipe = RECIPES[model]
    steps = [int(p.name) for p in (run_dir / "checkpoints").iterdir()]
    variables, card, _ = zoo.weights.read_checkpoint(run_dir, max(steps))
    config = json.loads((run_dir / "config.json").read_text())
    command = f"python -m train {recipe.config}"
    commit = (run_dir / "commit").read_text().strip()
    small = zoo.get_spec(model).params <= MOST_FLOAT16
    path = FOLDER / f"{model}-{recipe.weights}.safetensors"
    fields = card.to_json() | {
        "source": f"{command}, commit {commit[:12]}",
        "licence": "Apache-2.0",
    }

    def save(accuracy: str) -> None:
        described = zoo.spec.Card.from_json(fields | {"accuracy": accuracy})
        zoo.weights.save_safetensors(path, store(variables, small), described)

    save("")
    found = quick = measure(model, path, *recipe.dataset)
    if recipe.quick != recipe.dataset:
        quick = measure(model, path, *recipe.quick)
    dataset, split = recipe.dataset
    count = f"{found['images']:,} images" if "images" in found else "1,200 pairs"
    save(f"{recipe.words} {found[recipe.metric]:.2%} of {dataset}, {split} ({count})")
    record = {
        "model": model,
        "weights": recipe.weights,
        "data": config["data"]["dataset"],
        "train_split": config["data"]["train_split"],
        "command": command,
        "commit": commit,
        "seed": config["seed"],
        "stored_as": "float16" if small else "int8 kernels, float16",
        "metric": recipe.metric,
        "measured": {"dataset": dataset, "split": split, **found},
        "quick": dict(zip(("dataset", "split"), recipe.quick, strict=True)) | quick,
        "licence": "Apache-2.0",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{path.name}: {record['bytes']:,} bytes, {found}")


def store(variables: dict[str, Any], small: bool) -> dict[str, Any]:
    """Reduces variables to the types in which they are stored."""
    out = {}
    for name, value in flatten(variables).items():
        if name.startswith("batch_stats/"):
            out[name] = np.asarray(value, np.float32)
        elif small or value.ndim == 1 or value.size < 4096:
            out[name] = np.asarray(value, np.float16)
        else:
            out[name], out[f"{name}:scale"] = quantize(value)
    return unflatten(out)


def quantize(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a kernel to int8 with a float32 scale for each output channel."""
    axes = tuple(range(max(kernel.ndim - 4, 0), kernel.ndim - 1))
    scale = np.abs(kernel).max(axes, keepdims=True).astype(np.float32) / 127
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.rint(kernel / scale).astype(np.int8), scale


def measure(
    model: str, weights: str | Path, dataset: str, split: str
) -> dict[str, float]:
    """Evaluates weights as `python -m train evaluate` does.

    Args:
      model: Name of the model.
      weights: Their name, or a file.
      dataset: Name of the data set.
      split: Its split.

    Returns:
      The printed measures by name.
    """
    arguments = ["evaluate", "--model", model, "--weights", str(weights)]
    arguments += ["--dataset", dataset, "--split", split]
    arguments += ["--mirror"] if zoo.get_spec(model).task == "verification" else []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run(arguments)
    found = {}
    for line in said.getvalue().splitlines():
        match = re.fullmatch(r"  (\S+(?: \S+)*) {2,}([\d.,]+)(%?)(.*)", line)
        if match is None or match[1] in ("protocol", "speed"):
            continue
        value = float(match[2].replace(",", ""))
        found[match[1]] = value / 100 if match[3] else value
        if count := re.match(r" \((\d+) of (\d+)\)", match[4]):
            correct, images = map(int, count.groups())
            found |= {match[1]: correct / images, "images": images}
    return {k: int(v) if v > 1 and v == int(v) else v for k, v in found.items()}


if __name__ == "__main__":
    main()
