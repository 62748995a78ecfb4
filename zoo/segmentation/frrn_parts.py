"""What the full-resolution residual networks consist of.

Reference:
  Pohlen, Hermans, Mathias, Leibe, Full-Resolution Residual Networks for Semantic
  Segmentation in Street Scenes, 2017.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from zoo.layers import BatchNorm, Conv, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.unpooling import repeat_pixels
from zoo.segmentation.segmenter import widen

Array = jax.Array

# Residual units in front of the two streams, and behind them.
UNITS = 3

HE_UNIFORM = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
# Of what no ReLU follows.
LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ResidualUnit(nn.Module):
    """Figure 2a: two convolutions on a branch; no ReLU behind the addition.

    Attributes:
      features: Channels; where the input has others, a 1x1 convolution adapts it.
      conv: Makes convolutions of a number of channels and a window.
      norm: Makes batch norms.
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
    """Figure 2b: reads both streams, and adds what it finds to the residual one.

    Attributes:
      features: Channels of the pooling stream.
      scale: Pixels of the residual stream to one of the pooling stream, a power of 2.
      conv: Makes convolutions of a number of channels and a window.
      norm: Makes batch norms.
    """

    features: int
    scale: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, y: Array, z: Array, train: bool) -> tuple[Array, Array]:
        pooled, rest = z, self.scale
        # The largest of the largest: XLA takes longer for one large window.
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


class FRRNBackbone(nn.Module):
    """Table 1, but for the scores.

    The endpoints "down2_frru1" and so on are the pooling stream behind each unit, those
    that end in "_z" the residual stream.

    Attributes:
      label: The network's name, for errors.
      table: The way that the pooling stream takes: "down" (a max pool) or "up"
        (bilinear); pixels of the image to one of its map; units; their channels, in
        units of `width`.
      width: Channels of the residual units.
      lanes: Channels of the residual stream.
      kernel_init: Initialiser of the convolutions that a ReLU follows.
      remat: Recompute each stage's activations in the backward pass.
    """

    label: str
    table: tuple[tuple[str, int, int, int], ...]
    width: int = 48
    lanes: int = 32
    kernel_init: Callable = HE_UNIFORM
    momentum: float = 0.9
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        self._check_size(images)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # The epsilon of the released code's library, Lasagne.
        norm = partial(BatchNorm, momentum=self.momentum, epsilon=1e-4, **types)

        def conv(features: int, window: int, **options: Any) -> Conv:
            defaults = dict(use_bias=False, kernel_init=self.kernel_init)
            options = {**defaults, **types, **options}
            return Conv(features, window, padding=window // 2, **options)

        def units(self, x: Array, start: int) -> dict[str, Array]:
            out = {}
            for i in range(start, start + UNITS):
                unit = ResidualUnit(self.width, conv, norm, name=f"ru{i}")
                x = out[f"ru{i}"] = unit(x, train)
            return out

        def front(self, images: Array) -> dict[str, Array]:
            x = norm(name="bn1")(conv(self.width, 5, name="conv1")(images), train=train)
            out = {"conv1": nn.relu(x)}
            return out | units(self, out["conv1"], 1)

        def stage(self, streams: tuple[Array, Array], row: tuple) -> dict[str, Array]:
            (way, scale, count, factor), (y, z) = row, streams
            y = max_pool(y, 2, 2) if way == "down" else _double(y)
            out = {}
            for i in range(1, count + 1):
                name = f"{way}{scale}_frru{i}"
                unit = FullResolutionUnit(
                    factor * self.width, scale, conv, norm, name=name
                )
                y, z = out[name], out[f"{name}_z"] = unit(y, z, train)
            return out

        def back(self, streams: tuple[Array, Array]) -> dict[str, Array]:
            y, z = streams
            return units(self, jnp.concatenate([_double(y), z], axis=-1), 1 + UNITS)

        out = remat_stage(front, self.remat)(self, images)
        y = out[f"ru{UNITS}"]
        split = conv(self.lanes, 1, kernel_init=LINEAR, name="split_conv")
        z = out["split"] = norm(name="split_bn")(split(y), train=train)
        for row in self.table:
            out |= remat_stage(partial(stage, row=row), self.remat)(self, (y, z))
            y, z = [*out.values()][-2:]
        return out | remat_stage(back, self.remat)(self, (y, z))

    def _check_size(self, images: Array) -> None:
        stride = max(scale for _, scale, _, _ in self.table)
        if any(n % stride for n in images.shape[1:3]):
            raise ValueError(
                f"{self.label} takes images whose height and width are multiples of "
                f"{stride}, got {list(images.shape)}. (zoo.make_segmenter brings "
                "images to that.)"
            )


def _double(x: Array) -> Array:
    """Twice the height and width, bilinearly: `resize` without its matrices.

    Each pixel becomes two, a quarter of the way to its neighbours; where there is none,
    the border's pixel stands for it. (tests/benchmarks/benchmark_unpooling.py
    measures both.)
    """
    dtype, x = x.dtype, widen(x)
    for axis in (1, 2):
        part = partial(lax.slice_in_dim, x, axis=axis)
        before = jnp.concatenate([part(0, 1), part(0, -1)], axis)
        after = jnp.concatenate([part(1, None), part(-1, None)], axis)
        pair = [0.75 * x + 0.25 * neighbour for neighbour in (before, after)]
        shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack(pair, axis + 1).reshape(shape)
    return x.astype(dtype)
