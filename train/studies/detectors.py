"""Detectors became fast by sharing features, and then by one pass.

python -m train study detectors
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from train.studies.detector_parts import (
    BCCD,
    PARTS,
    VOC,
    Batch,
    Recipe,
    load_on_canvases,
    make_fast_rcnn,
    make_prefixes,
    make_rcnn,
    train_on_photographs,
)
from train.studies.drawing import COLORS, new_figure
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.detection.two_stage import Proposals
from zoo.detection.types import Detections
from zoo.metrics import detection as metrics

# Mean average precision on VOC 2007 in percent, seconds per image, training set, and
# source of the numbers. GPUs: K40 for the first three, Titan X for the others.
PUBLISHED = {
    "R-CNN": (66.0, 47.0, "07", "Fast R-CNN, tables 1 and 4, without proposals"),
    "Fast R-CNN": (70.0, 0.32, "07+12", "Fast R-CNN, without proposals"),
    "Faster R-CNN": (73.2, 0.198, "07+12", "Faster R-CNN, tables 3 and 5"),
    "SSD": (74.3, 1 / 46, "07+12", "SSD300: SSD, table 7, one image at a time"),
    "YOLO": (63.4, 1 / 45, "07+12", "YOLO, table 1"),
}

# The fields of a batch that the metric takes.
OBJECTS = ("boxes", "classes", "box_valid", "difficult")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      steps: Length of each training, in steps; None for that of each recipe. On
        canvases only Faster R-CNN is trained; 0 for the package's weights.
      batch_size: Images in a step; None for that of each recipe.
      canvases: Number of test images, if they are canvases.
      repeats: Number of measurements of each time, of which the median is taken.
      lowest: Lowest expected AP50 of each detector, and why.
      recipes: How the trainer trains each detector on photographs, all test images of
        which are tested; None for canvases.
      pictures: What the images show.
      warped: Height and width to which R-CNN warps a region, in pixels: half of the
        image's, as in the paper (227 of about 500 pixels).
      context: Context around the region in the warped image, in pixels.
    """

    steps: int | None
    batch_size: int | None
    canvases: int
    repeats: int
    lowest: Mapping[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    recipes: Mapping[str, Recipe] | None = None
    pictures: str = "canvases"
    warped: int = 48
    context: int = 3


def run(job: Job) -> Outcome:
    """Measures average precision, time and its parts, and the recall of proposals."""
    sizes = job.sizes
    detectors = (train_on_photographs if sizes.recipes else load_on_canvases)(job)
    prefixes = {label: make_prefixes(each) for label, each in detectors.items()}
    faster = detectors["Faster R-CNN"]
    propose = prefixes["Faster R-CNN"]["proposals"]
    fast = make_fast_rcnn(faster.model, faster.variables)
    warping = dict(warped=sizes.warped, context=sizes.context)
    rcnn = make_rcnn(faster.model, faster.variables, **warping)

    regions = [propose(b["image"], b["size"])[0] for b in faster.test()]
    remaining = iter(regions)

    def detect_fast(images: Any, image_sizes: Any) -> Detections:
        return fast(images, image_sizes, next(remaining))

    ap50 = {"Fast R-CNN": measure(detect_fast, faster.test(), faster.classes)}
    for label, prefix in prefixes.items():
        test, classes = detectors[label].test(), detectors[label].classes
        ap50[label] = measure(prefix[PARTS[-1]], test, classes)
    recall = {iou: measure_recall(regions, faster.test(), iou) for iou in (0.5, 0.7)}
    first = {
        label: [jnp.asarray(batch[name]) for name in ("image", "size")]
        for label, each in detectors.items()
        for batch in itertools.islice(each.test(), 1)
    }
    image = first["Faster R-CNN"]
    given = regions[0]
    calls = {
        ("R-CNN", PARTS[-1]): partial(rcnn, *image, given),
        ("Fast R-CNN", PARTS[-1]): partial(fast, *image, given),
    }
    for label, prefix in prefixes.items():
        for part, call in prefix.items():
            calls[label, part] = partial(call, *first[label])
    times = time_calls(calls, sizes.repeats)
    whole = {name: times[name, PARTS[-1]] for name in PUBLISHED}
    parts = {label: split_time(times, label) for label in detectors}
    one_pass = "one pass over the image, without a network for each region"
    return Outcome(
        figures=[
            (
                f"Average precision and time for one image: here, on {sizes.pictures}, "
                "and as published, on VOC 2007 and the GPUs of their time.",
                draw_tradeoff(ap50, whole),
            ),
            (
                "Share of the time of each part, and the share of the objects that "
                "the first proposals of Faster R-CNN cover, best first.",
                draw_parts(parts, recall),
            ),
        ],
        tables=[detector_table(ap50, whole), part_table(parts), recall_table(recall)],
        bands=[
            *(
                Band(f"AP50 of {name}", ap50[name], low=low, reason=reason)
                for name, (low, reason) in sizes.lowest.items()
            ),
            Band(
                "time of R-CNN divided by Fast R-CNN's",
                whole["R-CNN"] / whole["Fast R-CNN"],
                low=2.0,
                reason="the backbone reads each region, with a quarter of the image's "
                "pixels, instead of the image once",
                published="47 s / 0.32 s, with about 2,000 regions",
            ),
            Band(
                "time of Faster R-CNN divided by Fast R-CNN's with given proposals",
                whole["Faster R-CNN"] / whole["Fast R-CNN"],
                high=2.0,
                reason="proposals read the features that are there already",
                published="0.198 s with proposals; selective search alone takes 1.5 s",
            ),
            *(
                Band(
                    f"time of {name} divided by Faster R-CNN's",
                    whole[name] / whole["Faster R-CNN"],
                    high=1.0,
                    reason=one_pass,
                    published=published,
                )
                for name, published in (
                    ("SSD", "46 to 7 images a second (SSD, table 7)"),
                    ("YOLO", "45 to 7 images a second (YOLO, table 1)"),
                )
            ),
            Band(
                "recall of all proposals at an IoU of 0.5",
                recall[0.5][-1],
                low=0.9,
                reason="what is not proposed cannot be found",
            ),
        ],
        seeds=(0,),
        remarks=[
            "R-CNN's time is that of Faster R-CNN's own network on each warped region, "
            "which is not trained for that: its accuracy is not measured here. Fast "
            "R-CNN is the second stage, given the proposals of the first.",
        ],
        values={
            "ap50": ap50,
            "milliseconds": whole,
            "milliseconds_by_part": parts,
            "recall": recall,
        },
    )


def measure(detect: Callable, batches: Iterable[Batch], classes: int) -> float:
    """Measures AP50.

    Args:
      detect: Function from images and their sizes to `Detections`.
      batches: The test images, in batches of one image.
      classes: Number of classes.
    """
    state = metrics.empty(classes)
    for batch in batches:
        found = jax.device_get(detect(batch["image"], batch["size"]))
        objects = metrics.Objects(*(batch[name] for name in OBJECTS))
        state = metrics.update(state, found, objects)
    return metrics.compute(state)["ap50"]


def measure_recall(
    regions: Iterable[Proposals], batches: Iterable[Batch], iou: float
) -> list[float]:
    """Measures the share of objects that the best 1, 2, .. proposals cover.

    Args:
      regions: Proposals of each image, best first.
      batches: The test images, in batches of one image.
      iou: Least IoU with which a proposal covers an object.

    Returns:
      The share for each number of proposals.
    """
    first, count = [], 0
    for proposals, batch in zip(regions, batches, strict=True):
        boxes, valid = (each[0] for each in jax.device_get(proposals))
        objects, count = batch["boxes"][0][batch["box_valid"][0]], len(boxes)
        covered = (metrics.overlaps(boxes, objects) >= iou) & valid[:, None]
        first.extend(np.where(covered.any(0), covered.argmax(0), count))
    return [float(np.mean(np.array(first) < n)) for n in range(1, count + 1)]


def time_calls(calls: Mapping[Any, Callable], repeats: int) -> dict[Any, float]:
    """Times calls in turn, so that disturbances affect all of them alike.

    Args:
      calls: Functions without arguments.
      repeats: Number of measurements of each.

    Returns:
      The median time of each, in milliseconds.
    """
    times = {key: [] for key in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[key].append(1000 * (time.perf_counter() - start))
    return {key: float(np.median(values)) for key, values in times.items()}


def split_time(times: Mapping[Any, float], name: str) -> dict[str, float]:
    """Returns the time of each part: that of its prefix minus the previous prefix's.

    A negative difference is noise, and counts as 0.

    Args:
      times: Milliseconds by detector and prefix.
      name: The detector.
    """
    parts, before = dict.fromkeys(PARTS, 0.0), 0.0
    for part in PARTS:
        if (name, part) in times:
            parts[part] = max(0.0, times[name, part] - before)
            before = max(before, times[name, part])
    return parts


def draw_tradeoff(ap50: Mapping[str, float], whole: Mapping[str, float]):
    """Draws average precision against time, here and as published."""
    figure, (axes,) = new_figure(2, height=3.8)
    colors = dict(zip(PUBLISHED, COLORS, strict=False))
    for name, color in colors.items():
        if name in ap50:
            axes[0].plot(whole[name], 100 * ap50[name], "o", color=color, label=name)
        else:
            label = f"{name}: time alone"
            axes[0].axvline(whole[name], color=color, ls="--", label=label)
        precision, seconds, *_ = PUBLISHED[name]
        axes[1].plot(1000 * seconds, precision, "o", color=color, label=name)
    low, high = 100 * min(ap50.values()), 100 * max(ap50.values())
    limits = max(0, low - 10), min(101, high + 10)  # Small differences look small.
    axes[0].set(title="here", ylabel="AP50 (%)", ylim=limits)
    axes[1].set(title="published", ylabel="mAP of VOC 2007 (%)")
    for axis in axes:
        axis.set(xscale="log", xlabel="milliseconds an image")
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.legend(frameon=False, fontsize=8)
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    return figure


def draw_parts(
    parts: Mapping[str, Mapping[str, float]], recall: Mapping[float, list[float]]
):
    """Draws the share of each part, and recall by the number of proposals."""
    figure, (axes,) = new_figure(2, height=3.8)
    names, left = [*parts], np.zeros(len(parts))
    totals = np.array([sum(parts[name].values()) for name in names])
    for part, color in zip(PARTS, COLORS, strict=False):
        shares = 100 * np.array([parts[name][part] for name in names]) / totals
        axes[0].barh(names, shares, left=left, color=color, label=part)
        left += shares
    axes[0].set(xlabel="share of the time (%)", ylim=(-0.6, len(names) + 0.4))
    axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    for (iou, values), color in zip(recall.items(), COLORS, strict=False):
        numbers, shares = range(1, len(values) + 1), [100 * v for v in values]
        axes[1].plot(numbers, shares, color=color, label=f"IoU {iou:g}")
    axes[1].set(xlabel="proposals", ylabel="objects that are covered (%)")
    axes[1].set_ylim(0, 102)
    axes[1].legend(frameon=False)
    return figure


def detector_table(ap50: Mapping[str, float], whole: Mapping[str, float]) -> Table:
    """Lists precision and time, here and as published."""
    rows = []
    for name, (precision, seconds, data, source) in PUBLISHED.items():
        here = f"{100 * ap50[name]:.1f} %" if name in ap50 else "not trained"
        there = f"{precision} % ({data})", f"{1000 * seconds:,.0f}", source
        rows.append((name, here, f"{whole[name]:.2f}", *there))
    header = (
        "detector",
        "AP50 here",
        "ms here",
        "published mAP",
        "published ms",
        "source",
    )
    return Table(
        "Precision and time",
        header,
        rows,
        "Time is of the whole jitted function for one image, the median. The times of "
        "R-CNN and Fast R-CNN are without those of their proposals.",
    )


def part_table(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """Lists the time of each part."""
    rows = [
        (name, *(f"{found[part]:.2f} ms" for part in PARTS))
        for name, found in parts.items()
    ]
    return Table(
        "Time by part",
        ("detector", *PARTS),
        rows,
        "A part is the difference of two jitted prefixes of the detector. Faster "
        "R-CNN's head reads the proposed regions; the others have no proposals.",
    )


def recall_table(recall: Mapping[float, list[float]]) -> Table:
    """Lists the recall of some numbers of proposals."""
    count = len(recall[0.5])
    numbers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= count]
    rows = [
        (f"IoU {iou:g}", *(f"{100 * values[n - 1]:.1f} %" for n in numbers))
        for iou, values in recall.items()
    ]
    return Table("Recall of the first proposals", ("", *map(str, numbers)), rows)


STUDY = Study(
    name="detectors",
    claim=(
        "Detectors became fast by sharing: R-CNN reads each region, Fast R-CNN the "
        "image once, Faster R-CNN proposes regions from the same features, and SSD and "
        "YOLO find objects in one pass."
    ),
    reference=(
        "Girshick et al., R-CNN, 2014; Girshick, Fast R-CNN, 2015; Ren et al., Faster "
        "R-CNN, 2015; Liu et al., SSD, 2016, table 7; Redmon et al., YOLO, 2016, table "
        "1."
    ),
    run=run,
    scales={
        "smoke": Sizes(0, 2, 4, 1),
        "quick": Sizes(
            200,
            16,
            400,
            100,
            {
                "Faster R-CNN": (
                    0.6,
                    "200 of the 500 steps of its recipe, without augmentation",
                ),
                "SSD": (0.93, "the trained weights of the package had 97.7 %"),
                "YOLO": (0.91, "the trained weights of the package had 95.7 %"),
            },
        ),
        "medium": Sizes(
            steps=40 * 18,
            batch_size=16,
            canvases=0,
            repeats=100,
            lowest={
                label: (0.5, "`bccd_ssd` had 60 to 62 % in other runs")
                for label in BCCD
            },
            recipes=BCCD,
            pictures="photographs of blood cells",
        ),
        "full": Sizes(
            steps=None,
            batch_size=None,
            canvases=0,
            repeats=100,
            lowest={
                "Faster R-CNN": (0.7, "published: 73.2 %"),
                "SSD": (0.74, "published: 77.2 %, with zoom-out"),
                "YOLO": (0.6, "published: 63.4 %"),
            },
            recipes=VOC,
            pictures="VOC 2007",
            warped=227,
            context=16,
        ),
    },
    changes={
        "quick": "Small networks on canvases of embedded digits of 96 x 96 pixels: SSD "
        "and YOLO with the weights of the package, Faster R-CNN trained here on 3,200 "
        "canvases, each seen once (--steps for longer); R-CNN and Fast R-CNN with its "
        "64 proposals in place of 2,000 of selective search; a CPU in place of GPUs.",
        "medium": "Small networks on BCCD's photographs of blood cells (--dataset "
        "voc:DIR), reduced to 96 x 96 pixels: each starts from the convolutions of "
        "the same detector of digits and is trained for 40 epochs; 64 proposals in "
        "place of 2,000 of selective search; a CPU in place of GPUs.",
        "full": "The papers' recipes on VOC 2007 and 2012 (see `voc_ssd300` and the "
        "others), with the first layers of a VGG-16 trained on ImageNet but for YOLO; "
        "Faster R-CNN's 300 proposals in place of 2,000 of selective search; AP50 is "
        "the area under the curve.",
    },
    data_scales=("medium", "full"),
)
