"""Residual networks, and their plain counterparts.

`imagenet_resnet` and `cifar_resnet` list the networks.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.layers import (
    BatchNorm,
    Classifier,
    Conv,
    NetworkConfig,
    initializer,
    make_head,
)
from zoo.ops.pooling import global_average_pool, max_pool
from zoo.spec import ModelSpec, TorchRule

Array = jax.Array

PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetworkConfig):
    """Options of a residual network.

    Attributes:
      width: Number of channels of the stem and of the first stage's 3x3 convolutions.
      shortcut: Shortcut of blocks that change the shape: "A" for the subsampled input
        with channels of zeros on both sides, "B" for a 1x1 convolution; "C" for a 1x1
        convolution in every block. None for a plain network, which adds nothing.
      output_stride: Ratio of the image's size to the last map's: 32, 16 or 8. Below 32
        the last stages are dilated instead of strided, with the same parameters.
      init: Initializer of the convolutions, a name of `zoo.layers.INITIALIZERS`; None
        for the paper's.
      momentum: Decay rate of batch norm's running averages.
      remat: Whether the backward pass recomputes each block's activations, which takes
        time and saves memory.
      scan: Whether the equal blocks of a stage are compiled as one loop, in a time that
        does not grow with their number; the variables are the same. On CPUs a training
        step of 110 layers takes 1.1 times as long. Their batch norm cannot be frozen.
    """

    width: int = 64
    shortcut: str | None = "B"
    output_stride: int = 32
    init: str | None = None
    momentum: float = 0.9
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.shortcut not in ("A", "B", "C", None):
            raise ValueError(
                f"shortcut must be 'A', 'B' or 'C', got {self.shortcut!r}."
            )
        if self.output_stride not in (8, 16, 32):
            raise ValueError(
                f"output_stride must be 8, 16 or 32, got {self.output_stride}."
            )
        initializer(self.init or "he_fan_out")  # Raises for an unknown name.

    @property
    def kernel_init(self) -> Callable:
        """The initializer of the convolutions."""
        return initializer(self.init or "he_fan_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CifarConfig(ResNetConfig):
    """Options of a residual network for images of 32 x 32 pixels."""

    width: int = 16
    shortcut: str | None = "A"


class Block(nn.Module):
    """A branch of convolutions, added to the block's input, and a ReLU.

    Attributes:
      features: Number of channels of the 3x3 convolutions; for a bottleneck with other
        groups than the paper's, a quarter of its output channels.
      stride: Stride of the block.
      dilation: Dilation of the 3x3 convolutions.
      first: Whether it is the network's first block, whose input is already rectified.
      shortcut: Shortcut of blocks that change the shape, see `ResNetConfig`.
      early_stride: Whether a bottleneck's first 1x1 convolution has the stride, as
        published, instead of its 3x3 convolution, as in most public weights ("v1.5").
      groups: Number of groups of a bottleneck's 3x3 convolution.
      width_per_group: Number of channels of each of these groups if `features` is 64,
        and in proportion to `features` otherwise.
      conv: Constructor of the convolutions.
      norm: Constructor of the batch norms.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    first: bool = False
    shortcut: str | None = "B"
    early_stride: bool = False
    groups: int = 1
    width_per_group: int = 64
    conv: Callable = Conv
    norm: Callable = BatchNorm
    # Whether the map after the last block is yet to be normalized and rectified.
    pre_activation = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.branch(x, train)
        if self.shortcut is not None:
            y = y + self.project(x, y.shape[-1], train)
        return nn.relu(y)

    def branch(self, x: Array, train: bool) -> Array:
        """Computes the output of the branch, without the shortcut."""
        raise NotImplementedError

    def project(self, x: Array, features: int, train: bool) -> Array:
        """Brings the input to the shape of the branch's output."""
        same = self.stride == 1 and x.shape[-1] == features
        if same and self.shortcut != "C":
            return x
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            extra = features - x.shape[-1]
            zeros = (extra // 2, extra - extra // 2)
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), zeros))
        x = self.conv(features, 1, stride=self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x, train=train)

    def conv3x3(self, features: int, *, stride: int = 1, **options: Any) -> nn.Module:
        """Makes a 3x3 convolution that keeps the size of a map at stride 1."""
        d = self.dilation
        return self.conv(features, 3, stride=stride, padding=d, dilation=d, **options)


