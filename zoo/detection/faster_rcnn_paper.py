"""Faster R-CNN as published: on VGG-16, and on the first stages of ResNet-101.

References:
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015.
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, appendix A.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_detector_classes
from zoo.classification.residual import Bottleneck, ResNetBackbone, Stage
from zoo.classification.residual import torch_rules as backbone_rules
from zoo.classification.vgg import DENSE
from zoo.detection.fast_rcnn import (
    COLOURS,
    DECODING,
    INCLUSIVE,
    INIT,
    POSTPROCESS,
    SIDES,
    STRIDE,
    VGGTrunk,
    pool_regions,
    trunk_rules,
)
from zoo.detection.roi_head import (
    Classifying,
    DenseHead,
    Predictor,
    predictor_rules,
)
from zoo.detection.rpn import RPN, Proposing
from zoo.detection.two_stage import TwoStage
from zoo.layers import BatchNorm, Conv, initializer
from zoo.ops.anchors import rpn_anchors
from zoo.spec import ModelSpec, TorchRule

Array = jax.Array

PAPER = (
    "Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with "
    "Region Proposal Networks, 2015"
)
LOSS = "rpn_objectness + rpn_box + roi_class + roi_box"
# Sides of the square anchors in units of the stride, for PASCAL VOC and for COCO.
SCALES = {"voc": (8, 16, 32), "coco": (4, 8, 16, 32)}


class StageHead(nn.Module):
    """A residual network's last stage, applied to each region's map, and its mean.

    Attributes:
      features: Channels of the stage's 3x3 convolutions.
      blocks: Of the stage.
      early_stride: Where a block has its stride, see `zoo.classification.residual`.
    """

    features: int
    blocks: int
    early_stride: bool
    kernel_init: Callable
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        block = partial(
            Bottleneck,
            self.features,
            early_stride=self.early_stride,
            conv=partial(Conv, use_bias=False, kernel_init=self.kernel_init, **types),
            norm=partial(BatchNorm, frozen=True, **types),
        )
        stage = Stage(partial(block, stride=2), block, self.blocks, name="stage4")
        return stage(x, train).mean(axis=(1, 2))


def faster_rcnn_vgg16(
    *,
    num_classes: int,
    anchors: str = "voc",
    dropout: float = 0.5,
    init: str = "he_fan_out",
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> TwoStage:
    """Builds section 3's network on VGG-16.

    Args:
      num_classes: Without background.
      anchors: "voc" for nine, "coco" for the twelve that the paper has for COCO.
      dropout: Rate after the dense layers.
      init: Of VGG-16's layers, a name of `zoo.layers.INITIALIZERS`.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes("faster_rcnn_vgg16", num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    kernels = dict(kernel_init=initializer(init), **types)
    return TwoStage(
        backbone=VGGTrunk("faster_rcnn_vgg16", remat=remat, **kernels),
        neck=None,
        box_head=DenseHead(DENSE, dropout=dropout, **kernels),
        predictor=Predictor(num_classes, **types),
        pool=partial(pool_regions, size=7),
        **_published("conv5_3", anchors, types),
    )


