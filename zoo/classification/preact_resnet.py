"""Residual networks whose blocks normalize and rectify before each convolution ("v2").

Reference:
  He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, 2016.
"""

from functools import partial

from flax import linen as nn
from jax import Array

from zoo.classification.imagenet import IMAGENET
from zoo.classification.resnet import Block, resnet_spec, torch_rules
from zoo.layers import Classifier
from zoo.spec import Preprocess, TorchRule

PAPER = "He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016"
# The colors in the code of the authors.
CIFAR = Preprocess(
    size=32,
    channels=3,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
)


class PreActBottleneck(Block):
    """Batch norm and ReLU before each convolution, and nothing after the addition.

    Where the shape changes, the 1x1 convolution of the shortcut reads the rectified
    input, as the branch does.

    Reference:
      The paper, figure 4e.
    """

    pre_activation = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def activate(x: Array, name: str) -> Array:
            return nn.relu(self.norm(name=name)(x, train=train))

        features = 4 * self.features
        strides = (self.stride, 1) if self.early_stride else (1, self.stride)
        active = x if self.first else activate(x, "bn1")
        y = self.conv(self.features, 1, stride=strides[0], name="conv1")(active)
        conv2 = self.conv3x3(self.features, stride=strides[1], name="conv2")
        y = conv2(activate(y, "bn2"))
        y = self.conv(features, 1, name="conv3")(activate(y, "bn3"))
        if x.shape[-1] != features:
            project = self.conv(features, 1, stride=self.stride, name="shortcut_conv")
            x = project(active)
        return x + y


def _torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    return (*torch_rules(model), TorchRule("backbone/final_bn", "bn_final"))


_SCALED = (
    "colors are normalized by their mean and deviation, as in the code that was "
    "published with the paper"
)
_LATE_STRIDE = (
    "the 3x3 convolutions have the stride, and projections no batch norm: the paper "
    "does not say, its released Torch model has it so"
)


_OPTIONS = {"shortcut": "B", "output_stride": 32}
_CIFAR_OPTIONS = {**_OPTIONS, "early_stride": True}
_spec = partial(
    resnet_spec,
    block=PreActBottleneck,
    paper=f"{PAPER}, section 5 and appendix",
    torch_rules=_torch_rules,
)

SPECS = (
    _spec(
        "resnet200_v2",
        _SCALED,
        _LATE_STRIDE,
        blocks=(3, 24, 36, 3),
        params=64_666_152,
        macs=15_007_481_856,
        options=_OPTIONS,
        preprocess=IMAGENET,
        published=(
            "ImageNet validation error 20.7 % (top-5 5.3 %), one crop of 320 x 320 "
            "(table 5)",
        ),
    ),
    _spec(
        "cifar_resnet164_v2",
        _SCALED,
        blocks=(18, 18, 18),
        params=1_703_258,
        macs=244_500_992,
        options=_CIFAR_OPTIONS,
        preprocess=CIFAR,
        published=("CIFAR-10 test error 5.46 %, CIFAR-100 24.33 % (table 3)",),
    ),
    _spec(
        "cifar_resnet1001_v2",
        _SCALED,
        blocks=(111, 111, 111),
        params=10_327_706,
        macs=1_487_849_984,
        options=_CIFAR_OPTIONS,
        preprocess=CIFAR,
        published=(
            "CIFAR-10 test error 4.92 %, CIFAR-100 22.71 % (table 3)",
            "CIFAR-10 test error 4.62 %, trained with batches of 64 (table 4)",
        ),
    ),
)
