"""Translates networks to ONNX and compares their outputs: onnx.json, README.md.

# all networks of NAMES
python tests/benchmarks/measure_onnx.py
# some networks; a new measurement replaces a network's row
python tests/benchmarks/measure_onnx.py lenet5 resnet18
# writes the table to the README without measuring
python tests/benchmarks/measure_onnx.py --readme

Each network has random weights and is exported for any number of images or, where that
fails, for two; onnxruntime runs it on two images. Detectors are exported whole, from
pixels to boxes, with the package's weights where there are some. The error is the
largest difference from jax's float32 output over all outputs, relative to the largest
value; it must be at most 1e-4.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from readme import write_block

import zoo
from train.data import load_dataset

FILE = Path(__file__).parent / "onnx.json"
# One network of each family and kind of block, and of VGG the smallest one.
NAMES = (
    *("lenet5", "lenet5_modern", "alexnet", "alexnet_tv", "zfnet", "vgg11_bn"),
    *("vgg11_lrn", "googlenet", "googlenet_tv", "resnet18", "resnet50", "resnet50_v1"),
    *("plain18", "cifar_resnet20", "cifar_resnet164_v2", "msra_small14", "relu30"),
    *("fcn8s_vgg16", "fcn_resnet50", "pspnet_resnet50", "unet", "unet_same"),
    *("unet_resnet34", "unet_small", "segnet", "segnet_basic", "frrn_a"),
    *("deepface_small", "ssd96_small", "yolo96_small", "ssd300_vgg16"),
    "faster_rcnn_small",
)
LARGEST = 1e-4
# Rounding may change the order of boxes that score lower.
DETECTOR = {"score_threshold": 0.05}
# Images of networks that take any size.
SIZES = {"segmentation": (128, 128)}


def main() -> None:
    """Measures networks, each in its own process, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="networks to measure; default: NAMES")
    add("--readme", action="store_true", help="write the table without measuring")
    add("--one", action="store_true", help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    for name in options.names:
        try:
            zoo.get_spec(name)
        except ValueError as error:
            parser.error(str(error))
    if options.one:
        print(json.dumps(measure(options.names[0])))
        return
    if not options.readme:
        try:
            import jax2onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            parser.error(f"{error}; pip install 'canon-zoo[onnx]' installs it.")
        for name in options.names or NAMES:
            measure_apart(name)
    write_block("onnx", make_table(json.loads(FILE.read_text())))


def measure_apart(name: str) -> None:
    """Measures a network in a new process and writes its row to the file."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    command = [sys.executable, __file__, "--one", name]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        found[name] = {"failed": run.stderr.strip().splitlines()[-1][:300]}
    else:
        found[name] = json.loads(run.stdout.strip().splitlines()[-1])
    print(name, found[name], flush=True)
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def measure(name: str) -> dict[str, Any]:
    """Translates a network, runs it and compares it."""
    import onnxruntime

    spec, detects = zoo.get_spec(name), zoo.get_spec(name).task == "detection"
    trained = [w.name for w in zoo.weights.list_trained(name) if detects]
    model, variables = zoo.create(name, weights=trained[0] if trained else None)
    size = SIZES.get(spec.task)
    if name == "unet":
        size = (188, 188)  # without padding
    export = partial(
        zoo.export,
        name,
        variables,
        format="onnx",
        size=size,
        detector=DETECTOR if detects else None,
    )
    started = time.perf_counter()
    batch: int | str = "b"
    try:
        artifact = export()
    except NotImplementedError:
        batch = 2
        try:
            artifact = export(batch=batch)
        except NotImplementedError as error:
            return {"failed": str(error)[:300]}
    seconds = time.perf_counter() - started
    shape = (2, *(size or spec.preprocess.shape[:2]), spec.preprocess.channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    inputs = {"images": images}
    if detects:
        canvases = load_dataset("digits_canvas", "test[:2]")
        pictures = [Image.fromarray(canvases.image(i)) for i in range(2)]
        images = np.stack([picture.resize(shape[2:0:-1]) for picture in pictures])
        sizes = np.int32([shape[1:3], [side // 2 for side in shape[1:3]]])
        inputs = {"images": images, "sizes": sizes}
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    found = session.run(None, inputs)
    infer = (
        zoo.make_detector(model, **DETECTOR)
        if detects
        else lambda *given: [jax.jit(model.apply)(*given)]
    )
    expected = [np.asarray(x) for x in infer(variables, *inputs.values())]
    error = max(map(compare, found, expected))
    return {
        "error": error,
        "images": "any" if batch == "b" else "fixed",
        "bytes": len(artifact),
        "seconds": round(seconds, 1),
    }


def compare(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest value."""
    found, expected = np.float64(found), np.float64(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max().clip(1e-9))


def make_table(found: dict[str, dict[str, Any]]) -> str:
    """Makes the table of the measured networks, and lists the other ones of NAMES."""
    rows = ["| network | number of images | error | MB | translation |"]
    rows += ["| --- | --- | ---: | ---: | --- |"]
    names = [name for name in zoo.list_models() if name in found]
    for name in names:
        row = found[name]
        if "failed" in row:
            reason = row["failed"].split("\n")[0][:140]
            reason = reason.replace("|", "/").replace("`", "'")
            rows.append(f"| `{name}` | - | - | - | fails: `{reason}` |")
            continue
        good = f"{row['seconds']} s" if row["error"] <= LARGEST else "differs"
        rows.append(
            f"| `{name}` | {row.get('images', 'any')} | {row['error']:.1e} | "
            f"{row['bytes'] / 1e6:.1f} | {good} |"
        )
    if missing := ", ".join(f"`{name}`" for name in NAMES if name not in found):
        rows += ["", f"Not measured: {missing}."]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
