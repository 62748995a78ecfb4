"""GoogLeNet, as published and as torchvision's weights have it.

Reference:
  Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, Going
  Deeper with Convolutions, 2014.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from zoo.checks import check_images
from zoo.classification.imagenet import MEAN_COLOUR, torchvision_weights
from zoo.classification.inception import (
    CONVOLUTIONS,
    AuxiliaryHead,
    Inception,
    make_layers,
    rectified,
)
from zoo.layers import Classifier, initializer, make_head
from zoo.ops.normalization import local_response_norm
from zoo.ops.pooling import global_average_pool, max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = "Szegedy et al.: Going Deeper with Convolutions, 2014"

# Table 1: the channels of the first three convolutions, and for each module those of
# its convolutions.
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
_normalize = partial(local_response_norm, size=5, alpha=1e-4 / 5, beta=0.75, k=1)


class GoogLeNetBackbone(nn.Module):
    """Table 1: two convolutions, nine inception modules, and the mean of the map.

    Attributes:
      label: The network's name, for errors.
      stem: Channels of conv1, conv2_reduce and conv2.
      modules: Channels of each inception module's convolutions, by the module's name.
      batch_norm: Behind every convolution, which then has no bias, as torchvision has
        it; else local response normalisation at two places, as published.
      large: Height and width of the "5x5" windows, in pixels.
      last_pool: Height and width of the last max pool's window, in pixels.
      min_size: Smallest height and width of an image into which every window fits.
      dropout: Rate before the head.
      remat: Recompute each module's activations in the backward pass.
    """

    label: str
    stem: tuple[int, ...]
    modules: FrozenDict[str, tuple[int, ...]]
    batch_norm: bool
    large: int
    last_pool: int
    min_size: int
    dropout: float
    kernel_init: Callable = nn.initializers.lecun_normal()
    momentum: float = 0.9
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label, min_size=self.min_size)
        layers = make_layers(self)
        unit = partial(rectified, train=train, **layers)
        module = nn.remat(Inception, static_argnums=(2,)) if self.remat else Inception

        out = {}
        x = out["conv1"] = unit(images, self.stem[0], 7, stride=2, name="conv1")
        x = out["pool1"] = max_pool(x, 3, 2, ceil=True)
        if not self.batch_norm:
            x = out["norm1"] = _normalize(x)
        x = out["conv2_reduce"] = unit(x, self.stem[1], 1, name="conv2_reduce")
        x = out["conv2"] = unit(x, self.stem[2], 3, name="conv2")
        if not self.batch_norm:
            x = out["norm2"] = _normalize(x)
        x = out["pool2"] = max_pool(x, 3, 2, ceil=True)
        for number, widths in self.modules.items():
            if number == "4a":
                x = out["pool3"] = max_pool(x, 3, 2, ceil=True)
            if number == "5a":
                x = out["pool4"] = max_pool(x, self.last_pool, 2, ceil=True)
            name = f"inception_{number}"
            x = out[name] = module(widths, self.large, name=name, **layers)(x, train)
        drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
        out["pool"] = drop(global_average_pool(x))
        return out


class GoogLeNet(Classifier):
    """A classifier with the two auxiliary heads of training.

    Attributes:
      aux1: Reads inception_4a.
      aux2: Reads inception_4d.
      size: The one height and width of images that the auxiliary heads can read, in
        pixels; None for any.
    """

    aux1: AuxiliaryHead
    aux2: AuxiliaryHead
    size: int | None

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Lists the parts that have classes, by the names of their fields."""
        return {"head": self.head, "aux1": self.aux1, "aux2": self.aux2}

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation; the logits of `head` come last."""
        check_images(images, f"{self.backbone.label} with aux=True", size=self.size)
        out = super().endpoints(images, train)
        logits = out.pop("logits")
        out["aux1"] = self.aux1(out["inception_4a"], train)
        out["aux2"] = self.aux2(out["inception_4d"], train)
        return {**out, "logits": logits}


_VARIANTS = {
    "googlenet": dict(batch_norm=False, large=5, last_pool=3, min_size=47),
    "googlenet_tv": dict(batch_norm=True, large=3, last_pool=2, min_size=31),
}


def googlenet(
    *,
    variant: str,
    num_classes: int = 1000,
    aux: bool = False,
    stem: tuple[int, ...] = STEM,
    modules: Mapping[str, tuple[int, ...]] | None = None,
    init: str | None = None,
    dropout: float | None = None,
    momentum: float = 0.9,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Classifier:
    """Builds a GoogLeNet.

    Args:
      variant: "googlenet" or "googlenet_tv".
      num_classes: 0 for no heads, auxiliary ones included.
      aux: Whether to have the auxiliary heads, whose losses training adds: endpoints
        "aux1" and "aux2". The paper's read images of 224 pixels alone.
      stem: Channels of conv1, conv2_reduce and conv2.
      modules: Channels of each inception module's convolutions, by the module's name,
        in the order of `MODULES`; None for `MODULES`.
      init: A name of `zoo.layers.INITIALIZERS`; None for the source's own.
      dropout: Rate before the head; None for the source's own. With 0 the auxiliary
        heads have none either.
      momentum: What batch norm's running averages keep at a step.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.
    """
    facts = _VARIANTS[variant]
    normed = facts["batch_norm"]
    kernel_init = initializer(init or ("gaussian_0.01" if normed else "caffe_xavier"))
    types = dict(kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype)
    backbone = GoogLeNetBackbone(
        label=variant,
        stem=tuple(stem),
        modules=FrozenDict({k: tuple(v) for k, v in (modules or MODULES).items()}),
        dropout=dropout if dropout is not None else (0.2 if normed else 0.4),
        momentum=momentum,
        remat=remat,
        **facts,
        **types,
    )
    head = make_head(num_classes, **types)
    if head is None or not aux:
        return Classifier(backbone, head)
    options = dict(batch_norm=normed, momentum=momentum, **types)
    if dropout == 0:
        options["dropout"] = 0.0
    aux1, aux2 = (AuxiliaryHead(num_classes, **options) for _ in range(2))
    return GoogLeNet(backbone, head, aux1, aux2, size=None if normed else 224)


def _caffe_names(model: Classifier) -> tuple[TorchRule, ...]:
    names = {
        "backbone/conv1": "conv1/7x7_s2",
        "backbone/conv2_reduce": "conv2/3x3_reduce",
        "backbone/conv2": "conv2/3x3",
        "head/fc": "loss3/classifier",
    }
    for module in model.backbone.modules:
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
    for module in model.backbone.modules:
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
    """Where a layer of an auxiliary head is; in no place if the model has no such."""
    module = f"{aux}/{layer}" if aux in model.heads() else None
    return TorchRule(module, key, flatten=(128, 4, 4) if layer == "fc1" else None)


_AUX_LOSSES = (("aux1", 0.3), ("aux2", 0.3))
# torchvision maps an input that has ImageNet's colours to this one.
_CENTRED = Preprocess(size=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, resize=256)

SPECS = (
    ModelSpec(
        name="googlenet",
        task="classification",
        build=partial(googlenet, variant="googlenet"),
        paper=f"{PAPER}, table 1",
        num_classes=1000,
        preprocess=MEAN_COLOUR,
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
            "the paper does not state the normalisation's constants: those of Caffe's "
            "GoogLeNet, over 5 channels, alpha 1e-4 (divided by 5), beta 0.75, k 1",
            "the paper does not state the initialisation: that of Caffe's GoogLeNet",
            "pools round up, as the paper's sizes of maps demand",
            "images of other sizes end in a mean over their whole map, where the paper "
            "has a 7x7 window",
        ),
    ),
    ModelSpec(
        name="googlenet_tv",
        task="classification",
        build=partial(googlenet, variant="googlenet_tv"),
        paper=f"torchvision's GoogLeNet, after {PAPER}",
        num_classes=1000,
        preprocess=_CENTRED,
        params=6_624_904,
        macs=1_498_376_192,
        torch_rules=_torchvision_names,
        torchvision="googlenet",
        weights=(
            dataclasses.replace(
                torchvision_weights("googlenet-1378be20.pth", 69.778, 89.530),
                preprocess=_CENTRED,
            ),
        ),
        aux_losses=_AUX_LOSSES,
        init="normal, std 0.01, biases 0; batch norm 1 and 0",
        published=("ImageNet validation accuracy 69.78 % (top-5 89.53 %), one crop",),
        deviations=(
            "batch norm (epsilon 0.001) behind every convolution, which has no bias, "
            "and no local response normalisation",
            "the 5x5 convolutions are 3x3, the last max pool is 2x2",
            "dropout 0.2 before the head, and auxiliary heads that average any map to "
            "4 x 4; the public weights' auxiliary heads are not trained",
            "torchvision also initialises the dense layers' biases, uniformly within "
            "1 / sqrt(fan-in)",
        ),
    ),
)
