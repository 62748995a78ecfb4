"""Residual networks of other widths: ResNeXt and wide residual networks.

References:
  Xie, Girshick, Dollar, Tu, He, Aggregated Residual Transformations for Deep Neural
  Networks, 2017 (ResNeXt).
  Zagoruyko, Komodakis, Wide Residual Networks, 2016.
"""

from typing import Any

from zoo.classification.imagenet import IMAGENET, torchvision_versions
from zoo.classification.resnet import ZERO_CHANNELS, Bottleneck, resnet_spec
from zoo.spec import ModelSpec

PAPER_RESNEXT = (
    "Xie, Girshick, Dollar, Tu, He: Aggregated Residual Transformations for Deep "
    "Neural Networks, 2017, table 1"
)
PAPER_WIDE = "Zagoruyko, Komodakis: Wide Residual Networks, 2016, section 3.4"
FIRST_POOL = (
    "the paper does not say how the first pool treats the borders: padding 1, as in "
    "its released Torch model"
)


def _spec(
    name: str,
    *deviations: str,
    files: tuple[tuple[str, float, float], ...],
    **facts: Any,
) -> ModelSpec:
    return resnet_spec(
        name,
        *deviations,
        FIRST_POOL,
        ZERO_CHANNELS,
        block=Bottleneck,
        preprocess=IMAGENET,
        torchvision=name,
        weights=torchvision_versions(*files),
        **facts,
    )


SPECS = (
    _spec(
        "resnext50_32x4d",
        blocks=(3, 4, 6, 3),
        options={"groups": 32, "width_per_group": 4},
        paper=PAPER_RESNEXT,
        params=25_028_904,
        macs=4_230_479_872,
        files=(
            ("resnext50_32x4d-7cdf4587.pth", 77.618, 93.698),
            ("resnext50_32x4d-1a0047aa.pth", 81.198, 95.340),
        ),
        published=("ImageNet validation error 22.2 %, one crop (table 3)",),
    ),
    _spec(
        "resnext101_32x8d",
        "the paper has groups of 4 channels, or 64 groups; the public weights of 8",
        blocks=(3, 4, 23, 3),
        options={"groups": 32, "width_per_group": 8},
        paper=PAPER_RESNEXT,
        params=88_791_336,
        macs=16_414_015_488,
        files=(
            ("resnext101_32x8d-8ba56ff5.pth", 79.312, 94.526),
            ("resnext101_32x8d-110c445d.pth", 82.834, 96.228),
        ),
        published=(
            "none in the paper; torchvision: ImageNet validation accuracy 79.31 % "
            "(top-5 94.53 %), one crop",
        ),
    ),
    _spec(
        "wide_resnet50_2",
        "the paper does not say which convolution of a bottleneck has the stride: the "
        "3x3 one, as in the public weights",
        blocks=(3, 4, 6, 3),
        options={"width_per_group": 128},
        paper=PAPER_WIDE,
        params=68_883_240,
        macs=11_398_021_120,
        files=(
            ("wide_resnet50_2-95faca4d.pth", 78.468, 94.086),
            ("wide_resnet50_2-9ba9bcbe.pth", 81.602, 95.758),
        ),
        published=(
            "ImageNet validation error 21.9 % (top-5 6.03 %), one crop (table 8)",
        ),
    ),
)
