"""Faster R-CNN on a feature pyramid, as torchvision has it.

References:
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015.
  Lin et al., Feature Pyramid Networks for Object Detection, 2017, section 4.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from zoo.checks import check_detector_classes
from zoo.classification.imagenet import IMAGENET
from zoo.classification.residual import Bottleneck, ResNetBackbone
from zoo.classification.residual import torch_rules as backbone_rules
from zoo.classification.resnet import INIT
from zoo.detection.coco import CLASS_NAMES
from zoo.detection.contract import Postprocess
from zoo.detection.fpn import FPN
from zoo.detection.roi_head import (
    Classifying,
    DenseHead,
    Predictor,
    predictor_rules,
)
from zoo.detection.rpn import RPN, Proposing
from zoo.detection.two_stage import TwoStage
from zoo.layers import INITIALIZERS, initializer
from zoo.ops.anchors import make_anchors
from zoo.ops.roi import multiscale_roi_align
from zoo.spec import ModelSpec, TorchRule, Weights

Array = jax.Array

PAPER = (
    "Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for "
    "Object Detection, 2017"
)
LOSS = "rpn_objectness + rpn_box + roi_class + roi_box"
RATIOS = (0.5, 1.0, 2.0)
WINDOW = 7  # Height and width of a region's map.
# Short side 800, long side 1333 at most; the example is a photograph of 4 : 3.
SIDES = dataclasses.replace(
    IMAGENET,
    size=800,
    width=1088,
    resize=800,
    longest=1333,
    fit="sides",
    antialias=False,
)
POSTPROCESS = Postprocess(
    score_threshold=0.05, iou_threshold=0.5, max_detections=100, min_size=1e-2
)


def pool_pyramid(
    levels: Sequence[Array],
    rois: Array,
    *,
    first: int,
    canonical: tuple[int, int],
) -> Array:
    """Cuts each region out of the level that suits its size.

    Args:
      levels: [h, w, C] each, of one image.
      rois: [R, 4], xyxy in pixels of the image.
      first: Number of the first level.
      canonical: A region of so many pixels' height and width is cut out of the level of
        this number.

    Returns:
      [R, 7, 7, C].
    """
    return multiscale_roi_align(
        levels,
        rois,
        strides=[2 ** (first + i) for i in range(len(levels))],
        output_size=WINDOW,
        sampling_ratio=2,
        canonical_size=canonical[0],
        canonical_level=canonical[1],
    )


def faster_rcnn_fpn(
    *,
    num_classes: int,
    frozen: bool = True,
    epsilon: float = 1e-5,
    init: str = "he_fan_out",
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> TwoStage:
    """Builds torchvision's `fasterrcnn_resnet50_fpn`.

    Args:
      num_classes: Without background.
      frozen: Whether the backbone's batch norm is a fixed affine map, as for a backbone
        that was trained before. From scratch, on many images at a time, give False.
      epsilon: Of batch norm.
      init: Of the backbone's convolutions, a name of `zoo.layers.INITIALIZERS`.
      momentum: What batch norm's running averages keep at a step.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes("faster_rcnn_resnet50_fpn", num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    backbone = ResNetBackbone(
        label="faster_rcnn_resnet50_fpn",
        block=Bottleneck,
        blocks=(3, 4, 6, 3),
        kernel_init=initializer(init),
        frozen=frozen,
        epsilon=epsilon,
        momentum=momentum,
        pooled=False,
        remat=remat,
        **types,
    )
    levels, dense = (2, 3, 4, 5), INITIALIZERS["torch"]
    stages = tuple(f"stage{i}" for i in range(1, 5))
    return TwoStage(
        backbone=backbone,
        neck=FPN(stages, levels, **types),
        rpn=RPN(len(RATIOS), **types),
        box_head=DenseHead(1024, WINDOW, **types),
        predictor=Predictor(num_classes, class_init=dense, box_init=dense, **types),
        maps=("p2", "p3", "p4", "p5", "p6"),
        pooled=("p2", "p3", "p4", "p5"),
        pool=partial(pool_pyramid, first=2, canonical=(224, 4)),
        proposing=Proposing(cells=make_cells((32, 64, 128, 256, 512))),
        classifying=Classifying(),
        preprocess=SIDES,
        postprocess=POSTPROCESS,
    )


