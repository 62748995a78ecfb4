"""Residual networks for ImageNet, and the plain networks they are compared with.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.classification.imagenet import IMAGENET, MEAN_COLOUR, torchvision_weights
from zoo.classification.residual import (
    BasicBlock,
    Bottleneck,
    make_classifier,
    torch_rules,
)
from zoo.layers import Classifier
from zoo.spec import ModelSpec

PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015"
INIT = "He et al. 2015, normal of variance 2 / (k * k * output channels)"
ZERO_CHANNELS = (
    "the paper does not say where option A puts its zero channels: half before and "
    "half after the input's, as public weights for CIFAR-10 have it"
)
LAST_LAYER = (
    "the paper does not state the last layer's initialisation: normal, std 0.01, as in "
    "the paper it cites for the convolutions"
)

_DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def resnet(
    *,
    depth: int,
    early_stride: bool = False,
    num_classes: int = 1000,
    width: int = 64,
    shortcut: str | None = "B",
    output_stride: int = 32,
    init: str | None = None,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> Classifier:
    """Builds a residual or plain network of the paper's table 1.

    Args:
      depth: Weighted layers: 18, 34, 50, 101 or 152.
      early_stride: Whether the first 1x1 convolution has a bottleneck's stride, as
        published, and not the 3x3 one, as in most public weights.
      num_classes: 0 for no head.
      width: Channels of the stem and of the first stage's 3x3 convolutions.
      shortcut: "A" (no parameters), "B" (projections where the shape changes), "C"
        (projections everywhere), or None for a plain network.
      output_stride: Pixels of the image to one of the last map, 32, 16 or 8: below 32
        the last stages are dilated instead, with the same parameters.
      init: Of the convolutions, a name of `zoo.layers.INITIALIZERS`; None for the
        paper's.
      momentum: What batch norm's running averages keep at a step.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.
      scan: Compile equal blocks as one loop, in a time that does not grow with their
        number; the variables are the same. XLA's CPU runs loops slower (2.4 times,
        measured on 110 layers). Batch norm in them cannot be frozen.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"depth must be one of {[*_DEPTHS]}, got {depth}.")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}.")
    block, blocks = _DEPTHS[depth]
    kind, version = "plain" if shortcut is None else "resnet", "_v1" * early_stride
    return make_classifier(
        label=f"{kind}{depth}{version}",
        block=block,
        blocks=blocks,
        width=width,
        shortcut=shortcut,
        early_stride=early_stride,
        output_stride=output_stride,
        num_classes=num_classes,
        init=init,
        momentum=momentum,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        scan=scan,
    )


_PARAMS = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}
_MACS = {
    18: 1_814_073_344,
    34: 3_663_761_408,
    50: 4_089_184_256,
    101: 7_801_405_440,
    152: 11_513_626_624,
}
_MACS_V1 = {50: 3_857_973_248, 101: 7_570_194_432, 152: 11_282_415_616}
_PLAIN = {18: (11_515_688, 1_794_805_760), 34: (21_623_848, 3_644_493_824)}
# torchvision's first weights and its later ones, which a longer recipe trained.
_WEIGHTS = {
    18: [("resnet18-f37072fd.pth", 69.758, 89.078)],
    34: [("resnet34-b627a593.pth", 73.314, 91.420)],
    50: [
        ("resnet50-0676ba61.pth", 76.130, 92.862),
        ("resnet50-11ad3fa6.pth", 80.858, 95.434),
    ],
    101: [
        ("resnet101-63fe2227.pth", 77.374, 93.546),
        ("resnet101-cd907fc2.pth", 81.886, 95.780),
    ],
    152: [
        ("resnet152-394f9c45.pth", 78.312, 94.046),
        ("resnet152-f82ba261.pth", 82.284, 96.002),
    ],
}
# ImageNet validation error in percent, top-1 and top-5: by ten crops (table 3), and
# by dense evaluation at several scales (table 4).
_ERRORS = {
    50: (22.85, 6.71, 20.74, 5.25),
    101: (21.75, 6.05, 19.87, 4.60),
    152: (21.43, 5.71, 19.38, 4.49),
}
_PUBLISHED = {
    "resnet18": ("ImageNet validation error 27.88 %, shortcut A, ten crops (table 2)",),
    "resnet34": (
        "ImageNet validation error 25.03 % (top-5 7.76 %) with shortcut A, 24.52 % "
        "(7.46 %) with B, 24.19 % (7.40 %) with C, ten crops (table 3)",
        "ImageNet validation error 21.84 % (top-5 5.71 %) with shortcut B, 21.53 % "
        "(5.60 %) with C, dense at several scales (table 4)",
    ),
    "plain18": ("ImageNet validation error 27.94 %, ten crops (table 2)",),
    "plain34": (
        "ImageNet validation error 28.54 % (top-5 10.02 %), ten crops (table 3)",
    ),
}
_FIRST_POOL = (
    "the paper does not say how the first pool treats the borders: padding 1, where "
    "its released models have none and round up"
)
_SUBTRACTED = "mean colour instead of mean image is subtracted from the input"
_LATE_STRIDE = (
    "a bottleneck's 3x3 convolution has the stride, as in the public weights, and not "
    "its first 1x1 one; the published results are of the latter"
)
_COLOURS = "colours are scaled to deviation 1, as the public weights expect them"


