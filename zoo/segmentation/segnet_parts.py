"""What SegNets share: the encoder, the decoder and how they are written down.

Reference:
  Badrinarayanan, Kendall, Cipolla, SegNet: A Deep Convolutional Encoder-Decoder
  Architecture for Image Segmentation, 2015.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import BatchNorm, ClassOutputs, Conv, remat_stage
from zoo.ops.normalization import local_response_norm
from zoo.ops.unpooling import max_pool_with_indices, max_unpool
from zoo.segmentation.segmenter import Size, widen

Array = jax.Array


class Layer(NamedTuple):
    """A convolution with its batch norm.

    Attributes:
      name: Of the convolution.
      norm: Name of its batch norm.
      features: Channels.
    """

    name: str
    norm: str
    features: int


class Table(NamedTuple):
    """What a network consists of.

    Attributes:
      encoder: The layers of each stage; behind the last one is a pool.
      decoder: The layers of each stage; before the first one the map is unpooled.
      window: Height and width of the convolutions' windows.
      decoder_relu: Whether the decoder's layers have ReLUs.
      classifier: Name and window of the layer of scores.
      normalized: Whether the input's local response is normalised.
    """

    encoder: tuple[tuple[Layer, ...], ...]
    decoder: tuple[tuple[Layer, ...], ...]
    window: int
    decoder_relu: bool
    classifier: tuple[str, int]
    normalized: bool


class SegNetEncoder(nn.Module):
    """Section 3: stages of convolutions, each with a pool that notes what it took.

    A pool's endpoint "pool1_mask", int32, has the number row * W + column of each
    value's pixel.

    Attributes:
      table: What it consists of.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each stage's activations in the backward pass.
    """

    table: Table
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        convolve = _make_convolve(self, self.table.window, train)

        def stage(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for layer in self.table.encoder[i - 1]:
                x = out[layer.name] = nn.relu(convolve(layer, x))
            pooled = max_pool_with_indices(x, 2, 2, ceil=True)
            out[f"pool{i}"], out[f"pool{i}_mask"] = pooled
            return out

        out, x = {}, images
        if self.table.normalized:
            # The constants of the released network, and Caffe's.
            x = out["norm"] = local_response_norm(x, alpha=1e-4 / 5, k=1)
        for i in range(1, len(self.table.encoder) + 1):
            out |= remat_stage(partial(stage, i=i), self.remat)(self, x)
            x = out[f"pool{i}"]
        return out


class SegNetDecoder(nn.Module):
    """Section 3: the stages back, each behind the unpooling of its pool; the scores.

    Attributes:
      table: What it consists of.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each stage's activations in the backward pass.
    """

    num_classes: int
    table: Table
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        convolve = _make_convolve(self, self.table.window, train)
        activate = nn.relu if self.table.decoder_relu else lambda x: x
        stages = len(self.table.encoder)
        # Of each pool's input: the pool before it rounds up.
        sizes = [size, *(features[f"pool{i}"].shape[1:3] for i in range(1, stages))]

        def stage(self, x: tuple[Array, Array], i: int) -> dict[str, Array]:
            x = max_unpool(*x, sizes[i - 1], stride=2)
            out = {f"pool{i}_D": x}
            for layer in self.table.decoder[stages - i]:
                x = out[layer.name] = activate(convolve(layer, x))
            return out

        out, x = {}, features[f"pool{stages}"]
        for i in range(stages, 0, -1):
            one = remat_stage(partial(stage, i=i), self.remat)
            out |= one(self, (x, features[f"pool{i}_mask"]))
            x = [*out.values()][-1]
        name, window = self.table.classifier
        score = _make_conv(self, window, self.num_classes, name)
        out["logits"] = widen(score(x))
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers that have classes."""
        classes = np.arange(self.num_classes)
        return {self.table.classifier[0]: ClassOutputs(classes, self.kernel_init)}


def _make_conv(module: nn.Module, window: int, features: int, name: str) -> Conv:
    return Conv(
        features,
        window,
        padding=window // 2,
        kernel_init=module.kernel_init,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        name=name,
    )


def _make_convolve(module: nn.Module, window: int, train: bool) -> Callable:
    """Makes the function that applies a layer: its convolution and its batch norm."""

    def convolve(layer: Layer, x: Array) -> Array:
        types = dict(dtype=module.dtype, param_dtype=module.param_dtype)
        x = _make_conv(module, window, layer.features, layer.name)(x)
        return BatchNorm(name=layer.norm, **types)(x, train=train)

    return convolve
