"""What GoogLeNet is made of: inception modules and auxiliary heads.

Reference:
  Szegedy et al., Going Deeper with Convolutions, 2014, figures 2 and 3, section 5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import BatchNorm, Conv, LinearHead
from zoo.ops.pooling import adaptive_avg_pool, avg_pool, max_pool

Array = jax.Array

# An inception module's, in the order of table 1.
CONVOLUTIONS = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
BIAS = nn.initializers.constant(0.2)


def make_layers(module: nn.Module) -> dict[str, Any]:
    """Makes the layers of `rectified`.

    Args:
      module: Whose options they have: `batch_norm`, `momentum`, `kernel_init`, `dtype`
        and `param_dtype`.

    Returns:
      `conv` and `norm`; the latter is None without batch norm.
    """
    types = dict(dtype=module.dtype, param_dtype=module.param_dtype)
    conv = partial(Conv, kernel_init=module.kernel_init, **types)
    if not module.batch_norm:
        return dict(conv=partial(conv, bias_init=BIAS), norm=None)
    norm = partial(BatchNorm, momentum=module.momentum, epsilon=1e-3, **types)
    return dict(conv=partial(conv, use_bias=False), norm=norm)


def rectified(
    x: Array,
    features: int,
    kernel: int,
    *,
    name: str,
    conv: Callable,
    norm: Callable | None,
    train: bool,
    stride: int = 1,
) -> Array:
    """Convolves, normalises where there is a norm, and rectifies.

    Args:
      x: [B, H, W, C].
      features: Output channels.
      kernel: Height and width of the window.
      name: Of the convolution; the norm's has "_bn" at its end.
      conv: Makes the convolution.
      norm: Makes the batch norm; None for none.
      train: Whether batch norm uses the batch.
      stride: Between windows.
    """
    x = conv(features, kernel, stride=stride, padding=kernel // 2, name=name)(x)
    if norm is not None:
        x = norm(name=f"{name}_bn")(x, train=train)
    return nn.relu(x)


class Inception(nn.Module):
    """Figure 2b: 1x1, 3x3 and 5x5 convolutions and a pool, side by side.

    Attributes:
      widths: Channels of `CONVOLUTIONS`.
      large: Height and width of the "5x5" window, in pixels.
    """

    widths: tuple[int, ...]
    large: int
    conv: Callable
    norm: Callable | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        widths = dict(zip(CONVOLUTIONS, self.widths, strict=True))

        def unit(x: Array, name: str, kernel: int = 1) -> Array:
            make = dict(conv=self.conv, norm=self.norm)
            return rectified(x, widths[name], kernel, name=name, train=train, **make)

        branches = (
            unit(x, "1x1"),
            unit(unit(x, "3x3_reduce"), "3x3", 3),
            unit(unit(x, "5x5_reduce"), "5x5", self.large),
            unit(max_pool(x, 3, 1, padding=1), "pool_proj"),
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(LinearHead):
    """A small classifier of its own on a map in the middle of the network.

    Attributes:
      batch_norm: Also: average whatever map to 4 x 4, as torchvision does. Else the
        windows are those of the paper, 5x5 with stride 3.
      dropout: Rate before the last layer.
    """

    layer: str = "fc2"
    batch_norm: bool = False
    dropout: float = 0.7
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = adaptive_avg_pool(x, 4) if self.batch_norm else avg_pool(x, 5, 3)
        x = rectified(x, 128, 1, name="conv", train=train, **make_layers(self))
        fc1 = nn.Dense(
            1024,
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.zeros if self.batch_norm else BIAS,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="fc1",
        )
        x = nn.relu(fc1(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        return super().__call__(x)
