"""Objective measures of whether maps explain a network.

References:
  Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, Sanity Checks for Saliency Maps,
  2018.
  Petsiuk, Das, Saenko, RISE, 2018, section 4.3.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.cpu import jit_inference
from zoo.explain import targets
from zoo.paths import flatten, unflatten
from zoo.summary import list_layers

Array = jax.Array


def randomize_layers(
    model: nn.Module, variables: Mapping[str, Any], images: Array, *, key: Array
) -> Iterator[tuple[str, dict]]:
    """Destroys what a network has learned, layer by layer, starting from the last.

    The arrays of a layer are shuffled, which roughly preserves the size of its
    activations; the layers after it stay shuffled.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: [B, H, W, C], of the size for which layers are listed.
      key: Random key of the shuffling.

    Yields:
      The path of each layer with a kernel, and the variables.
    """
    # A layer that runs on several maps is listed for each.
    layers = dict.fromkeys(x.path for x in list_layers(model, images.shape[1:]))
    params = flatten(variables["params"])
    order = [path for path in reversed(layers) if f"{path}/kernel" in params]
    for path, own in zip(order, jax.random.split(key, len(order)), strict=True):
        for name in [name for name in params if name.rsplit("/", 1)[0] == path]:
            flat = params[name].reshape(-1)
            shuffled = jax.random.permutation(own, flat)
            params[name] = shuffled.reshape(params[name].shape)
        yield path, {**variables, "params": unflatten(dict(params))}


def similarity(a: Array, b: Array) -> Array:
    """Compares maps by Spearman's rank correlation of their magnitudes.

    Args:
      a: [B, H, W, C], maps.
      b: [B, H, W, C], maps of the same images.

    Returns:
      float32 [B], -1 to 1; 0 if one of the maps is constant.

    Raises:
      ValueError: The maps have different sizes.
    """
    if a.shape[:3] != b.shape[:3]:
        raise ValueError(
            f"maps must be of one size [B, H, W], got {list(a.shape)} and "
            f"{list(b.shape)}."
        )
    ranks = [_ranks(magnitude(x).reshape(len(x), -1)) for x in (a, b)]
    # Subtract their exact mean, so that the ranks of a constant map are exactly 0.
    ranks = [r - (r.shape[1] - 1) / 2 for r in ranks]
    lengths = [jnp.sqrt(jnp.square(r).sum(axis=1)) for r in ranks]
    product = lengths[0] * lengths[1]
    together = (ranks[0] * ranks[1]).sum(axis=1)
    return jnp.where(product > 0, together / jnp.where(product > 0, product, 1), 0)


def _ranks(x: Array) -> Array:
    """Returns the ranks of values [B, N]; equal values share their mean rank."""
    ordered = jnp.sort(x, axis=1)
    below = jax.vmap(partial(jnp.searchsorted, side="left"))(ordered, x)
    above = jax.vmap(partial(jnp.searchsorted, side="right"))(ordered, x)
    return (below + above - 1).astype(jnp.float32) / 2


def magnitude(maps: Array) -> Array:
    """Returns the largest absolute value over channels: [B, H, W, C] to [B, H, W]."""
    return jnp.abs(maps).max(axis=-1)


def mass_in_mask(maps: Array, masks: Array) -> Array:
    """Measures the fraction of each map's magnitude that lies within a mask.

    Args:
      maps: [B, H, W, C].
      masks: bool [B, H, W].

    Returns:
      float32 [B], 0 to 1; 0 for a map of zeros.
    """
    if masks.shape != maps.shape[:3]:
        raise ValueError(
            f"masks must be {list(maps.shape[:3])}, got {list(masks.shape)}."
        )
    size = magnitude(maps)
    total = size.sum(axis=(1, 2))
    inside = jnp.where(masks, size, 0).sum(axis=(1, 2))
    return jnp.where(total > 0, inside / jnp.where(total > 0, total, 1), 0)


def perturbation_curve(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    maps: Array,
    labels: Array,
    *,
    mode: str,
    steps: int = 16,
    cell: int = 1,
    fill: float = 0.0,
    scores: str = "logits",
) -> Array:
    """Hides or shows the pixels that a map ranks as important, most important first.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      maps: [B, H, W, C], whose magnitude orders the pixels.
      labels: int [B], the classes whose probability is recorded.
      mode: "deletion" sets more and more pixels to `fill`, "insertion" begins with an
        image of `fill` and shows more and more pixels.
      steps: Number of equal parts in which pixels are hidden or shown.
      cell: Height and width in pixels of the squares that are hidden or shown, ordered
        by their mean magnitude; a divisor of the images' height and width. Single
        pixels hidden at random act as noise, which harms networks for natural images
        more than the loss of an object.
      fill: Value of hidden pixels, in the network's input space.
      scores: Endpoint with logits [B, K].

    Returns:
      float32 [B, steps + 1], the probability of the class; its mean over the steps is
      the area under the curve. It should be small for deletion and large for insertion.

    Raises:
      ValueError: An argument is invalid.
    """
    if mode not in ("deletion", "insertion"):
        raise ValueError(f"mode must be 'deletion' or 'insertion', got {mode!r}.")
    if maps.shape[:3] != images.shape[:3]:
        raise ValueError(
            f"maps must be {list(images.shape[:3])} like the images, got "
            f"{list(maps.shape)}."
        )
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}.")
    labels = targets.check_labels(model, variables, images, scores, labels)
    batch, height, width, _ = images.shape
    if cell < 1 or height % cell or width % cell:
        raise ValueError(
            f"cell must divide the images' height and width, {height} x {width}, got "
            f"{cell}."
        )
    grid = batch, height // cell, width // cell
    size = magnitude(maps).reshape(*grid[:2], cell, grid[2], cell).mean(axis=(2, 4))
    flat = size.reshape(batch, -1)
    # The rank of each square, 0 for the most important one.
    order = jnp.argsort(-flat, axis=1)
    rank = jnp.argsort(order, axis=1).reshape(*grid, 1)
    rank = rank.repeat(cell, axis=1).repeat(cell, axis=2)
    counts = np.linspace(0, flat.shape[1], steps + 1).round().astype(np.int32)
    options = dict(model=model, scores=scores, deletion=mode == "deletion")
    return _follow(variables, images, rank, labels, counts, fill, **options)


@partial(jit_inference, static_argnames=("model", "scores", "deletion"))
def _follow(
    variables: Mapping[str, Any],
    images: Array,
    rank: Array,
    labels: Array,
    counts: Array,
    fill: Array,
    *,
    model: nn.Module,
    scores: str,
    deletion: bool,
) -> Array:
    forward = targets.make_forward(model, scores)

    def look(count: Array) -> Array:
        hidden = (rank < count) == deletion
        logits = forward(variables, jnp.where(hidden, fill, images))
        return targets.class_probability(logits, labels)

    return jax.lax.map(look, counts).T
