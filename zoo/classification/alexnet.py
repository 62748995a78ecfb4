"""AlexNet, as published with two groups, and the single column of the public weights.

References:
  Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural
  Networks, 2012. Krizhevsky, One Weird Trick for Parallelizing Convolutional Neural
  Networks, 2014, whose network is, but for its widths, torchvision's.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.classification.imagenet import IMAGENET, MEAN_COLOUR, torchvision_weights
from zoo.layers import (
    Classifier,
    Conv,
    FullyConnected,
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


class AlexNetBackbone(nn.Module):
    """Section 3.5 and figure 2: five convolutions and two dense layers.

    Attributes:
      widths: Channels of the five convolutions.
      dense: Channels of fc6 and fc7.
      fully_convolutional: Read images of any size, see `FullyConnected`.
      dropout: Rate after fc6 and fc7.
      remat: Recompute the convolutions' activations in the backward pass.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    dense: int = 4096
    kernel_init: Callable = nn.initializers.lecun_normal()
    fully_convolutional: bool = False
    dropout: float = 0.5
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        if self.fully_convolutional:
            check_images(images, "alexnet", min_size=227)
        else:
            check_images(images, "alexnet", size=227)
        types = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )
        ones = nn.initializers.ones

        def convolutions(self, x: Array) -> dict[str, Array]:
            out, widths = {}, self.widths
            conv = partial(Conv, **types)
            x = out["conv1"] = nn.relu(conv(widths[0], 11, stride=4, name="conv1")(x))
            x = out["norm1"] = local_response_norm(x)
            x = out["pool1"] = max_pool(x, 3, 2)
            grouped = partial(conv, groups=2, bias_init=ones)
            conv2 = grouped(widths[1], 5, padding=2, name="conv2")
            x = out["conv2"] = nn.relu(conv2(x))
            x = out["norm2"] = local_response_norm(x)
            x = out["pool2"] = max_pool(x, 3, 2)
            x = out["conv3"] = nn.relu(conv(widths[2], 3, padding=1, name="conv3")(x))
            conv4 = grouped(widths[3], 3, padding=1, name="conv4")
            x = out["conv4"] = nn.relu(conv4(x))
            conv5 = grouped(widths[4], 3, padding=1, name="conv5")
            x = out["conv5"] = nn.relu(conv5(x))
            out["pool5"] = max_pool(x, 3, 2)
            return out

        out = remat_stage(convolutions, self.remat)(self, images)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        everywhere, dense = self.fully_convolutional, dict(bias_init=ones, **types)
        fc6 = FullyConnected(self.dense, 6, everywhere, name="fc6", **dense)
        x = out["fc6"] = drop(name="drop6")(nn.relu(fc6(out["pool5"])))
        fc7 = nn.Dense(self.dense, name="fc7", **dense)
        out["fc7"] = drop(name="drop7")(nn.relu(fc7(x)))
        return out


class AlexNetTVBackbone(nn.Module):
    """torchvision's: one column, no normalisation, dropout before fc6 and fc7.

    Attributes:
      widths: Channels of the five convolutions.
      dense: Channels of fc6 and fc7.
      fully_convolutional: Read images of any size, see `FullyConnected`.
      dropout: Rate before fc6 and fc7.
      remat: Recompute the convolutions' activations in the backward pass.
    """

    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    dense: int = 4096
    kernel_init: Callable = nn.initializers.lecun_normal()
    fully_convolutional: bool = False
    dropout: float = 0.5
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        if self.fully_convolutional:
            check_images(images, "alexnet_tv", min_size=223)
        else:
            check_images(images, "alexnet_tv", size=224)
        types = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )

        def convolutions(self, x: Array) -> dict[str, Array]:
            out, widths = {}, self.widths
            conv = partial(Conv, **types)
            conv1 = conv(widths[0], 11, stride=4, padding=2, name="conv1")
            x = out["conv1"] = nn.relu(conv1(x))
            x = out["pool1"] = max_pool(x, 3, 2)
            x = out["conv2"] = nn.relu(conv(widths[1], 5, padding=2, name="conv2")(x))
            x = out["pool2"] = max_pool(x, 3, 2)
            for i in (3, 4, 5):
                layer = conv(widths[i - 1], 3, padding=1, name=f"conv{i}")
                x = out[f"conv{i}"] = nn.relu(layer(x))
            out["pool5"] = max_pool(x, 3, 2)
            return out

        out = remat_stage(convolutions, self.remat)(self, images)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        everywhere = self.fully_convolutional
        fc6 = FullyConnected(self.dense, 6, everywhere, name="fc6", **types)
        x = drop(name="drop6")(out["pool5"])
        x = out["fc6"] = nn.relu(fc6(x))
        x = drop(name="drop7")(x)
        out["fc7"] = nn.relu(nn.Dense(self.dense, name="fc7", **types)(x))
        return out


