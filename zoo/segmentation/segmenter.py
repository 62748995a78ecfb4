"""The parts that segmentation networks share."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_images, check_kernel
from zoo.layers import BatchNorm, ClassOutputs, Conv, Layer, NetworkConfig, per_channel
from zoo.ops.bilinear import bilinear_filter
from zoo.ops.convolution import convolve_transposed
from zoo.ops.resize import resize
from zoo.spec import Preprocess

Array = jax.Array
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig(NetworkConfig):
    """Options of every segmentation network; the configs of families add their own.

    Attributes:
      init: Initializer of the convolutions, a key of `zoo.layers.INITIALIZERS`; None
        for the paper's.
      remat: Whether to recompute activations in the backward pass, to save memory.
    """

    init: str | None = None
    remat: bool = False


class Segmenter(nn.Module):
    """A backbone, a head and, for training, an auxiliary head.

    Attributes:
      backbone: Called with `(images, train=...)`; returns a dict of named endpoints.
      head: Called with `(features, size, train=...)`, the backbone's endpoints and the
        height and width of the images; returns a dict of named endpoints, the last of
        which is "logits". None for a network without classes, whose output is the
        backbone's last endpoint.
      aux_head: Like `head`; its logits are the endpoint "aux". None for no such head.
      label: Name of the network, for error messages.
      preprocess: The preprocessing of images, unless a card states another.
      min_size: Minimum height and width of the images.
      stride: `zoo.make_segmenter` passes images whose height and width are
        `stride * n + remainder` pixels; other sizes do not fit, or shift the pixels of
        the last feature map.
      remainder: See `stride`.
      margin: Number of pixels by which logits are smaller than images on each side.
    """

    backbone: nn.Module
    head: nn.Module | None
    aux_head: nn.Module | None = None
    label: str = ""
    preprocess: Preprocess | None = None
    min_size: int = 1
    stride: int = 1
    remainder: int = 0
    margin: int = 0

    def __call__(self, images: Array, train: bool = False) -> Array:
        """Computes the logits.

        Args:
          images: float32 [B, H, W, C], preprocessed.
          train: Whether batch norm uses the batch and dropout is active.

        Returns:
          float32 [B, H, W, num_classes], without the `margin` on each side.
        """
        return [*self.endpoints(images, train).values()][-1]

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes the named activations, in the order of the network."""
        check_images(images, self.label, min_size=self.min_size)
        out = self.backbone(images, train=train)
        if self.head is None:
            return out
        size = images.shape[1:3]
        head = self.head(out, size, train=train)
        if self.aux_head is not None:
            logits = head.pop("logits")
            head["aux"] = self.aux_head(out, size, train=train)["logits"]
            head["logits"] = logits
        return {**out, **head}

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes, by field name."""
        found = {"head": self.head, "aux_head": self.aux_head}
        return {name: head for name, head in found.items() if head is not None}


class ConvHead(Layer):
    """A 3x3 convolution with batch norm and dropout, and a 1x1 convolution to scores.

    The scores are resized bilinearly to the size of the image.

    Attributes:
      num_classes: Number of classes.
      features: Number of channels of the 3x3 convolution.
      reads: Name of the endpoint of the backbone that is the input.
      align_corners: See `zoo.ops.resize.resize`.
      dropout: Dropout rate before the scores.
      momentum: Decay rate of batch norm's running averages.
      kernel_init: Initializer of the 3x3 convolution.
      score_init: Initializer of the 1x1 convolution.
    """

    num_classes: int
    features: int
    reads: str = "stage4"
    align_corners: bool = False
    dropout: float = 0.1
    momentum: float = 0.9
    kernel_init: Callable = nn.initializers.lecun_normal()
    score_init: Callable = nn.initializers.normal(0.01)

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        """Computes "head_conv", "score" and "logits"."""
        conv = partial(Conv, **self.dtypes)
        out = self.context(features[self.reads], train)
        x = [features[self.reads], *out.values()][-1]
        x = conv(
            self.features,
            3,
            padding=1,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        norm = BatchNorm(momentum=self.momentum, name="bn", **self.dtypes)
        x = out["head_conv"] = nn.relu(norm(x, train=train))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        score = conv(self.num_classes, 1, kernel_init=self.score_init, name="score")
        x = out["score"] = promote(score(x))
        out["logits"] = resize(
            x, size, antialias=False, align_corners=self.align_corners
        )
        return out

    def context(self, x: Array, train: bool) -> dict[str, Array]:
        """Computes the endpoints between the backbone and the head; here none."""
        return {}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the scores."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.score_init)}


class ScoreHead(Layer):
    """A 1x1 convolution of one endpoint, resized to the size of the image.

    Attributes:
      num_classes: Number of classes.
      reads: Name of the endpoint of the backbone; empty for the last one.
      kernel_init: Initializer of the kernel.
    """

    num_classes: int
    reads: str = ""
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        """Computes "logits"."""
        options = dict(kernel_init=self.kernel_init, name="score", **self.dtypes)
        x = features[self.reads] if self.reads else [*features.values()][-1]
        x = promote(Conv(self.num_classes, 1, **options)(x))
        if x.shape[1:3] != tuple(size):
            x = resize(x, size, antialias=False)
        return {"logits": x}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the scores."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.kernel_init)}


class ConvTransposed(Layer):
    """A transposed convolution of [B, H, W, C].

    The parameters are `kernel` [k, k, C, features] and `bias` [features].

    Attributes:
      features: Number of output channels.
      kernel: Height and width of the kernel.
      stride: Upsampling factor.
      offset: Number of rows and columns cropped at the top and on the left.
      use_bias: Whether to add a bias.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.
    """

    features: int
    kernel: int
    stride: int
    offset: int = 0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, size: Size | None = None) -> Array:
        """Computes the result, cropped to the height and width `size`, if given."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        check_kernel(self, shape)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        whole = [(n - 1) * self.stride + self.kernel for n in x.shape[1:3]]
        size = size or [n - self.offset for n in whole]
        ends = [n - self.offset - m for n, m in zip(whole, size, strict=True)]
        y = convolve_transposed(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=(self.stride, self.stride),
            crop=tuple((self.offset, end) for end in ends),
        )
        if not self.use_bias:
            return y
        shape = (self.features,)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        return y + per_channel(bias.astype(self.dtype), y)


def bilinear(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initializes a kernel [k, k, C, C] that interpolates each channel bilinearly."""
    taps = bilinear_filter(shape[0])
    return jnp.asarray(np.einsum("i,j,cd->ijcd", taps, taps, np.eye(shape[2])), dtype)


def promote(x: Array) -> Array:
    """Converts to float32, or keeps a wider type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
