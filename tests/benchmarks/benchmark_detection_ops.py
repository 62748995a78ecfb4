"""Measures suppression and RoIAlign beside torchvision's operators.

# about 2 minutes on two cores
python tests/benchmarks/benchmark_detection_ops.py
# operators whose names contain a word
python tests/benchmarks/benchmark_detection_ops.py nms
# prints what was measured
python tests/benchmarks/benchmark_detection_ops.py --table
# writes it to the README
python tests/benchmarks/benchmark_detection_ops.py --readme

The sides take turns on the same inputs, and the shortest time counts, because other
programs only add to it. The shortest processor time is stored, too. Where torchvision's
compiled operators are missing, a module `torchvision_on_cpu` on the path can replace
them: the file then calls them "python", and the table has no ratios. Numbers go to
tests/benchmarks/detection_ops.json.
"""

import argparse
import importlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import readme
from benchmark_rounds import machine, measure_in_turns, say, where

from zoo.ops.nms import nms
from zoo.ops.roi import multiscale_roi_align

OUT = Path(__file__).parent / "detection_ops.json"
COUNTS = (1_000, 6_000, 12_000)
HEIGHT, WIDTH, CHANNELS, CLASSES = 800, 1088, 256, 80
STRIDES = (4, 8, 16, 32)
# Titles of the rows; {} is the number in the name.
TITLES = {
    "nms": "suppression at 0.7 of {} boxes",
    "nms_keep_1000": "the same, until 1,000 are kept",
    "class_nms": "suppression at 0.5 within 80 classes of {} boxes",
    "roi_align": "RoIAlign of {} boxes over four levels",
    "roi_align_gradient": "its value and gradient, {} boxes",
}
Calls = dict[str, Callable[[], Any]]


def main() -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "only", nargs="*", help="parts of names of operators; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="time of each operator"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="numbers")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--readme", action="store_true", help="write it to README.md")
    options = parser.parse_args()
    if not options.table and not options.readme:
        measure(options.only, options.seconds, options.out)
    table = render(json.loads(options.out.read_text()))
    if options.readme:
        readme.write_block("detection_ops", table)
    else:
        print(table)


def measure(only: list[str], seconds: float, out: Path) -> None:
    """Measures operators, and keeps the other numbers of the file."""
    import torch

    torch.set_num_threads(os.cpu_count())
    torchvision, kind = import_torchvision()
    operators = torchvision.ops
    found = json.loads(out.read_text()) if out.exists() else {"milliseconds": {}}
    found["machine"] = machine() | {"torch": torch.__version__}
    found["torchvision_operators"] = kind
    jobs = {}
    for count in COUNTS:
        jobs[f"nms_{count}"] = partial(nms_calls, operators, count, None)
        jobs[f"nms_{count}_keep_1000"] = partial(nms_calls, operators, count, 1_000)
        jobs[f"class_nms_{count}"] = partial(class_nms_calls, operators, count)
    jobs["roi_align_1000"] = partial(roi_align_calls, operators, 1_000)
    jobs["roi_align_512_gradient"] = partial(gradient_calls, operators, 512)
    for name, make_calls in jobs.items():
        if only and not any(part in name for part in only):
            continue
        found["milliseconds"][name] = measure_in_turns(make_calls(), seconds)
        out.write_text(json.dumps(found, indent=1) + "\n")
        say(f"{name} {found['milliseconds'][name]}")


def import_torchvision() -> tuple[Any, str]:
    """Returns torchvision, and "compiled" or "python" for its operators."""
    kind = "compiled"
    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        torchvision = importlib.import_module("torchvision_on_cpu").torchvision
        kind = "python"
    return torchvision, kind


