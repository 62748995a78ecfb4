"""A small network with random variables, for tests of what explains networks."""

import jax
import numpy as np
from flax import linen as nn

from zoo.layers import Classifier, Conv, LinearHead
from zoo.ops.pooling import max_pool


class Tiny(nn.Module):
    """Two convolutions, of which the second one's map is averaged."""

    @nn.compact
    def __call__(self, x, train=False):
        out = {}
        x = out["conv1"] = nn.relu(Conv(4, 3, padding=1, name="conv1")(x))
        x = out["pool1"] = max_pool(x, 2, 2)
        x = out["conv2"] = nn.relu(Conv(5, 3, name="conv2")(x))
        out["pool"] = x.mean(axis=(1, 2))
        return out


def make_tiny(size=12, classes=3, batch=2):
    """Returns `(model, variables, images)`."""
    model = Classifier(Tiny(), LinearHead(classes))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, 2)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2, shapes
    )
    return model, variables, images
