"""Targets of explanations: one activation of each image, at an endpoint."""

from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.paths import unknown

Array = jax.Array


class Target(NamedTuple):
    """One activation of each image.

    Attributes:
      channels: int32 [B].
      positions: int32 [B, P], the index along each axis between the first and the
        last: row and column in a map, nothing (P = 0) in a vector.
    """

    channels: Array
    positions: Array


def make_forward(model: nn.Module, endpoint: str) -> Callable:
    """Makes the function `(variables, images) -> activations` of an endpoint.

    Besides the model's endpoints, it takes the outputs of a detector's call.
    """

    def forward(variables: Mapping[str, Any], images: Array) -> Array:
        return read_endpoints(model, variables, images, endpoint)[0]

    return forward


def read_endpoints(
    model: nn.Module, variables: Mapping[str, Any], images: Array, *names: str
) -> list[Array]:
    """Computes endpoints, or outputs of a detector's call, in the order of `names`.

    Raises:
      ValueError: One of them is unknown.
    """
    known = dict(model.apply(variables, images, method="endpoints"))
    if not known.keys() >= {*names}:
        outputs = model.apply(variables, images)
        known |= outputs if isinstance(outputs, dict) else {}
    for name in names:
        if name not in known:
            raise ValueError(unknown("endpoint", name, known))
    return [known[name] for name in names]


def check_images(images: Array) -> None:
    """Raises if images are not preprocessed, or if there are none."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "images must be preprocessed floating point [B, H, W, C], got "
            f"{images.dtype}{list(images.shape)}; zoo.normalize makes them of uint8."
        )
    if not images.shape[0]:
        raise ValueError(f"images is a batch without images: {list(images.shape)}.")


def activation_shape(
    model: nn.Module, variables: Mapping[str, Any], images: Array, endpoint: str
) -> tuple[int, ...]:
    """Returns the shape of an endpoint's activations, [B, ..., C].

    Raises:
      ValueError: The endpoint is unknown or not floating point [B, ..., C], or the
        images do not fit the network.
    """
    check_images(images)
    leaves, tree = jax.tree.flatten((variables, images))
    kinds = tuple(map(_kind, leaves))
    return _shape(model, endpoint, tree, kinds)


def _kind(leaf: Any) -> tuple[tuple[int, ...], Any]:
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype
    return np.shape(leaf), jnp.result_type(leaf)


@lru_cache(maxsize=256)
def _shape(model: nn.Module, endpoint: str, tree: Hashable, kinds: tuple) -> tuple:
    leaves = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    variables, images = jax.tree.unflatten(tree, leaves)
    found = jax.eval_shape(make_forward(model, endpoint), variables, images)
    if found.ndim < 2 or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"endpoint {endpoint!r} is {found.dtype}{list(found.shape)}; what can be "
            "explained are activations, floating point [B, ..., C]."
        )
    return found.shape


def check_labels(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    scores: str,
    labels: Any,
    *,
    optional: bool = False,
) -> Array | None:
    """Checks the classes whose probability is measured.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      scores: Endpoint with logits [B, K].
      labels: A class number, or int [B].
      optional: Whether the labels may be None.

    Returns:
      The labels, int32 [B], or None.

    Raises:
      ValueError: `scores` are no logits, or the labels are missing or out of range.
    """
    shape = activation_shape(model, variables, images, scores)
    if len(shape) != 2:
        raise ValueError(
            f"scores must be logits [B, K], and endpoint {scores!r} is {list(shape)}."
        )
    if labels is None and not optional:
        raise ValueError(
            f"labels must be a whole number or int [{shape[0]}], got None."
        )
    return check_target(shape, scores, labels, None, name="labels")[0]


def class_probability(logits: Array, labels: Array) -> Array:
    """Returns the probability of one class of each image, float32 [B].

    Args:
      logits: [B, K].
      labels: int [B].
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]


