"""The network of the visualisation paper, which won ILSVRC-2013's classification.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.classification.imagenet import MEAN_COLOUR
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

# Figure 3: channels of the convolutions, and of fc6 and fc7.
WIDTHS = (96, 256, 384, 384, 256)
DENSE = 4096


class ZFNetBackbone(nn.Module):
    """Figure 3: AlexNet without groups, and with a finer first layer.

    Attributes:
      widths: Channels of the five convolutions.
      dense: Channels of fc6 and fc7.
      fully_convolutional: Read images of any size, see `FullyConnected`.
      dropout: Rate after fc6 and fc7.
      remat: Recompute the convolutions' activations in the backward pass.
    """

    widths: tuple[int, ...] = WIDTHS
    dense: int = DENSE
    kernel_init: Callable = nn.initializers.lecun_normal()
    fully_convolutional: bool = False
    dropout: float = 0.5
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        if self.fully_convolutional:
            check_images(images, "zfnet", min_size=207)
        else:
            check_images(images, "zfnet", size=224)
        types = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )

        def convolutions(self, x: Array) -> dict[str, Array]:
            out, widths = {}, self.widths
            conv = partial(Conv, **types)
            # 55 pixels of 110, and 13 of 26, need a last window over the border.
            pool = partial(max_pool, window=3, stride=2, ceil=True)
            conv1 = conv(widths[0], 7, stride=2, padding=1, name="conv1")
            x = out["conv1"] = nn.relu(conv1(x))
            x = out["pool1"] = pool(x)
            x = out["norm1"] = local_response_norm(x)
            x = out["conv2"] = nn.relu(conv(widths[1], 5, stride=2, name="conv2")(x))
            x = out["pool2"] = pool(x)
            x = out["norm2"] = local_response_norm(x)
            for i in (3, 4, 5):
                layer = conv(widths[i - 1], 3, padding=1, name=f"conv{i}")
                x = out[f"conv{i}"] = nn.relu(layer(x))
            out["pool5"] = pool(x)
            return out

        out = remat_stage(convolutions, self.remat)(self, images)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        everywhere = self.fully_convolutional
        fc6 = FullyConnected(self.dense, 6, everywhere, name="fc6", **types)
        x = out["fc6"] = drop(name="drop6")(nn.relu(fc6(out["pool5"])))
        fc7 = nn.Dense(self.dense, name="fc7", **types)
        out["fc7"] = drop(name="drop7")(nn.relu(fc7(x)))
        return out


def zfnet(
    *,
    num_classes: int = 1000,
    widths: tuple[int, ...] = WIDTHS,
    dense: int = DENSE,
    init: str | None = None,
    dropout: float = 0.5,
    fully_convolutional: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Classifier:
    """Builds the network of figure 3.

    Args:
      num_classes: 0 for no head.
      widths: Channels of the five convolutions.
      dense: Channels of fc6 and fc7.
      init: A name of `zoo.layers.INITIALIZERS`; None for the paper's.
      dropout: Rate after the dense layers.
      fully_convolutional: Take images of any size in which the dense layers fit, and
        average the logits over the positions at which they do.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.
    """
    kernel_init = initializer(init or "gaussian_0.01")
    types = dict(kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype)
    backbone = ZFNetBackbone(
        widths=tuple(widths),
        dense=dense,
        fully_convolutional=fully_convolutional,
        dropout=dropout,
        remat=remat,
        **types,
    )
    return Classifier(backbone, make_head(num_classes, layer="fc8", **types))


def _caffe_names(model: Classifier) -> tuple[TorchRule, ...]:
    layers = "conv1 conv2 conv3 conv4 conv5 fc7".split()
    return (
        *(TorchRule(f"backbone/{name}", name) for name in layers),
        TorchRule("backbone/fc6", "fc6", flatten=(model.backbone.widths[-1], 6, 6)),
        TorchRule("head/fc8", "fc8"),
    )


SPECS = (
    ModelSpec(
        name="zfnet",
        task="classification",
        build=zfnet,
        paper=(
            "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, "
            "2014, figure 3"
        ),
        num_classes=1000,
        preprocess=MEAN_COLOUR,
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
            "the paper does not give its contrast normalisation: AlexNet's local "
            "response normalisation with AlexNet's constants",
            "the paper sets all weights to 0.01, which is read as their deviation",
            "the paper's training scales a filter back whose root mean square exceeds "
            "0.1: not part of the network",
            "mean colour instead of mean image is subtracted from the input",
        ),
    ),
)
