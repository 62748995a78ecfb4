"""The pyramid scene parsing network.

References:
  Zhao, Shi, Qi, Wang, Jia, Pyramid Scene Parsing Network, 2017. The networks that its
  authors released: hszhao/PSPNet (Caffe) and hszhao/semseg (PyTorch).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_num_classes
from zoo.classification import resnet
from zoo.classification.imagenet import CAFFE_MEAN
from zoo.layers import BatchNorm, Conv
from zoo.ops.pooling import adaptive_avg_pool, max_pool
from zoo.ops.resize import resize
from zoo.segmentation.segmenter import ConvHead, Segmenter, SegmenterConfig
from zoo.spec import ModelSpec, TorchRule

Array = jax.Array

PAPER = "Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, 2017"

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Section 3.2: bins per side of each pyramid level, and number of channels of each.
BINS = (1, 2, 3, 6)
WIDTH = 512


class DeepStem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2, instead of a 7x7 convolution.

    Attributes:
      features: Number of channels of the first two convolutions.
      small: Not used; see `zoo.classification.resnet.Stem`.
      conv: Constructor of convolutions.
      norm: Constructor of batch norms.
    """

    features: int
    small: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> dict[str, Array]:
        out = {}
        widths = (self.features, self.features, 2 * self.features)
        for i, width in enumerate(widths, start=1):
            stride = 2 if i == 1 else 1
            x = self.conv(width, 3, stride=stride, padding=1, name=f"conv{i}")(x)
            x = nn.relu(self.norm(name=f"bn{i}")(x, train=train))
        out["stem"] = x
        out["stem_pool"] = max_pool(x, 3, 2, padding=1)
        return out


