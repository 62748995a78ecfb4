"""AlexNet, torchvision's one-column AlexNet, ZFNet, and a small ZFNet.

References:
  Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural
  Networks, 2012. Krizhevsky, One Weird Trick for Parallelizing Convolutional Neural
  Networks, 2014, whose network, with other widths, is torchvision's.
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from zoo.checks import check_images, check_widths
from zoo.classification.imagenet import CAFFE_MEAN, IMAGENET, torchvision_weights
from zoo.layers import (
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
    "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional "
    "Neural Networks, 2012"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlexNetConfig(DenseConfig):
    """Options of an AlexNet.

    Attributes:
      widths: Number of channels of each of the five convolutions; None for the
        variant's.
    """

    widths: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallZFNetConfig(AlexNetConfig):
    """Options of the small ZFNet: those of an AlexNet, with small dense layers."""

    dense: int = 256


def alexnet_convolutions(
    x: Array,
    widths: tuple[int, ...],
    conv: Callable,
    *,
    normalize: Callable = local_response_norm,
) -> dict[str, Array]:
    """Computes AlexNet's endpoints up to pool5, section 3.5 and figure 2."""
    out = {}
    grouped = partial(conv, groups=2, bias_init=nn.initializers.ones)
    x = out["conv1"] = nn.relu(conv(widths[0], 11, stride=4, name="conv1")(x))
    x = out["norm1"] = normalize(x)
    x = out["pool1"] = max_pool(x, 3, 2)
    x = out["conv2"] = nn.relu(grouped(widths[1], 5, padding=2, name="conv2")(x))
    x = out["norm2"] = normalize(x)
    x = out["pool2"] = max_pool(x, 3, 2)
    x = out["conv3"] = nn.relu(conv(widths[2], 3, padding=1, name="conv3")(x))
    x = out["conv4"] = nn.relu(grouped(widths[3], 3, padding=1, name="conv4")(x))
    x = out["conv5"] = nn.relu(grouped(widths[4], 3, padding=1, name="conv5")(x))
    out["pool5"] = max_pool(x, 3, 2)
    return out


def torchvision_convolutions(
    x: Array, widths: tuple[int, ...], conv: Callable
) -> dict[str, Array]:
    """Computes torchvision's endpoints up to pool5: one column, no normalization."""
    out = {}
    conv1 = conv(widths[0], 11, stride=4, padding=2, name="conv1")
    x = out["conv1"] = nn.relu(conv1(x))
    x = out["pool1"] = max_pool(x, 3, 2)
    x = out["conv2"] = nn.relu(conv(widths[1], 5, padding=2, name="conv2")(x))
    x = out["pool2"] = max_pool(x, 3, 2)
    x = out["conv3"] = nn.relu(conv(widths[2], 3, padding=1, name="conv3")(x))
    x = out["conv4"] = nn.relu(conv(widths[3], 3, padding=1, name="conv4")(x))
    x = out["conv5"] = nn.relu(conv(widths[4], 3, padding=1, name="conv5")(x))
    out["pool5"] = max_pool(x, 3, 2)
    return out


def zfnet_convolutions(
    x: Array,
    widths: tuple[int, ...],
    conv: Callable,
    *,
    conv2_stride: int = 2,
    conv2_padding: int = 0,
) -> dict[str, Array]:
    """Computes ZFNet's endpoints up to pool5, figure 3: no groups, a finer conv1."""
    out = {}
    # Maps of 110 and 26 pixels become 55 and 13 if the last window crosses the border.
    pool = partial(max_pool, window=3, stride=2, ceil=True)
    conv1 = conv(widths[0], 7, stride=2, padding=1, name="conv1")
    x = out["conv1"] = nn.relu(conv1(x))
    x = out["pool1"] = pool(x)
    x = out["norm1"] = local_response_norm(x)
    conv2 = conv(widths[1], 5, stride=conv2_stride, padding=conv2_padding, name="conv2")
    x = out["conv2"] = nn.relu(conv2(x))
    x = out["pool2"] = pool(x)
    x = out["norm2"] = local_response_norm(x)
    x = out["conv3"] = nn.relu(conv(widths[2], 3, padding=1, name="conv3")(x))
    x = out["conv4"] = nn.relu(conv(widths[3], 3, padding=1, name="conv4")(x))
    x = out["conv5"] = nn.relu(conv(widths[4], 3, padding=1, name="conv5")(x))
    out["pool5"] = pool(x)
    return out


