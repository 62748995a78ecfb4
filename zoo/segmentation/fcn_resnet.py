"""Fully convolutional networks on dilated residual networks: torchvision's.

The parameters of `backbone` are those of `resnet50` and `resnet101`.

References:
  Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation,
  2015, for the idea. torchvision's `models/segmentation/fcn.py`, for the networks.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.classification import resnet
from zoo.classification.imagenet import IMAGENET
from zoo.layers import initializer
from zoo.segmentation.segmenter import ConvHead, Segmenter
from zoo.segmentation.voc import CLASS_NAMES
from zoo.spec import ModelSpec, TorchRule, Weights

PAPER = (
    "torchvision's, after Long, Shelhamer, Darrell: Fully Convolutional Networks for "
    "Semantic Segmentation, 2015, and He, Zhang, Ren, Sun: Deep Residual Learning for "
    "Image Recognition, 2015"
)

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def fcn_resnet(
    *,
    depth: int,
    num_classes: int = 21,
    aux: bool = False,
    output_stride: int = 8,
    init: str | None = None,
    dropout: float = 0.1,
    momentum: float = 0.9,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds a fully convolutional residual network.

    Args:
      depth: Weighted layers of the classifier that it is made of: 50 or 101.
      num_classes: Background included; 0 for no heads, the auxiliary one included.
      aux: Whether to have the auxiliary head on stage 3, whose loss training adds: the
        endpoint "aux".
      output_stride: Pixels of the image to one of the scores, 32, 16 or 8: below 32
        the last stages are dilated instead, with the same parameters.
      init: Of the 3x3 and backbone's convolutions, a name of `zoo.layers.INITIALIZERS`;
        None for the source's.
      dropout: Rate before the scores.
      momentum: What batch norm's running averages keep at a step.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    label = f"fcn_resnet{depth}"
    types = dict(momentum=momentum, dtype=dtype, param_dtype=param_dtype)
    config = resnet.ResNetConfig(
        output_stride=output_stride, init=init, remat=remat, **types
    )
    backbone = resnet.ResNetBackbone(
        label, resnet.Bottleneck, BLOCKS[depth], config, pooled=False
    )
    head = partial(
        ConvHead,
        num_classes,
        dropout=dropout,
        kernel_init=initializer(init or "torch"),
        score_init=initializer("torch"),
        **types,
    )
    return Segmenter(
        backbone,
        head(512) if num_classes else None,
        head(256, reads="stage3") if num_classes and aux else None,
        label=label,
        preprocess=PREPROCESS,
        min_size=output_stride,
        stride=output_stride,
    )


def _torchvision_names(model: Segmenter) -> tuple[TorchRule, ...]:
    rules = [
        dataclasses.replace(rule, key=f"backbone.{rule.key}")
        for rule in resnet.torch_rules(model)
        if not rule.module.startswith("head/")
    ]
    heads = {"head": "classifier", "aux_head": "aux_classifier"}
    for head, key in heads.items():
        for layer, place in {"conv": 0, "bn": 1, "score": 4}.items():
            # Published weights have the auxiliary head, and networks need not.
            module = f"{head}/{layer}" if head in model.heads() else None
            rules.append(TorchRule(module, f"{key}.{place}"))
    return tuple(rules)


# torchvision's weights are evaluated at a shorter side of 520 pixels.
PREPROCESS = dataclasses.replace(IMAGENET, size=520, resize=None, fit="keep")
# Parameters without and multiply-adds; torchvision's file, its mean intersection over
# union and pixel accuracy in percent.
_NETWORKS = {
    50: (32_957_013, 142_725_772_800, "fcn_resnet50_coco-1167a1af.pth", 60.5, 91.4),
    101: (51_949_141, 222_746_867_200, "fcn_resnet101_coco-7ecb50ca.pth", 63.7, 91.9),
}


def _spec(depth: int) -> ModelSpec:
    params, macs, file, iu, pixel = _NETWORKS[depth]
    result = (
        f"mean IU {iu} %, pixel accuracy {pixel} % of COCO's validation images of 2017 "
        "with PASCAL VOC's classes, shorter side 520"
    )
    return ModelSpec(
        name=f"fcn_resnet{depth}",
        task="segmentation",
        build=partial(fcn_resnet, depth=depth),
        paper=PAPER,
        num_classes=21,
        preprocess=PREPROCESS,
        params=params,
        macs=macs,
        torch_rules=_torchvision_names,
        torchvision=f"segmentation.fcn_resnet{depth}",
        weights=(
            Weights(
                name="coco_voc",
                url=f"https://download.pytorch.org/models/{file}",
                sha256=file.rsplit(".", 1)[0].rsplit("-", 1)[1],
                accuracy=result,
                source="torchvision",
                licence="BSD-3-Clause",
                preprocess=PREPROCESS,
                class_names=CLASS_NAMES,
            ),
        ),
        aux_losses=(("aux", 0.5),),
        init=(
            "backbone of a classifier trained on ImageNet, or else He et al. 2015, "
            "normal of variance 2 / (k * k * output channels); heads as PyTorch's own, "
            "uniform within 1 / sqrt(fan-in)"
        ),
        published=(result,),
        deviations=(
            "a dilated residual network instead of VGG-16, and one map instead of "
            "skips: torchvision's",
            "scores are resized with align_corners=False, not by transposed "
            "convolutions",
            "torchvision also initialises the biases of the scores, uniformly within "
            "1 / sqrt(fan-in)",
        ),
    )


SPECS = tuple(_spec(depth) for depth in BLOCKS)