def make_cells(sizes: Sequence[int]) -> tuple:
    """Makes the anchors of one position of each level.

    Args:
      sizes: Of each level, the square root of its anchors' area, in pixels.
    """
    cells = (make_anchors((size,), RATIOS).tolist() for size in sizes)
    return tuple(tuple(map(tuple, cell)) for cell in cells)


def torch_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Torchvision's names, and those of its first files.

    Args:
      model: A network on a feature pyramid.
    """
    rules = [
        TorchRule(rule.module, f"backbone.body.{rule.key}")
        for rule in backbone_rules(model)
        if rule.module.startswith("backbone/")
    ]
    for i, level in enumerate(model.neck.levels):
        for ours, theirs in (("lateral", "inner"), ("output", "layer")):
            key = f"backbone.fpn.{theirs}_blocks.{i}"
            rules.append(TorchRule(f"neck/{ours}{level}", f"{key}.0", alias=key))
    conv, head = "rpn.head.conv", "roi_heads.box_head"
    flatten = (model.neck.features, WINDOW, WINDOW)
    return (
        *rules,
        TorchRule("rpn/conv", f"{conv}.0.0", alias=conv),
        TorchRule("rpn/cls_logits", "rpn.head.cls_logits"),
        TorchRule("rpn/bbox_pred", "rpn.head.bbox_pred"),
        TorchRule("box_head/fc6", f"{head}.fc6", flatten=flatten),
        TorchRule("box_head/fc7", f"{head}.fc7"),
        *predictor_rules("roi_heads.box_predictor."),
    )


_COCO = Weights(
    name="coco",
    url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    sha256="258fb6c6",
    accuracy="box AP 37.0 % of COCO's 5,000 validation images of 2017",
    source="torchvision",
    licence="BSD-3-Clause",
    class_names=CLASS_NAMES,
    # They were trained with batch norm that adds nothing to the variance.
    options=(("epsilon", 0.0),),
)

SPECS = (
    ModelSpec(
        name="faster_rcnn_resnet50_fpn",
        task="detection",
        build=faster_rcnn_fpn,
        paper=f"{PAPER}, section 5.2, as torchvision's fasterrcnn_resnet50_fpn",
        num_classes=90,
        preprocess=SIDES,
        params=41_808_406,
        macs=177_581_734_144,
        torch_rules=torch_rules,
        weights=(_COCO,),
        loss=LOSS,
        init=f"{INIT}, to be replaced by ImageNet's; convolutions of the pyramid "
        "uniform of variance 1 / fan-in, of the proposals normal, std 0.01; dense "
        "layers uniform within 1 / sqrt(fan-in); biases 0",
        published=(
            "37.0 box AP on COCO's validation images of 2017 (torchvision: 26 epochs, "
            "16 images at a time, learning rate 0.02, divided by 10 after epochs 16 "
            "and 22, momentum 0.9, weight decay 1e-4, flips; batch norm, stem and "
            "stage 1 frozen)",
        ),
        deviations=(
            "a bottleneck's 3x3 convolution has the stride, and not its first 1x1 one",
            "the loss of deltas turns from a square into a line at 1/9 in both stages, "
            "where the paper's turns at 1/9 and at 1",
            "dense layers begin with biases 0, where torchvision's are uniform within "
            "1 / sqrt(fan-in)",
            "an object that no anchor touches matches none, where in torchvision it "
            "matches all that do not touch it",
            "batch norm is frozen unless frozen=False is given; torchvision freezes "
            "it where weights are loaded",
        ),
    ),
)
