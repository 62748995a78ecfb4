"""The residual networks for ImageNet, and their plain counterparts.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, table 1.
"""

from typing import Any

from zoo.classification.imagenet import CAFFE_MEAN, IMAGENET, torchvision_versions
from zoo.classification.resnet import (
    MEAN_COLOR,
    PAPER,
    ZERO_CHANNELS,
    BasicBlock,
    Bottleneck,
    resnet_spec,
)
from zoo.spec import ModelSpec

# Block, blocks of each stage, parameters and multiply-adds.
_NETWORKS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 11_689_512, 1_814_073_344),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 21_797_672, 3_663_761_408),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 25_557_032, 4_089_184_256),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 44_549_160, 7_801_405_440),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 60_192_808, 11_513_626_624),
    "resnet50_v1": (Bottleneck, (3, 4, 6, 3), 25_557_032, 3_857_973_248),
    "resnet101_v1": (Bottleneck, (3, 4, 23, 3), 44_549_160, 7_570_194_432),
    "resnet152_v1": (Bottleneck, (3, 8, 36, 3), 60_192_808, 11_282_415_616),
    "plain18": (BasicBlock, (2, 2, 2, 2), 11_515_688, 1_794_805_760),
    "plain34": (BasicBlock, (3, 4, 6, 3), 21_623_848, 3_644_493_824),
}
_TABLE_3 = "ImageNet validation error {} % (top-5 {} %), ten crops (table 3)"
_TABLE_4 = (
    "ImageNet validation error {} % (top-5 {} %), dense at several scales (table 4)"
)
_PUBLISHED = {
    "resnet18": ("ImageNet validation error 27.88 %, shortcut A, ten crops (table 2)",),
    "resnet34": (
        "ImageNet validation error 25.03 % (top-5 7.76 %) with shortcut A, 24.52 % "
        "(7.46 %) with B, 24.19 % (7.40 %) with C, ten crops (table 3)",
        "ImageNet validation error 21.84 % (top-5 5.71 %) with shortcut B, 21.53 % "
        "(5.60 %) with C, dense at several scales (table 4)",
    ),
    "resnet50": (_TABLE_3.format(22.85, 6.71), _TABLE_4.format(20.74, 5.25)),
    "resnet101": (_TABLE_3.format(21.75, 6.05), _TABLE_4.format(19.87, 4.6)),
    "resnet152": (_TABLE_3.format(21.43, 5.71), _TABLE_4.format(19.38, 4.49)),
    "plain18": ("ImageNet validation error 27.94 %, ten crops (table 2)",),
    "plain34": (_TABLE_3.format(28.54, 10.02),),
}
# torchvision's weights: the prefix of their hash, with which the name of their file
# ends, and top-1 and top-5 accuracy in percent. The second ones were trained longer.
_TORCHVISION = {
    "resnet18": (("f37072fd", 69.758, 89.078),),
    "resnet34": (("b627a593", 73.314, 91.420),),
    "resnet50": (("0676ba61", 76.130, 92.862), ("11ad3fa6", 80.858, 95.434)),
    "resnet101": (("63fe2227", 77.374, 93.546), ("cd907fc2", 81.886, 95.780)),
    "resnet152": (("394f9c45", 78.312, 94.046), ("f82ba261", 82.284, 96.002)),
}
_SCALED = "colors are scaled to deviation 1, as the public weights expect them"
_FIRST_POOL = (
    "the paper does not say how the first pool treats the borders: padding 1, where "
    "its released models have none and round up"
)
_LATE_STRIDE = (
    "a bottleneck's 3x3 convolution has the stride, as in the public weights, and not "
    "its first 1x1 one; the published results are of the latter"
)


def _spec(name: str, *deviations: str, **facts: Any) -> ModelSpec:
    block, blocks, params, macs = _NETWORKS[name]
    files = _TORCHVISION.get(name, ())
    return resnet_spec(
        name,
        *deviations,
        block=block,
        blocks=blocks,
        params=params,
        macs=macs,
        paper=f"{PAPER}, table 1",
        weights=torchvision_versions(*((f"{name}-{f}.pth", *n) for f, *n in files)),
        torchvision=name if files else None,
        published=_PUBLISHED[name.removesuffix("_v1")],
        **facts,
    )


_PUBLIC = (_SCALED, _FIRST_POOL, ZERO_CHANNELS)
_PAPERS = (MEAN_COLOR, _FIRST_POOL)
SPECS = (
    *(_spec(f"resnet{n}", *_PUBLIC, preprocess=IMAGENET) for n in (18, 34)),
    *(
        _spec(f"resnet{n}", _LATE_STRIDE, *_PUBLIC, preprocess=IMAGENET)
        for n in (50, 101, 152)
    ),
    *(
        _spec(
            f"resnet{n}_v1",
            *_PAPERS,
            ZERO_CHANNELS,
            preprocess=CAFFE_MEAN,
            options={"early_stride": True},
        )
        for n in (50, 101, 152)
    ),
    *(
        _spec(f"plain{n}", *_PAPERS, preprocess=CAFFE_MEAN, options={"shortcut": None})
        for n in (18, 34)
    ),
)
