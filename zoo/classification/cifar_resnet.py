"""Residual and plain networks for CIFAR-10.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, section 4.2.
"""

import dataclasses
from functools import partial
from typing import Any

from zoo.classification.imagenet import IMAGENET
from zoo.classification.resnet import (
    MEAN_COLOR,
    PAPER,
    ZERO_CHANNELS,
    BasicBlock,
    resnet_spec,
    torch_rules,
)
from zoo.spec import ModelSpec, Preprocess, Weights

# The mean color of CIFAR-10's training images.
CIFAR = Preprocess(
    size=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(1.0, 1.0, 1.0)
)
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
# Depth: parameters, multiply-adds, and two errors in percent, the published one
# (table 6) and that of Yerlan Idelbayev's weights.
_NETWORKS = {
    20: (269_722, 40_551_040, 8.75, 8.27),
    32: (464_154, 68_862_592, 7.51, 7.37),
    44: (658_586, 97_174_144, 7.17, 6.90),
    56: (853_018, 125_485_696, 6.97, 6.61),
    110: (1_727_962, 252_887_680, 6.43, 6.32),
    1202: (19_421_274, 2_829_238_912, 7.93, 6.18),
}
# The hashes of his files, or as much of them as is published.
_HASHES = {
    20: "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
    32: "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850",
    44: "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4",
    56: "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367",
    110: "1d1ed7c2",
    1202: "f3b1deed",
}


def _spec(depth: int, kind: str, *deviations: str, **facts: Any) -> ModelSpec:
    params, macs, _, _ = _NETWORKS[depth]
    shortcut = {"shortcut": None} if kind == "plain" else {}
    return resnet_spec(
        f"cifar_{kind}{depth}",
        MEAN_COLOR,
        *deviations,
        block=BasicBlock,
        blocks=((depth - 2) // 6,) * 3,
        params=params,
        macs=macs,
        options={"output_stride": 32, **shortcut},
        preprocess=CIFAR,
        paper=f"{PAPER}, section 4.2",
        torch_rules=partial(torch_rules, shortcut="shortcut", head="linear"),
        **facts,
    )


def _resnet(depth: int) -> ModelSpec:
    _, _, error, reproduced = _NETWORKS[depth]
    sha256 = _HASHES[depth]
    weights = Weights(
        name="cifar10",
        url=(
            "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/"
            f"pretrained_models/resnet{depth}-{sha256[:8]}.th"
        ),
        sha256=sha256,
        accuracy=f"{100 - reproduced:.2f} % of CIFAR-10's test images",
        source="Yerlan Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100",
        licence="BSD-2-Clause",
        preprocess=dataclasses.replace(IMAGENET, size=32, resize=None),
        class_names=CLASSES,
    )
    published = (f"CIFAR-10 test error {error} %, single view (table 6)",)
    return _spec(
        depth, "resnet", ZERO_CHANNELS, published=published, weights=(weights,)
    )


def _plain(depth: int) -> ModelSpec:
    error = "CIFAR-10 error: curves only (figure 6), above the residual net's"
    if depth == 110:
        error = "CIFAR-10 training and test error above 60 % (section 4.2)"
    return _spec(depth, "plain", published=(error,))


SPECS = (*map(_resnet, _NETWORKS), *map(_plain, (20, 32, 44, 56, 110)))
