"""Explains the scores of a detector's boxes, or of a segmentation network's pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from markupsafe import Markup

from train.figures.maps import draw_grid
from train.report import Picture, Section
from train.visualize.parts import (
    SIDE,
    WHOLE,
    Network,
    describe_maps,
    draw_maps,
    gallery_section,
)
from zoo.cpu import jit_inference
from zoo.figures.boxes import draw_boxes

Array = jax.Array | np.ndarray

SHOWN = 6
YELLOW = (255, 221, 0)
MARK = 3  # distance in pixels of a mark from the pixel that is explained


class Best(NamedTuple):
    """The highest score of each class in each image.

    Attributes:
      scores: float32 [B, K], 0 to 1.
      places: int32 [B, K], the index of the box or pixel.
      boxes: float32 [B, K, 4], xyxy in pixels of the network's input: the box, or a
        mark around the pixel.
      count: int32 [B], the number of boxes or pixels.
    """

    scores: Array
    places: Array
    boxes: Array
    count: Array


def scores_section(
    network: Network, images: np.ndarray, layers: Sequence[str]
) -> Section:
    """Explains the most confident boxes or pixels of each class.

    Args:
      network: A detector or segmentation network.
      images: uint8 [N, H, W, C], fitted to the network.
      layers: The names of endpoints; the class activation map is that of the last one
        that the score depends on.
    """
    detects = hasattr(network.model, "decode")
    find = jit_inference(_find_boxes if detects else _find_pixels, static_argnums=0)
    found = []
    for batch, valid in network.batches(images):
        best = find(network.model, network.variables, batch)
        found.append([np.asarray(each)[valid] for each in best])
    best = Best(*map(np.concatenate, zip(*found, strict=True)))
    rows, classes = _choose(best.scores)
    name, shape = _find_scores(network)
    places = best.places[rows, classes] // (best.count[0] // np.prod(shape[1:-1]))
    positions = np.stack(np.unravel_index(places, shape[1:-1]), axis=-1)
    # The first score of a box may be that of the background.
    channels = classes + shape[-1] - best.scores.shape[-1]
    maps = draw_maps(network, images[rows], name, channels, positions, layers)
    figures = []
    for i, c, place, drawn in zip(rows, classes, positions, maps, strict=True):
        marked = draw_boxes(images[i], best.boxes[i, c], [""], [YELLOW], bold=1)
        caption = Markup("<b>{}</b> {:.1%}")
        caption = caption.format(network.names[c], float(best.scores[i, c]))
        grid = draw_grid([marked, *drawn], SIDE, 1 + len(drawn))
        where = f"{name} at {', '.join(map(str, place))}"
        figures.append(Picture(grid, f"why {network.names[c]}", caption, where, WHOLE))
    what = "box" if detects else "pixel"
    note = (
        f"The image, with a mark around the {what} that has the highest score of a "
        f"class; {describe_maps(network)} of that score."
    )
    return gallery_section(f"Why this {what} is what it is", note, figures)


def _find_boxes(model: nn.Module, variables: Mapping[str, Any], images: Array) -> Best:
    candidates = model.decode(model.apply(variables, images))
    scores = jnp.where(candidates.valid[..., None], candidates.scores, 0)
    places = scores.argmax(axis=1)
    boxes = candidates.boxes
    if boxes.ndim == 3:
        boxes = boxes[:, :, None]
    boxes = jnp.broadcast_to(boxes, (*scores.shape, 4))
    chosen = jnp.take_along_axis(boxes, places[:, None, :, None], axis=1)[:, 0]
    return Best(scores.max(axis=1), places, chosen, _count(scores))


def _find_pixels(model: nn.Module, variables: Mapping[str, Any], images: Array) -> Best:
    logits = model.apply(variables, images).astype(jnp.float32)
    batch, height, width, classes = logits.shape
    scores = jax.nn.softmax(logits).reshape(batch, -1, classes)
    places = scores.argmax(axis=1)
    y, x = jnp.divmod(places, width)
    # The logits can be smaller than the image, by the same margin on each side.
    y, x = y + (images.shape[1] - height) // 2, x + (images.shape[2] - width) // 2
    boxes = jnp.stack([x - MARK, y - MARK, x + MARK + 1, y + MARK + 1], axis=-1)
    boxes = boxes.astype(jnp.float32)
    return Best(scores.max(axis=1), places, boxes, _count(scores))


def _count(scores: Array) -> Array:
    return jnp.full(len(scores), scores.shape[1])


def _choose(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses images and classes: the best image of each class, then the next best."""
    order = np.argsort(-scores, axis=0, kind="stable")
    rows, classes = [], []
    for ranked in order:
        values = scores[ranked, np.arange(len(ranked))]
        for c in np.argsort(-values, kind="stable"):
            rows.append(ranked[c])
            classes.append(c)
    return np.array(rows[:SHOWN]), np.array(classes[:SHOWN])


def _find_scores(network: Network) -> tuple[str, tuple[int, ...]]:
    """Finds the name of the scores' endpoint, and its shape with the batch axis."""
    images = jax.ShapeDtypeStruct((1, *network.card.preprocess.shape), jnp.float32)
    outputs = jax.eval_shape(network.model.apply, network.variables, images)
    if not isinstance(outputs, dict):
        return "logits", outputs.shape
    name = "class_logits" if "class_logits" in outputs else "classes"  # YOLO's
    return name, outputs[name].shape