def faster_rcnn_c4(
    *,
    num_classes: int,
    anchors: str = "voc",
    early_stride: bool = True,
    init: str = "he_fan_out",
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> TwoStage:
    """Builds the network of the residual networks' appendix A, on ResNet-101.

    Args:
      num_classes: Without background.
      anchors: "voc" for nine, "coco" for the twelve that the paper has for COCO.
      early_stride: Whether the first 1x1 convolution has a bottleneck's stride, as
        published, and not the 3x3 one, as in most public weights.
      init: Of the convolutions, a name of `zoo.layers.INITIALIZERS`.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name = "faster_rcnn_resnet101_c4"
    check_detector_classes(name, num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    own = dict(kernel_init=initializer(init), early_stride=early_stride, **types)
    return TwoStage(
        backbone=ResNetBackbone(
            label=name,
            block=Bottleneck,
            blocks=(3, 4, 23),
            frozen=True,
            pooled=False,
            remat=remat,
            **own,
        ),
        neck=None,
        box_head=StageHead(512, 3, **own),
        predictor=Predictor(num_classes, **types),
        # The last stage halves it.
        pool=partial(pool_regions, size=14),
        **_published("stage3", anchors, types),
    )


def _published(features: str, anchors: str, types: dict[str, Any]) -> dict[str, Any]:
    """What both networks have in common."""
    if anchors not in SCALES:
        raise ValueError(f"anchors={anchors!r} must be one of {[*SCALES]}.")
    cells = rpn_anchors(STRIDE, scales=SCALES[anchors])
    cells = cells + np.array([0, 0, 1, 1], np.float32)
    return dict(
        rpn=RPN(len(cells), 512, pairs=True, **types),
        maps=(features,),
        pooled=(features,),
        proposing=Proposing(
            cells=(tuple(map(tuple, cells.tolist())),),
            stride=STRIDE,
            best=(6000, 12000),
            count=(300, 2000),
            min_size=16,
            inside=True,
        ),
        classifying=Classifying(sampled=128, beta=1.0),
        preprocess=SIDES,
        postprocess=POSTPROCESS,
    )


def _rpn_rules() -> tuple[TorchRule, ...]:
    return (
        TorchRule("rpn/conv", "rpn_conv/3x3"),
        TorchRule("rpn/cls_logits", "rpn_cls_score"),
        TorchRule("rpn/bbox_pred", "rpn_bbox_pred"),
        *predictor_rules(),
    )


def _vgg_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """The names of the authors' Caffe."""
    return (*trunk_rules(), *_rpn_rules())


def _resnet_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Torchvision's names of the backbone, and otherwise the authors'."""
    rules = [r for r in backbone_rules(model) if r.module.startswith("backbone/")]
    for block in range(1, model.box_head.blocks + 1):
        ours, theirs = f"box_head/stage4/block{block}", f"layer4.{block - 1}"
        for i in (1, 2, 3):
            rules.append(TorchRule(f"{ours}/conv{i}", f"{theirs}.conv{i}"))
            rules.append(TorchRule(f"{ours}/bn{i}", f"{theirs}.bn{i}"))
        rules.append(TorchRule(f"{ours}/shortcut_conv", f"{theirs}.downsample.0"))
        rules.append(TorchRule(f"{ours}/shortcut_bn", f"{theirs}.downsample.1"))
    return (*rules, *_rpn_rules())


_MIN_SIZE = (
    "proposals have 16 pixels of the resized image at least, where the authors' have "
    "16 of the original one"
)
_PER_ANCHOR = (
    "both losses of the first stage are divided by the number of sampled anchors, as "
    "in the authors' code, where the paper's equation 1 divides that of the boxes by "
    "the number of positions and multiplies it by 10"
)

SPECS = (
    ModelSpec(
        name="faster_rcnn_vgg16",
        task="detection",
        build=faster_rcnn_vgg16,
        paper=f"{PAPER}, section 3",
        num_classes=20,
        preprocess=SIDES,
        params=137_078_239,
        macs=225_573_931_008,
        torch_rules=_vgg_rules,
        loss=LOSS,
        init=INIT,
        published=(
            "VOC 2007 test: 69.9 mAP trained on 07 trainval, 73.2 on 07+12, 78.8 with "
            "COCO before (4-step training, 300 proposals)",
            "VOC 2012 test: 67.0 mAP trained on 12, 70.4 on 07++12, 75.9 with COCO "
            "before",
            "COCO: 21.2 AP (41.5 at IoU 0.5) of train on val, 21.9 (42.7) of trainval "
            "on test-dev, with twelve anchors",
            "recipe of the authors' joint training: 70k steps of one image, two to an "
            "update, learning rate 0.001, from step 50k 0.0001, momentum 0.9, weight "
            "decay 5e-4, conv1 and conv2 frozen",
        ),
        deviations=(
            "the four losses are trained jointly, as in the authors' later code, where "
            "the paper's results are of training in four steps",
            _PER_ANCHOR,
            _MIN_SIZE,
            DECODING,
            INCLUSIVE,
            COLOURS,
        ),
    ),
    ModelSpec(
        name="faster_rcnn_resnet101_c4",
        task="detection",
        build=faster_rcnn_c4,
        paper="He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, "
        "2015, appendix A",
        num_classes=20,
        preprocess=SIDES,
        params=47_462_111,
        macs=314_128_862_208,
        torch_rules=_resnet_rules,
        loss=LOSS,
        init=INIT,
        published=(
            "VOC 2007 test: 76.4 mAP trained on 07+12, 85.6 with COCO, box refinement, "
            "context and several scales",
            "VOC 2012 test: 73.8 mAP trained on 07++12, 83.8 likewise",
            "COCO val: 27.2 AP (48.4 at IoU 0.5), 8 images a step for proposals and 16 "
            "for regions, 240k steps at 0.001 and 80k at 0.0001",
        ),
        deviations=(
            "the paper does not say how large a region's map is: 14 x 14, so that the "
            "last stage's is 7 x 7 as in classification",
            "the paper does not say how wide the first stage is: 512, as on VGG-16",
            _PER_ANCHOR,
            _MIN_SIZE,
            DECODING,
            INCLUSIVE,
            COLOURS,
        ),
    ),
)
