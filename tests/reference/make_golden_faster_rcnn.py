"""Makes the golden files by which Faster R-CNN is held against torchvision's.

    python tests/reference/make_golden_faster_rcnn.py [PART ...]

A part is a case, "photograph", "losses", "training" or "endpoints".
Both are given what `faster_rcnn_cases.py` makes. torchvision runs in float64; a run in
float32 must find the same, so that what is compared does not hang on a rounding.
"""

import contextlib
import datetime
import functools
import sys

import numpy as np
import torch
from faster_rcnn_cases import (
    CASES,
    GOLDEN,
    NAME,
    SIDES,
    make_batch,
    make_outputs,
    make_photograph,
    make_state,
    make_targets,
    pair,
)

with contextlib.suppress(ImportError):
    import torchvision_on_cpu  # noqa: F401

from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from zoo.verify import parity, torchvision_live
from zoo.verify.deterministic import BRANCH_GAIN
from zoo.verify.summaries import measure, save_summaries
from zoo.verify.verification import golden_path

# Everything is sampled, so that no chance is in the losses.
ALL = dict(
    rpn_batch_size_per_image=10**6,
    box_batch_size_per_image=10**6,
    rpn_post_nms_top_n_train=100,
)


@functools.cache
def build(dtype, **options):
    network = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, **options
    )
    torchvision_live.load_state(network, make_state())
    return network.to(dtype).eval()


def to_torch(images, dtype):
    return torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)


def run(network, images, sizes, targets=None):
    """torchvision's network without its preprocessing: detections and losses."""
    features = network.backbone(images)
    sizes = [tuple(int(n) for n in size) for size in sizes]
    proposals, first = network.rpn(ImageList(images, sizes), features, targets)
    found, second = network.roi_heads(features, proposals, sizes, targets)
    return found, {**first, **second}


def as_arrays(found):
    return [
        (
            one["boxes"].numpy().astype(np.float32),
            one["scores"].numpy().astype(np.float32),
            one["labels"].numpy().astype(np.int32) - 1,
        )
        for one in found
    ]


def check_same(case, exact, single):
    order = pair(single, exact)
    tolerances = (8e-4, 3e-5, 0)
    for a, b, tolerance in zip(exact, single, tolerances, strict=True):
        error = np.abs(a - b[order]).max()
        print(f"{case:<10} {a.shape!s:<10} float32: {error:.1e}", flush=True)
        if error > tolerance:
            raise ValueError(f"{case}: float32 differs by {error}")


def detect(case):
    runs = []
    for dtype in (torch.float64, torch.float32):
        with torch.no_grad():
            if case == "photograph":
                network = build(dtype, min_size=SIDES[0], max_size=SIDES[1])
                image = to_torch(make_photograph()[None], dtype)[0] / 255
                found = network([image])
            else:
                images, sizes = make_batch(case)
                found, _ = run(build(dtype), to_torch(images, dtype), sizes)
        runs.append(as_arrays(found))
    out = {}
    for i, (exact, single) in enumerate(zip(*runs, strict=True)):
        check_same(case, exact, single)
        for name, array in zip(("boxes", "scores", "classes"), exact, strict=True):
            out[f"{case}/{i}/{name}"] = array
    return out


def make_torch_targets(boxes, classes, valid, dtype):
    return [
        {
            "boxes": torch.tensor(b[v], dtype=dtype),
            "labels": torch.tensor(c[v] + 1, dtype=torch.int64),
        }
        for b, c, v in zip(boxes, classes, valid, strict=True)
    ]


def train(dtype):
    """Losses and gradients of a step on everything, with batch norm as at inference."""
    network = build(dtype, **ALL).train()
    network.backbone.eval()
    images, sizes = make_batch("landscape")
    targets = make_torch_targets(*make_targets(), dtype)
    _, losses = run(network, to_torch(images, dtype), sizes, targets)
    network.zero_grad()
    sum(losses.values()).backward()
    gradients = {
        k: p.grad.numpy()
        for k, p in network.named_parameters()
        if ".bn" not in k and ".downsample.1" not in k
    }
    return {k: v.item() for k, v in losses.items()}, gradients


