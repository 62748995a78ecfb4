"""What residual networks share: blocks, stages, backbone, names in PyTorch.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.layers import BatchNorm, Classifier, Conv, initializer, make_head
from zoo.ops.pooling import global_average_pool, max_pool
from zoo.spec import TorchRule

Array = jax.Array


class Block(nn.Module):
    """What every block has: a branch of convolutions, and a shortcut past it.

    Attributes:
      features: Channels of the 3x3 convolutions.
      stride: Of the block.
      dilation: Of its 3x3 convolutions.
      first: Whether it is the network's first, behind an activation.
      shortcut: What stands in the input's place where its shape changes: "A" the
        subsampled input between zero channels, "B" a 1x1 convolution; "C" is a 1x1
        convolution in every block. None for a plain network, which adds nothing.
      early_stride: Whether the first 1x1 convolution has a bottleneck's stride, as
        published, and not the 3x3 one.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    first: bool = False
    shortcut: str | None = "B"
    early_stride: bool = False
    conv: Callable = Conv
    norm: Callable = BatchNorm

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.branch(x, train)
        if self.shortcut is not None:
            y = y + self._input(x, y.shape[-1], train)
        return nn.relu(y)

    def branch(self, x: Array, train: bool) -> Array:
        """Computes what is added to the input."""
        raise NotImplementedError

    def conv3x3(self, stride: int, name: str) -> nn.Module:
        """Makes the convolution that keeps the size of a map at stride 1."""
        d = self.dilation
        return self.conv(
            self.features, 3, stride=stride, padding=d, dilation=d, name=name
        )

    def _input(self, x: Array, features: int, train: bool) -> Array:
        same = self.stride == 1 and x.shape[-1] == features
        if same and self.shortcut != "C":
            return x
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            extra = features - x.shape[-1]
            zeros = (extra // 2, extra - extra // 2)
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), zeros))
        x = self.conv(features, 1, stride=self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_bn")(x, train=train)


class BasicBlock(Block):
    """Two 3x3 convolutions; the input is added before the last activation."""

    def branch(self, x: Array, train: bool) -> Array:
        """Computes what is added to the input."""
        y = self.conv3x3(self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3x3(1, name="conv2")(y)
        return self.norm(name="bn2")(y, train=train)


class Bottleneck(Block):
    """A 3x3 convolution between 1x1 ones, the last with four times the channels."""

    def branch(self, x: Array, train: bool) -> Array:
        """Computes what is added to the input."""
        strides = (self.stride, 1) if self.early_stride else (1, self.stride)
        y = self.conv(self.features, 1, stride=strides[0], name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3x3(strides[1], name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y, train=train)


class Stem(nn.Module):
    """The first convolution and, for ImageNet, the pool behind it.

    Attributes:
      small: For images of 32 x 32 pixels: 3x3 instead of 7x7 of stride 2, and no pool.
    """

    features: int
    small: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> dict[str, Array]:
        kernel, stride = (3, 1) if self.small else (7, 2)
        x = self.conv(
            self.features, kernel, stride=stride, padding=kernel // 2, name="conv"
        )(x)
        out = {"stem": nn.relu(self.norm(name="bn")(x, train=train))}
        if not self.small:
            out["stem_pool"] = max_pool(out["stem"], 3, 2, padding=1)
        return out


class Stage(nn.Module):
    """Blocks of one width, the first of which may change the resolution.

    Attributes:
      first: Makes the first block.
      block: Makes each of the others.
      blocks: How many there are, the first included.
      scan: Whether the others are compiled as one loop over them.
    """

    first: Callable
    block: Callable
    blocks: int
    scan: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = self.first(name="block1")(x, train)
        names = [f"block{i + 1}" for i in range(1, self.blocks)]
        if self.scan and names and not self.is_initializing():
            return self._loop(names, x, train)
        for name in names:
            x = self.block(name=name)(x, train)
        return x

    def _loop(self, names: list[str], x: Array, train: bool) -> Array:
        """Runs equal blocks with their own parameters, which are stacked on the way."""
        own = {
            collection: jax.tree.map(lambda *v: jnp.stack(v), *(t[n] for n in names))
            for collection, t in self.variables.items()
        }
        block = self.block(parent=None)

        def body(x: Array, variables: dict) -> tuple[Array, dict]:
            return block.apply(variables, x, train, mutable=["batch_stats"])

        x, updated = jax.lax.scan(body, x, own)
        if train and self.is_mutable_collection("batch_stats"):
            for i, name in enumerate(names):
                stats = jax.tree.map(lambda v, i=i: v[i], updated["batch_stats"])
                self.put_variable("batch_stats", name, stats)
        return x


class ResNetBackbone(nn.Module):
    """A stem, and stages of which each has twice the channels of the one before.

    Attributes:
      label: The network's name, for errors.
      block: The class of its blocks.
      blocks: How many of them each stage has.
      width: Channels of the stem and of the first stage's 3x3 convolutions.
      small: For images of 32 x 32 pixels, see `Stem`.
      stem: Makes the stem; called as `Stem` is.
      preactivation: Whether blocks begin with their activations: then the last one's
        output gets its own.
      output_stride: Pixels of the image to one of the last map. Below 32, the last
        stages keep the resolution, and their taps are apart instead (dilated).
      dilate_first: Whether a dilated stage's first block has its dilation already, as
        in PSPNet, and not that of the stage before, as in torchvision.
      pooled: Whether the last endpoint is the mean over the map, for a classifier.
      epsilon: Of batch norm.
      frozen: Whether batch norm is a fixed affine map, see `BatchNorm`.
      remat: Recompute each block's activations in the backward pass (less memory).
      scan: Compile equal blocks as one loop.

    The other attributes are those of `Block`, `BatchNorm` and `Conv`.
    """

    label: str
    block: type[Block]
    blocks: tuple[int, ...]
    width: int = 64
    small: bool = False
    stem: Callable = Stem
    preactivation: bool = False
    output_stride: int = 32
    dilate_first: bool = False
    pooled: bool = True
    shortcut: str | None = "B"
    early_stride: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    momentum: float = 0.9
    epsilon: float = 1e-5
    frozen: bool = False
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        conv = partial(Conv, use_bias=False, kernel_init=self.kernel_init, **types)
        norm = partial(
            BatchNorm,
            momentum=self.momentum,
            epsilon=self.epsilon,
            frozen=self.frozen,
            **types,
        )
        cls = nn.remat(self.block, static_argnums=(2,)) if self.remat else self.block
        options = dict(shortcut=self.shortcut, early_stride=self.early_stride)

        out = self.stem(self.width, self.small, conv, norm, name="stem")(images, train)
        x = [*out.values()][-1]
        reached = 1 if self.small else 4  # pixels of the image to one of the map
        dilation = 1
        for i, blocks in enumerate(self.blocks):
            stride, before = 1 if i == 0 else 2, dilation
            if stride == 2 and reached == self.output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            make = partial(cls, self.width * 2**i, conv=conv, norm=norm, **options)
            of_first = dilation if self.dilate_first else before
            first = partial(make, stride=stride, dilation=of_first, first=i == 0)
            block = partial(make, dilation=dilation)
            stage = Stage(first, block, blocks, self.scan, name=f"stage{i + 1}")
            x = stage(x, train)
            out[f"stage{i + 1}"] = x
        if self.preactivation:
            x = out["final"] = nn.relu(norm(name="final_bn")(x, train=train))
        if self.pooled:
            out["pool"] = global_average_pool(x)
        return out


def make_classifier(
    *, num_classes: int, init: str | None, dtype: Any, param_dtype: Any, **options: Any
) -> Classifier:
    """Builds a residual network from checked options.

    Args:
      num_classes: 0 for no head.
      init: A name of `zoo.layers.INITIALIZERS`; None for the paper's.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      **options: Of `ResNetBackbone`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    shortcut = options.get("shortcut", "B")
    if shortcut not in ("A", "B", "C", None):
        raise ValueError(f"shortcut must be 'A', 'B' or 'C', got {shortcut!r}.")
    types = dict(dtype=dtype, param_dtype=param_dtype)
    kernel_init = initializer(init or "he_fan_out")
    backbone = ResNetBackbone(kernel_init=kernel_init, **options, **types)
    return Classifier(backbone, make_head(num_classes, **types))


def torch_rules(
    model: Classifier, *, shortcut: str = "downsample", head: str = "fc"
) -> tuple[TorchRule, ...]:
    """The names of torchvision and of most others: conv1, layer1.0.conv1, fc.

    Args:
      model: A residual network.
      shortcut: Their name of the projection.
      head: Their name of the last layer.
    """
    rules = [
        TorchRule("backbone/stem/conv", "conv1"),
        TorchRule("backbone/stem/bn", "bn1"),
        TorchRule("head/fc", head),
    ]
    parts = {f"{kind}{i}": f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
    parts |= {"shortcut_conv": f"{shortcut}.0", "shortcut_bn": f"{shortcut}.1"}
    for stage, blocks in enumerate(model.backbone.blocks, start=1):
        for block in range(blocks):
            ours, theirs = f"backbone/stage{stage}/block{block + 1}", f"layer{stage}"
            for name, key in parts.items():
                rules.append(TorchRule(f"{ours}/{name}", f"{theirs}.{block}.{key}"))
    return tuple(rules)