class Variant(NamedTuple):
    """The architecture of one network of this family.

    Attributes:
      convolutions: Function from images, widths and the constructor of convolutions to
        the endpoints up to pool5.
      widths: Number of channels of each of the five convolutions.
      init: Name of the initializer of the kernels.
      size: Height and width of the images, in pixels.
      min_size: Height and width of the smallest images that fc6 can read.
      window: Height and width of the map that fc6 reads.
      dense_bias: Initial value of the biases of fc6 and fc7.
      dropout_first: Whether dropout precedes fc6 and fc7 instead of following them.
    """

    convolutions: Callable
    widths: tuple[int, ...]
    init: str
    size: int
    min_size: int
    window: int = 6
    dense_bias: float = 0.0
    dropout_first: bool = False


VARIANTS = {
    "alexnet": Variant(
        alexnet_convolutions,
        (96, 256, 384, 384, 256),
        "gaussian_0.01",
        size=227,
        min_size=227,
        dense_bias=1.0,
    ),
    "alexnet_tv": Variant(
        torchvision_convolutions,
        (64, 192, 384, 256, 256),
        "torch",
        size=224,
        min_size=223,
        dropout_first=True,
    ),
    "zfnet": Variant(
        zfnet_convolutions,
        (96, 256, 384, 384, 256),
        "gaussian_0.01",
        size=224,
        min_size=207,
    ),
    "zfnet64_small": Variant(
        partial(zfnet_convolutions, conv2_stride=1, conv2_padding=2),
        (32, 96, 128, 128, 96),
        "he_fan_in",
        size=64,
        min_size=51,
        window=3,
    ),
}


class AlexNetBackbone(nn.Module):
    """Five convolutions and two dense layers.

    Attributes:
      label: Name of the network in error messages.
      variant: Architecture of the network.
      config: Options of the network; none of them is None.
    """

    label: str
    variant: Variant
    config: AlexNetConfig

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        variant, config = self.variant, self.config
        if config.fully_convolutional:
            check_images(images, self.label, min_size=variant.min_size)
        else:
            check_images(images, self.label, size=variant.size)
        options = dict(kernel_init=initializer(config.init), **config.dtypes)

        def convolutions(self, x: Array) -> dict[str, Array]:
            return variant.convolutions(x, config.widths, partial(Conv, **options))

        out = remat_stage(convolutions, config.remat)(self, images)
        return out | dense_layers(
            out["pool5"],
            config,
            window=variant.window,
            train=train,
            dropout_first=variant.dropout_first,
            bias_init=nn.initializers.constant(variant.dense_bias),
            **options,
        )