def check_target(
    shape: tuple[int, ...],
    endpoint: str,
    channels: Any,
    positions: Any,
    *,
    name: str = "channels",
) -> tuple[Any, Any]:
    """Checks the target's channels and positions, as far as they are not traced.

    Args:
      shape: Shape of the activations, [B, ..., C].
      endpoint: Name of the endpoint, for errors.
      channels: A channel number, int [B], or None.
      positions: int [B, P], or None.
      name: Name of the argument `channels` in errors.

    Returns:
      `(channels, positions)`, int32 [B] and [B, P]; None where None was given.

    Raises:
      ValueError: A shape is wrong, or a channel or a position is out of range.
    """
    batch, *sizes, count = shape
    if channels is not None:
        channels = jnp.asarray(channels)
        if channels.shape not in ((), (batch,)) or not _integer(channels):
            raise ValueError(
                f"{name} must be a whole number, int [{batch}] or None, got "
                f"{channels.dtype}{list(channels.shape)}."
            )
        _check_range(channels, count, f"{name} of endpoint {endpoint!r}")
        channels = jnp.broadcast_to(channels, (batch,)).astype(jnp.int32)
    if positions is not None:
        positions = jnp.asarray(positions)
        if positions.shape != (batch, len(sizes)) or not _integer(positions):
            raise ValueError(
                f"positions of endpoint {endpoint!r}, which is {list(shape)}, must be "
                f"int [{batch}, {len(sizes)}] or None, got {positions.dtype}"
                f"{list(positions.shape)}."
            )
        for axis, size in enumerate(sizes):
            _check_range(
                positions[:, axis], size, f"positions[:, {axis}] of {endpoint!r}"
            )
        positions = positions.astype(jnp.int32)
    return channels, positions


def find_target(
    activations: Array, channels: Array | None, positions: Array | None
) -> Target:
    """Finds each image's target, which is the strongest activation if none is given.

    Args:
      activations: [B, ..., C].
      channels: int32 [B], or None for the channel with the largest value.
      positions: int32 [B, P], or None for the channel's largest value.
    """
    batch, *sizes, count = activations.shape
    flat = activations.reshape(batch, -1, count)
    if channels is None and positions is None:
        channels = flat.max(axis=1).argmax(-1).astype(jnp.int32)
    if channels is None:
        here = _flat_position(positions, sizes)
        chosen = jnp.take_along_axis(flat, here[:, None, None], axis=1)[:, 0]
        channels = chosen.argmax(-1).astype(jnp.int32)
    if positions is None:
        of_channel = jnp.take_along_axis(flat, channels[:, None, None], axis=2)
        here = of_channel[..., 0].argmax(-1)
        places = jnp.unravel_index(here, tuple(sizes)) if sizes else ()
        positions = jnp.stack(places, -1) if sizes else jnp.zeros((batch, 0))
        positions = positions.astype(jnp.int32)
    return Target(channels, positions)


def take(activations: Array, target: Target) -> Array:
    """Takes each image's target, [B], from activations [B, ..., C]."""
    batch, *sizes, count = activations.shape
    flat = activations.reshape(batch, -1)
    here = _flat_position(target.positions, sizes) * count + target.channels
    return jnp.take_along_axis(flat, here[:, None], axis=1)[:, 0]


def _flat_position(positions: Array, sizes: list[int]) -> Array:
    here = jnp.zeros(positions.shape[:1], jnp.int32)
    for axis, size in enumerate(sizes):
        here = here * size + positions[:, axis]
    return here


def _integer(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def _check_range(numbers: Array, size: int, what: str) -> None:
    if isinstance(numbers, jax.core.Tracer):
        return
    wrong = [int(n) for n in np.unique(np.asarray(numbers)) if not 0 <= n < size]
    if wrong:
        nearest = [min(max(n, 0), size - 1) for n in wrong]
        raise ValueError(
            f"{what}: {wrong} out of range; there are 0 to {size - 1}, the nearest "
            f"{'is' if len(set(nearest)) == 1 else 'are'} {sorted(set(nearest))}."
        )
