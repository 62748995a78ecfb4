"""The feature pyramid network: semantically strong maps of several resolutions.

Reference:
  Lin, Dollár, Girshick, He, Hariharan, Belongie, Feature Pyramid Networks for Object
  Detection, 2017, section 3.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import INITIALIZERS, Conv, Layer

Array = jax.Array


class FPN(Layer):
    """A top-down pathway with a lateral connection at each level.

    Attributes:
      maps: Names of the backbone's endpoints, the finest first.
      levels: The level of each endpoint. Level l has a stride of 2 ** l pixels.
      features: Number of channels of each output.
      extra: Whether to add one more level, the coarsest one subsampled by 2.
      kernel_init: Initializer of the kernels.
    """

    maps: tuple[str, ...]
    levels: tuple[int, ...]
    features: int = 256
    extra: bool = True
    kernel_init: Callable = INITIALIZERS["caffe_xavier"]

    @nn.compact
    def __call__(self, endpoints: Mapping[str, Array]) -> dict[str, Array]:
        """Computes the feature maps "p2", "p3" and so on from the endpoints."""
        conv = partial(Conv, self.features, kernel_init=self.kernel_init, **self.dtypes)
        out, above = {}, None
        for name, level in reversed([*zip(self.maps, self.levels, strict=True)]):
            x = conv(kernel=1, name=f"lateral{level}")(endpoints[name])
            if above is not None:
                x = x + upsample_nearest(above, x.shape[1:3])
            above = x
            out[f"p{level}"] = conv(kernel=3, padding=1, name=f"output{level}")(x)
        out = dict(reversed(out.items()))
        if self.extra:
            last = self.levels[-1]
            out[f"p{last + 1}"] = out[f"p{last}"][:, ::2, ::2]
        return out


def upsample_nearest(x: Array, size: tuple[int, int]) -> Array:
    """Resizes [B, h, w, C] to a larger height and width by nearest neighbors."""
    height, width = size
    if height % x.shape[1] or width % x.shape[2]:
        rows = jnp.arange(height) * x.shape[1] // height
        columns = jnp.arange(width) * x.shape[2] // width
        return x[:, rows][:, :, columns]
    x = jnp.repeat(x, height // x.shape[1], axis=1)
    return jnp.repeat(x, width // x.shape[2], axis=2)
