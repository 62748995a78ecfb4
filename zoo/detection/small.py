"""Small detectors that can be trained on a CPU.

SSD and YOLO for images of 96 x 96, and Faster R-CNN for images of about 100 pixels. No
paper describes them: the heads, losses and decoding are those of the papers, on top of
a few convolutions with batch norm. They are trained from scratch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images, check_widths
from zoo.classification.resnet import INIT as RESNET_INIT
from zoo.classification.resnet import BasicBlock, ResNetBackbone, ResNetConfig
from zoo.detection import faster_rcnn
from zoo.detection.fpn import FPN
from zoo.detection.roi_heads import DenseHead, Predictor
from zoo.detection.rpn import RPN
from zoo.detection.ssd import SSD, Level, MultiBoxHead
from zoo.detection.two_stage import TwoStage
from zoo.detection.types import DetectorConfig
from zoo.detection.yolo import YOLO
from zoo.layers import (
    INITIALIZERS,
    BatchNorm,
    ClassOutputs,
    Conv,
    Layer,
    initializer,
    remat_stage,
)
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

SIZE = 96
# Number of channels of each stage. Each halves height and width: 48, 24, 12, 6, 3.
WIDTHS = (16, 48, 96, 128, 128)
# Number of convolutions of each stage. A cell of YOLO has 8 x 8 pixels, and its
# receptive field includes its surroundings.
SSD_DEPTHS = (2, 2, 2, 2, 2)
YOLO_DEPTHS = (2, 2, 5)
# Digits on canvases are about 15 to 55 pixels high.
LEVELS = (
    Level("stage3", 12, 8, 22, (2,)),
    Level("stage4", 6, 16, 36, (2,)),
    Level("stage5", 3, 32, 52, (2,)),
)
LAST_SIZE = 72
PREDICTORS = 2
PREPROCESS = Preprocess(
    size=SIZE, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, fit="stretch"
)
# Faster R-CNN takes any size; the example is that of `digits_canvas`.
FASTER_RCNN_PREPROCESS = Preprocess(
    size=96, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, fit="keep", antialias=False
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallConfig(DetectorConfig):
    """Options of the small SSD and YOLO.

    Attributes:
      widths: Number of channels of each stage of the backbone.
      momentum: Decay rate of batch norm's running averages.
    """

    widths: tuple[int, ...] = WIDTHS
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallFasterRCNNConfig(DetectorConfig):
    """Options of the small Faster R-CNN.

    Attributes:
      momentum: Decay rate of batch norm's running averages.
    """

    momentum: float = 0.9


class SmallBackbone(nn.Module):
    """Stages of 3x3 convolutions with batch norm, the first of which has stride 2.

    Attributes:
      label: Name of the network, for error messages.
      depths: Number of convolutions of each stage.
      config: The options of the network.
    """

    label: str
    depths: tuple[int, ...]
    config: SmallConfig = SmallConfig()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label, size=SIZE)
        config, dtypes = self.config, self.config.dtypes
        options = dict(padding=1, use_bias=False, kernel_init=config.kernel_init)
        conv = partial(Conv, kernel=3, **options, **dtypes)
        norm = partial(BatchNorm, momentum=config.momentum, **dtypes)

        def stage(self, x: Array, i: int) -> dict[str, Array]:
            for j in range(1, self.depths[i - 1] + 1):
                stride = 2 if j == 1 else 1
                layer = conv(config.widths[i - 1], stride=stride, name=f"conv{i}_{j}")
                x = norm(name=f"bn{i}_{j}")(layer(x), train=train)
                x = nn.relu(x)
            return {f"stage{i}": x}

        out, x = {}, images
        for i in range(1, len(self.depths) + 1):
            out |= remat_stage(partial(stage, i=i), config.remat)(self, x)
            x = out[f"stage{i}"]
        return out


class GridHead(Layer):
    """YOLO's outputs for each cell of a feature map, by a 1x1 convolution.

    Attributes:
      num_classes: Number of classes K.
      kernel_init: Initializer of the kernel.
    """

    num_classes: int
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[dict, dict]:
        """Computes the outputs that `zoo.detection.yolo.YOLO` describes."""
        ends = (self.num_classes, self.num_classes + PREDICTORS)
        y = Conv(
            ends[1] + 4 * PREDICTORS,
            kernel=1,
            kernel_init=self.kernel_init,
            name="cells",
            **self.dtypes,
        )(x)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        classes, confidences, boxes = jnp.split(y, ends, axis=-1)
        boxes = boxes.reshape(*boxes.shape[:-1], PREDICTORS, 4)
        return {}, {"classes": classes, "confidences": confidences, "boxes": boxes}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layer."""
        classes, rest = np.arange(self.num_classes), np.full(5 * PREDICTORS, -1)
        return {
            "cells": ClassOutputs(np.concatenate([classes, rest]), self.kernel_init)
        }


