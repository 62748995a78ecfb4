"""Translates networks to ONNX and compares their outputs: onnx.json, README.md.

python tests/benchmarks/measure_onnx.py [NAME ...]

Each network is drawn at random, exported for any number of images or, where that fails,
for two, and run by onnxruntime on two of them. The error is the largest difference from
jax's float32 output, relative to its largest value; 1e-4 is asked for. A network that
is measured again replaces its row.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from readme import write_block

import zoo

FILE = Path(__file__).parent / "onnx.json"
# One of each family and block; of VGG the smallest. Networks of regions take none.
NAMES = (
    *("lenet5", "lenet5_modern", "alexnet", "alexnet_tv", "zfnet", "vgg11_bn"),
    *("vgg11_lrn", "googlenet", "googlenet_tv", "resnet18", "resnet50", "resnet50_v1"),
    *("plain18", "cifar_resnet20", "cifar_resnet164_v2", "msra_small14", "relu30"),
    *("fcn8s_vgg16", "fcn_resnet50", "pspnet_resnet50", "unet", "unet_same"),
    *("unet_resnet34", "unet_small", "segnet", "segnet_basic", "frrn_a"),
    *("deepface_small", "ssd96_small", "yolo96_small", "faster_rcnn_small"),
)
LARGEST = 1e-4
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

    spec = zoo.get_spec(name)
    model, variables = zoo.create(name)
    size = SIZES.get(spec.task)
    if name == "unet":
        size = (188, 188)  # without padding
    started = time.perf_counter()
    batch: int | str = "b"
    try:
        artifact = zoo.export(name, variables, format="onnx", size=size)
    except NotImplementedError:
        batch = 2
        try:
            artifact = zoo.export(
                name, variables, format="onnx", size=size, batch=batch
            )
        except NotImplementedError as error:
            return {"failed": str(error)[:300]}
    seconds = time.perf_counter() - started
    shape = (2, *(size or spec.preprocess.shape[:2]), spec.preprocess.channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return {
        "error": error,
        "images": "any" if batch == "b" else "fixed",
        "bytes": len(artifact),
        "seconds": round(seconds, 1),
    }


def make_table(found: dict[str, dict[str, Any]]) -> str:
    """Makes the table of all that was measured."""
    rows = ["| network | number of images | error | MB | translation |"]
    rows += ["| --- | --- | ---: | ---: | --- |"]
    names = [name for name in zoo.list_models() if name in found]
    for name in names:
        row = found[name]
        if "failed" in row:
            reason = row["failed"].split(": ", 1)[-1].split("\n")[0][:110]
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
