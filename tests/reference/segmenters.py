"""A segmentation network small enough to restate, and what its masks should be."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess

RNG = np.random.default_rng(0)
PREPROCESS = Preprocess(
    size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, fit="keep"
)


class Backbone(nn.Module):
    """A convolution, which notices what is beyond the border.

    Attributes:
      note: Called with the images' height and width at each tracing.
    """

    padding: str = "SAME"
    window: int = 3
    note: Callable = print

    @nn.compact
    def __call__(self, images, train=False):
        self.note(images.shape[1:3])
        window = (self.window,) * 2
        return {"conv": nn.Conv(5, window, padding=self.padding, name="conv")(images)}


class Head(nn.Module):
    """Scores of five classes, the endpoint itself."""

    num_classes: int = 5

    def __call__(self, features, size, train=False):
        return {"logits": features["conv"]}


def make(*, note=len, padding="SAME", window=3, **options):
    model = Segmenter(
        Backbone(padding, window, note),
        Head(),
        label="small",
        preprocess=PREPROCESS,
        **options,
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, variables


def make_images(height, width, count=2):
    return RNG.integers(0, 256, (count, height, width, 3), np.uint8)


@partial(jax.jit, static_argnames="model")
def probabilities(model, variables, images):
    return jax.nn.softmax(model.apply(variables, images))


def check(found, expected, **tolerance):
    """`expected` is [B, h, w, K]; a pixel between two classes may be either."""
    expected = np.asarray(expected)
    assert (found.classes.dtype, found.scores.dtype) == (np.uint8, np.float32)
    assert found.classes.shape == found.scores.shape == expected.shape[:3]
    best = expected.max(axis=-1)
    tolerance = {"rtol": 1e-5, "atol": 1e-6, **tolerance}
    np.testing.assert_allclose(found.scores, best, **tolerance)
    index = found.classes[..., None].astype(int)
    chosen = np.take_along_axis(expected, index, axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, best, **tolerance)
    assert (found.classes == expected.argmax(axis=-1)).mean() > 0.999
