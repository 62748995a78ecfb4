"""SSD and YOLO for images of 96 x 96, small enough to be trained on a CPU.

They are no paper's networks: the heads, losses and decoding are the papers', and below
them are a few convolutions with batch norm, which begin at random.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images
from zoo.detection.contract import ClassOutputs
from zoo.detection.ssd import SSD, Level, MultiBoxHead
from zoo.detection.yolo import YOLO
from zoo.layers import BatchNorm, Conv, initializer, remat_stage
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

SIZE = 96
# Channels of the stages, each of which halves height and width: 48, 24, 12, 6 and 3.
WIDTHS = (16, 48, 96, 128, 128)
# Convolutions of each stage. YOLO's cells are 8 x 8 pixels, and see all around them.
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


class SmallBackbone(nn.Module):
    """Stages of 3x3 convolutions with batch norm, the first of which has stride 2.

    Attributes:
      network: Its name, for messages.
      depths: Convolutions of each stage; there are as many stages.
      widths: Channels of each stage's convolutions.
      momentum: What batch norm's running averages keep at a step.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each stage's activations in the backward pass.
    """

    network: str
    depths: tuple[int, ...]
    widths: tuple[int, ...] = WIDTHS
    momentum: float = 0.9
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.network, size=SIZE)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        options = dict(padding=1, use_bias=False, kernel_init=self.kernel_init)
        conv = partial(Conv, kernel=3, **options, **types)
        norm = partial(BatchNorm, momentum=self.momentum, **types)

        def stage(self, x: Array, i: int) -> dict[str, Array]:
            for j in range(1, self.depths[i - 1] + 1):
                stride = 2 if j == 1 else 1
                layer = conv(self.widths[i - 1], stride=stride, name=f"conv{i}_{j}")
                x = norm(name=f"bn{i}_{j}")(layer(x), train=train)
                x = nn.relu(x)
            return {f"stage{i}": x}

        out, x = {}, images
        for i in range(1, len(self.depths) + 1):
            out |= remat_stage(partial(stage, i=i), self.remat)(self, x)
            x = out[f"stage{i}"]
        return out


class GridHead(nn.Module):
    """YOLO's outputs for each cell of a map, by a 1x1 convolution.

    Attributes:
      num_classes: K.
    """

    num_classes: int
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[dict, dict]:
        ends = (self.num_classes, self.num_classes + PREDICTORS)
        y = Conv(
            ends[1] + 4 * PREDICTORS,
            kernel=1,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="cells",
        )(x)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        classes, confidences, boxes = jnp.split(y, ends, axis=-1)
        boxes = boxes.reshape(*boxes.shape[:-1], PREDICTORS, 4)
        return {}, {"classes": classes, "confidences": confidences, "boxes": boxes}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Lists the layer whose outputs have classes, see `ClassOutputs`."""
        classes, rest = np.arange(self.num_classes), np.full(5 * PREDICTORS, -1)
        return {
            "cells": ClassOutputs(np.concatenate([classes, rest]), self.kernel_init)
        }


def small_detector(
    *,
    variant: str,
    num_classes: int,
    widths: tuple[int, ...] = WIDTHS,
    init: str = "he_fan_out",
    momentum: float = 0.9,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> SSD | YOLO:
    """Builds a small detector.

    Args:
      variant: A name of `SPECS`.
      num_classes: Of the objects.
      widths: Channels of each stage of the backbone.
      init: Of the backbone, a name of `zoo.layers.INITIALIZERS`.
      momentum: What batch norm's running averages keep at a step.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: `num_classes` is less than 1, or `init` is unknown.
    """
    check_detector_classes(variant, num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    backbone = partial(
        SmallBackbone,
        variant,
        widths=tuple(widths),
        momentum=momentum,
        kernel_init=initializer(init),
        remat=remat,
        **types,
    )
    if variant == "yolo96_small":
        head = GridHead(num_classes, initializer("gaussian_0.01"), **types)
        return YOLO(backbone(YOLO_DEPTHS), head, _PREPROCESS)
    return SSD(
        backbone(SSD_DEPTHS),
        MultiBoxHead(num_classes, LEVELS, **types),
        last_size=LAST_SIZE,
        max_side=None,
        preprocess=_PREPROCESS,
    )


def _torch_rules(model: SSD | YOLO) -> tuple[TorchRule, ...]:
    """Our own names."""
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


_PREPROCESS = Preprocess(
    size=SIZE, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, fit="stretch"
)


def _spec(
    name: str, kind: str, loss: str, head_init: str, params: int, macs: int
) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(small_detector, variant=name),
        paper=f"none: a small network of this zoo with the head of {kind}",
        num_classes=10,
        preprocess=_PREPROCESS,
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
