"""Residual networks whose blocks begin with their activations ("v2").

Reference:
  He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, 2016.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.classification.imagenet import IMAGENET
from zoo.classification.residual import Block, make_classifier, torch_rules
from zoo.classification.resnet import INIT, LAST_LAYER
from zoo.layers import Classifier
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = "He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016"


class PreActivationBottleneck(Block):
    """Batch norm and ReLU before each convolution, and nothing after the addition.

    Where the shape changes, the 1x1 convolution of the shortcut reads the activated
    input, as the branch does. The network's first block has an activated input already.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def activate(x: Array, name: str) -> Array:
            return nn.relu(self.norm(name=name)(x, train=train))

        features = 4 * self.features
        strides = (self.stride, 1) if self.early_stride else (1, self.stride)
        active = x if self.first else activate(x, "bn1")
        y = self.conv(self.features, 1, stride=strides[0], name="conv1")(active)
        y = self.conv3x3(strides[1], name="conv2")(activate(y, "bn2"))
        y = self.conv(features, 1, name="conv3")(activate(y, "bn3"))
        if x.shape[-1] != features:
            project = self.conv(features, 1, stride=self.stride, name="shortcut_conv")
            x = project(active)
        return x + y


def preact_resnet(
    *,
    depth: int,
    small: bool,
    num_classes: int,
    width: int | None = None,
    init: str | None = None,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> Classifier:
    """Builds a pre-activation network of bottlenecks.

    Args:
      depth: Weighted layers: 200 for ImageNet, 9n + 2 for small images.
      small: For images of 32 x 32 pixels: three stages of 16, 32 and 64 channels
        (times four in the blocks' outputs), and the stride in the first 1x1
        convolution. Else the four stages for ImageNet, and the stride in the 3x3.
      num_classes: 0 for no head.
      width: Channels of the stem and of the first stage's 3x3 convolutions; None for
        16 in networks for small images, else 64.
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
      ValueError: There is no network of this depth, or an option is unknown.
    """
    if small and (depth < 11 or depth % 9 != 2):
        raise ValueError(f"depth must be 9n + 2 with n >= 1, got {depth}.")
    if not small and depth != 200:
        raise ValueError(f"depth must be 200, got {depth}.")
    return make_classifier(
        label=f"{'cifar_' * small}resnet{depth}_v2",
        block=PreActivationBottleneck,
        blocks=((depth - 2) // 9,) * 3 if small else (3, 24, 36, 3),
        width=width or (16 if small else 64),
        small=small,
        preactivation=True,
        early_stride=small,
        num_classes=num_classes,
        init=init,
        momentum=momentum,
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
        scan=scan,
    )


def _torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    return (*torch_rules(model), TorchRule("backbone/final_bn", "bn_final"))


# Of the code that the authors published with the paper.
CIFAR_COLOURS = Preprocess(
    size=32,
    channels=3,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
)

_COLOURS = (
    "colours are normalised by their mean and deviation, as in the code that was "
    "published with the paper"
)
# Depth: parameters, multiply-adds, published results.
_CIFAR = {
    164: (
        1_703_258,
        244_500_992,
        ("CIFAR-10 test error 5.46 %, CIFAR-100 24.33 % (table 3)",),
    ),
    1001: (
        10_327_706,
        1_487_849_984,
        (
            "CIFAR-10 test error 4.92 %, CIFAR-100 22.71 % (table 3)",
            "CIFAR-10 test error 4.62 %, trained with batches of 64 (table 4)",
        ),
    ),
}


def _cifar(depth: int) -> ModelSpec:
    params, macs, published = _CIFAR[depth]
    return ModelSpec(
        name=f"cifar_resnet{depth}_v2",
        task="classification",
        build=partial(preact_resnet, depth=depth, small=True),
        paper=f"{PAPER}, section 5 and appendix",
        num_classes=10,
        preprocess=CIFAR_COLOURS,
        params=params,
        macs=macs,
        torch_rules=_torch_rules,
        init=INIT,
        published=published,
        deviations=(_COLOURS, LAST_LAYER),
    )


SPECS = (
    ModelSpec(
        name="resnet200_v2",
        task="classification",
        build=partial(preact_resnet, depth=200, small=False),
        paper=f"{PAPER}, section 5 and appendix",
        num_classes=1000,
        preprocess=IMAGENET,
        params=64_666_152,
        macs=15_007_481_856,
        torch_rules=_torch_rules,
        init=INIT,
        published=(
            "ImageNet validation error 20.7 % (top-5 5.3 %), one crop of 320 x 320 "
            "(table 5)",
        ),
        deviations=(
            _COLOURS,
            "the 3x3 convolutions have the stride, and projections no batch norm: the "
            "paper does not say, its released Torch model has it so",
            LAST_LAYER,
        ),
    ),
    _cifar(164),
    _cifar(1001),
)