class PyramidHead(ConvHead):
    """The pyramid pooling module of section 3.2 and figure 3, and the scores.

    Each level is average-pooled, reduced to `WIDTH` channels and resized to the map.
    """

    def context(self, x: Array, train: bool) -> dict[str, Array]:
        """Computes the map concatenated with the levels of the pyramid."""
        conv = partial(
            Conv, WIDTH, 1, use_bias=False, kernel_init=self.kernel_init, **self.dtypes
        )
        norm = partial(BatchNorm, momentum=self.momentum, **self.dtypes)
        levels = [x]
        for bins in BINS:
            y = conv(name=f"pool{bins}_conv")(adaptive_avg_pool(x, bins))
            y = nn.relu(norm(name=f"pool{bins}_bn")(y, train=train))
            y = resize(y, x.shape[1:3], antialias=False, align_corners=True)
            levels.append(y)
        return {"pyramid": jnp.concatenate(levels, axis=-1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSPNetConfig(SegmenterConfig):
    """Options of PSPNet.

    Attributes:
      aux: Whether to add the auxiliary head on stage 3, the endpoint "aux", for an
        additional loss.
      early_stride: Whether the stride of a bottleneck is in its first 1x1 convolution,
        as in the networks released for Caffe, or in the 3x3 one, as in those for
        PyTorch.
      dropout: Dropout rate before the scores.
      momentum: Decay rate of batch norm's running averages: 0.95 in the networks for
        Caffe, 0.9 in those for PyTorch.
    """

    aux: bool = False
    early_stride: bool = True
    dropout: float = 0.1
    momentum: float = 0.95


def pspnet(*, depth: int, num_classes: int = 19, **options: Any) -> Segmenter:
    """Builds a pyramid scene parsing network.

    Args:
      depth: Depth of the residual network, 50 or 101.
      num_classes: Number of classes, including background if there is one; 0 for no
        heads.
      **options: Fields of `PSPNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    label = f"pspnet_resnet{depth}"
    config = PSPNetConfig(**options)
    shared = dict(momentum=config.momentum, **config.dtypes)
    resnet_config = resnet.ResNetConfig(
        output_stride=8, init=config.init, remat=config.remat, **shared
    )
    backbone = resnet.ResNetBackbone(
        label,
        resnet.Bottleneck,
        BLOCKS[depth],
        resnet_config,
        stem=DeepStem,
        early_stride=config.early_stride,
        dilate_first=True,
        pooled=False,
    )
    shared |= dict(
        dropout=config.dropout,
        align_corners=True,
        kernel_init=resnet_config.kernel_init,
    )
    head, aux_head = None, None
    if num_classes:
        head = PyramidHead(num_classes, 512, **shared)
    if num_classes and config.aux:
        aux_head = ConvHead(num_classes, 256, reads="stage3", **shared)
    return Segmenter(
        backbone,
        head,
        aux_head,
        label=label,
        preprocess=_PREPROCESS[depth],
        min_size=8,
        # With these sizes each pixel of the last map is aligned with one of the image.
        stride=8,
        remainder=1,
    )


def _semseg_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of hszhao/semseg."""
    rules = [
        rule
        for rule in resnet.torch_rules(model)
        if rule.module.startswith("backbone/stage")
    ]
    for i, place in enumerate((0, 3, 6), start=1):
        rules.append(TorchRule(f"backbone/stem/conv{i}", f"layer0.{place}"))
        rules.append(TorchRule(f"backbone/stem/bn{i}", f"layer0.{place + 1}"))
    for i, bins in enumerate(BINS):
        rules.append(_rule(model, f"head/pool{bins}_conv", f"ppm.features.{i}.1"))
        rules.append(_rule(model, f"head/pool{bins}_bn", f"ppm.features.{i}.2"))
    for head, key in {"aux_head": "aux", "head": "cls"}.items():
        for layer, place in {"conv": 0, "bn": 1, "score": 4}.items():
            rules.append(_rule(model, f"{head}/{layer}", f"{key}.{place}"))
    return tuple(rules)


def _rule(model: Segmenter, module: str, key: str) -> TorchRule:
    """Returns the rule of a head's layer, which is ignored if there is no such head."""
    has = module.partition("/")[0] in model.heads()
    return TorchRule(module if has else None, key)


# The size of the paper's training crops for Cityscapes.
_BGR = dataclasses.replace(CAFFE_MEAN, fit="keep", resize=None, channel_order="bgr")
_PREPROCESS = {depth: dataclasses.replace(_BGR, size=713) for depth in BLOCKS}
# Parameters and multiply-adds.
_NETWORKS = {
    50: (46_715_347, 362_992_701_632),
    101: (65_707_475, 516_405_924_032),
}
_PUBLISHED = {
    50: (
        "ADE20K validation (150 classes): mean IU 41.68 %, pixel accuracy 80.04 %; "
        "42.78 % and 80.76 % at several scales",
    ),
    101: (
        "Cityscapes validation, as released for Caffe: mean IU 79.70 %, 80.91 % at "
        "several scales",
        "PASCAL VOC 2012 test: mean IU 82.6 %, 85.4 % with COCO (table 5)",
    ),
}


def _spec(depth: int) -> ModelSpec:
    params, macs = _NETWORKS[depth]
    return ModelSpec(
        name=f"pspnet_resnet{depth}",
        task="segmentation",
        build=partial(pspnet, depth=depth),
        config=PSPNetConfig,
        paper=f"{PAPER}, section 3",
        num_classes=19,
        preprocess=_PREPROCESS[depth],
        params=params,
        macs=macs,
        torch_rules=_semseg_names,
        aux_losses=(("aux", 0.4),),
        init=(
            "backbone of a classifier with the same stem trained on ImageNet, or else, "
            "as the heads, He et al. 2015, normal of variance 2 / (k * k * output "
            "channels); scores normal, std 0.01"
        ),
        published=_PUBLISHED[depth],
        deviations=(
            "the paper does not describe the stem nor where a bottleneck's stride is: "
            "as released for Caffe; the release for PyTorch has the stride in the 3x3 "
            "convolution (early_stride=False), and takes red first, scaled to "
            "deviation 1",
            "means over bins are adaptive and so cover maps of any size, where Caffe's "
            "pools have a fixed window; at 473 and 713 pixels they are the same",
            "dropout acts on values, as released for Caffe; the release for PyTorch "
            "drops whole channels",
            "the paper does not state the initialization of the heads",
        ),
    )


SPECS = tuple(_spec(depth) for depth in BLOCKS)