def losses_alone():
    """torchvision's losses of `make_outputs`."""
    outputs, (boxes, _, _) = make_outputs()
    tensor = functools.partial(torch.tensor, dtype=torch.float64)
    network = build(torch.float64)
    labels = outputs["rpn_labels"]
    network.rpn.fg_bg_sampler = lambda _: (
        [torch.tensor(one == 1) for one in labels],
        [torch.tensor(one == 0) for one in labels],
    )
    matched = np.take_along_axis(boxes, outputs["rpn_matches"][..., None], axis=1)
    # What has no object is never positive; any box will do.
    matched[1] = outputs["anchors"][1]
    goal = network.rpn.box_coder.encode(
        [tensor(b) for b in matched], [tensor(b) for b in outputs["anchors"]]
    )
    first = network.rpn.compute_loss(
        tensor(outputs["rpn_logits"]).reshape(-1, 1),
        tensor(outputs["rpn_deltas"]).reshape(-1, 4),
        [tensor(one) for one in labels],
        goal,
    )
    valid = outputs["roi_valid"]
    matched = np.take_along_axis(boxes, outputs["roi_matches"][..., None], axis=1)
    matched[1] = outputs["rois"][1]
    goal = network.roi_heads.box_coder.encode(
        [tensor(b[v]) for b, v in zip(matched, valid, strict=True)],
        [tensor(b[v]) for b, v in zip(outputs["rois"], valid, strict=True)],
    )
    second = fastrcnn_loss(
        tensor(outputs["class_logits"][valid]),
        tensor(outputs["box_deltas"][valid]).flatten(1),
        [
            torch.tensor(c[v]).long()
            for c, v in zip(outputs["roi_classes"], valid, strict=True)
        ],
        goal,
    )
    return [value.item() for value in (*first, *second)]


def save_endpoints():
    """The golden file of `python -m zoo verify`."""
    example = {"size": [74, 91], "dtype": "float32", "branch_gain": BRANCH_GAIN}
    images, _ = parity.make_example(NAME, example["size"])
    state = parity.deterministic_state(NAME, branch_gain=BRANCH_GAIN)
    stages = {f"stage{i}": f"backbone.body.layer{i}" for i in range(1, 5)}
    hooks = {
        "stem": "backbone.body.relu",
        "stem_pool": "backbone.body.maxpool",
        **stages,
    }
    summaries = []
    for dtype in (torch.float64, torch.float32):
        network = build(dtype)
        torchvision_live.load_state(network, state)
        network.to(dtype)
        outputs, stop = torchvision_live.record(network, hooks)
        with torch.no_grad():
            maps = [*network.backbone(to_torch(images, dtype)).values()]
            logits, deltas = network.rpn.head(maps)
        stop()
        outputs = {k: torchvision_live.to_our_axes(outputs[k]) for k in hooks}
        for i, one in enumerate(maps, start=2):
            outputs[f"p{i}"] = torchvision_live.to_our_axes(one)
        for name, parts, shape in (
            ("rpn_logits", logits, (2, -1)),
            ("rpn_deltas", deltas, (2, -1, 4)),
        ):
            flat = [p.permute(0, 2, 3, 1).reshape(shape).numpy() for p in parts]
            outputs[name] = np.concatenate(flat, axis=1)
        summaries.append(parity.summarize_endpoints(outputs))
    exact, single = summaries
    facts = {
        "model": NAME,
        "reference": f"{torchvision_live.torchvision_version()}, float64",
        "date": datetime.date.today().isoformat(),
        "script": "tests/reference/make_golden_faster_rcnn.py",
        "example": example,
        "float32_errors": {"endpoints": max(measure(single, exact).values())},
    }
    save_summaries(golden_path(NAME), {"endpoints": exact}, facts)
    print(golden_path(NAME), golden_path(NAME).stat().st_size, facts)
    return {}


def make_training():
    losses, gradients = train(torch.float64)
    single, _ = train(torch.float32)
    np.testing.assert_allclose([*single.values()], [*losses.values()], rtol=1e-5)
    order = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    summary = parity.summarize_parameters(gradients)
    fields = ("largest", "norms", "samples", "sums")
    return {
        "training/losses": np.array([losses[name] for name in order]),
        "training/names": np.array(summary.names),
        **{f"training/{field}": getattr(summary, field) for field in fields},
    }


def main(parts):
    arrays = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    for part in parts or PARTS:
        arrays |= PARTS[part]()
        build.cache_clear()
        np.savez_compressed(GOLDEN, **arrays)
    print(GOLDEN, GOLDEN.stat().st_size)


PARTS = {
    **{case: functools.partial(detect, case) for case in [*CASES, "photograph"]},
    "losses": lambda: {"losses": np.array(losses_alone())},
    "training": make_training,
    "endpoints": save_endpoints,
}

if __name__ == "__main__":
    main(sys.argv[1:])
