"""Residual networks for ImageNet and CIFAR-10, and the plain ones beside them.

References:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015 ("v1").
  He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, 2016 ("v2").
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.classification.imagenet import CAFFE_MEAN, IMAGENET, torchvision_versions
from zoo.layers import (
    BatchNorm,
    Classifier,
    Conv,
    NetworkConfig,
    initializer,
    make_head,
)
from zoo.ops.pooling import global_average_pool, max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule, Weights

Array = jax.Array

PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015"
PAPER_V2 = "He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, 2016"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig(NetworkConfig):
    """Options of a residual network.

    Attributes:
      width: Number of channels of the stem and of the first stage's 3x3 convolutions.
      shortcut: What is added where a block changes the shape: "A" for the subsampled
        input between channels of zeros, "B" for a 1x1 convolution; "C" for a 1x1
        convolution in every block. None for a plain network, which adds nothing.
      output_stride: Ratio of the image's size to the last map's: 32, 16 or 8. Below 32
        the last stages are dilated instead of strided, with the same parameters.
      init: Initializer of the convolutions, a name of `zoo.layers.INITIALIZERS`; None
        for the paper's.
      momentum: Decay rate of batch norm's running averages.
      remat: Whether the backward pass recomputes each block's activations, which takes
        time and saves memory.
      scan: Whether the equal blocks of a stage are compiled as one loop, in a time that
        does not grow with their number; the variables are the same. XLA's CPU runs
        loops slower (2.4 times, measured on 110 layers). Their batch norm cannot be
        frozen.
    """

    width: int = 64
    shortcut: str | None = "B"
    output_stride: int = 32
    init: str | None = None
    momentum: float = 0.9
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
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
      features: Number of channels of the 3x3 convolutions; of a bottleneck with other
        groups than the paper's, a quarter of the number of outputs.
      stride: Stride of the block.
      dilation: Dilation of the 3x3 convolutions.
      first: Whether it is the network's first block, whose input is rectified already.
      shortcut: What is added where the shape changes, see `ResNetConfig`.
      early_stride: Whether a bottleneck's first 1x1 convolution has the stride, as
        published, and not its 3x3 convolution, as in most public weights ("v1.5").
      groups: Number of groups of a bottleneck's 3x3 convolution.
      width_per_group: Number of channels of each of these groups where `features` is
        64; in proportion to `features` elsewhere.
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

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.branch(x, train)
        if self.shortcut is not None:
            y = y + self.project(x, y.shape[-1], train)
        return nn.relu(y)

    def branch(self, x: Array, train: bool) -> Array:
        """Computes what is added to the input."""
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
        """Computes what is added to the input."""
        y = self.conv3x3(self.features, stride=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3x3(self.features, name="conv2")(y)
        return self.norm(name="bn2")(y, train=train)


class Bottleneck(Block):
    """A 3x3 convolution between two 1x1 convolutions; figure 5, right."""

    def branch(self, x: Array, train: bool) -> Array:
        """Computes what is added to the input."""
        strides = (self.stride, 1) if self.early_stride else (1, self.stride)
        width = self.features * self.width_per_group // 64 * self.groups
        y = self.conv(width, 1, stride=strides[0], name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        conv2 = self.conv3x3(width, stride=strides[1], groups=self.groups, name="conv2")
        y = conv2(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y, train=train)


class PreActBottleneck(Block):
    """Batch norm and ReLU before each convolution, and nothing after the addition.

    Where the shape changes, the 1x1 convolution of the shortcut reads the rectified
    input, as the branch does.

    Reference:
      The paper of v2, figure 4e.
    """

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
        if self.scan and names and not self.is_initializing():
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
        as in PSPNet, and not that of the stage before it, as in torchvision.
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
        if issubclass(self.block, PreActBottleneck):
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


def torch_rules(
    model: Classifier, *, shortcut: str = "downsample", head: str = "fc"
) -> tuple[TorchRule, ...]:
    """Lists the names of torchvision and of most others: conv1, layer1.0.conv1, fc.

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
    "resnet200_v2": (PreActBottleneck, (3, 24, 36, 3), 64_666_152, 15_007_481_856),
    "cifar_resnet164_v2": (PreActBottleneck, (18, 18, 18), 1_703_258, 244_500_992),
    "cifar_resnet1001_v2": (PreActBottleneck, (111,) * 3, 10_327_706, 1_487_849_984),
    "cifar_resnet20": (BasicBlock, (3, 3, 3), 269_722, 40_551_040),
    "cifar_resnet32": (BasicBlock, (5, 5, 5), 464_154, 68_862_592),
    "cifar_resnet44": (BasicBlock, (7, 7, 7), 658_586, 97_174_144),
    "cifar_resnet56": (BasicBlock, (9, 9, 9), 853_018, 125_485_696),
    "cifar_resnet110": (BasicBlock, (18, 18, 18), 1_727_962, 252_887_680),
    "cifar_resnet1202": (BasicBlock, (200, 200, 200), 19_421_274, 2_829_238_912),
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
    "resnet200_v2": (
        "ImageNet validation error 20.7 % (top-5 5.3 %), one crop of 320 x 320 "
        "(table 5)",
    ),
    "cifar_resnet164_v2": ("CIFAR-10 test error 5.46 %, CIFAR-100 24.33 % (table 3)",),
    "cifar_resnet1001_v2": (
        "CIFAR-10 test error 4.92 %, CIFAR-100 22.71 % (table 3)",
        "CIFAR-10 test error 4.62 %, trained with batches of 64 (table 4)",
    ),
}
# Files of torchvision's weights, and their top-1 and top-5 accuracy in percent. The
# second file is of a longer training.
_TORCHVISION = {
    "resnet18": (("resnet18-f37072fd.pth", 69.758, 89.078),),
    "resnet34": (("resnet34-b627a593.pth", 73.314, 91.420),),
    "resnet50": (
        ("resnet50-0676ba61.pth", 76.130, 92.862),
        ("resnet50-11ad3fa6.pth", 80.858, 95.434),
    ),
    "resnet101": (
        ("resnet101-63fe2227.pth", 77.374, 93.546),
        ("resnet101-cd907fc2.pth", 81.886, 95.780),
    ),
    "resnet152": (
        ("resnet152-394f9c45.pth", 78.312, 94.046),
        ("resnet152-f82ba261.pth", 82.284, 96.002),
    ),
}
# Depth: error in percent (table 6); hash, or its published prefix, and error in percent
# of the weights of Yerlan Idelbayev.
_CIFAR = {
    20: (
        *(8.75, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        8.27,
    ),
    32: (
        *(7.51, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
        7.37,
    ),
    44: (
        *(7.17, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
        6.90,
    ),
    56: (
        *(6.97, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
        6.61,
    ),
    110: (6.43, "1d1ed7c2", 6.32),
    1202: (7.93, "f3b1deed", 6.18),
}

# The mean color of CIFAR-10's training images.
CIFAR = Preprocess(
    size=32, channels=3, mean=(0.4914, 0.4822, 0.4465), std=(1.0, 1.0, 1.0)
)
# The colors in the code of v2's authors.
CIFAR_V2 = Preprocess(
    size=32,
    channels=3,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
    std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
)
CIFAR10_CLASSES = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)

_MEAN_COLOR = "mean color instead of mean image is subtracted from the input"
_SCALED = "colors are scaled to deviation 1, as the public weights expect them"
_SCALED_V2 = (
    "colors are normalized by their mean and deviation, as in the code that was "
    "published with the paper"
)
_FIRST_POOL = (
    "the paper does not say how the first pool treats the borders: padding 1, where "
    "its released models have none and round up"
)
_LATE_STRIDE = (
    "a bottleneck's 3x3 convolution has the stride, as in the public weights, and not "
    "its first 1x1 one; the published results are of the latter"
)
_STRIDE_V2 = (
    "the 3x3 convolutions have the stride, and projections no batch norm: the paper "
    "does not say, its released Torch model has it so"
)
ZERO_CHANNELS = (
    "the paper does not say where option A puts its zero channels: half before and "
    "half after the input's, as public weights for CIFAR-10 have it"
)
LAST_LAYER = (
    "the paper does not state the last layer's initialization: normal, std 0.01, as in "
    "the paper it cites for the convolutions"
)


def _spec(
    name: str,
    *deviations: str,
    preprocess: Preprocess = IMAGENET,
    paper: str = f"{PAPER}, table 1",
    published: tuple[str, ...] = (),
    weights: tuple[Weights, ...] = (),
    rules: Callable = torch_rules,
    **options: Any,
) -> ModelSpec:
    """Makes the spec of a row of `_NETWORKS`; the options are arguments of `resnet`."""
    block, blocks, params, macs = _NETWORKS[name.replace("cifar_plain", "cifar_resnet")]
    small = len(blocks) == 3
    return ModelSpec(
        name=name,
        task="classification",
        build=partial(
            resnet, label=name, block=block, blocks=blocks, small=small, **options
        ),
        config=CifarConfig if small else ResNetConfig,
        paper=paper,
        num_classes=10 if small else 1000,
        preprocess=preprocess,
        params=params,
        macs=macs,
        torch_rules=rules,
        weights=weights or torchvision_versions(*_TORCHVISION.get(name, ())),
        torchvision=name if name in _TORCHVISION else None,
        init=INIT,
        published=published or _PUBLISHED[name.removesuffix("_v1")],
        deviations=(*deviations, LAST_LAYER),
    )


def _v2_rules(model: Classifier) -> tuple[TorchRule, ...]:
    return (*torch_rules(model), TorchRule("backbone/final_bn", "bn_final"))


def _v2(name: str, *deviations: str, **options: Any) -> ModelSpec:
    return _spec(
        name,
        _SCALED_V2,
        *deviations,
        paper=f"{PAPER_V2}, section 5 and appendix",
        rules=_v2_rules,
        shortcut="B",
        output_stride=32,
        **options,
    )


def _cifar(name: str, *deviations: str, **options: Any) -> ModelSpec:
    return _spec(
        name,
        _MEAN_COLOR,
        *deviations,
        preprocess=CIFAR,
        paper=f"{PAPER}, section 4.2",
        rules=partial(torch_rules, shortcut="shortcut", head="linear"),
        output_stride=32,
        **options,
    )


def _cifar_resnet(depth: int) -> ModelSpec:
    error, sha256, reproduced = _CIFAR[depth]
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
        class_names=CIFAR10_CLASSES,
    )
    return _cifar(
        f"cifar_resnet{depth}",
        ZERO_CHANNELS,
        published=(f"CIFAR-10 test error {error} %, single view (table 6)",),
        weights=(weights,),
    )


def _cifar_plain(depth: int) -> ModelSpec:
    error = "CIFAR-10 error: curves only (figure 6), above the residual net's"
    if depth == 110:
        error = "CIFAR-10 training and test error above 60 % (section 4.2)"
    return _cifar(f"cifar_plain{depth}", published=(error,), shortcut=None)


_TORCHVISIONS = (_SCALED, _FIRST_POOL, ZERO_CHANNELS)
_PAPERS = (_MEAN_COLOR, _FIRST_POOL)
SPECS = (
    *(_spec(name, *_TORCHVISIONS) for name in ("resnet18", "resnet34")),
    *(_spec(f"resnet{n}", _LATE_STRIDE, *_TORCHVISIONS) for n in (50, 101, 152)),
    *(
        _spec(
            f"resnet{depth}_v1",
            *_PAPERS,
            ZERO_CHANNELS,
            preprocess=CAFFE_MEAN,
            early_stride=True,
        )
        for depth in (50, 101, 152)
    ),
    *(
        _spec(name, *_PAPERS, preprocess=CAFFE_MEAN, shortcut=None)
        for name in ("plain18", "plain34")
    ),
    _v2("resnet200_v2", _STRIDE_V2),
    _v2("cifar_resnet164_v2", preprocess=CIFAR_V2, early_stride=True),
    _v2("cifar_resnet1001_v2", preprocess=CIFAR_V2, early_stride=True),
    *(_cifar_resnet(depth) for depth in _CIFAR),
    *(_cifar_plain(depth) for depth in (20, 32, 44, 56, 110)),
)
