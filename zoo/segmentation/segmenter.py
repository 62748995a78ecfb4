"""What segmentation networks share: their shape, heads, transposed convolutions."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_images, check_kernel
from zoo.layers import BatchNorm, ClassOutputs, Conv, per_channel
from zoo.ops.bilinear import bilinear_filter
from zoo.ops.convolution import convolve_transposed
from zoo.ops.resize import resize
from zoo.spec import Preprocess

Array = jax.Array
Size = tuple[int, int]


class Segmenter(nn.Module):
    """A backbone, a head and, for training, an auxiliary head.

    Attributes:
      backbone: Called with `(images, train=...)`; returns a dict of named endpoints.
      head: Called with `(features, size, train=...)`, the backbone's endpoints and the
        images' height and width; returns a dict of named endpoints, the last of which
        is "logits". None for a network without classes, whose output is the backbone's
        last endpoint.
      aux_head: Like `head`; its logits are the endpoint "aux". None for none.
      label: The network's name, for errors.
      preprocess: What its variables expect, unless their card says otherwise.
      min_size: Smallest height and width of the images.
      stride: `zoo.make_segmenter` gives it images of `stride * n + remainder` pixels,
        height and width, because others do not fit or have their last map's pixels
        elsewhere.
      remainder: As above.
      margin: By how many pixels the logits are smaller than the images on each side.
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
          float32 [B, H, W, num_classes]; with a `margin`, so much less on each side.
        """
        return [*self.endpoints(images, train).values()][-1]

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation, in the order of the network."""
        check_images(images, self.label, min_size=self.min_size)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be preprocessed floating point, got {images.dtype}; "
                "zoo.normalize makes them of uint8."
            )
        out = self.backbone(images, train=train)
        if self.head is None:
            return out
        size = images.shape[1:3]
        of_head = self.head(out, size, train=train)
        if self.aux_head is not None:
            of_aux = self.aux_head(out, size, train=train)
            logits = of_head.pop("logits")
            of_head |= {"aux": of_aux["logits"], "logits": logits}
        return {**out, **of_head}

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Lists the parts that have classes, by the names of their fields."""
        found = {"head": self.head, "aux_head": self.aux_head}
        return {name: head for name, head in found.items() if head is not None}


class ConvHead(nn.Module):
    """A 3x3 convolution with batch norm and dropout, and a score for each class.

    The scores are resized to the image, bilinearly.

    Attributes:
      features: Channels of the 3x3 convolution.
      reads: Name of the backbone's endpoint that it reads.
      align_corners: As in `zoo.ops.resize.resize`.
      score_init: Initialiser of the scores' kernel.
    """

    num_classes: int
    features: int
    reads: str = "stage4"
    align_corners: bool = False
    dropout: float = 0.1
    momentum: float = 0.9
    kernel_init: Callable = nn.initializers.lecun_normal()
    score_init: Callable = nn.initializers.normal(0.01)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        out = self.context(features[self.reads], train)
        x = [features[self.reads], *out.values()][-1]
        conv = Conv(
            self.features,
            3,
            padding=1,
            use_bias=False,
            kernel_init=self.kernel_init,
            name="conv",
            **types,
        )
        norm = BatchNorm(momentum=self.momentum, name="bn", **types)
        x = out["head_conv"] = nn.relu(norm(conv(x), train=train))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        score = Conv(
            self.num_classes, 1, kernel_init=self.score_init, name="score", **types
        )
        x = out["score"] = widen(score(x))
        out["logits"] = resize(
            x, size, antialias=False, align_corners=self.align_corners
        )
        return out

    def context(self, x: Array, train: bool) -> dict[str, Array]:
        """Computes what stands between the backbone and the head; here nothing."""
        return {}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers that have classes."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.score_init)}


class ScoreHead(nn.Module):
    """A 1x1 convolution of one endpoint, whose scores are resized to the image.

    Attributes:
      reads: Name of the backbone's endpoint; empty for the last one.
      kernel_init: Initialiser of the scores' kernel.
    """

    num_classes: int
    reads: str = ""
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        options = dict(kernel_init=self.kernel_init, name="score", **types)
        x = features[self.reads] if self.reads else [*features.values()][-1]
        x = widen(Conv(self.num_classes, 1, **options)(x))
        if x.shape[1:3] != tuple(size):
            x = resize(x, size, antialias=False)
        return {"logits": x}

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers that have classes."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.kernel_init)}


class ConvTransposed(nn.Module):
    """A transposed convolution of [B, H, W, C], also called deconvolution.

    Its parameters are `kernel` [k, k, C, features] and `bias` [features].

    Attributes:
      features: Output channels.
      kernel: Height and width of the window.
      stride: Pixels of the result to one of the input.
      offset: Rows and columns that are cut off, above and on the left.
    """

    features: int
    kernel: int
    stride: int
    offset: int = 0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: Size | None = None) -> Array:
        """Computes the result, of which `size` says height and width; None for all."""
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
    """Initialises a kernel [k, k, C, C] so that each channel is interpolated alone."""
    taps = bilinear_filter(shape[0])
    return jnp.asarray(np.einsum("i,j,cd->ijcd", taps, taps, np.eye(shape[2])), dtype)


def widen(x: Array) -> Array:
    """Makes scores float32, or leaves them as they are where they are wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
