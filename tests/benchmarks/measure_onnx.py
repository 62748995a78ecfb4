"""Translates networks to ONNX and compares their outputs: onnx.json, README.md.

python tests/benchmarks/measure_onnx.py [NAME ...]

Each network is drawn at random, exported for any number of images or, where that fails,
for two, and run by onnxruntime on two of them. Detectors have the weights that the
package carries, where it does, and are whole: from pixels to boxes. The error is the
largest difference from jax's float32 output, relative to its largest value, over all
outputs; 1e-4 is asked for. A network that is measured again replaces its row.
"""

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
# One of each family and block; of VGG the smallest. Networks of regions take none.
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
# Of what scores lower, rounding may change the order.
DETECTOR = {"score_threshold": 0.05}
# Of networks that read images of any size.
SIZES = {"segmentation": (128, 128)}


def main() -> None:
    """Measures some networks, each in a process of its own, and writes the table."""
    for name in sys.argv[1:] or NAMES:
        found = json.loads(FILE.read_text()) if FILE.exists() else {}
        command = [sys.executable, __file__, "--one", name]
        run = subprocess.run(command, capture_output=True, text=True)
        last = (run.stdout.strip().splitlines() or ["{}"])[-1]
        if run.returncode:
            last = json.dumps({"failed": run.stderr.strip().splitlines()[-1][:300]})
        found[name] = json.loads(last)
        print(name, found[name], flush=True)
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    write_block("onnx", make_table(json.loads(FILE.read_text())))


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
    """Makes the table of all that was measured."""
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
    return "\n".join(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
