"""SSD on VGG-16: the networks for 300 x 300 and for 512 x 512 pixels.

Reference:
  Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector,
  2016, section 3; the authors' Caffe, examples/ssd.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_detector_classes
from zoo.detection.coco import CLASS_NAMES
from zoo.detection.ssd import SSD, Level, MultiBoxHead
from zoo.detection.ssd_backbone import BLOCKS, EXTRAS, MEAN, SSDVGGBackbone
from zoo.layers import initializer
from zoo.spec import ModelSpec, Preprocess, TorchRule, Weights

PAPER = (
    "Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg: SSD: Single Shot MultiBox "
    "Detector, 2016, section 3"
)
# Of each level: grid, step, and whether it has the ratios 3 and 1/3 besides 2 and 1/2.
GRIDS = {
    300: (
        (38, 8, False),
        (19, 16, True),
        (10, 32, True),
        (5, 64, True),
        (3, 100, False),
        (1, 300, False),
    ),
    512: (
        (64, 8, False),
        (32, 16, True),
        (16, 32, True),
        (8, 64, True),
        (4, 128, True),
        (2, 256, False),
        (1, 512, False),
    ),
}
# Sides of the square default boxes in pixels, and one more (`default_boxes`).
SIZES = {
    (300, "voc"): (30, 60, 111, 162, 213, 264, 315),
    (300, "coco"): (21, 45, 99, 153, 207, 261, 315),
    (512, "voc"): (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    (512, "coco"): (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
}
# torchvision's are those for COCO, cut off at the size of the image.
BOXES = ("voc", "coco", "torchvision")


def ssd_vgg16(
    *,
    size: int,
    variant: str,
    num_classes: int,
    boxes: str | None = None,
    init: str = "he_fan_out",
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> SSD:
    """Builds SSD300 or SSD512.

    Args:
      size: Height and width of the images, 300 or 512.
      variant: A name of `SPECS`.
      num_classes: Without background.
      boxes: The default boxes: "voc" or "coco" for the authors' for these data sets,
        "torchvision" for those for COCO with no side longer than the image's. None for
        "torchvision" in SSD300, whose public weights need them, and "voc" in SSD512.
      init: Of VGG-16's own convolutions, a name of `zoo.layers.INITIALIZERS`. All other
        layers begin as the paper's.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes(variant, num_classes)
    if boxes is None:
        boxes = "torchvision" if size == 300 else "voc"
    if boxes not in BOXES:
        raise ValueError(f"{variant}: boxes={boxes!r} must be one of {BOXES}.")
    types = dict(dtype=dtype, param_dtype=param_dtype)
    *sizes, last = SIZES[size, "voc" if boxes == "voc" else "coco"]
    extras = (f"conv{i}_2" for i in range(8, 8 + len(EXTRAS[size])))
    levels = tuple(
        Level(source, grid, step, side, (2, 3) if many else (2,))
        for source, (grid, step, many), side in zip(
            ("conv4_3_norm", "fc7", *extras), GRIDS[size], sizes, strict=True
        )
    )
    return SSD(
        backbone=SSDVGGBackbone(
            variant, size, conv_init=initializer(init), remat=remat, **types
        ),
        head=MultiBoxHead(num_classes, levels, **types),
        last_size=last,
        max_side=size if boxes == "torchvision" else None,
        preprocess=_preprocess(size),
    )


def _preprocess(size: int) -> Preprocess:
    return Preprocess(
        size=size,
        channels=3,
        mean=MEAN,
        std=(1 / 255,) * 3,
        fit="stretch",
        antialias=False,
    )


