"""Fully convolutional networks on VGG-16 and, as in torchvision, on residual networks.

The parameters of `backbone` are those of `vgg16`, including its dense layers, so that
the weights of a classifier can be copied:

    _, vgg16 = zoo.create("vgg16", weights="imagenet")
    model, variables = zoo.create("fcn32s_vgg16")
    variables = zoo.transfer.graft(variables, vgg16, keep=("head/**",))

The weights of each network fit the next one, which has one more skip connection:

    variables = zoo.transfer.graft(
        variables_16s, variables_32s, keep=("head/upscore2/*", "head/score_pool4/*")
    )

References:
  Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation,
  2015. The networks released with it (shelhamer/fcn.berkeleyvision.org).
  torchvision's `models/segmentation/fcn.py`, for the residual networks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from zoo.checks import check_num_classes, check_widths
from zoo.classification import resnet, vgg
from zoo.classification.imagenet import IMAGENET
from zoo.layers import ClassOutputs, Conv, Layer, initializer
from zoo.ops.bilinear import interpolate
from zoo.segmentation.segmenter import (
    ConvHead,
    ConvTransposed,
    Segmenter,
    SegmenterConfig,
    Size,
    bilinear,
    promote,
)
from zoo.segmentation.voc import CLASS_NAMES
from zoo.spec import ModelSpec, Preprocess, TorchRule, Weights

Array = jax.Array

PAPER = (
    "Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, "
    "2015"
)
RESNET_PAPER = (
    f"torchvision's, after {PAPER}, and He, Zhang, Ren, Sun: Deep Residual Learning "
    "for Image Recognition, 2015"
)

# The upsampling layers of figure 3 and of the released networks: for each skip
# connection the layer that doubles the feature map, the pool that is added, and the
# offset at which its scores are cropped; then the layer that upsamples to the size of
# the image, and its offset. The offsets follow from the padding of 100 pixels and are
# valid for images of any size.
SKIPS = {
    32: (),
    16: (("upscore2", "pool4", 5),),
    8: (("upscore2", "pool4", 5), ("upscore_pool4", "pool3", 9)),
}
LAST = {32: ("upscore", 19), 16: ("upscore16", 27), 8: ("upscore8", 31)}
# Factors of the pools if all skip connections are trained at once.
AT_ONCE = {"pool4": 0.01, "pool3": 0.0001}
# Numbers of blocks of the residual networks.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PREPROCESS = Preprocess(
    size=500,
    channels=3,
    mean=(122.67892 / 255, 116.66877 / 255, 104.00699 / 255),
    std=(1 / 255,) * 3,
    fit="keep",
)
# torchvision evaluates its weights at a shorter side of 520 pixels.
RESNET_PREPROCESS = dataclasses.replace(IMAGENET, size=520, resize=None, fit="keep")


class FCNHead(Layer):
    """The scores of fc7 and of pools, upsampled and summed, section 4.2.

    Attributes:
      num_classes: Number of classes.
      stride: Stride of the finest scores: 32, 16 or 8.
      learned: Names of the upsampling layers that have parameters; the others
        interpolate.
      at_once: Whether the pools are multiplied by `AT_ONCE`.
      score_init: Initializer of the kernels of the scores.
    """

    num_classes: int
    stride: int
    learned: tuple[str, ...] = ()
    at_once: bool = False
    score_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        """Computes the scores, the upsampled maps and "logits"."""
        score = partial(
            Conv, self.num_classes, 1, kernel_init=self.score_init, **self.dtypes
        )
        out = {}
        x = out["score_fr"] = score(name="score_fr")(features["fc7"])
        for upscore, pool, offset in SKIPS[self.stride]:
            doubled = [2 * n + 2 for n in x.shape[1:3]]
            x = out[upscore] = self._upsample(upscore, x, 2, doubled)
            skip = features[pool] * (AT_ONCE[pool] if self.at_once else 1.0)
            skip = out[f"score_{pool}"] = score(name=f"score_{pool}")(skip)
            rows, columns = (slice(offset, offset + n) for n in x.shape[1:3])
            x = out[f"fuse_{pool}"] = x + skip[:, rows, columns]
        name, offset = LAST[self.stride]
        out["logits"] = promote(self._upsample(name, x, self.stride, size, offset))
        return out

    def _upsample(
        self, name: str, x: Array, stride: int, size: Size, offset: int = 0
    ) -> Array:
        if name not in self.learned:
            return interpolate(promote(x), stride, size, offset)
        layer = ConvTransposed(
            self.num_classes,
            2 * stride,
            stride=stride,
            offset=offset,
            use_bias=False,
            kernel_init=bilinear,
            name=name,
            **self.dtypes,
        )
        return layer(x, size)

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the scores and of upsampling layers."""
        scores = ["score_fr", *(f"score_{pool}" for _, pool, _ in SKIPS[self.stride])]
        score = ClassOutputs(np.arange(self.num_classes), self.score_init)
        learned = score._replace(kernel_init=bilinear, reads_classes=True)
        return dict.fromkeys(scores, score) | dict.fromkeys(self.learned, learned)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FCNConfig(SegmenterConfig):
    """Options of FCN on VGG-16; `init` is the initializer of the backbone.

    Attributes:
      widths: Number of channels of each of VGG-16's five blocks.
      dense: Number of channels of fc6 and fc7.
      upsampling: Which upsampling layers have parameters, initialized with bilinear
        kernels: "paper" for all but the last, "fixed" for none, as the released
        networks were trained, "learnt" for all.
      at_once: Whether pool4 and pool3 are scaled by 0.01 and 0.0001, to train all skip
        connections at once instead of one after the other.
      dropout: Dropout rate after fc6 and fc7.
    """

    widths: tuple[int, ...] = vgg.WIDTHS
    dense: int = vgg.DENSE
    upsampling: str = "paper"
    at_once: bool = False
    dropout: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FCNResNetConfig(SegmenterConfig):
    """Options of FCN on a residual network.

    Attributes:
      aux: Whether to add the auxiliary head on stage 3, the endpoint "aux", for an
        additional loss.
      output_stride: Stride of the scores: 32, 16 or 8. Below 32 the last stages are
        dilated instead, with the same parameters.
      dropout: Dropout rate before the scores.
      momentum: Decay rate of batch norm's running averages.
    """

    aux: bool = False
    output_stride: int = 8
    dropout: float = 0.1
    momentum: float = 0.9


