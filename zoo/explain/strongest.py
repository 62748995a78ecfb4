"""Finds which images of a set excite each channel most, and where."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.cpu import jit_inference
from zoo.explain import targets

Array = jax.Array


class State(NamedTuple):
    """The strongest activations of the images seen so far, strongest first.

    Attributes:
      values: float32 [C, k]; -inf where fewer images were seen.
      images: int32 [C, k], number of the image; -1 where fewer were seen.
      positions: int32 [C, k, P], the index along each axis between the first and the
        last of the activations: row and column in a map.
      count: int32, images seen.
    """

    values: Array
    images: Array
    positions: Array
    count: Array


class Strongest(NamedTuple):
    """The strongest activations of a set of images, as NumPy arrays.

    Attributes:
      values: float32 [C, k], strongest first; k is less if the set has fewer images.
      images: int32 [C, k], number of the image in the set.
      positions: int32 [C, k, P], see `State`.
      count: Images of the set.
    """

    values: np.ndarray
    images: np.ndarray
    positions: np.ndarray
    count: int


def empty(channels: int, k: int = 9, axes: int = 2) -> State:
    """Returns the state before any image.

    Args:
      channels: C.
      k: Number of activations to keep for each channel, each from a different image.
      axes: P, axes between the first and the last of the activations.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}.")
    return State(
        jnp.full((channels, k), -jnp.inf, jnp.float32),
        jnp.full((channels, k), -1, jnp.int32),
        jnp.zeros((channels, k, axes), jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def update(
    state: State, activations: Array, images: Array, valid: Array | None = None
) -> State:
    """Adds a batch, keeping one position for each channel of an image: the strongest.

    Args:
      state: State of the images so far.
      activations: [B, ..., C].
      images: int32 [B], their numbers.
      valid: bool [B]; False for padding, which is not counted. None if all are valid.
    """
    batch, *sizes, channels = activations.shape
    if valid is None:
        valid = jnp.ones(batch, bool)
    flat = activations.astype(jnp.float32).reshape(batch, -1, channels)
    places = jnp.unravel_index(flat.argmax(axis=1), tuple(sizes)) if sizes else ()
    positions = jnp.stack([jnp.zeros((batch, channels), jnp.int32), *places], -1)
    values = jnp.where(valid[:, None], flat.max(axis=1), -jnp.inf)
    numbers = jnp.where(valid, images, -1).astype(jnp.int32)
    found = State(
        values.T,
        jnp.broadcast_to(numbers[None], (channels, batch)),
        positions[..., 1:].astype(jnp.int32).transpose(1, 0, 2),
        valid.sum(dtype=jnp.int32),
    )
    return _strongest(state, found, state.values.shape[1])


def merge(a: State, b: State) -> State:
    """Joins the states of two disjoint sets of images.

    Equal activations are sorted by image number, in whatever order states are joined.
    """
    return _strongest(a, b, max(a.values.shape[1], b.values.shape[1]))


def compute(state: State) -> Strongest:
    """Returns the strongest activations, without entries that no image filled.

    Raises:
      ValueError: No image was seen.
    """
    count = int(state.count)
    if not count:
        raise ValueError("no image was seen: the set of images is empty.")
    k = min(count, state.values.shape[1])
    values, images, positions = (np.asarray(x)[:, :k] for x in state[:3])
    return Strongest(values, images, positions, count)


def top_activations(
    model: nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    endpoint: str,
    k: int = 9,
) -> Strongest:
    """Finds the images of a set that excite each channel of an endpoint most.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      batches: Batches of images float32 [B, H, W, C], preprocessed, or pairs `(images,
        valid)` with `valid` bool [B], False for padding. Images are numbered from 0 in
        order, without padding.
      endpoint: Name of an activation [B, ..., C]; `zoo.list_endpoints` has them.
      k: Number of images to find for each channel.

    Returns:
      A `Strongest`.

    Raises:
      ValueError: There are no images, or an argument is invalid.
    """
    state, seen = None, 0
    for batch in batches:
        images, valid = batch if isinstance(batch, tuple) else (batch, None)
        images = jnp.asarray(images)
        shape = targets.activation_shape(model, variables, images, endpoint)
        if state is None:
            state = empty(shape[-1], k, len(shape) - 2)
        if valid is None:
            valid = np.ones(len(images), bool)
        # Padding has no number.
        numbers = seen + np.cumsum(np.asarray(valid)) - 1
        options = dict(model=model, endpoint=endpoint)
        state = _add(state, variables, images, numbers, jnp.asarray(valid), **options)
        seen += int(np.sum(valid))
    if state is None:
        raise ValueError("batches has no batch: the set of images is empty.")
    return compute(state)


@partial(jit_inference, static_argnames=("model", "endpoint"))
def _add(
    state: State,
    variables: Mapping[str, Any],
    images: Array,
    numbers: Array,
    valid: Array,
    *,
    model: nn.Module,
    endpoint: str,
) -> State:
    activations = targets.make_forward(model, endpoint)(variables, images)
    return update(state, activations, numbers, valid)


def _strongest(a: State, b: State, k: int) -> State:
    values = jnp.concatenate([a.values, b.values], axis=1)
    images = jnp.concatenate([a.images, b.images], axis=1)
    positions = jnp.concatenate([a.positions, b.positions], axis=1)
    # By descending value, then by image number.
    order = jnp.lexsort((images, -values), axis=1)[:, :k]
    return State(
        jnp.take_along_axis(values, order, axis=1),
        jnp.take_along_axis(images, order, axis=1),
        jnp.take_along_axis(positions, order[..., None], axis=1),
        a.count + b.count,
    )
