"""Fully convolutional networks on VGG-16, with strides of 32, 16 and 8 pixels.

The parameters of `backbone` are those of `vgg16`, so that a classifier's fit as they
are, those of its dense layers included:

    _, vgg16 = zoo.create("vgg16", weights="imagenet")
    model, variables = zoo.create("fcn32s_vgg16")
    variables = zoo.transfer.graft(variables, vgg16, keep=("head/**",))

and those of one network here into the next, which has one skip more:

    variables = zoo.transfer.graft(
        variables_16s, variables_32s, keep=("head/upscore2/*", "head/score_pool4/*")
    )

References:
  Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation,
  2015. The networks released with it (shelhamer/fcn.berkeleyvision.org).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_num_classes
from zoo.classification import vgg
from zoo.layers import ClassOutputs, Conv
from zoo.ops.bilinear import interpolate
from zoo.segmentation.segmenter import (
    ConvTransposed,
    Segmenter,
    Size,
    bilinear,
    widen,
)
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, "
    "2015"
)

# Figure 3, and the released networks' layers: of each skip, the layer that doubles the
# map before it, the pool that it reads and where its scores are cropped; then the layer
# that ends at the image's size, and where that is cropped. The crops follow from the
# padding of 100 pixels, and are right for images of any size.
SKIPS = {
    32: (),
    16: (("upscore2", "pool4", 5),),
    8: (("upscore2", "pool4", 5), ("upscore_pool4", "pool3", 9)),
}
LAST = {32: ("upscore", 19), 16: ("upscore16", 27), 8: ("upscore8", 31)}
# What the pools are multiplied by where all skips are trained at once.
AT_ONCE = {"pool4": 0.01, "pool3": 0.0001}


class FCNHead(nn.Module):
    """Section 4.2: scores of fc7 and of pools, summed on the way to the image's size.

    Attributes:
      stride: Pixels of the image to one of the finest scores: 32, 16 or 8.
      learnt: The layers of upsampling that have parameters; others interpolate.
      scales: What pools are multiplied by, by name; 1 where nothing is said.
      score_init: Initialiser of the kernels of the scores.
    """

    num_classes: int
    stride: int
    learnt: tuple[str, ...] = ()
    scales: Mapping[str, float] | None = None
    score_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        score = partial(Conv, self.num_classes, 1, kernel_init=self.score_init, **types)
        out = {}
        x = out["score_fr"] = score(name="score_fr")(features["fc7"])
        for upscore, pool, offset in SKIPS[self.stride]:
            doubled = [2 * n + 2 for n in x.shape[1:3]]
            x = out[upscore] = self._upsample(upscore, x, 2, doubled)
            skip = features[pool] * (self.scales or {}).get(pool, 1.0)
            skip = out[f"score_{pool}"] = score(name=f"score_{pool}")(skip)
            rows, columns = (slice(offset, offset + n) for n in x.shape[1:3])
            x = out[f"fuse_{pool}"] = x + skip[:, rows, columns]
        name, offset = LAST[self.stride]
        out["logits"] = widen(self._upsample(name, x, self.stride, size, offset))
        return out

    def _upsample(
        self, name: str, x: Array, stride: int, size: Size, offset: int = 0
    ) -> Array:
        if name not in self.learnt:
            return interpolate(widen(x), stride, size, offset)
        layer = ConvTransposed(
            self.num_classes,
            2 * stride,
            stride=stride,
            offset=offset,
            use_bias=False,
            kernel_init=bilinear,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
        return layer(x, size)

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers that have classes."""
        scores = ["score_fr", *(f"score_{pool}" for _, pool, _ in SKIPS[self.stride])]
        score = ClassOutputs(np.arange(self.num_classes), self.score_init)
        learnt = score._replace(kernel_init=bilinear, reads_classes=True)
        return dict.fromkeys(scores, score) | dict.fromkeys(self.learnt, learnt)