class BasicBlock(Block):
    """Two 3x3 convolutions; figure 5, left."""

    def branch(self, x: Array, train: bool) -> Array:
        """Computes the output of the branch, without the shortcut."""
        y = self.conv3x3(self.features, stride=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3x3(self.features, name="conv2")(y)
        return self.norm(name="bn2")(y, train=train)


class Bottleneck(Block):
    """A 3x3 convolution between two 1x1 convolutions; figure 5, right."""

    def branch(self, x: Array, train: bool) -> Array:
        """Computes the output of the branch, without the shortcut."""
        strides = (self.stride, 1) if self.early_stride else (1, self.stride)
        width = self.features * self.width_per_group // 64 * self.groups
        y = self.conv(width, 1, stride=strides[0], name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        conv2 = self.conv3x3(width, stride=strides[1], groups=self.groups, name="conv2")
        y = conv2(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y, train=train)


class Stem(nn.Module):
    """The first convolution and, for ImageNet, the max pool that follows it.

    Attributes:
      features: Number of channels.
      small: Whether it is for images of 32 x 32 pixels: a 3x3 convolution without a
        pool, in place of a 7x7 convolution of stride 2 with one.
      conv: Constructor of the convolution.
      norm: Constructor of the batch norm.
    """

    features: int
    small: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> dict[str, Array]:
        kernel, stride = (3, 1) if self.small else (7, 2)
        x = self.conv(
            self.features, kernel, stride=stride, padding=kernel // 2, name="conv"
        )(x)
        out = {"stem": nn.relu(self.norm(name="bn")(x, train=train))}
        if not self.small:
            out["stem_pool"] = max_pool(out["stem"], 3, 2, padding=1)
        return out


class Stage(nn.Module):
    """Blocks of one width, the first of which may change the resolution.

    Attributes:
      first: Constructor of the first block.
      block: Constructor of each other block.
      blocks: Number of blocks, the first included.
      scan: Whether the other blocks are compiled as one loop.
    """

    first: Callable
    block: Callable
    blocks: int
    scan: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = self.first(name="block1")(x, train)
        names = [f"block{i + 1}" for i in range(1, self.blocks)]
        # In a loop, the outputs of single blocks could not be captured.
        captured = self.is_mutable_collection("intermediates")
        if self.scan and names and not (captured or self.is_initializing()):
            return self._loop(names, x, train)
        for name in names:
            x = self.block(name=name)(x, train)
        return x

    def _loop(self, names: list[str], x: Array, train: bool) -> Array:
        """Runs equal blocks in a loop over their stacked variables."""
        stacked = {
            collection: jax.tree.map(lambda *v: jnp.stack(v), *(t[n] for n in names))
            for collection, t in self.variables.items()
        }
        block = self.block(parent=None)

        def body(x: Array, variables: dict) -> tuple[Array, dict]:
            return block.apply(variables, x, train, mutable=["batch_stats"])

        x, updated = jax.lax.scan(body, x, stacked)
        if train and self.is_mutable_collection("batch_stats"):
            for i, name in enumerate(names):
                stats = jax.tree.map(lambda v, i=i: v[i], updated["batch_stats"])
                self.put_variable("batch_stats", name, stats)
        return x


class ResNetBackbone(nn.Module):
    """A stem and stages, each with twice the channels of the one before it.

    Attributes:
      label: Name of the network in error messages.
      block: Class of the blocks.
      blocks: Number of blocks of each stage.
      config: Options of the network.
      small: Whether it is for images of 32 x 32 pixels, see `Stem`.
      stem: Constructor of the stem; called as `Stem` is.
      early_stride: Which convolution of a bottleneck has the stride, see `Block`.
      groups: Number of groups of a bottleneck's 3x3 convolutions.
      width_per_group: Number of channels of each of these groups, see `Block`.
      dilate_first: Whether the first block of a dilated stage has the stage's dilation,
        as in PSPNet, instead of that of the previous stage, as in torchvision.
      pooled: Whether the last endpoint is the mean over the map, for a classifier.
      epsilon: Value that batch norm adds to the variance.
      frozen: Whether batch norm is a fixed affine map, see `BatchNorm`.
    """

    label: str
    block: type[Block]
    blocks: tuple[int, ...]
    config: ResNetConfig = ResNetConfig()
    small: bool = False
    stem: Callable = Stem
    early_stride: bool = False
    groups: int = 1
    width_per_group: int = 64
    dilate_first: bool = False
    pooled: bool = True
    epsilon: float = 1e-5
    frozen: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label)
        config = self.config
        conv = partial(
            Conv, use_bias=False, kernel_init=config.kernel_init, **config.dtypes
        )
        norm = partial(
            BatchNorm,
            momentum=config.momentum,
            epsilon=self.epsilon,
            frozen=self.frozen,
            **config.dtypes,
        )
        block = partial(
            nn.remat(self.block, static_argnums=(2,)) if config.remat else self.block,
            shortcut=config.shortcut,
            early_stride=self.early_stride,
            groups=self.groups,
            width_per_group=self.width_per_group,
            conv=conv,
            norm=norm,
        )

        out = self.stem(config.width, self.small, conv, norm, name="stem")(
            images, train
        )
        x = [*out.values()][-1]
        total_stride, dilation = (1, 1) if self.small else (4, 1)
        for i, blocks in enumerate(self.blocks):
            stride, first_dilation = 1 if i == 0 else 2, dilation
            if stride == 2 and total_stride == config.output_stride:
                stride, dilation = 1, 2 * dilation
            if self.dilate_first:
                first_dilation = dilation
            total_stride *= stride
            make = partial(block, config.width * 2**i)
            first = partial(make, stride=stride, dilation=first_dilation, first=i == 0)
            others = partial(make, dilation=dilation)
            name = f"stage{i + 1}"
            x = out[name] = Stage(first, others, blocks, config.scan, name=name)(
                x, train
            )
        if self.block.pre_activation:
            x = out["final"] = nn.relu(norm(name="final_bn")(x, train=train))
        if self.pooled:
            out["pool"] = global_average_pool(x)
        return out


def resnet(
    *,
    block: type[Block],
    blocks: tuple[int, ...],
    num_classes: int = 1000,
    label: str = "resnet",
    small: bool = False,
    early_stride: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
    **options: Any,
) -> Classifier:
    """Builds a residual or plain network.

    Args:
      block: Class of the blocks.
      blocks: Number of blocks of each stage.
      num_classes: Number of classes; 0 for no head.
      label: Name of the network in error messages.
      small: Whether it is for images of 32 x 32 pixels.
      early_stride: Which convolution of a bottleneck has the stride, see `Block`.
      groups: Number of groups of a bottleneck's 3x3 convolutions.
      width_per_group: Number of channels of each of these groups, see `Block`.
      **options: Fields of `ResNetConfig`, or of `CifarConfig` for small images.

    Raises:
      ValueError: An option is out of range.
    """
    config = (CifarConfig if small else ResNetConfig)(**options)
    if config.width * width_per_group % 64:
        raise ValueError(
            f"width={config.width} leaves no whole number of channels in each group; "
            f"give a multiple of {64 // math.gcd(64, width_per_group)}."
        )
    backbone = ResNetBackbone(
        label,
        block,
        blocks,
        config,
        small=small,
        early_stride=early_stride,
        groups=groups,
        width_per_group=width_per_group,
    )
    return Classifier(backbone, make_head(num_classes, **config.dtypes))


def backbone_rules(model: nn.Module, prefix: str = "") -> list[TorchRule]:
    """Lists torchvision's names of the backbone, without the classifier's head.

    Args:
      model: A network with a residual backbone.
      prefix: Prefix of the names in the state dict, such as "backbone.".
    """
    return [
        dataclasses.replace(rule, key=prefix + rule.key)
        for rule in torch_rules(model)
        if rule.module.startswith("backbone/")
    ]


def torch_rules(
    model: nn.Module, *, shortcut: str = "downsample", head: str = "fc"
) -> tuple[TorchRule, ...]:
    """Lists the names in torchvision and most other code: conv1, layer1.0.conv1, fc.

    Args:
      model: A network with a residual backbone.
      shortcut: Name of the projection in the state dict.
      head: Name of the last layer in the state dict.
    """
    rules = [
        TorchRule("backbone/stem/conv", "conv1"),
        TorchRule("backbone/stem/bn", "bn1"),
        TorchRule("head/fc", head),
    ]
    parts = {f"{kind}{i}": f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
    parts |= {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}
    for stage, blocks in enumerate(model.backbone.blocks, start=1):
        for block in range(blocks):
            ours, theirs = f"backbone/stage{stage}/block{block + 1}", f"layer{stage}"
            for name, key in parts.items():
                rules.append(TorchRule(f"{ours}/{name}", f"{theirs}.{block}.{key}"))
    return tuple(rules)


INIT = "He et al. 2015, normal of variance 2 / (k * k * output channels)"
MEAN_COLOR = "mean color instead of mean image is subtracted from the input"
ZERO_CHANNELS = (
    "the paper does not say where option A puts its zero channels: half before and "
    "half after the input's, as public weights for CIFAR-10 have it"
)
LAST_LAYER = (
    "the paper does not state the last layer's initialization: normal, std 0.01, as in "
    "the paper it cites for the convolutions"
)


def resnet_spec(
    name: str,
    *deviations: str,
    block: type[Block],
    blocks: tuple[int, ...],
    options: Mapping[str, Any] = MappingProxyType({}),
    **facts: Any,
) -> ModelSpec:
    """Makes the spec of a network; networks of three stages are for CIFAR-10.

    Args:
      name: Name of the network.
      *deviations: Differences from the paper, besides `LAST_LAYER`.
      block: Class of the blocks.
      blocks: Number of blocks of each stage.
      options: Other arguments of `resnet` that define the network.
      **facts: Other fields of `ModelSpec`.
    """
    small = len(blocks) == 3
    return ModelSpec(
        name=name,
        task="classification",
        build=partial(
            resnet, label=name, block=block, blocks=blocks, small=small, **options
        ),
        config=CifarConfig if small else ResNetConfig,
        num_classes=10 if small else 1000,
        init=INIT,
        deviations=(*deviations, LAST_LAYER),
        **{"torch_rules": torch_rules, **facts},
    )
