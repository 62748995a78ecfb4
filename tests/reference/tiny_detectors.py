"""Detectors whose answers are known: what is bright is an object."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.detection.types import Candidates, Postprocess
from zoo.ops.boxes import clip
from zoo.spec import Preprocess

POSTPROCESS = Postprocess(score_threshold=0.5, iou_threshold=0.5, max_detections=6)


def facts(fit, **options):
    channels = options.pop("channels", 3)
    return Preprocess(
        options.pop("size", 64),
        channels,
        (0.0,) * channels,
        (1.0,) * channels,
        fit=fit,
        antialias=False,
        **options,
    )


class Bright(nn.Module):
    """Says of each cell of 8 x 8 pixels how red, green and blue it is.

    A cell is a candidate, once from each of two predictors, the second of which is less
    sure; suppression must remove it.

    Attributes:
      own_boxes: Whether each class has a box of its own.
    """

    preprocess: Preprocess
    postprocess: Postprocess = POSTPROCESS
    own_boxes: bool = False

    @nn.compact
    def __call__(self, images, sizes=None, train=False, targets=None, proposals=None):
        scale = self.param("scale", nn.initializers.ones, (images.shape[-1],))
        images = images * scale[None, None, None]
        cells = nn.avg_pool(images, (8, 8), (8, 8))
        height, width = images.shape[1:3]
        scores = cells.reshape(len(images), -1, images.shape[-1])
        scores = jnp.concatenate([scores, scores * 0.9], axis=1)
        out = {"scores": scores, "canvas": jnp.array([height, width], jnp.float32)}
        return out if proposals is None else {**out, "proposals": proposals}

    @nn.nowrap
    def decode(self, outputs, sizes=None):
        scores, canvas = outputs["scores"], outputs["canvas"]
        # The number of cells is static; those of a square, but for "canvas".
        count = scores.shape[1] // 2
        columns = (canvas[1] / 8).astype(jnp.int32)
        places = jnp.arange(count)
        x, y = places % columns * 8, places // columns * 8
        boxes = jnp.stack([x, y, x + 8, y + 8], axis=-1).astype(jnp.float32)
        boxes = jnp.concatenate([boxes, boxes])
        boxes = jnp.broadcast_to(boxes[None], (len(scores), *boxes.shape))
        if sizes is not None:
            boxes = jax.vmap(clip)(boxes, sizes[:, 0], sizes[:, 1])
        if self.own_boxes:
            boxes = jnp.repeat(boxes[:, :, None], scores.shape[-1], axis=2)
        return Candidates(boxes, scores, jnp.ones(scores.shape[:2], bool))


def draw(size, array_size, boxes, channels=3):
    """An image uint8 in the corner of a noisy array; object i has channel i % C."""
    noise = np.random.default_rng(0).integers(200, 256, (*array_size, channels))
    noise[: size[0], : size[1]] = 0
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        noise[y1:y2, x1:x2, i % channels] = 255 - 10 * i
    return noise.astype(np.uint8)