def fcn_vgg16(
    *,
    stride: int,
    num_classes: int = 21,
    widths: tuple[int, ...] = vgg.WIDTHS,
    dense: int = vgg.DENSE,
    upsampling: str = "paper",
    at_once: bool = False,
    init: str | None = None,
    dropout: float = 0.5,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds a fully convolutional VGG-16.

    Args:
      stride: 32, 16 or 8: pixels of the image to one of the finest scores.
      num_classes: Background included; 0 for no head.
      widths: Channels of each of VGG-16's five blocks.
      dense: Channels of fc6 and fc7.
      upsampling: Which layers of upsampling have parameters, with bilinear kernels at
        the start: "paper" for all but the last, "fixed" for none, as the released
        networks were trained, "learnt" for all.
      at_once: Whether pool4 and pool3 are scaled by 0.01 and 0.0001, as where all
        skips are trained at once and not one after the other.
      init: Of the backbone, a name of `zoo.layers.INITIALIZERS`; None for VGG's.
      dropout: Rate after fc6 and fc7.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    layers = (*(name for name, _, _ in SKIPS[stride]), LAST[stride][0])
    learnt = {"paper": layers[:-1], "fixed": (), "learnt": layers}
    if upsampling not in learnt:
        raise ValueError(f"upsampling must be one of {[*learnt]}, got {upsampling!r}.")
    check_num_classes(num_classes)
    label = f"fcn{stride}s_vgg16"
    types = dict(dtype=dtype, param_dtype=param_dtype)
    config = vgg.VGGConfig(
        widths=tuple(widths),
        dense=dense,
        fully_convolutional=True,
        dropout=dropout,
        remat=remat,
        **types,
    )
    backbone = vgg.VGGBackbone(
        label,
        vgg.CONFIGS["D"],
        config,
        conv_init=init or "gaussian_0.1",
        dense_init=init or "gaussian_0.1",
        min_size=1,
        first_padding=100,
        ceil=True,
    )
    head = FCNHead(
        num_classes,
        stride,
        learnt=learnt[upsampling],
        scales=AT_ONCE if at_once else None,
        **types,
    )
    return Segmenter(
        backbone,
        head if num_classes else None,
        label=label,
        preprocess=PREPROCESS,
        min_size=stride,
    )


def _caffe_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """The released names; what interpolates here has a fixed kernel there."""
    layers = [
        f"conv{i}_{j}"
        for i, block in enumerate(vgg.CONFIGS["D"], start=1)
        for j in range(1, len(block) + 1)
    ]
    channels = model.backbone.config.widths[-1]
    rules = [TorchRule(f"backbone/{name}", name) for name in layers]
    rules += [
        # By the same name where a file keeps them as convolutions.
        TorchRule("backbone/fc6", "fc6", (channels, 7, 7), alias="fc6"),
        TorchRule("backbone/fc7", "fc7", alias="fc7"),
    ]
    if model.head is None:
        return tuple(rules)
    stride, learnt = model.head.stride, model.head.learnt
    for name in ("score_fr", *(f"score_{pool}" for _, pool, _ in SKIPS[stride])):
        rules.append(TorchRule(f"head/{name}", name))
    for name in (*(name for name, _, _ in SKIPS[stride]), LAST[stride][0]):
        module = f"head/{name}" if name in learnt else None
        rules.append(TorchRule(module, name, transposed=True))
    return tuple(rules)


PREPROCESS = Preprocess(
    size=500,
    channels=3,
    mean=(122.67892 / 255, 116.66877 / 255, 104.00699 / 255),
    std=(1 / 255,) * 3,
    fit="keep",
)
# Parameters and multiply-adds; pixel and class accuracy, mean and frequency weighted
# intersection over union in percent (table 2).
_NETWORKS = {
    32: (134_346_581, 180_903_432_960, (89.1, 73.3, 59.4, 81.4)),
    16: (134_364_410, 180_926_055_168, (90.0, 75.7, 62.4, 83.0)),
    8: (134_376_863, 180_975_843_648, (90.3, 75.9, 62.7, 83.2)),
}
_TEST = {8: ("PASCAL VOC 2011 test mean IU 62.7 %, 2012 62.2 % (table 3)",)}


def _spec(stride: int) -> ModelSpec:
    params, macs, (pixel, mean, iu, weighted) = _NETWORKS[stride]
    return ModelSpec(
        name=f"fcn{stride}s_vgg16",
        task="segmentation",
        build=partial(fcn_vgg16, stride=stride),
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


SPECS = tuple(_spec(stride) for stride in (32, 16, 8))
