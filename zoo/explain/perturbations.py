"""How a network's outputs change when part of the image is hidden.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014, sections
  4.2 and 4.4 (the latter in the first version, arXiv 1311.2901).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from zoo.cpu import jit_inference
from zoo.explain import targets

Array = jax.Array


class Occlusion(NamedTuple):
    """The paper's three maps, as functions of the square's position.

    Attributes:
      activation: float32 [B, P, Q], the spatial sum of the chosen channel.
      probability: float32 [B, P, Q], of the true class; None without scores.
      predicted: int32 [B, P, Q], the most probable class; None without scores.
      channels: int32 [B], the channels of `activation`.
      labels: int32 [B], the classes of `probability`; None without scores.
      corners: int32 [P * Q, 2], row and column of each square's upper left pixel.
    """

    activation: Array
    probability: Array | None
    predicted: Array | None
    channels: Array
    labels: Array | None
    corners: np.ndarray


def occlusion(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    *,
    size: int,
    stride: int,
    fill: float | Array = 0.0,
    labels: int | Array | None = None,
    scores: str | None = "logits",
    chunk: int = 16,
) -> Occlusion:
    """Slides a square over each image and records the network's response.

    The squares begin at every `stride`-th row and column from the upper left corner;
    the last one reaches the opposite border, which may cut it.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: Name of an activation [B, ..., C]; `zoo.list_endpoints` has them.
      channels: A channel number, int [B], or None for the channel with the largest
        spatial sum in each image without a square.
      size: Height and width of the square, in pixels.
      stride: Distance between its positions, in pixels.
      fill: Value of the square, float or [C], in the network's input space: 0 is the
        mean color of the network's preprocessing.
      labels: The true classes, a number or int [B]; None for the classes predicted
        without a square.
      scores: Endpoint with logits [B, K], or None to record activations only.
      chunk: Number of hidden images to process at once; memory grows with it, and with
        the batch, which is processed once without squares.

    Returns:
      An `Occlusion`.

    Raises:
      ValueError: An argument is invalid.
    """
    shape = targets.activation_shape(model, variables, images, endpoint)
    channels, _ = targets.check_target(shape, endpoint, channels, None)
    for name, value in (("size", size), ("stride", stride), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    height, width = images.shape[1:3]
    if size > min(height, width):
        raise ValueError(f"size={size} is larger than the images, {height} x {width}.")
    fill = jnp.asarray(fill, images.dtype)
    if fill.shape not in ((), (images.shape[3],)):
        raise ValueError(
            f"fill must be a number or [{images.shape[3]}], one for each channel, got "
            f"{list(fill.shape)}."
        )
    if scores is not None:
        labels = targets.check_labels(
            model, variables, images, scores, labels, optional=True
        )
    elif labels is not None:
        raise ValueError("labels need scores, which are None.")
    counts = [-(-(n - size) // stride) + 1 for n in (height, width)]
    corners = np.stack(np.divmod(np.arange(np.prod(counts)), counts[1]), 1) * stride
    corners = corners.astype(np.int32)
    options = dict(model=model, endpoint=endpoint, scores=scores)
    found = _occlude(
        variables,
        images,
        channels,
        labels,
        jnp.broadcast_to(fill, (1, 1, 1, images.shape[3])),
        jnp.asarray(corners),
        size=size,
        chunk=min(chunk, len(corners)),
        **options,
    )
    maps = [m if m is None else m.reshape(-1, *counts) for m in found[:3]]
    return Occlusion(*maps, *found[3:], corners)


@partial(
    jit_inference, static_argnames=("model", "endpoint", "scores", "size", "chunk")
)
def _occlude(
    variables: Mapping[str, Any],
    images: Array,
    channels: Array | None,
    labels: Array | None,
    fill: Array,
    corners: Array,
    *,
    model: nn.Module,
    endpoint: str,
    scores: str | None,
    size: int,
    chunk: int,
) -> tuple:
    def run(images: Array) -> tuple[Array, Array | None]:
        names = [endpoint] if scores is None else [endpoint, scores]
        found = targets.read_endpoints(model, variables, images, *names)
        found = [each.astype(jnp.float32) for each in found]
        sums = found[0].reshape(len(images), -1, found[0].shape[-1]).sum(1)
        return sums, None if scores is None else found[1]

    sums, logits = run(images)
    if channels is None:
        channels = sums.argmax(-1).astype(jnp.int32)
    if labels is None and logits is not None:
        labels = logits.argmax(-1).astype(jnp.int32)
    batch, height, width, _ = images.shape
    # The squares of all images one after another, `chunk` at a time.
    pairs = jnp.arange(batch * len(corners))
    rest = -len(pairs) % chunk
    pairs = jnp.concatenate([pairs, jnp.zeros(rest, pairs.dtype)]).reshape(-1, chunk)
    rows = jnp.arange(height).reshape(1, -1, 1)
    columns = jnp.arange(width).reshape(1, 1, -1)

    def look(pairs: Array) -> tuple:
        image, corner = jnp.divmod(pairs, len(corners))
        top, left = (c[:, None, None] for c in corners[corner].T)
        inside = (rows >= top) & (rows < top + size)
        inside &= (columns >= left) & (columns < left + size)
        hidden = jnp.where(inside[..., None], fill, images[image])
        sums, logits = run(hidden)
        activation = jnp.take_along_axis(sums, channels[image][:, None], 1)[:, 0]
        if logits is None:
            return activation, None, None
        probability = targets.class_probability(logits, labels[image])
        return activation, probability, logits.argmax(-1).astype(jnp.int32)

    found = lax.map(look, pairs)
    count = batch * len(corners)
    maps = [m if m is None else m.reshape(-1)[:count] for m in found]
    return *maps, channels, labels


def correspondence(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    boxes: Array,
    endpoint: str,
    *,
    fill: float | Array = 0.0,
) -> Array:
    """Measures whether a network relates the same parts of different images.

    A part of each image is hidden, and the signs of the resulting feature changes are
    compared between images: the mean Hamming distance of all pairs, as a fraction of
    the features. Parts that the network relates give less than random ones.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed; two or more.
      boxes: [B, 4], xyxy in pixels, the part of each image.
      endpoint: Name of an activation [B, ...].
      fill: Value of the hidden pixels, see `occlusion`.

    Returns:
      float32 [], the mean over pairs of images, 0 to 1.

    Raises:
      ValueError: An argument is invalid.
    """
    targets.activation_shape(model, variables, images, endpoint)
    if len(images) < 2:
        raise ValueError(f"correspondence needs two images or more, got {len(images)}.")
    if jnp.shape(boxes) != (len(images), 4):
        raise ValueError(
            f"boxes must be [{len(images)}, 4], got {list(jnp.shape(boxes))}."
        )
    hidden = hide_boxes(images, jnp.asarray(boxes), fill)
    return _compare_changes(variables, images, hidden, model=model, endpoint=endpoint)


@partial(jit_inference, static_argnames=("model", "endpoint"))
def _compare_changes(
    variables: Mapping[str, Any],
    images: Array,
    hidden: Array,
    *,
    model: nn.Module,
    endpoint: str,
) -> Array:
    forward = partial(targets.make_forward(model, endpoint), variables)
    change = forward(images) - forward(hidden)
    signs = jnp.sign(change.astype(jnp.float32)).reshape(len(images), -1)
    first, second = np.triu_indices(len(images), 1)
    return (signs[first] != signs[second]).mean()


def hide_boxes(images: Array, boxes: Array, fill: float | Array = 0.0) -> Array:
    """Fills a box of each image.

    Args:
      images: [B, H, W, C].
      boxes: [B, 4], xyxy in pixels, excluding row y2 and column x2.
      fill: Value of the hidden pixels, a number or [C].

    Returns:
      [B, H, W, C].
    """
    rows = jnp.arange(images.shape[1]).reshape(1, -1, 1)
    columns = jnp.arange(images.shape[2]).reshape(1, 1, -1)
    left, top, right, bottom = (b[:, None, None] for b in boxes.T)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    fill = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (1, 1, 1, images.shape[3]))
    return jnp.where(inside[..., None], fill, images)
