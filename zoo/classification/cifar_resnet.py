"""The CIFAR-10 study: small residual networks and plain ones of the same depths.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, section 4.2.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.classification.residual import BasicBlock, make_classifier, torch_rules
from zoo.classification.resnet import INIT, LAST_LAYER, PAPER, ZERO_CHANNELS
from zoo.layers import Classifier
from zoo.spec import ModelSpec, Preprocess, Weights


def cifar_resnet(
    *,
    depth: int,
    num_classes: int = 10,
    width: int = 16,
    shortcut: str | None = "A",
    init: str | None = None,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> Classifier:
    """Builds a residual or plain network: stages of 16, 32 and 64 channels.

    Args:
      depth: 6n + 2 weighted layers, of which each stage has n blocks.
      num_classes: 0 for no head.
      width: Channels of the stem and of the first stage.
      shortcut: "A" (no parameters), "B" (projections where the shape changes), "C"
        (projections everywhere), or None for a plain network.
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
      ValueError: `depth` is not 6n + 2, or an option is unknown.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}.")
    return make_classifier(
        label=f"cifar_{'plain' if shortcut is None else 'resnet'}{depth}",
        block=BasicBlock,
        blocks=((depth - 2) // 6,) * 3,
        width=width,
        small=True,
        shortcut=shortcut,
        num_classes=num_classes,
        init=init,
        momentum=momentum,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        scan=scan,
    )


# The paper subtracts the mean image; its mean colour (of CIFAR-10's training images)
# is a property of channels and serves every data set of that kind.
CIFAR_PREPROCESS = Preprocess(
    size=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(1.0, 1.0, 1.0)
)
IMAGENET_COLOURS = Preprocess(
    size=32, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()

_ERRORS = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
_PARAMS = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}
_MACS = {
    20: 40_551_040,
    32: 68_862_592,
    44: 97_174_144,
    56: 125_485_696,
    110: 252_887_680,
    1202: 2_829_238_912,
}
# Yerlan Idelbayev's reimplementation: file hash, or the beginning that is published of
# it, and test error in percent.
_PUBLIC = {
    20: ("12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 8.27),
    32: ("d509ac18", 7.37),
    44: ("014dd654", 6.90),
    56: ("4bfd9763", 6.61),
    110: ("1d1ed7c2", 6.32),
    1202: ("f3b1deed", 6.18),
}


def _public_weights(depth: int) -> Weights:
    sha, error = _PUBLIC[depth]
    return Weights(
        name="cifar10",
        url=(
            "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/"
            f"pretrained_models/resnet{depth}-{sha[:8]}.th"
        ),
        sha256=sha,
        accuracy=f"{100 - error:.2f} % of CIFAR-10's test images",
        source="Yerlan Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100",
        licence="BSD-2-Clause",
        preprocess=IMAGENET_COLOURS,
        class_names=tuple(CIFAR10_CLASSES),
    )


_MEAN_COLOUR = "mean colour instead of mean image is subtracted from the input"


def _resnet(depth: int) -> ModelSpec:
    return _spec(
        name=f"cifar_resnet{depth}",
        depth=depth,
        build=partial(cifar_resnet, depth=depth),
        weights=(_public_weights(depth),),
        published=(f"CIFAR-10 test error {_ERRORS[depth]} %, single view (table 6)",),
        deviations=(_MEAN_COLOUR, ZERO_CHANNELS, LAST_LAYER),
    )


def _plain(depth: int) -> ModelSpec:
    result = "CIFAR-10 error: curves only (figure 6), above the residual net's"
    if depth == 110:
        result = "CIFAR-10 training and test error above 60 % (section 4.2)"
    return _spec(
        name=f"cifar_plain{depth}",
        depth=depth,
        build=partial(cifar_resnet, depth=depth, shortcut=None),
        published=(result,),
        deviations=(_MEAN_COLOUR, LAST_LAYER),
    )


def _spec(depth: int, **facts: Any) -> ModelSpec:
    return ModelSpec(
        task="classification",
        paper=f"{PAPER}, section 4.2",
        num_classes=10,
        preprocess=CIFAR_PREPROCESS,
        params=_PARAMS[depth],
        macs=_MACS[depth],
        torch_rules=partial(torch_rules, shortcut="shortcut", head="linear"),
        init=INIT,
        **facts,
    )


SPECS = (
    *(_resnet(depth) for depth in (20, 32, 44, 56, 110, 1202)),
    *(_plain(depth) for depth in (20, 32, 44, 56, 110)),
)
