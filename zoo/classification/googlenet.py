"""GoogLeNet, as published and as in torchvision.

Reference:
  Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, Going
  Deeper with Convolutions, 2014.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from zoo.checks import check_images
from zoo.classification.imagenet import CAFFE_MEAN, torchvision_weights
from zoo.layers import (
    BatchNorm,
    Classifier,
    Conv,
    Dense,
    LinearHead,
    NetworkConfig,
    initializer,
    make_head,
)
from zoo.ops.normalization import local_response_norm
from zoo.ops.pooling import adaptive_avg_pool, global_average_pool, max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = "Szegedy et al.: Going Deeper with Convolutions, 2014"

# Table 1: the convolutions of an inception module, and the numbers of channels of the
# first three convolutions and of each module's.
CONVOLUTIONS = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
STEM = (64, 64, 192)
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
BIAS = nn.initializers.constant(0.2)
ACTIVATIONS = {"relu": nn.relu, "sigmoid": nn.sigmoid}
AUX_SIZE = 224  # height and width of the images that the paper's auxiliary heads read
_normalize = partial(local_response_norm, size=5, alpha=1e-4 / 5, beta=0.75, k=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoogLeNetConfig(NetworkConfig):
    """Options of a GoogLeNet.

    Attributes:
      aux: Whether to have the auxiliary heads, whose losses training adds: endpoints
        "aux1" and "aux2". The paper's heads take only images of 224 pixels.
      stem: Number of channels of conv1, conv2_reduce and conv2.
      modules: Number of channels of each inception module's convolutions by the
        module's name, in the order of `MODULES`; None for `MODULES`.
      init: Initializer of the kernels, a name of `zoo.layers.INITIALIZERS`; None for
        the variant's.
      dropout: Rate of the dropout before the head; None for the variant's. With 0 the
        auxiliary heads have none either.
      batch_norm: Whether batch norm follows every convolution, which then has no bias;
        else two local response normalizations stand between the first layers. None for
        the variant's.
      activation: "relu", or "sigmoid" as in the paper on batch norm; the auxiliary
        heads have ReLUs.
      momentum: Decay rate of batch norm's running averages.
      remat: Whether the backward pass recomputes each module's activations, which takes
        time and saves memory.
    """

    aux: bool = False
    stem: tuple[int, ...] = STEM
    modules: Mapping[str, tuple[int, ...]] | None = None
    init: str | None = None
    dropout: float | None = None
    batch_norm: bool | None = None
    activation: str = "relu"
    momentum: float = 0.9
    remat: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            choices = [*ACTIVATIONS]
            raise ValueError(f"activation={self.activation!r}; choose from {choices}.")


class Variant(NamedTuple):
    """The architecture of the paper's network, or of torchvision's.

    Attributes:
      batch_norm: Whether batch norm follows every convolution, which then has no bias;
        else two local response normalizations stand between the first layers.
      init: Name of the initializer of the kernels.
      large: Height and width of the windows of the "5x5" convolutions, in pixels.
      last_pool: Height and width of the window of the last max pool, in pixels.
      dropout: Rate of the dropout before the head.
      min_size: Height and width of the smallest images, in pixels.
    """

    batch_norm: bool
    init: str
    large: int
    last_pool: int
    dropout: float
    min_size: int


VARIANTS = {
    "googlenet": Variant(False, "caffe_xavier", 5, 3, 0.4, 47),
    "googlenet_tv": Variant(True, "gaussian_0.01", 3, 2, 0.2, 31),
}


def make_unit(
    *,
    batch_norm: bool,
    momentum: float,
    kernel_init: Callable,
    activation: str = "relu",
    **dtypes: Any,
) -> Callable:
    """Makes the function that adds a convolution, batch norm if wanted, and a ReLU."""
    activate = ACTIVATIONS[activation]
    conv = partial(Conv, kernel_init=kernel_init, **dtypes)
    if batch_norm:
        conv = partial(conv, use_bias=False)
    else:
        conv = partial(conv, bias_init=BIAS)
    norm = partial(BatchNorm, momentum=momentum, epsilon=1e-3, **dtypes)

    def unit(
        x: Array, features: int, kernel: int, *, name: str, train: bool, stride: int = 1
    ) -> Array:
        x = conv(features, kernel, stride=stride, padding=kernel // 2, name=name)(x)
        if batch_norm:
            x = norm(name=f"{name}_bn")(x, train=train)
        return activate(x)

    return unit


class Inception(nn.Module):
    """Figure 2b: 1x1, 3x3 and 5x5 convolutions and a pool, in parallel.

    Attributes:
      widths: Number of channels of each of `CONVOLUTIONS`.
      large: Height and width of the "5x5" window, in pixels.
      unit: Function that adds a convolution, see `make_unit`.
    """

    widths: tuple[int, ...]
    large: int
    unit: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        widths = dict(zip(CONVOLUTIONS, self.widths, strict=True))

        def unit(x: Array, name: str, kernel: int = 1) -> Array:
            return self.unit(x, widths[name], kernel, name=name, train=train)

        branches = (
            unit(x, "1x1"),
            unit(unit(x, "3x3_reduce"), "3x3", 3),
            unit(unit(x, "5x5_reduce"), "5x5", self.large),
            unit(max_pool(x, 3, 1, padding=1), "pool_proj"),
        )
        return jnp.concatenate(branches, axis=-1)


class GoogLeNetBackbone(nn.Module):
    """Table 1: two convolutions, nine inception modules, and the mean of the map.

    Attributes:
      label: Name of the network in error messages.
      variant: Whether it is the paper's network or torchvision's.
      config: Options of the network; none of them is None.
    """

    label: str
    variant: Variant
    config: GoogLeNetConfig

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        variant, config = self.variant, self.config
        check_images(images, self.label, min_size=variant.min_size)
        make = make_unit(
            batch_norm=variant.batch_norm,
            momentum=config.momentum,
            kernel_init=initializer(config.init),
            activation=config.activation,
            **config.dtypes,
        )
        unit = partial(make, train=train)
        module = nn.remat(Inception, static_argnums=(2,)) if config.remat else Inception

        out = {}
        x = out["conv1"] = unit(images, config.stem[0], 7, stride=2, name="conv1")
        x = out["pool1"] = max_pool(x, 3, 2, ceil=True)
        if not variant.batch_norm:
            x = out["norm1"] = _normalize(x)
        x = out["conv2_reduce"] = unit(x, config.stem[1], 1, name="conv2_reduce")
        x = out["conv2"] = unit(x, config.stem[2], 3, name="conv2")
        if not variant.batch_norm:
            x = out["norm2"] = _normalize(x)
        x = out["pool2"] = max_pool(x, 3, 2, ceil=True)
        for number, widths in config.modules.items():
            if number == "4a":
                x = out["pool3"] = max_pool(x, 3, 2, ceil=True)
            if number == "5a":
                x = out["pool4"] = max_pool(x, variant.last_pool, 2, ceil=True)
            name = f"inception_{number}"
            x = out[name] = module(widths, variant.large, make, name=name)(x, train)
        drop = nn.Dropout(config.dropout, deterministic=not train, name="drop")
        out["pool"] = drop(global_average_pool(x))
        return out


class AuxiliaryHead(LinearHead):
    """A classifier that reads a map in the middle of the network.

    Attributes:
      batch_norm: Whether it is torchvision's, which has batch norm and averages any map
        to 4 x 4; else the pool has the paper's window of 5x5 and stride of 3.
      dropout: Rate of the dropout before the last layer.
      momentum: Decay rate of batch norm's running averages.
    """

    layer: str = "fc2"
    batch_norm: bool = False
    dropout: float = 0.7
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        unit = make_unit(
            batch_norm=self.batch_norm,
            momentum=self.momentum,
            kernel_init=self.kernel_init,
            **self.dtypes,
        )
        if self.batch_norm:
            x = adaptive_avg_pool(x, 4)
        else:
            x = nn.avg_pool(x, (5, 5), (3, 3))
        x = unit(x, 128, 1, name="conv", train=train)
        fc1 = Dense(
            1024,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros if self.batch_norm else BIAS,
            name="fc1",
            **self.dtypes,
        )
        x = nn.relu(fc1(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        return super().__call__(x)


class GoogLeNet(Classifier):
    """A classifier with the two auxiliary heads of training.

    Attributes:
      aux1: Head that reads inception_4a.
      aux2: Head that reads inception_4d.
      size: Height and width of the images that the auxiliary heads can read, in pixels;
        None for any.
    """

    aux1: AuxiliaryHead
    aux2: AuxiliaryHead
    size: int | None

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes, by field name."""
        return {"head": self.head, "aux1": self.aux1, "aux2": self.aux2}

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation; the logits of `head` come last."""
        check_images(images, f"{self.backbone.label} with aux=True", size=self.size)
        out = super().endpoints(images, train)
        logits = out.pop("logits")
        out["aux1"] = self.aux1(out["inception_4a"], train)
        out["aux2"] = self.aux2(out["inception_4d"], train)
        return {**out, "logits": logits}


def googlenet(*, variant: str, num_classes: int = 1000, **options: Any) -> Classifier:
    """Builds a GoogLeNet.

    Args:
      variant: Name of one of `VARIANTS`.
      num_classes: Number of classes; 0 for no heads, auxiliary ones included.
      **options: Fields of `GoogLeNetConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    facts, config = VARIANTS[variant], GoogLeNetConfig(**options)
    if config.batch_norm is not None:
        facts = facts._replace(batch_norm=config.batch_norm)
    config = dataclasses.replace(
        config,
        modules=FrozenDict(config.modules or MODULES),
        init=config.init or facts.init,
        dropout=facts.dropout if config.dropout is None else config.dropout,
    )
    layers = dict(kernel_init=initializer(config.init), **config.dtypes)
    backbone = GoogLeNetBackbone(variant, facts, config)
    head = make_head(num_classes, **layers)
    if head is None or not config.aux:
        return Classifier(backbone, head)
    aux = partial(
        AuxiliaryHead,
        num_classes,
        batch_norm=facts.batch_norm,
        dropout=0.0 if config.dropout == 0 else AuxiliaryHead.dropout,
        momentum=config.momentum,
        **layers,
    )
    return GoogLeNet(
        backbone, head, aux(), aux(), size=None if facts.batch_norm else AUX_SIZE
    )


def _caffe_names(model: Classifier) -> tuple[TorchRule, ...]:
    names = {
        "backbone/conv1": "conv1/7x7_s2",
        "backbone/conv2_reduce": "conv2/3x3_reduce",
        "backbone/conv2": "conv2/3x3",
        "head/fc": "loss3/classifier",
    }
    for module in model.backbone.config.modules:
        for name in CONVOLUTIONS:
            names[f"backbone/inception_{module}/{name}"] = f"inception_{module}/{name}"
    rules = [TorchRule(ours, theirs) for ours, theirs in names.items()]
    for aux, loss in (("aux1", "loss1"), ("aux2", "loss2")):
        parts = {"conv": "conv", "fc1": "fc", "fc2": "classifier"}
        for ours, theirs in parts.items():
            rules.append(_aux_rule(model, aux, ours, f"{loss}/{theirs}"))
    return tuple(rules)


def _torchvision_names(model: Classifier) -> tuple[TorchRule, ...]:
    names = {
        "backbone/conv1": "conv1",
        "backbone/conv2_reduce": "conv2",
        "backbone/conv2": "conv3",
    }
    branches = "branch1 branch2.0 branch2.1 branch3.0 branch3.1 branch4.1".split()
    for module in model.backbone.config.modules:
        for name, branch in zip(CONVOLUTIONS, branches, strict=True):
            names[f"backbone/inception_{module}/{name}"] = f"inception{module}.{branch}"
    rules = [TorchRule("head/fc", "fc")]
    for ours, theirs in names.items():
        rules.append(TorchRule(ours, f"{theirs}.conv"))
        rules.append(TorchRule(f"{ours}_bn", f"{theirs}.bn"))
    for aux in ("aux1", "aux2"):
        parts = {"conv": "conv.conv", "conv_bn": "conv.bn", "fc1": "fc1", "fc2": "fc2"}
        for ours, theirs in parts.items():
            rules.append(_aux_rule(model, aux, ours, f"{aux}.{theirs}"))
    return tuple(rules)


def _aux_rule(model: Classifier, aux: str, layer: str, key: str) -> TorchRule:
    """Makes the rule of a layer of an auxiliary head, which the model may not have."""
    module = f"{aux}/{layer}" if aux in model.heads() else None
    return TorchRule(module, key, flatten=(128, 4, 4) if layer == "fc1" else None)


_AUX_LOSSES = (("aux1", 0.3), ("aux2", 0.3))
# torchvision converts inputs that are normalized for ImageNet to this one.
_CENTERED = Preprocess(
    size=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, resize=256
)

SPECS = (
    ModelSpec(
        name="googlenet",
        task="classification",
        build=partial(googlenet, variant="googlenet"),
        config=GoogLeNetConfig,
        paper=f"{PAPER}, table 1",
        num_classes=1000,
        preprocess=CAFFE_MEAN,
        params=6_998_552,
        macs=1_582_671_872,
        torch_rules=_caffe_names,
        aux_losses=_AUX_LOSSES,
        init="as Caffe's: uniform by fan-in; biases 0.2, of classifiers 0",
        published=(
            "ImageNet validation error, top-5: 10.07 % with one crop, 9.15 % with ten, "
            "7.89 % with 144 (table 3)",
            "ImageNet validation and test error, top-5, of seven networks: 6.67 % with "
            "144 crops (tables 2 and 3)",
        ),
        deviations=(
            "the paper does not state the normalization's constants: those of Caffe's "
            "GoogLeNet, over 5 channels, alpha 1e-4 (divided by 5), beta 0.75, k 1",
            "the paper does not state the initialization: that of Caffe's GoogLeNet",
            "pools round up, as the paper's sizes of maps demand",
            "images of other sizes end in a mean over their whole map, where the paper "
            "has a 7x7 window",
        ),
    ),
    ModelSpec(
        name="googlenet_tv",
        task="classification",
        build=partial(googlenet, variant="googlenet_tv"),
        config=GoogLeNetConfig,
        paper=f"torchvision's GoogLeNet, after {PAPER}",
        num_classes=1000,
        preprocess=_CENTERED,
        params=6_624_904,
        macs=1_498_376_192,
        torch_rules=_torchvision_names,
        torchvision="googlenet",
        weights=(
            dataclasses.replace(
                torchvision_weights("googlenet-1378be20.pth", 69.778, 89.530),
                preprocess=_CENTERED,
            ),
        ),
        aux_losses=_AUX_LOSSES,
        init="normal, std 0.01, biases 0; batch norm 1 and 0",
        published=("ImageNet validation accuracy 69.78 % (top-5 89.53 %), one crop",),
        deviations=(
            "batch norm (epsilon 0.001) behind every convolution, which has no bias, "
            "and no local response normalization",
            "the 5x5 convolutions are 3x3, the last max pool is 2x2",
            "dropout 0.2 before the head, and auxiliary heads that average any map to "
            "4 x 4; the public weights' auxiliary heads are not trained",
            "torchvision also initializes the dense layers' biases, uniformly within "
            "1 / sqrt(fan-in)",
        ),
    ),
)
