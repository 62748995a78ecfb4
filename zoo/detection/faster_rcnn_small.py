"""A small Faster R-CNN for images of about 100 pixels, to be trained from scratch."""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_detector_classes
from zoo.classification.residual import BasicBlock, ResNetBackbone
from zoo.classification.resnet import INIT
from zoo.detection.faster_rcnn import (
    LOSS,
    PAPER,
    POSTPROCESS,
    RATIOS,
    WINDOW,
    make_cells,
    pool_pyramid,
    torch_rules,
)
from zoo.detection.fpn import FPN
from zoo.detection.roi_head import Classifying, DenseHead, Predictor
from zoo.detection.rpn import RPN, Proposing
from zoo.detection.two_stage import TwoStage
from zoo.layers import INITIALIZERS, initializer
from zoo.spec import ModelSpec, Preprocess

# Any size will do; the example is that of `digits_canvas`.
SMALL = Preprocess(
    size=96, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, fit="keep", antialias=False
)


def faster_rcnn_small(
    *,
    num_classes: int,
    init: str = "he_fan_out",
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> TwoStage:
    """Builds a small network of the same parts, to be trained from scratch.

    Args:
      num_classes: Without background.
      init: Of the backbone's convolutions, a name of `zoo.layers.INITIALIZERS`.
      momentum: What batch norm's running averages keep at a step.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes("faster_rcnn_small", num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    backbone = ResNetBackbone(
        label="faster_rcnn_small",
        block=BasicBlock,
        blocks=(2, 2, 2),
        width=32,
        kernel_init=initializer(init),
        momentum=momentum,
        pooled=False,
        remat=remat,
        **types,
    )
    dense = INITIALIZERS["he_fan_in"]
    return TwoStage(
        backbone=backbone,
        neck=FPN(("stage1", "stage2", "stage3"), (2, 3, 4), 64, extra=False, **types),
        rpn=RPN(len(RATIOS), 64, **types),
        box_head=DenseHead(128, WINDOW, kernel_init=dense, **types),
        predictor=Predictor(num_classes, **types),
        # Regions are cut out of finer maps than they are proposed on.
        maps=("p3", "p4"),
        pooled=("p2", "p3", "p4"),
        pool=partial(pool_pyramid, first=2, canonical=(32, 3)),
        proposing=Proposing(
            cells=make_cells((24, 48)), best=(128, 256), count=(64, 128), sampled=64
        ),
        classifying=Classifying(sampled=64),
        preprocess=SMALL,
        postprocess=POSTPROCESS,
    )


SPECS = (
    ModelSpec(
        name="faster_rcnn_small",
        task="detection",
        build=faster_rcnn_small,
        paper=f"none: the parts of {PAPER}",
        num_classes=10,
        preprocess=SMALL,
        params=1_287_526,
        macs=133_751_552,
        torch_rules=torch_rules,
        loss=LOSS,
        init=f"{INIT}; dense layers of variance 2 / fan-in, the "
        "predictor's normal, std 0.01 (classes) and 0.001 (boxes); biases 0",
        published=("none: it is for images of about 100 pixels, trained from scratch",),
        deviations=(
            "64 channels in each level, 64 proposals, and dense layers of 128 units",
            "batch norm is trained, as there is no backbone that was trained before",
        ),
    ),
)
