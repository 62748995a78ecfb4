"""The feature pyramid: every resolution gets the meaning of the coarsest one.

Reference:
  Lin, Dollár, Girshick, He, Hariharan, Belongie, Feature Pyramid Networks for Object
  Detection, 2017, section 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import INITIALIZERS, Conv

Array = jax.Array


class FPN(nn.Module):
    """A way down from the coarsest map, with a lateral connection at each one.

    Attributes:
      maps: Names of the backbone's endpoints, the finest first.
      levels: Numbers of the pyramid's levels, a power of two each: level 3 has a pixel
        for 8 x 8 of the image.
      features: Channels of each level.
      extra: Whether there is another level, every second pixel of the coarsest.
    """

    maps: tuple[str, ...]
    levels: tuple[int, ...]
    features: int = 256
    extra: bool = True
    kernel_init: Callable = INITIALIZERS["caffe_xavier"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, endpoints: Mapping[str, Array]) -> dict[str, Array]:
        options = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )
        out, above = {}, None
        for name, level in reversed([*zip(self.maps, self.levels, strict=True)]):
            lateral = Conv(self.features, 1, name=f"lateral{level}", **options)
            x = lateral(endpoints[name])
            if above is not None:
                x = x + enlarge(above, x.shape[1:3])
            above = x
            conv = Conv(self.features, 3, padding=1, name=f"output{level}", **options)
            out[f"p{level}"] = conv(x)
        out = dict(reversed(out.items()))
        if self.extra:
            last = self.levels[-1]
            out[f"p{last + 1}"] = out[f"p{last}"][:, ::2, ::2]
        return out


def enlarge(x: Array, size: tuple[int, int]) -> Array:
    """Repeats pixels of [B, h, w, C] up to a height and a width: nearest neighbours."""
    height, width = size
    rows = jnp.arange(height) * x.shape[1] // height
    columns = jnp.arange(width) * x.shape[2] // width
    if height % x.shape[1] or width % x.shape[2]:
        return x[:, rows][:, :, columns]
    x = jnp.repeat(x, height // x.shape[1], axis=1)
    return jnp.repeat(x, width // x.shape[2], axis=2)
