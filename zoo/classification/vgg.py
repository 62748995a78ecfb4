"""Very deep networks of 3x3 convolutions, and their form with batch norm.

Reference:
  Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image
  Recognition, 2014.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from zoo.checks import check_images, check_widths
from zoo.classification.imagenet import CAFFE_MEAN, IMAGENET, torchvision_weights
from zoo.layers import (
    BatchNorm,
    Classifier,
    Conv,
    DenseConfig,
    dense_layers,
    initializer,
    make_head,
    remat_stage,
)
from zoo.ops.normalization import local_response_norm
from zoo.ops.pooling import max_pool
from zoo.spec import ModelSpec, TorchRule

Array = jax.Array

PAPER = (
    "Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image "
    "Recognition, 2014"
)

# Table 1: the channels of each block's convolutions, and their windows.
WIDTHS = (64, 128, 256, 512, 512)
CONFIGS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
# Number of channels of fc6 and fc7.
DENSE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGGConfig(DenseConfig):
    """Options of a VGG network.

    Attributes:
      widths: Number of channels of each block's convolutions.
    """

    widths: tuple[int, ...] = WIDTHS


class VGGBackbone(nn.Module):
    """Section 2: five blocks of convolutions, each with a pool, and two dense layers.

    Attributes:
      label: Name of the network in error messages.
      blocks: Windows of the convolutions of each block, as in `CONFIGS`.
      config: Options of the network.
      norm: None, "lrn" (after the first convolution) or "batch" (in each one).
      conv_init: Name of the initializer of the convolutions.
      dense_init: Name of the initializer of the dense layers.
      min_size: Height and width of the smallest images of a fully convolutional
        network, in pixels.
      first_padding: Padding of the first convolution, in pixels.
      ceil: Whether pools round up, see `max_pool`.
    """

    label: str
    blocks: tuple[tuple[int, ...], ...]
    config: VGGConfig = VGGConfig()
    norm: str | None = None
    conv_init: str = "gaussian_0.1"
    dense_init: str = "gaussian_0.1"
    min_size: int = 224
    first_padding: int = 1
    ceil: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        config = self.config
        if config.fully_convolutional:
            check_images(images, self.label, min_size=self.min_size)
        else:
            check_images(images, self.label, size=224)
        conv = partial(Conv, kernel_init=initializer(self.conv_init), **config.dtypes)
        norm = partial(BatchNorm, **config.dtypes)

        def block(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for j, window in enumerate(self.blocks[i - 1], start=1):
                padding = self.first_padding if i == j == 1 else window // 2
                layer = partial(conv, config.widths[i - 1], window, padding=padding)
                x = layer(name=f"conv{i}_{j}")(x)
                if self.norm == "batch":
                    x = norm(name=f"bn{i}_{j}")(x, train=train)
                x = out[f"conv{i}_{j}"] = nn.relu(x)
                if self.norm == "lrn" and i == 1:
                    x = out["norm1"] = local_response_norm(x)
            out[f"pool{i}"] = max_pool(x, 2, 2, ceil=self.ceil)
            return out

        out, x = {}, images
        for i in range(1, 6):
            out |= remat_stage(partial(block, i=i), config.remat)(self, x)
            x = out[f"pool{i}"]
        options = dict(kernel_init=initializer(self.dense_init), **config.dtypes)
        return out | dense_layers(x, config, window=7, train=train, **options)


def vgg(*, variant: str, num_classes: int = 1000, **options: Any) -> Classifier:
    """Builds a network of table 1, with or without batch norm.

    Args:
      variant: Name of one of `SPECS`.
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `VGGConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    row, config = _NETWORKS[variant], VGGConfig(**options)
    check_widths(config.widths, len(WIDTHS))
    own = ("gaussian_0.1", "gaussian_0.1")
    if row.norm == "batch":
        own = ("he_fan_out", "gaussian_0.01")
    conv_init, dense_init = (config.init or name for name in own)
    backbone = VGGBackbone(
        variant,
        CONFIGS[row.config],
        config,
        norm=row.norm,
        conv_init=conv_init,
        dense_init=dense_init,
    )
    kernel_init = initializer(dense_init)
    head = make_head(num_classes, layer="fc8", kernel_init=kernel_init, **config.dtypes)
    return Classifier(backbone, head)


def _torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    """Lists torchvision's names, or the paper's if torchvision lacks the network."""
    net, rules, index = model.backbone, [], 0
    theirs = net.label in _FILES
    for i, block in enumerate(net.blocks, start=1):
        for j in range(1, len(block) + 1):
            # Convolution, batch norm where there is one, ReLU.
            kinds = ("conv", "bn") if net.norm == "batch" else ("conv",)
            for kind in kinds:
                name = f"{kind}{i}_{j}"
                key = f"features.{index}" if theirs else name
                rules.append(TorchRule(f"backbone/{name}", key))
                index += 1
            index += 1
        index += 1  # the pool
    keys = [f"classifier.{i}" for i in (0, 3, 6)] if theirs else ["fc6", "fc7", "fc8"]
    return (
        *rules,
        # By the names in timm's copies of torchvision's weights, too.
        TorchRule(
            "backbone/fc6", keys[0], (net.config.widths[-1], 7, 7), "pre_logits.fc1"
        ),
        TorchRule("backbone/fc7", keys[1], alias="pre_logits.fc2"),
        TorchRule("head/fc8", keys[2], alias="head.fc"),
    )


class _Network(NamedTuple):
    """A row of the table of networks: key of `CONFIGS`, norm, and exact counts."""

    config: str
    norm: str | None
    params: int
    macs: int


_NETWORKS = {
    "vgg11": _Network("A", None, 132_863_336, 7_609_090_048),
    "vgg11_lrn": _Network("A", "lrn", 132_863_336, 7_609_090_048),
    "vgg13": _Network("B", None, 133_047_848, 11_308_466_176),
    "vgg16_c": _Network("C", None, 133_638_952, 11_770_888_192),
    "vgg16": _Network("D", None, 138_357_544, 15_470_264_320),
    "vgg19": _Network("E", None, 143_667_240, 19_632_062_464),
    "vgg11_bn": _Network("A", "batch", 132_868_840, 7_609_090_048),
    "vgg13_bn": _Network("B", "batch", 133_053_736, 11_308_466_176),
    "vgg16_bn": _Network("D", "batch", 138_365_992, 15_470_264_320),
    "vgg19_bn": _Network("E", "batch", 143_678_248, 19_632_062_464),
}
# torchvision's weights: file, top-1 and top-5 accuracy in percent.
_FILES = {
    "vgg11": ("vgg11-8a719046.pth", 69.02, 88.628),
    "vgg13": ("vgg13-19584684.pth", 69.928, 89.246),
    "vgg16": ("vgg16-397923af.pth", 71.592, 90.382),
    "vgg19": ("vgg19-dcbb9e9d.pth", 72.376, 90.876),
    "vgg11_bn": ("vgg11_bn-6002323d.pth", 70.37, 89.81),
    "vgg13_bn": ("vgg13_bn-abd245e5.pth", 71.586, 90.374),
    "vgg16_bn": ("vgg16_bn-6c64b313.pth", 73.36, 91.516),
    "vgg19_bn": ("vgg19_bn-c79401a0.pth", 74.218, 91.842),
}
# The paper's top-1 and top-5 errors in percent.
_ONE_SCALE = "dense, scale 256 (table 3)"
_NEAR_SCALES = "dense, scales 224, 256 and 288 (table 4)"
_JITTER = "dense, scale 384, trained at 256 to 512 (table 3)"
_SCALES = "dense, scales 256, 384 and 512, trained at 256 to 512 (table 4)"
_CROPS = "dense and many crops, scales 256, 384 and 512 (table 5)"

_ERRORS = {
    "vgg11": ((29.6, 10.4, _ONE_SCALE),),
    "vgg11_lrn": ((29.7, 10.5, _ONE_SCALE),),
    "vgg13": ((28.7, 9.9, _ONE_SCALE), (28.2, 9.6, _NEAR_SCALES)),
    "vgg16_c": ((28.1, 9.4, _ONE_SCALE), (27.3, 8.8, _JITTER), (26.3, 8.2, _SCALES)),
    "vgg16": (
        (27.0, 8.8, _ONE_SCALE),
        (25.6, 8.1, _JITTER),
        (24.8, 7.5, _SCALES),
        (24.4, 7.2, _CROPS),
    ),
    "vgg19": (
        (27.3, 9.0, _ONE_SCALE),
        (25.5, 8.0, _JITTER),
        (24.8, 7.5, _SCALES),
        (24.4, 7.1, _CROPS),
    ),
}


def _spec(name: str, row: _Network) -> ModelSpec:
    weights = (torchvision_weights(*_FILES[name]),) if name in _FILES else ()
    if row.norm == "batch":
        paper = f"torchvision's, after {PAPER}, table 1, {row.config}"
        published = tuple(f"accuracy {w.accuracy}" for w in weights)
        init = (
            "convolutions He et al. 2015, normal of variance 2 / (k * k * output "
            "channels); dense layers normal, std 0.01; biases 0"
        )
        deviations = ("batch norm after each convolution, of which the paper has none",)
    else:
        letter = "A-LRN" if row.norm == "lrn" else row.config
        paper = f"{PAPER}, table 1, {letter}"
        published = tuple(
            f"ILSVRC-2012 validation error {top1} % (top-5 {top5} %), {how}"
            for top1, top5, how in _ERRORS[name]
        )
        init = (
            "normal of the variance that is printed, 0.01 (std 0.1); biases 0. The "
            "paper also reports that Glorot's serves all networks (init='glorot')"
        )
        deviations = (
            "the paper does not print the mean color: that of its released weights",
        )
        if row.config != "A":
            deviations += (
                "the paper starts the first four convolutions and the dense layers "
                "from those of a trained A: here all start at random",
            )
    return ModelSpec(
        name=name,
        task="classification",
        build=partial(vgg, variant=name),
        config=VGGConfig,
        paper=paper,
        num_classes=1000,
        preprocess=IMAGENET if row.norm == "batch" else CAFFE_MEAN,
        params=row.params,
        macs=row.macs,
        torch_rules=_torch_rules,
        weights=weights,
        torchvision=name if weights else None,
        init=init,
        published=published,
        deviations=deviations,
    )


SPECS = tuple(_spec(name, row) for name, row in _NETWORKS.items())