def alexnet(*, variant: str, num_classes: int = 1000, **options: Any) -> Classifier:
    """Builds an AlexNet.

    Args:
      variant: Name of one of `VARIANTS`.
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `AlexNetConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    facts, config = VARIANTS[variant], AlexNetConfig(**options)
    config = dataclasses.replace(
        config, widths=config.widths or facts.widths, init=config.init or facts.init
    )
    check_widths(config.widths, len(facts.widths))
    kernel_init = initializer(config.init)
    head = make_head(num_classes, layer="fc8", kernel_init=kernel_init, **config.dtypes)
    return Classifier(AlexNetBackbone(variant, facts, config), head)


def small_zfnet(*, num_classes: int = 10, **options: Any) -> Classifier:
    """Builds a small ZFNet for images of 64 pixels.

    Args:
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `SmallZFNetConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    options = {"dense": SmallZFNetConfig.dense, **options}
    return alexnet(variant="zfnet64_small", num_classes=num_classes, **options)


def _caffe_names(model: Classifier) -> tuple[TorchRule, ...]:
    layers = "conv1 conv2 conv3 conv4 conv5 fc7".split()
    backbone = model.backbone
    window, channels = backbone.variant.window, backbone.config.widths[-1]
    return (
        *(TorchRule(f"backbone/{name}", name) for name in layers),
        TorchRule("backbone/fc6", "fc6", flatten=(channels, window, window)),
        TorchRule("head/fc8", "fc8"),
    )


def _torchvision_names(model: Classifier) -> tuple[TorchRule, ...]:
    convolutions = zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)
    channels = model.backbone.config.widths[-1]
    return (
        *(TorchRule(f"backbone/conv{i}", f"features.{j}") for i, j in convolutions),
        TorchRule("backbone/fc6", "classifier.1", flatten=(channels, 6, 6)),
        TorchRule("backbone/fc7", "classifier.4"),
        TorchRule("head/fc8", "classifier.6"),
    )


def _spec(name: str, **facts: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="classification",
        build=partial(alexnet, variant=name),
        config=AlexNetConfig,
        num_classes=1000,
        **facts,
    )


SPECS = (
    _spec(
        "alexnet",
        paper=PAPER,
        preprocess=dataclasses.replace(CAFFE_MEAN, size=227),
        params=60_965_224,
        macs=724_406_816,
        torch_rules=_caffe_names,
        init="normal, std 0.01; biases 1 in conv2, conv4, conv5, fc6 and fc7, else 0",
        published=(
            "ILSVRC-2012 validation error 40.7 % (top-5 18.2 %), ten crops",
            "ILSVRC-2010 test error 37.5 % (top-5 17.0 %), ten crops; 39.0 % (18.3 %), "
            "one",
        ),
        deviations=(
            "the paper prints 224 pixels, at which conv1 without padding does not give "
            "its 55 x 55 outputs: 227, as in its code",
            "mean color instead of mean image is subtracted from the input",
            "dropout scales what it keeps in training, and not all outputs in testing",
        ),
    ),
    _spec(
        "alexnet_tv",
        paper=f"torchvision's AlexNet, after {PAPER}",
        preprocess=IMAGENET,
        params=61_100_840,
        macs=714_188_480,
        torch_rules=_torchvision_names,
        torchvision="alexnet",
        weights=(torchvision_weights("alexnet-owt-7be5be79.pth", 56.522, 79.066),),
        init="uniform within 1 / sqrt(fan-in), biases 0",
        published=("ImageNet validation accuracy 56.52 % (top-5 79.07 %), one crop",),
        deviations=(
            "one column of 64, 192, 384, 256 and 256 channels, without groups and "
            "without normalization; dropout before fc6 and fc7",
            "torchvision also initializes biases, uniformly within 1 / sqrt(fan-in)",
            "images of other sizes are read by fc6 at every place, with "
            "fully_convolutional=True, where torchvision pools them to 6 x 6",
        ),
    ),
    _spec(
        "zfnet",
        paper=(
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, "
            "2014, figure 3"
        ),
        preprocess=CAFFE_MEAN,
        params=62_357_608,
        macs=1_168_032_896,
        torch_rules=_caffe_names,
        init="normal, std 0.01; biases 0",
        published=(
            "ILSVRC-2012 validation error 38.4 % (top-5 16.5 %), ten crops (table 2)",
        ),
        deviations=(
            "the paper does not print paddings: 1 in conv1, none in conv2, 1 in the "
            "others, and pools whose last window reaches over the border, which give "
            "its sizes",
            "the paper does not give its contrast normalization: AlexNet's local "
            "response normalization with AlexNet's constants",
            "the paper sets all weights to 0.01, which is read as their deviation",
            "the paper's training scales a filter back whose root mean square exceeds "
            "0.1: not part of the network",
            "mean color instead of mean image is subtracted from the input",
        ),
    ),
    ModelSpec(
        name="zfnet64_small",
        task="classification",
        build=small_zfnet,
        config=SmallZFNetConfig,
        num_classes=10,
        paper=(
            "after Zeiler, Fergus: Visualizing and Understanding Convolutional "
            "Networks, 2014, figure 3"
        ),
        preprocess=dataclasses.replace(IMAGENET, size=64, resize=None),
        params=740_426,
        macs=39_866_240,
        torch_rules=_caffe_names,
        init="He et al. 2015, normal of variance 2 / N of N incoming values; biases 0",
        published=("none: a small network for small images, trained in minutes",),
        deviations=(
            "images of 64 pixels; 32, 96, 128, 128 and 96 channels, and dense layers "
            "of 256",
            "conv2 has stride 1 and padding 2, so that maps are 30, 15, 7 and 3 pixels "
            "high",
            "the paddings, pools and contrast normalization of `zfnet`",
            "colors are normalized by their mean and standard deviation",
        ),
    ),
)
