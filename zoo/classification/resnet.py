"""Residual networks and the plain networks they are compared with.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import BatchNorm, Classifier, Conv, check_images, initializer, make_head
from zoo.spec import ModelSpec, Preprocess, TorchRule, Weights

Array = jax.Array

PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the input is added before the last activation.

    Attributes:
      features: Channels of both convolutions.
      stride: Of the first convolution.
      shortcut: What stands in the input's place where its shape changes: "A" the
        subsampled input between zero channels, "B" a 1x1 convolution.
      residual: False for a plain network, which adds nothing.
    """

    features: int
    stride: int
    shortcut: str
    residual: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(self.conv, self.features, 3, padding=1)
        y = conv(stride=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = conv(name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        if self.residual:
            y = y + self._shortcut(x, train)
        return nn.relu(y)

    def _shortcut(self, x: Array, train: bool) -> Array:
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            extra = self.features - x.shape[-1]
            zeros = (extra // 2, extra - extra // 2)
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), zeros))
        x = self.conv(self.features, 1, stride=self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x, train=train)


class Stem(nn.Module):
    """The first convolution of the CIFAR networks."""

    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = self.conv(16, 3, padding=1, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x, train=train))


class Stage(nn.Module):
    """Blocks of one width; the first one changes the resolution."""

    block: Callable
    blocks: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = self.block(self.features, stride, name=f"block{i + 1}")(x, train)
        return x


class CifarBackbone(nn.Module):
    """The paper's section 4.2: stages of 16, 32 and 64 channels for 32x32 images.

    Attributes:
      blocks: Blocks in each stage, n; the network has 6n + 2 weighted layers.
      remat: Recompute each block's activations in the backward pass (less memory).
    """

    blocks: int
    shortcut: str = "A"
    residual: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    momentum: float = 0.9
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, f"cifar_resnet{6 * self.blocks + 2}")
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = partial(Conv, use_bias=False, kernel_init=self.kernel_init, **types)
        norm = partial(BatchNorm, momentum=self.momentum, **types)
        cls = nn.remat(BasicBlock, static_argnums=(2,)) if self.remat else BasicBlock
        block = partial(
            cls, shortcut=self.shortcut, residual=self.residual, conv=conv, norm=norm
        )
        out = {}
        x = out["stem"] = Stem(conv, norm, name="stem")(images, train)
        for i, features in enumerate((16, 32, 64), start=1):
            stage = Stage(block, self.blocks, features, min(i, 2), name=f"stage{i}")
            x = out[f"stage{i}"] = stage(x, train)
        out["pool"] = x.mean(axis=(1, 2))
        return out


def cifar_resnet(
    *,
    depth: int,
    residual: bool = True,
    num_classes: int = 10,
    shortcut: str = "A",
    init: str = "he_fan_out",
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> Classifier:
    """Builds a residual or plain network of the paper's CIFAR-10 study.

    Args:
      depth: 6n + 2 weighted layers.
      residual: False for the plain network.
      num_classes: 0 for no head.
      shortcut: "A" (no parameters) or "B" (projections).
      init: Of the convolutions, a name of `zoo.layers.INITIALIZERS`.
      momentum: What batch norm's running averages keep at a step.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `depth` is not 6n + 2, or an option is unknown.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth}.")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}.")
    types = dict(dtype=dtype, param_dtype=param_dtype)
    backbone = CifarBackbone(
        blocks=(depth - 2) // 6,
        shortcut=shortcut,
        residual=residual,
        kernel_init=initializer(init),
        momentum=momentum,
        remat=remat,
        **types,
    )
    return Classifier(backbone, make_head(num_classes, **types))


def cifar_torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    """The names of the widespread PyTorch CIFAR ResNets (conv1, layer1.0, linear)."""
    rules = [
        TorchRule("backbone/stem/conv", "conv1"),
        TorchRule("backbone/stem/bn", "bn1"),
        TorchRule("head/fc", "linear"),
    ]
    parts = {
        "conv1": "conv1",
        "bn1": "bn1",
        "conv2": "conv2",
        "bn2": "bn2",
        "shortcut_conv": "shortcut.0",
        "shortcut_bn": "shortcut.1",
    }
    for stage in (1, 2, 3):
        for block in range(model.backbone.blocks):
            ours, theirs = f"backbone/stage{stage}/block{block + 1}", f"layer{stage}"
            for name, key in parts.items():
                rules.append(TorchRule(f"{ours}/{name}", f"{theirs}.{block}.{key}"))
    return tuple(rules)


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
# Yerlan Idelbayev's reimplementation: file hash and test error in percent.
_PUBLIC = {
    20: ("12fca82f", 8.27),
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
            f"pretrained_models/resnet{depth}-{sha}.th"
        ),
        sha256=sha,
        accuracy=f"{100 - error:.2f} % of CIFAR-10's test images",
        source="Yerlan Idelbayev, Proper ResNet Implementation for CIFAR10/CIFAR100",
        licence="BSD-2-Clause",
        preprocess=IMAGENET_COLOURS,
        class_names=tuple(CIFAR10_CLASSES),
    )


_DEVIATIONS = (
    "mean colour instead of mean image is subtracted from the input",
    "the paper does not say where option A puts its zero channels: half before and "
    "half after the input's, as the public weights have it",
    "the paper does not state the last layer's initialisation: normal, std 0.01, as in "
    "the paper it cites for the convolutions",
)


def _spec(kind: str, depth: int) -> ModelSpec:
    residual = kind == "resnet"
    if residual:
        published = (f"CIFAR-10 test error {_ERRORS[depth]} %, single view (table 6)",)
    elif depth == 110:
        published = ("CIFAR-10 training and test error above 60 % (section 4.2)",)
    else:
        published = (
            "CIFAR-10 error: curves only (figure 6), above the residual net's",
        )
    return ModelSpec(
        name=f"cifar_{kind}{depth}",
        task="classification",
        build=partial(cifar_resnet, depth=depth, residual=residual),
        paper=f"{PAPER}, section 4.2",
        num_classes=10,
        preprocess=CIFAR_PREPROCESS,
        params=_PARAMS[depth],
        macs=_MACS[depth],
        torch_rules=cifar_torch_rules,
        weights=(_public_weights(depth),) if residual else (),
        init="He et al. 2015, normal of variance 2 / (k * k * output channels)",
        published=published,
        deviations=_DEVIATIONS if residual else (_DEVIATIONS[0], _DEVIATIONS[2]),
    )


SPECS = (
    *(_spec("resnet", depth) for depth in (20, 32, 44, 56, 110, 1202)),
    *(_spec("plain", depth) for depth in (20, 32, 44, 56, 110)),
)