def _resnet(depth: int) -> ModelSpec:
    weights = [torchvision_weights(*facts) for facts in _WEIGHTS[depth][:1]]
    for facts in _WEIGHTS[depth][1:]:
        weights.append(torchvision_weights(*facts, name="imagenet_v2", resize=232))
    basic = depth in (18, 34)
    return _spec(
        name=f"resnet{depth}",
        build=partial(resnet, depth=depth, early_stride=False),
        preprocess=IMAGENET,
        params=_PARAMS[depth],
        macs=_MACS[depth],
        weights=tuple(weights),
        torchvision=f"resnet{depth}",
        published=_PUBLISHED[f"resnet{depth}"] if basic else _published(depth),
        deviations=(
            *(() if basic else (_LATE_STRIDE,)),
            _COLOURS,
            _FIRST_POOL,
            ZERO_CHANNELS,
            LAST_LAYER,
        ),
    )


def _v1(depth: int) -> ModelSpec:
    return _spec(
        name=f"resnet{depth}_v1",
        build=partial(resnet, depth=depth, early_stride=True),
        preprocess=MEAN_COLOUR,
        params=_PARAMS[depth],
        macs=_MACS_V1[depth],
        published=_published(depth),
        deviations=(_SUBTRACTED, _FIRST_POOL, ZERO_CHANNELS, LAST_LAYER),
    )


def _plain(depth: int) -> ModelSpec:
    params, macs = _PLAIN[depth]
    return _spec(
        name=f"plain{depth}",
        build=partial(resnet, depth=depth, early_stride=False, shortcut=None),
        preprocess=MEAN_COLOUR,
        params=params,
        macs=macs,
        published=_PUBLISHED[f"plain{depth}"],
        deviations=(_SUBTRACTED, _FIRST_POOL, LAST_LAYER),
    )


def _published(depth: int) -> tuple[str, ...]:
    ten, ten5, dense, dense5 = _ERRORS[depth]
    return (
        f"ImageNet validation error {ten} % (top-5 {ten5} %), ten crops (table 3)",
        f"ImageNet validation error {dense} % (top-5 {dense5} %), dense at several "
        "scales (table 4)",
    )


def _spec(**facts: Any) -> ModelSpec:
    return ModelSpec(
        task="classification",
        paper=f"{PAPER}, table 1",
        num_classes=1000,
        torch_rules=torch_rules,
        init=INIT,
        **facts,
    )


SPECS = (
    *(_resnet(depth) for depth in (18, 34, 50, 101, 152)),
    *(_v1(depth) for depth in (50, 101, 152)),
    *(_plain(depth) for depth in (18, 34)),
)