_VARIANTS = {
    "alexnet": (AlexNetBackbone, "gaussian_0.01"),
    "alexnet_tv": (AlexNetTVBackbone, "torch"),
}


def alexnet(
    *,
    variant: str,
    num_classes: int = 1000,
    widths: tuple[int, ...] | None = None,
    dense: int = 4096,
    init: str | None = None,
    dropout: float = 0.5,
    fully_convolutional: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Classifier:
    """Builds an AlexNet.

    Args:
      variant: "alexnet" or "alexnet_tv".
      num_classes: 0 for no head.
      widths: Channels of the five convolutions; None for the variant's.
      dense: Channels of fc6 and fc7.
      init: A name of `zoo.layers.INITIALIZERS`; None for the source's own.
      dropout: Rate at the dense layers.
      fully_convolutional: Take images of any size from the usual one on, and average
        the logits over the positions at which the dense layers fit.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.
    """
    backbone, own_init = _VARIANTS[variant]
    kernel_init = initializer(init or own_init)
    types = dict(kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype)
    options = dict(
        dense=dense,
        fully_convolutional=fully_convolutional,
        dropout=dropout,
        remat=remat,
        **types,
    )
    if widths is not None:
        options["widths"] = tuple(widths)
    return Classifier(backbone(**options), make_head(num_classes, layer="fc8", **types))


def _caffe_names(model: Classifier) -> tuple[TorchRule, ...]:
    layers = "conv1 conv2 conv3 conv4 conv5 fc6 fc7".split()
    rules = [TorchRule(f"backbone/{name}", name) for name in layers if name != "fc6"]
    channels = model.backbone.widths[-1]
    fc6 = TorchRule("backbone/fc6", "fc6", flatten=(channels, 6, 6))
    return (*rules, fc6, TorchRule("head/fc8", "fc8"))


def _torchvision_names(model: Classifier) -> tuple[TorchRule, ...]:
    convolutions = zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)
    channels = model.backbone.widths[-1]
    return (
        *(TorchRule(f"backbone/conv{i}", f"features.{j}") for i, j in convolutions),
        TorchRule("backbone/fc6", "classifier.1", flatten=(channels, 6, 6)),
        TorchRule("backbone/fc7", "classifier.4"),
        TorchRule("head/fc8", "classifier.6"),
    )


SPECS = (
    ModelSpec(
        name="alexnet",
        task="classification",
        build=partial(alexnet, variant="alexnet"),
        paper=PAPER,
        num_classes=1000,
        preprocess=dataclasses.replace(MEAN_COLOUR, size=227),
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
            "the paper prints 224 pixels, with which 55 x 55 outputs of conv1 cannot "
            "be had without padding: 227, as in its code",
            "mean colour instead of mean image is subtracted from the input",
            "dropout scales what it keeps in training, and not all outputs in testing",
        ),
    ),
    ModelSpec(
        name="alexnet_tv",
        task="classification",
        build=partial(alexnet, variant="alexnet_tv"),
        paper=f"torchvision's AlexNet, after {PAPER}",
        num_classes=1000,
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
            "without normalisation; dropout before fc6 and fc7",
            "torchvision also initialises biases, uniformly within 1 / sqrt(fan-in)",
            "images of other sizes are read by fc6 at every place, with "
            "fully_convolutional=True, where torchvision pools them to 6 x 6",
        ),
    ),
)