def _torch_rules(model: SSD) -> tuple[TorchRule, ...]:
    """Torchvision's names; for SSD512 those that it would have."""
    rules, index = [], 0
    for i, block in enumerate(BLOCKS, start=1):
        for j in range(1, len(block) + 1):
            # Behind pool4 another list of layers begins, with this pool.
            where = "extra.0" if i == 5 else "features"
            key = f"backbone.{where}.{index}"
            rules.append(TorchRule(f"backbone/conv{i}_{j}", key))
            index += 2  # the ReLU
        index = 1 if i == 4 else index + 1  # the pool
    rules += [
        TorchRule("backbone/conv4_3_norm", "backbone"),
        TorchRule("backbone/fc6", "backbone.extra.0.7.1"),
        TorchRule("backbone/fc7", "backbone.extra.0.7.3"),
    ]
    for i in range(1, len(EXTRAS[model.backbone.size]) + 1):
        for j in (1, 2):
            key = f"backbone.extra.{i}.{2 * (j - 1)}"
            rules.append(TorchRule(f"backbone/conv{i + 7}_{j}", key))
    for i, level in enumerate(model.head.levels):
        count, path = level.boxes_per_cell, f"head/{level.source}"
        loc = f"head.regression_head.module_list.{i}"
        conf = f"head.classification_head.module_list.{i}"
        rules.append(TorchRule(f"{path}_loc", loc))
        rules.append(TorchRule(f"{path}_conf", conf, outputs=(count, count)))
    return tuple(rules)


_PUBLISHED = {
    300: (
        "PASCAL VOC 2007 test mAP 74.3 %, trained on 07+12; 77.2 % with zoom-out",
        "PASCAL VOC 2007 test mAP 81.2 %, trained on 07+12+COCO with zoom-out",
        "PASCAL VOC 2012 test mAP 72.4 %, trained on 07++12; 75.8 % with zoom-out",
        "COCO test-dev AP 23.2 %, AP50 41.2 %; 25.1 % and 43.1 % with zoom-out",
    ),
    512: (
        "PASCAL VOC 2007 test mAP 76.8 %, trained on 07+12; 79.8 % with zoom-out",
        "PASCAL VOC 2007 test mAP 83.2 %, trained on 07+12+COCO with zoom-out",
        "PASCAL VOC 2012 test mAP 74.9 %, trained on 07++12; 78.5 % with zoom-out",
        "COCO test-dev AP 26.8 %, AP50 46.5 %; 28.8 % and 48.5 % with zoom-out",
    ),
}
_DEVIATIONS = (
    "the colours' order is red, green, blue; the authors' weights take blue first",
    "the authors begin with a VGG-16 that was trained on ImageNet: `reduce_vgg16` "
    "makes such a beginning, without it all layers begin at random",
)


def _spec(size: int, num_classes: int, params: int, macs: int, **facts) -> ModelSpec:
    name = f"ssd{size}_vgg16"
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(ssd_vgg16, size=size, variant=name),
        paper=PAPER,
        num_classes=num_classes,
        preprocess=_preprocess(size),
        params=params,
        macs=macs,
        torch_rules=_torch_rules,
        loss="multibox: softmax cross-entropy with hard negatives, smooth L1",
        init=(
            "VGG-16's convolutions He et al. 2015, normal of variance 2 / (k * k * "
            "output channels); other layers Glorot's, uniform; biases 0; scale of "
            "conv4_3 20"
        ),
        published=_PUBLISHED[size],
        **facts,
    )


SPECS = (
    _spec(
        300,
        90,
        35_641_826,
        34_858_153_472,
        weights=(
            Weights(
                name="coco",
                url="https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth",
                sha256="b556d3b4",
                accuracy="box AP 25.1 % of COCO's 2017 validation images",
                source="torchvision",
                licence="BSD-3-Clause",
                class_names=CLASS_NAMES,
            ),
        ),
        deviations=(
            *_DEVIATIONS,
            "no default box is longer than the image, as in torchvision (boxes='voc' "
            "and 'coco' are the authors')",
        ),
    ),
    _spec(512, 20, 27_188_676, 90_207_908_864, deviations=_DEVIATIONS),
)
