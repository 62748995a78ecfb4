"""Full-resolution residual networks: a residual stream and a pooling stream.

References:
  Pohlen, Hermans, Mathias, Leibe, Full-Resolution Residual Networks for Semantic
  Segmentation in Street Scenes, 2017. Its released code (TobyPDE/FRRN).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from zoo.checks import check_num_classes
from zoo.layers import BatchNorm, Conv, Layer, initializer, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.unpooling import repeat_pixels
from zoo.segmentation.segmenter import ScoreHead, Segmenter, SegmenterConfig, promote
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Pohlen, Hermans, Mathias, Leibe: Full-Resolution Residual Networks for Semantic "
    "Segmentation in Street Scenes, 2017"
)

# The rows of table 1: whether the pooling stream is downsampled by a max pool or
# upsampled bilinearly, its stride after that, the number of units, and their channels
# in units of `width`. Before and after are three residual units at full resolution.
TABLES = {
    "frrn_a": (
        ("down", 2, 3, 2),
        ("down", 4, 4, 4),
        ("down", 8, 2, 8),
        ("down", 16, 2, 8),
        ("up", 8, 2, 4),
        ("up", 4, 2, 4),
        ("up", 2, 2, 2),
    ),
    "frrn_b": (
        ("down", 2, 3, 2),
        ("down", 4, 4, 4),
        ("down", 8, 2, 8),
        ("down", 16, 2, 8),
        ("down", 32, 2, 8),
        ("up", 16, 2, 4),
        ("up", 8, 2, 4),
        ("up", 4, 2, 4),
        ("up", 2, 2, 2),
    ),
}
UNITS = 3  # Number of residual units before, and after, the two streams.

HE_UNIFORM = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
# For convolutions that no ReLU follows.
LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ResidualUnit(nn.Module):
    """Figure 2a: a residual branch of two convolutions, without a ReLU after the sum.

    Attributes:
      features: Number of channels; a 1x1 convolution adapts an input with others.
      conv: Constructor of convolutions, from channels and kernel size.
      norm: Constructor of batch norms.
    """

    features: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = self.conv(self.features, 3, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, kernel_init=LINEAR, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        if x.shape[-1] != self.features:
            x = self.conv(self.features, 1, kernel_init=LINEAR, name="shortcut")(x)
        return x + y


class FullResolutionUnit(nn.Module):
    """Figure 2b: reads both streams, and adds its output to the residual stream.

    Attributes:
      features: Number of channels of the pooling stream.
      scale: Stride of the pooling stream relative to the residual one, a power of 2.
      conv: Constructor of convolutions, from channels and kernel size.
      norm: Constructor of batch norms.
    """

    features: int
    scale: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, y: Array, z: Array, train: bool) -> tuple[Array, Array]:
        pooled, rest = z, self.scale
        # Several small pools in a row are faster in XLA than one with a large window.
        while rest > 1:
            step = 4 if rest % 4 == 0 else 2
            pooled, rest = max_pool(pooled, step, step), rest // step
        y = jnp.concatenate([y, pooled], axis=-1)
        for i in (1, 2):
            y = self.conv(self.features, 3, name=f"conv{i}")(y)
            y = nn.relu(self.norm(name=f"bn{i}")(y, train=train))
        residual = self.conv(
            z.shape[-1], 1, use_bias=True, kernel_init=LINEAR, name="residual"
        )
        return y, z + repeat_pixels(residual(y), self.scale)


class FRRNBackbone(Layer):
    """The network of table 1 without the scores.

    The endpoints "down2_frru1" and so on are the pooling stream after each unit; those
    that end in "_z" are the residual stream.

    Attributes:
      label: Name of the network, for error messages.
      table: The rows of table 1: "down" (max pool) or "up" (bilinear), the stride of
        the pooling stream, the number of units, and their channels in units of `width`.
      width: Number of channels of the residual units.
      lanes: Number of channels of the residual stream.
      kernel_init: Initializer of the convolutions that are followed by a ReLU.
      momentum: Decay rate of batch norm's running averages.
      remat: Whether to recompute each stage's activations in the backward pass.
    """

    label: str
    table: tuple[tuple[str, int, int, int], ...]
    width: int = 48
    lanes: int = 32
    kernel_init: Callable = HE_UNIFORM
    momentum: float = 0.9
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        self._check_size(images)
        # The default epsilon of Lasagne, which the released code uses.
        norm = partial(BatchNorm, momentum=self.momentum, epsilon=1e-4, **self.dtypes)

        def conv(features: int, kernel: int, **options: Any) -> Conv:
            defaults = dict(use_bias=False, kernel_init=self.kernel_init)
            options = {**defaults, **self.dtypes, **options}
            return Conv(features, kernel, padding=kernel // 2, **options)

        def units(self, x: Array, start: int) -> dict[str, Array]:
            out = {}
            for i in range(start, start + UNITS):
                unit = ResidualUnit(self.width, conv, norm, name=f"ru{i}")
                x = out[f"ru{i}"] = unit(x, train)
            return out

        def before(self, images: Array) -> dict[str, Array]:
            x = norm(name="bn1")(conv(self.width, 5, name="conv1")(images), train=train)
            out = {"conv1": nn.relu(x)}
            return out | units(self, out["conv1"], 1)

        def stage(self, streams: tuple[Array, Array], row: tuple) -> dict[str, Array]:
            (way, scale, count, factor), (y, z) = row, streams
            y = max_pool(y, 2, 2) if way == "down" else upsample_double(y)
            out = {}
            for i in range(1, count + 1):
                name = f"{way}{scale}_frru{i}"
                unit = FullResolutionUnit(
                    factor * self.width, scale, conv, norm, name=name
                )
                y, z = out[name], out[f"{name}_z"] = unit(y, z, train)
            return out

        def after(self, streams: tuple[Array, Array]) -> dict[str, Array]:
            y, z = streams
            return units(
                self, jnp.concatenate([upsample_double(y), z], axis=-1), 1 + UNITS
            )

        out = remat_stage(before, self.remat)(self, images)
        y = out[f"ru{UNITS}"]
        split = conv(self.lanes, 1, kernel_init=LINEAR, name="split_conv")
        z = out["split"] = norm(name="split_bn")(split(y), train=train)
        for row in self.table:
            out |= remat_stage(partial(stage, row=row), self.remat)(self, (y, z))
            y, z = [*out.values()][-2:]
        return out | remat_stage(after, self.remat)(self, (y, z))

    def _check_size(self, images: Array) -> None:
        stride = max(scale for _, scale, _, _ in self.table)
        if any(n % stride for n in images.shape[1:3]):
            raise ValueError(
                f"{self.label} takes images whose height and width are multiples of "
                f"{stride}, got {list(images.shape)}. (zoo.make_segmenter brings "
                "images to that.)"
            )


def upsample_double(x: Array) -> Array:
    """Doubles height and width bilinearly, without the matrices of `resize`.

    Each pixel becomes two, a quarter of the way to its neighbors; beyond the border the
    border's pixel is repeated.
    """
    dtype, x = x.dtype, promote(x)
    for axis in (1, 2):
        part = partial(lax.slice_in_dim, x, axis=axis)
        before = jnp.concatenate([part(0, 1), part(0, -1)], axis)
        after = jnp.concatenate([part(1, None), part(-1, None)], axis)
        pair = [0.75 * x + 0.25 * neighbor for neighbor in (before, after)]
        shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack(pair, axis + 1).reshape(shape)
    return x.astype(dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FRRNConfig(SegmenterConfig):
    """Options of FRRN; `init` is that of the convolutions followed by a ReLU.

    Attributes:
      width: Number of channels at full resolution; 2 to 8 times as many below.
      lanes: Number of channels of the residual stream.
      momentum: Decay rate of batch norm's running averages.
    """

    width: int = 48
    lanes: int = 32
    momentum: float = 0.9


def frrn(*, variant: str, num_classes: int = 19, **options: Any) -> Segmenter:
    """Builds FRRN A or B.

    The residual stream has the size of the image throughout. Training stores it after
    each unit; with `remat`, only after each row of the table.

    Args:
      variant: Name of the model, a key of `TABLES`.
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `FRRNConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    config = FRRNConfig(**options)
    if min(config.width, config.lanes) < 1:
        raise ValueError(
            f"width={config.width} and lanes={config.lanes} must be at least 1."
        )
    dtypes = config.dtypes
    backbone = FRRNBackbone(
        variant,
        TABLES[variant],
        width=config.width,
        lanes=config.lanes,
        kernel_init=initializer(config.init) if config.init else HE_UNIFORM,
        momentum=config.momentum,
        remat=config.remat,
        **dtypes,
    )
    stride = max(scale for _, scale, _, _ in TABLES[variant])
    return Segmenter(
        backbone,
        ScoreHead(num_classes, kernel_init=LINEAR, **dtypes) if num_classes else None,
        label=variant,
        preprocess=_preprocess(*_INPUT[variant]),
        min_size=stride,
        stride=stride,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for names of this zoo; the released files are not torch's."""
    pair = ("conv1", "bn1", "conv2", "bn2")
    names = ["conv1", "bn1", "split_conv", "split_bn"]
    for i in range(1, 2 * UNITS + 1):
        names += [f"ru{i}/{layer}" for layer in pair]
    names.append(f"ru{UNITS + 1}/shortcut")
    for way, scale, count, _ in model.backbone.table:
        for i in range(1, count + 1):
            unit = f"{way}{scale}_frru{i}"
            names += [f"{unit}/{layer}" for layer in (*pair, "residual")]
    rules = [TorchRule(f"backbone/{n}", n.replace("/", ".")) for n in names]
    return (*rules, TorchRule("head/score", "score"))


def _preprocess(height: int, width: int) -> Preprocess:
    colors = dict(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Preprocess(size=height, width=width, fit="keep", **colors)


# Cityscapes' images have 1024 x 2048 pixels; FRRN A takes a quarter, FRRN B a half.
_INPUT = {"frrn_a": (256, 512), "frrn_b": (512, 1024)}


def _spec(name: str, params: int, macs: int, published: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="segmentation",
        build=partial(frrn, variant=name),
        config=FRRNConfig,
        paper=f"{PAPER}, table 1, {name[-1].upper()}",
        num_classes=19,
        preprocess=_preprocess(*_INPUT[name]),
        params=params,
        macs=macs,
        torch_rules=_torch_names,
        loss="bootstrapped_cross_entropy:32768",
        init=(
            "He et al. 2015, uniform of variance 2 / (k * k * input channels), 1 / .. "
            "where no ReLU follows; biases 0"
        ),
        published=(published,),
        deviations=(
            "upsampling is bilinear between the centers of pixels; the released code "
            "keeps every second pixel, and has the mean of its neighbors in between",
        ),
    )


SPECS = (
    _spec(
        "frrn_a",
        17_746_803,
        123_098_628_096,
        "Cityscapes test mean IoU 63.0 %, not read in the paper itself",
    ),
    _spec(
        "frrn_b",
        24_755_699,
        496_169_385_984,
        "Cityscapes test mean IoU 71.8 % (abstract)",
    ),
)