def fcn_vgg16(*, stride: int, num_classes: int = 21, **options: Any) -> Segmenter:
    """Builds a fully convolutional VGG-16.

    Args:
      stride: Stride of the finest scores: 32, 16 or 8.
      num_classes: Number of classes including background; 0 for no head.
      **options: Fields of `FCNConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    layers = (*(name for name, _, _ in SKIPS[stride]), LAST[stride][0])
    learned = {"paper": layers[:-1], "fixed": (), "learnt": layers}
    config = FCNConfig(**options)
    if config.upsampling not in learned:
        raise ValueError(
            f"upsampling must be one of {[*learned]}, got {config.upsampling!r}."
        )
    check_num_classes(num_classes)
    check_widths(config.widths, len(vgg.WIDTHS))
    label, init = f"fcn{stride}s_vgg16", config.init or "gaussian_0.1"
    vgg_config = vgg.VGGConfig(
        widths=config.widths,
        dense=config.dense,
        fully_convolutional=True,
        dropout=config.dropout,
        remat=config.remat,
        **config.dtypes,
    )
    backbone = vgg.VGGBackbone(
        label,
        vgg.CONFIGS["D"],
        vgg_config,
        conv_init=init,
        dense_init=init,
        min_size=1,
        first_padding=100,
        ceil=True,
    )
    head = FCNHead(
        num_classes,
        stride,
        learned=learned[config.upsampling],
        at_once=config.at_once,
        **config.dtypes,
    )
    return Segmenter(
        backbone,
        head if num_classes else None,
        label=label,
        preprocess=PREPROCESS,
        min_size=stride,
    )


def fcn_resnet(*, depth: int, num_classes: int = 21, **options: Any) -> Segmenter:
    """Builds a fully convolutional residual network.

    Args:
      depth: Depth of the residual network, 50 or 101.
      num_classes: Number of classes including background; 0 for no heads.
      **options: Fields of `FCNResNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    label = f"fcn_resnet{depth}"
    config = FCNResNetConfig(**options)
    shared = dict(momentum=config.momentum, **config.dtypes)
    resnet_config = resnet.ResNetConfig(
        output_stride=config.output_stride,
        init=config.init,
        remat=config.remat,
        **shared,
    )
    backbone = resnet.ResNetBackbone(
        label, resnet.Bottleneck, BLOCKS[depth], resnet_config, pooled=False
    )
    head = partial(
        ConvHead,
        num_classes,
        dropout=config.dropout,
        kernel_init=initializer(config.init or "torch"),
        score_init=initializer("torch"),
        **shared,
    )
    return Segmenter(
        backbone,
        head(512) if num_classes else None,
        head(256, reads="stage3") if num_classes and config.aux else None,
        label=label,
        preprocess=RESNET_PREPROCESS,
        min_size=config.output_stride,
        stride=config.output_stride,
    )


def _caffe_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of the released networks.

    Layers that interpolate here have fixed kernels in those networks.
    """
    layers = [
        f"conv{i}_{j}"
        for i, block in enumerate(vgg.CONFIGS["D"], start=1)
        for j in range(1, len(block) + 1)
    ]
    channels = model.backbone.config.widths[-1]
    rules = [TorchRule(f"backbone/{name}", name) for name in layers]
    rules += [
        # Some files keep them as convolutions of the same name.
        TorchRule("backbone/fc6", "fc6", (channels, 7, 7), alias="fc6"),
        TorchRule("backbone/fc7", "fc7", alias="fc7"),
    ]
    if model.head is None:
        return tuple(rules)
    stride, learned = model.head.stride, model.head.learned
    for name in ("score_fr", *(f"score_{pool}" for _, pool, _ in SKIPS[stride])):
        rules.append(TorchRule(f"head/{name}", name))
    for name in (*(name for name, _, _ in SKIPS[stride]), LAST[stride][0]):
        module = f"head/{name}" if name in learned else None
        rules.append(TorchRule(module, name, transposed=True))
    return tuple(rules)


def _torchvision_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for torchvision's names."""
    rules = resnet.backbone_rules(model, "backbone.")
    heads = {"head": "classifier", "aux_head": "aux_classifier"}
    for head, key in heads.items():
        for layer, place in {"conv": 0, "bn": 1, "score": 4}.items():
            # Published weights include the auxiliary head; networks may not.
            module = f"{head}/{layer}" if head in model.heads() else None
            rules.append(TorchRule(module, f"{key}.{place}"))
    return tuple(rules)


# Parameters and multiply-adds; pixel and class accuracy, mean and frequency weighted
# intersection over union in percent (table 2).
_VGG_NETWORKS = {
    32: (134_346_581, 180_903_432_960, (89.1, 73.3, 59.4, 81.4)),
    16: (134_364_410, 180_926_055_168, (90.0, 75.7, 62.4, 83.0)),
    8: (134_376_863, 180_975_843_648, (90.3, 75.9, 62.7, 83.2)),
}
_TEST = {8: ("PASCAL VOC 2011 test mean IU 62.7 %, 2012 62.2 % (table 3)",)}


def _vgg_spec(stride: int) -> ModelSpec:
    params, macs, (pixel, mean, iu, weighted) = _VGG_NETWORKS[stride]
    return ModelSpec(
        name=f"fcn{stride}s_vgg16",
        task="segmentation",
        build=partial(fcn_vgg16, stride=stride),
        config=FCNConfig,
        paper=f"{PAPER}, section 4 and figure 3, FCN-{stride}s",
        num_classes=21,
        preprocess=PREPROCESS,
        params=params,
        macs=macs,
        torch_rules=_caffe_names,
        init=(
            "of a trained VGG-16 (here, without weights, as VGG itself: normal, std "
            "0.1); scores zero; upsampling bilinear"
        ),
        published=(
            f"PASCAL VOC 2011 validation (736 images): pixel accuracy {pixel} %, mean "
            f"accuracy {mean} %, mean IU {iu} %, frequency weighted IU {weighted} % "
            "(table 2)",
            *_TEST.get(stride, ()),
        ),
        deviations=(
            "the image is padded by 100 pixels, pools round up and scores are cropped "
            "as in the released networks, where the paper is silent",
            "the released networks take blue first: here red, as this zoo's VGG-16",
            "the released networks were trained with upsampling='fixed'; the paper "
            "learns all layers of it but the last",
        ),
    )


# Parameters without the auxiliary head, and multiply-adds; torchvision's file, its mean
# intersection over union and pixel accuracy in percent.
_RESNET_NETWORKS = {
    50: (32_957_013, 142_725_772_800, "fcn_resnet50_coco-1167a1af.pth", 60.5, 91.4),
    101: (51_949_141, 222_746_867_200, "fcn_resnet101_coco-7ecb50ca.pth", 63.7, 91.9),
}


def _resnet_spec(depth: int) -> ModelSpec:
    params, macs, file, iu, pixel = _RESNET_NETWORKS[depth]
    result = (
        f"mean IU {iu} %, pixel accuracy {pixel} % of COCO's validation images of 2017 "
        "with PASCAL VOC's classes, shorter side 520"
    )
    return ModelSpec(
        name=f"fcn_resnet{depth}",
        task="segmentation",
        build=partial(fcn_resnet, depth=depth),
        config=FCNResNetConfig,
        paper=RESNET_PAPER,
        num_classes=21,
        preprocess=RESNET_PREPROCESS,
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
                preprocess=RESNET_PREPROCESS,
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
            "torchvision also initializes the biases of the scores, uniformly within "
            "1 / sqrt(fan-in)",
        ),
    )


SPECS = (
    *(_vgg_spec(stride) for stride in SKIPS),
    *(_resnet_spec(depth) for depth in BLOCKS),
)