def render(found: dict[str, Any]) -> str:
    """Makes the table: least milliseconds of wall time, and their ratio."""
    here = found["machine"]
    compiled = found["torchvision_operators"] == "compiled"
    stand_in = (
        ""
        if compiled
        else " Its compiled operators are missing on this machine; a slow Python "
        "script replaces them, so there are no ratios."
    )
    lines = [
        f"Operators of detectors beside torchvision's.{stand_in} On "
        f"{where(here, ('jax', 'torch'))}; the shortest time of all turns, each with "
        "all cores. `python tests/benchmarks/benchmark_detection_ops.py` reproduces "
        "it.",
        "",
        "| what | ms | torchvision, ms | theirs / ours |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, sides in found["milliseconds"].items():
        ours, theirs = sides["zoo"][0], sides["torchvision"][0]
        count = re.search(r"_(\d+)", name)
        title = TITLES[name.replace(count[0], "", 1)].format(f"{int(count[1]):,}")
        ratio = f"{theirs / ours:.1f}" if compiled else ""
        cells = title, f"{ours:.1f}", f"{theirs:,.1f}", ratio
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make_boxes(count: int) -> np.ndarray:
    """Boxes of 16 to 700 pixels, as many small as large, clipped to the image."""
    random = np.random.default_rng(count)
    half = np.exp(random.uniform(np.log(16), np.log(700), (count, 2))) / 2
    center = random.uniform(0, [WIDTH, HEIGHT], (count, 2))
    boxes = np.concatenate([center - half, center + half], axis=1)
    return np.clip(boxes, 0, [WIDTH, HEIGHT] * 2).astype(np.float32)


def jax_call(function: Callable, *arrays: Any) -> Callable[[], Any]:
    """Compiles a function for these arrays, and calls it with them."""
    arrays = jax.tree.map(jnp.asarray, arrays)
    compiled = jax.jit(function).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def nms_calls(operators: Any, count: int, keep: int | None) -> Calls:
    """Suppression at 0.7 of which the first `keep` boxes are kept."""

    boxes = make_boxes(count)
    scores = np.random.default_rng(0).uniform(size=count).astype(np.float32)
    ours = partial(nms, iou_threshold=0.7, max_outputs=keep or count)
    theirs = to_torch(boxes), to_torch(scores)
    calls = {
        "zoo": jax_call(ours, boxes, scores),
        "torchvision": finish(lambda: operators.nms(*theirs, 0.7)[:keep]),
    }
    check(calls)
    return calls


def class_nms_calls(operators: Any, count: int) -> Calls:
    """Suppression at 0.5 within each class."""

    random = np.random.default_rng(0)
    boxes, scores = make_boxes(count), random.uniform(size=count).astype(np.float32)
    classes = random.integers(0, CLASSES, count)
    theirs = [to_torch(a) for a in (boxes, scores, classes)]

    def ours(boxes: Any, scores: Any, classes: Any) -> Any:
        return nms(boxes, scores, iou_threshold=0.5, max_outputs=count, classes=classes)

    calls = {
        "zoo": jax_call(ours, boxes, scores, classes.astype(np.int32)),
        "torchvision": finish(lambda: operators.batched_nms(*theirs, 0.5)),
    }
    check(calls)
    return calls


def check(calls: Calls) -> None:
    """Asserts that both sides keep the same boxes."""
    ours, theirs = calls["zoo"](), calls["torchvision"]().cpu().numpy()
    np.testing.assert_array_equal(np.asarray(ours.indices)[ours.valid], theirs)


def roi_align_calls(operators: Any, count: int) -> Calls:
    """RoIAlign 7x7 over four levels of an image of 800 x 1088 pixels."""
    import torch

    levels = make_levels()
    rois = make_boxes(count)
    maps, pool, sizes = torch_side(operators, levels)
    theirs_rois = to_torch(rois)

    def theirs() -> Any:
        with torch.no_grad():
            return pool(maps, [theirs_rois], sizes)

    calls = {"zoo": jax_call(align, levels, rois), "torchvision": finish(theirs)}
    expected = calls["torchvision"]().permute(0, 2, 3, 1).cpu().numpy()
    # Neighbors differ by some units here, and float32 knows places near 270 cells to
    # 3e-5 cells.
    np.testing.assert_allclose(calls["zoo"](), expected, atol=1e-3)
    return calls


def gradient_calls(operators: Any, count: int) -> Calls:
    """RoIAlign and its gradient, for the number of regions in training."""
    import torch

    levels, rois = make_levels(), make_boxes(count)
    maps, pool, sizes = torch_side(operators, levels)
    theirs_rois = to_torch(rois)
    leaves = [leaf.requires_grad_() for leaf in maps.values()]

    def ours(levels: list, rois: Any) -> list:
        return jax.grad(lambda levels: (align(levels, rois) ** 2).sum())(levels)

    def theirs() -> Any:
        total = (pool(maps, [theirs_rois], sizes) ** 2).sum()
        return torch.autograd.grad(total, leaves)

    calls = {"zoo": jax_call(ours, levels, rois), "torchvision": finish(theirs)}
    for mine, other in zip(calls["zoo"](), calls["torchvision"](), strict=True):
        expected = other[0].permute(1, 2, 0).cpu().numpy()
        np.testing.assert_allclose(mine, expected, atol=1e-2)
    return calls


def align(levels: list, rois: Any) -> Any:
    """The zoo's operation."""
    return multiscale_roi_align(levels, rois, strides=STRIDES)


def make_levels() -> list[np.ndarray]:
    """Feature maps [H, W, C] of all strides."""
    random = np.random.default_rng(0)
    sizes = [(HEIGHT // s, WIDTH // s, CHANNELS) for s in STRIDES]
    return [random.normal(size=size).astype(np.float32) for size in sizes]


def to_torch(array: np.ndarray) -> Any:
    """Copies an array to torch's device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(array).to(device)


def finish(call: Callable[[], Any]) -> Callable[[], Any]:
    """Makes a call of torch wait for the device."""
    import torch

    def finished() -> Any:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return finished


def torch_side(operators: Any, levels: list[np.ndarray]) -> tuple[dict, Any, list]:
    """Returns maps [1, C, H, W] by name, the pooler, and the image's size."""

    maps = {
        str(i): to_torch(np.ascontiguousarray(level.transpose(2, 0, 1)))[None]
        for i, level in enumerate(levels)
    }
    pool = operators.MultiScaleRoIAlign([*maps], output_size=7, sampling_ratio=2)
    return maps, pool, [(HEIGHT, WIDTH)]


if __name__ == "__main__":
    main()
