"""A classifier of two convolutions, and a batch for it."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import BatchNorm
from zoo.spec import Preprocess

PREPROCESS = Preprocess(size=8, channels=1, mean=(0.5,), std=(0.5,))


class Backbone(nn.Module):
    """Two convolutions, with batch norm or without."""

    norm: bool = True
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x, out = images, {}
        for name in ("stage1", "stage2"):
            conv = nn.Conv(4, (3, 3), (2, 2), dtype=self.dtype, name=f"{name}_conv")
            x = conv(x)
            if self.norm:
                x = BatchNorm(dtype=self.dtype, name=f"{name}_bn")(x, train=train)
            x = out[name] = nn.relu(x)
        out["pool"] = x.mean((1, 2))
        return out


def make_batch(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, 8, 8, 1)), jnp.uint8),
        "label": jnp.arange(count, dtype=jnp.int32) % 3,
        "index": jnp.arange(count, dtype=jnp.int32) + 100,
    }
