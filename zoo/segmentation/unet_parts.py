"""What U-Nets share: the contracting path, and one that expands any endpoints.

Reference:
  Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image
  Segmentation, 2015.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import BatchNorm, ClassOutputs, Conv, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.resize import resize
from zoo.ops.unpooling import repeat_pixels
from zoo.segmentation.segmenter import ConvTransposed, Size, widen

Array = jax.Array

# Of the up-convolution: the paper's variance 2 / N, of the N = C values that one value
# of the result is the sum of; a kernel's four taps go to four different pixels.
UP_INIT = nn.initializers.variance_scaling(8.0, "fan_in", "normal")


class Convs(nn.Module):
    """3x3 convolutions, each with a ReLU.

    Attributes:
      features: Channels of each.
      padding: Zeros on each side: 0 takes 2 pixels off the map each time, 1 keeps its
        size.
      stride: Of the first one.
      count: How many; the paper has two everywhere.
      norm: Makes the batch norm before each ReLU; None for none.
      conv: Makes the convolutions.
    """

    features: int
    padding: int
    stride: int = 1
    count: int = 2
    conv: Callable = Conv
    norm: Callable | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(self.conv, self.features, 3, padding=self.padding)
        for i in range(1, self.count + 1):
            stride = self.stride if i == 1 else 1
            x = conv(stride=stride, use_bias=self.norm is None, name=f"conv{i}")(x)
            if self.norm is not None:
                x = self.norm(name=f"bn{i}")(x, train=train)
            x = nn.relu(x)
        return x


class UNetEncoder(nn.Module):
    """The contracting path: at each level two convolutions, between levels a pool.

    Attributes:
      label: The network's name, for errors.
      widths: Channels of each level.
      padding: See `Convs`.
      batch_norm: Whether there is one before each ReLU.
      stride: Of the first convolution.
      dropout: Rate at the end of the two lowest levels.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each level's activations in the backward pass.
    """

    label: str
    widths: tuple[int, ...]
    padding: int
    batch_norm: bool
    stride: int = 1
    dropout: float = 0.0
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = partial(Conv, kernel_init=self.kernel_init, **types)
        norm = partial(BatchNorm, **types) if self.batch_norm else None
        levels = len(self.widths)
        if not self.padding:
            self._check_size(images)

        def level(self, x: Array, i: int) -> dict[str, Array]:
            stride = self.stride if i == 1 else 1
            options = dict(conv=conv, norm=norm, name=f"down{i}")
            x = Convs(self.widths[i - 1], self.padding, stride, **options)(x, train)
            if i >= levels - 1:
                x = nn.Dropout(self.dropout, deterministic=not train, name=f"drop{i}")(
                    x
                )
            out = {f"down{i}": x}
            if i < levels:
                out[f"pool{i}"] = max_pool(x, 2, 2)
            return out

        out, x = {}, images
        for i in range(1, levels + 1):
            out |= remat_stage(partial(level, i=i), self.remat)(self, x)
            x = [*out.values()][-1]
        return out

    def _check_size(self, images: Array) -> None:
        stride = 2 ** (len(self.widths) - 1)
        if any((n + 4) % stride for n in images.shape[1:3]):
            raise ValueError(
                f"{self.label} takes images of {stride} n + {-4 % stride} pixels, "
                f"height and width, so that each pool has an even number; got "
                f"{list(images.shape)}. (zoo.make_segmenter brings images to that.)"
            )


class UNetHead(nn.Module):
    """The expanding path, which reads a backbone's endpoints, and the scores.

    Each step doubles the map of the step below, joins the endpoint of the same size to
    it ("skip connection"), and has convolutions. Where an endpoint is smaller or
    larger by a pixel, as behind a pool of an odd number of pixels, the doubled map is
    cut or filled up with zeros below and on the right; where convolutions without
    padding have made it smaller, the endpoint's centre is joined.

    Attributes:
      reads: Names of the backbone's endpoints, from the lowest, where the path begins,
        to the highest; each has about twice the size of the one before it.
      widths: Channels of each step, from the lowest; where there is a step more than
        `reads` has left, the last one doubles the map to the image's size and joins
        nothing. Where the last map is smaller than the image, the scores are enlarged.
      padding: See `Convs`.
      batch_norm: Whether there is one before each ReLU.
      upconv: Whether a map is doubled by a transposed 2x2 convolution, which halves its
        channels, or by repeating its pixels.
      convs: Convolutions of each step.
      window: Height and width of the scores' window.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each step's activations in the backward pass.
    """

    num_classes: int
    reads: tuple[str, ...]
    widths: tuple[int, ...]
    padding: int = 1
    batch_norm: bool = True
    upconv: bool = True
    convs: int = 2
    window: int = 1
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = partial(Conv, kernel_init=self.kernel_init, **types)
        norm = partial(BatchNorm, **types) if self.batch_norm else None
        lowest, *skips = (features[name] for name in self.reads)

        def step(self, maps: tuple[Array, ...], i: int, width: int) -> dict[str, Array]:
            x, *skip = maps
            if self.upconv:
                layer = partial(ConvTransposed, width, 2, 2, kernel_init=UP_INIT)
                x = layer(name=f"upconv{i}", **types)(x)
            else:
                x = repeat_pixels(x, 2)
            if self.padding:
                x = _fit(x, skip[0].shape[1:3] if skip else size, f"up{i}")
            joined = [_crop(s, x.shape[1:3]) for s in skip]
            x = jnp.concatenate([*joined, x], axis=-1)
            options = dict(count=self.convs, conv=conv, norm=norm, name=f"up{i}")
            return {f"up{i}": Convs(width, self.padding, **options)(x, train)}

        out, x = {}, lowest
        for n, width in enumerate(self.widths):
            i = len(self.widths) - n
            one = remat_stage(partial(step, i=i, width=width), self.remat)
            out |= one(self, (x, *skips[n : n + 1]))
            x = out[f"up{i}"]
        score = conv(
            self.num_classes, self.window, padding=self.window // 2, name="score"
        )
        out["logits"] = widen(score(x))
        if self.padding and x.shape[1:3] != tuple(size):
            out["score"] = out.pop("logits")
            out["logits"] = resize(out["score"], size, antialias=False)
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers that have classes."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.kernel_init)}


def _fit(x: Array, size: Size, name: str) -> Array:
    """Cuts a doubled map, or fills it up with zeros, below and on the right."""
    ends = [n - m for n, m in zip(size, x.shape[1:3], strict=True)]
    if any(abs(end) > 1 for end in ends):
        raise ValueError(
            f"{name} doubles its map to {list(x.shape[1:3])} pixels, and is to join "
            f"{list(size)}: `reads` must name endpoints from the lowest on, each twice "
            "as large, and `widths` lead to the image's size."
        )
    pads = [(0, 0, 0), *((0, end, 0) for end in ends), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), pads)


def _crop(x: Array, size: Size) -> Array:
    """Cuts out a map's centre."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