def small_detector(*, variant: str, num_classes: int, **options: Any) -> SSD | YOLO:
    """Builds a small SSD or YOLO.

    Args:
      variant: "ssd96_small" or "yolo96_small".
      num_classes: Number of classes, without background.
      **options: Fields of `SmallConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or `init` is unknown.
    """
    check_detector_classes(variant, num_classes)
    config = SmallConfig(**options)
    depths = YOLO_DEPTHS if variant == "yolo96_small" else SSD_DEPTHS
    # YOLO reads the first of them.
    check_widths(config.widths[: len(depths)], len(depths))
    backbone = SmallBackbone(variant, depths, config)
    if variant == "yolo96_small":
        init = initializer("gaussian_0.01")
        return YOLO(backbone, GridHead(num_classes, init, **config.dtypes), PREPROCESS)
    return SSD(
        backbone,
        MultiBoxHead(num_classes, LEVELS, **config.dtypes),
        last_size=LAST_SIZE,
        max_side=None,
        preprocess=PREPROCESS,
    )


def faster_rcnn_small(*, num_classes: int, **options: Any) -> TwoStage:
    """Builds a small Faster R-CNN with a feature pyramid.

    Args:
      num_classes: Number of classes, without background.
      **options: Fields of `SmallFasterRCNNConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name, config = "faster_rcnn_small", SmallFasterRCNNConfig(**options)
    check_detector_classes(name, num_classes)
    dtypes = config.dtypes
    dense, stages = INITIALIZERS["he_fan_in"], ("stage1", "stage2", "stage3")
    rpn_config, roi_config = faster_rcnn.CONFIGS[name]
    return TwoStage(
        backbone=ResNetBackbone(
            label=name,
            block=BasicBlock,
            blocks=(2, 2, 2),
            config=ResNetConfig(
                width=32,
                init=config.init,
                momentum=config.momentum,
                remat=config.remat,
                **dtypes,
            ),
            pooled=False,
        ),
        neck=FPN(stages, (2, 3, 4), 64, extra=False, **dtypes),
        rpn=RPN(len(faster_rcnn.ASPECT_RATIOS), 64, **dtypes),
        box_head=DenseHead(128, faster_rcnn.WINDOW, kernel_init=dense, **dtypes),
        predictor=Predictor(num_classes, **dtypes),
        # Regions are pooled from finer levels than they are proposed on.
        rpn_endpoints=("p3", "p4"),
        roi_endpoints=("p2", "p3", "p4"),
        roi_pool=partial(
            faster_rcnn.pyramid_roi_align, canonical_size=32, canonical_level=3
        ),
        rpn_config=rpn_config,
        roi_config=roi_config,
        preprocess=FASTER_RCNN_PREPROCESS,
        postprocess=faster_rcnn.FPN_POSTPROCESS,
    )


def _torch_rules(model: SSD | YOLO) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of this zoo; no public weights exist."""
    rules = []
    for i, depth in enumerate(model.backbone.depths, start=1):
        for j in range(1, depth + 1):
            for kind in ("conv", "bn"):
                path = f"{kind}{i}_{j}"
                rules.append(TorchRule(f"backbone/{path}", f"backbone.{path}"))
    if isinstance(model, YOLO):
        outputs = (1, 5 * PREDICTORS)
        return (*rules, TorchRule("head/cells", "head.cells", outputs=outputs))
    for level in model.head.levels:
        count, path = level.boxes_per_cell, level.source
        rules.append(TorchRule(f"head/{path}_loc", f"head.{path}_loc"))
        rules.append(
            TorchRule(f"head/{path}_conf", f"head.{path}_conf", outputs=(count, count))
        )
    return tuple(rules)


def _spec(
    name: str, kind: str, loss: str, head_init: str, params: int, macs: int
) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(small_detector, variant=name),
        config=SmallConfig,
        paper=f"none: a small network of this zoo with the head of {kind}",
        num_classes=10,
        preprocess=PREPROCESS,
        params=params,
        macs=macs,
        torch_rules=_torch_rules,
        loss=loss,
        init=(
            "backbone He et al. 2015, normal of variance 2 / (k * k * output "
            f"channels); head {head_init}; biases 0"
        ),
        published=("none: it is no paper's network",),
        deviations=("the backbone is this zoo's own, with batch norm",),
    )


SPECS = (
    ModelSpec(
        name="faster_rcnn_small",
        task="detection",
        build=faster_rcnn_small,
        config=SmallFasterRCNNConfig,
        paper=f"none: the parts of {faster_rcnn.FPN_PAPER}",
        num_classes=10,
        preprocess=FASTER_RCNN_PREPROCESS,
        params=1_287_526,
        macs=133_751_552,
        torch_rules=faster_rcnn.fpn_rules,
        loss=faster_rcnn.LOSS,
        init=f"{RESNET_INIT}; dense layers of variance 2 / fan-in, the "
        "predictor's normal, std 0.01 (classes) and 0.001 (boxes); biases 0",
        published=("none: it is for images of about 100 pixels, trained from scratch",),
        deviations=(
            "64 channels in each level, 64 proposals, and dense layers of 128 units",
            "batch norm is trained, as there is no backbone that was trained before",
        ),
    ),
    _spec(
        "ssd96_small",
        "SSD (Liu et al. 2016)",
        "multibox: softmax cross-entropy with hard negatives, smooth L1",
        "Glorot's, uniform",
        899_684,
        62_664_192,
    ),
    _spec(
        "yolo96_small",
        "YOLO (Redmon et al. 2016)",
        "squared errors of boxes, confidences and classes",
        "normal, std 0.01",
        406_788,
        76_253_184,
    ),
)
