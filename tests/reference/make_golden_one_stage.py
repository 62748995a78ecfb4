"""Makes the golden files by which SSD300 is held against torchvision's.

    python tests/reference/make_golden_one_stage.py [PART ...]

A part is "endpoints", "detections" or "losses". Both sides are given what
`ssd_cases.py` makes. torchvision runs in float64; a run in float32 must find the same,
so that what is compared does not hang on a rounding.
"""

import contextlib
import datetime
import functools
import sys

import numpy as np
import torch
from ssd_cases import (
    GOLDEN,
    NAME,
    NUM_CLASSES,
    make_outputs,
    make_photographs,
    make_state,
    make_targets,
)

with contextlib.suppress(ImportError):
    import torchvision_on_cpu  # noqa: F401

from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from zoo.verify import parity, torchvision_live
from zoo.verify.summaries import measure, save_summaries
from zoo.verify.verification import golden_path


@functools.cache
def build(dtype, num_classes=90):
    network = ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=num_classes + 1
    )
    if num_classes == 90:
        torchvision_live.load_state(network, make_state())
    return network.to(dtype).eval()


def list_hooks():
    """torchvision's modules whose outputs are our endpoints."""
    hooks, block, layer = {}, 1, 1
    for i in range(23):
        kind = {4: "pool1", 9: "pool2", 16: "pool3"}.get(i)
        if kind:
            hooks[kind] = f"backbone.features.{i}"
            block, layer = block + 1, 1
        elif i in (1, 3, 6, 8, 11, 13, 15, 18, 20, 22):
            hooks[f"conv{block}_{layer}"] = f"backbone.features.{i}"
            layer += 1
    first = {"pool4": 0, "conv5_1": 2, "conv5_2": 4, "conv5_3": 6}
    hooks |= {name: f"backbone.extra.0.{i}" for name, i in first.items()}
    seventh = {"pool5": 0, "fc6": 2, "fc7": 4}
    hooks |= {name: f"backbone.extra.0.7.{i}" for name, i in seventh.items()}
    for i in range(1, 5):
        for j in (1, 2):
            hooks[f"conv{i + 7}_{j}"] = f"backbone.extra.{i}.{2 * j - 1}"
    return hooks


def make_endpoints():
    """The golden file of `python -m zoo verify`."""
    images, _ = parity.make_example(NAME)
    hooks, summaries = list_hooks(), []
    for dtype in (torch.float64, torch.float32):
        network = build(dtype)
        state = parity.deterministic_state(NAME)
        torchvision_live.load_state(network, state)
        network.to(dtype)
        outputs, stop = torchvision_live.record(network, hooks)
        with torch.no_grad():
            tensor = torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)
            maps = [*network.backbone(tensor).values()]
            heads = network.head(maps)
        stop()
        outputs = {k: to_our_axes(v) for k, v in outputs.items()}
        outputs["conv4_3_norm"] = to_our_axes(maps[0])
        outputs["deltas"] = heads["bbox_regression"].numpy()
        outputs["class_logits"] = heads["cls_logits"].numpy()
        summaries.append(parity.summarize_endpoints(outputs))
    build.cache_clear()
    exact, single = summaries
    facts = {
        "model": NAME,
        "reference": f"{torchvision_live.torchvision_version()}, float64",
        "date": datetime.date.today().isoformat(),
        "script": "tests/reference/make_golden_one_stage.py",
        "example": {"size": None, "dtype": "float32", "branch_gain": 1.0},
        "float32_errors": {"endpoints": max(measure(single, exact).values())},
    }
    save_summaries(golden_path(NAME), {"endpoints": exact}, facts)
    print(golden_path(NAME), golden_path(NAME).stat().st_size, facts)
    return {}


def to_our_axes(output):
    return np.ascontiguousarray(output.detach().numpy().transpose(0, 2, 3, 1))


def make_detections():
    """What torchvision finds in the photographs, from pixels to boxes."""
    runs = []
    for dtype in (torch.float64, torch.float32):
        images = [
            torch.tensor(image.transpose(2, 0, 1), dtype=dtype) / 255
            for image in make_photographs()
        ]
        with torch.no_grad():
            found = build(dtype)(images)
        runs.append(
            {
                f"detections/{i}/{name}": one[key].numpy()
                for i, one in enumerate(found)
                for name, key in (
                    ("boxes", "boxes"),
                    ("scores", "scores"),
                    ("classes", "labels"),
                )
            }
        )
    exact, single = runs
    for name, array in exact.items():
        kind = name.split("/")[-1]
        error = np.abs(array - single[name]).max()
        tolerance = {"boxes": 3e-4, "scores": 3e-5, "classes": 0}[kind]
        spread = (array.min(), array.max(), len({*array.reshape(-1).tolist()}))
        print(f"{name} {array.shape} {spread} float32: {error:.1e}")
        if error > tolerance:
            raise ValueError(f"{name} differs by {error} in float32")
    kinds = {"boxes": np.float32, "scores": np.float32, "classes": np.int32}
    for name, array in exact.items():
        kind = name.split("/")[-1]
        # torchvision counts classes from 1, behind the background.
        array = array - 1 if kind == "classes" else array
        exact[name] = array.astype(kinds[kind])
    return exact


def make_losses():
    """torchvision's losses, and how they change along a direction of the outputs."""
    network = build(torch.float64, NUM_CLASSES)
    outputs = {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for k, v in make_outputs().items()
    }
    images = ImageList(torch.zeros(3, 3, 300, 300), [(300, 300)] * 3)
    grids = [torch.zeros(3, 1, n, n) for n in (38, 19, 10, 5, 3, 1)]
    anchors = [one.double() for one in network.anchor_generator(images, grids)]
    targets, matches = [], []
    for boxes, classes, valid in zip(*make_targets(), strict=True):
        boxes = torch.tensor(boxes[valid], dtype=torch.float64)
        labels = torch.tensor(classes[valid] + 1, dtype=torch.int64)
        targets.append({"boxes": boxes, "labels": labels})
        if len(boxes):
            overlaps = box_iou(boxes, anchors[0])
            best = overlaps.argmax(dim=1).tolist()
            assert len({*best}) == len(best)
            print("matched:", (overlaps.max(dim=1).values).tolist())
            matches.append(network.proposal_matcher(overlaps))
        else:
            matches.append(torch.full((len(anchors[0]),), -1))
    heads = {
        "bbox_regression": outputs["deltas"],
        "cls_logits": outputs["class_logits"],
    }
    found = network.compute_loss(targets, heads, anchors, matches)
    arrays = {"losses/anchors": anchors[0].numpy().astype(np.float32)[::97]}
    for ours, theirs in (("box", "bbox_regression"), ("classification",) * 2):
        arrays[f"losses/{ours}"] = found[theirs].detach().numpy()
        for name, output in outputs.items():
            (gradient,) = torch.autograd.grad(
                found[theirs], output, retain_graph=True, allow_unused=True
            )
            if gradient is not None:
                direction = torch.sin(torch.arange(output.numel()).double())
                along = (gradient.reshape(-1) * direction).sum()
                arrays[f"losses/{ours}/{name}"] = along.numpy()
    print({k: v for k, v in arrays.items() if v.ndim == 0})
    return arrays


PARTS = {
    "endpoints": make_endpoints,
    "detections": make_detections,
    "losses": make_losses,
}


def main(parts):
    arrays = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    for part in parts or PARTS:
        arrays |= PARTS[part]()
        GOLDEN.parent.mkdir(exist_ok=True)
        np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN, GOLDEN.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
