"""Finds which pixels an activation depends on, from a network's trace alone.

Reference:
  Araujo, Norris, Sim, Computing Receptive Fields of Convolutional Neural Networks,
  2019.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core

from zoo.explain.dependencies import EDGES, NOTHING, Field, Reader
from zoo.explain.targets import make_forward
from zoo.initialization import abstract_variables
from zoo.registry import get_spec, list_models


class ReceptiveField(NamedTuple):
    """The part of the image that each unit of an endpoint sees.

    Attributes:
      size: Height and width in pixels of a field that the border does not cut; may
        exceed the image, as if the image were larger.
      stride: Distance in pixels between the fields of neighboring units, down and to
        the right; 0 if there is one unit.
      offset: First row and column of the first unit's field; negative within the
        padding.
      exact: Whether all fields have this size and start at `offset + index * stride`,
        cut to the image. False after resizing or pooling into bins: `size` is then the
        largest size, and `stride` the number of image pixels per unit.
      boxes: int32 [H', W', 4], xyxy, the part of the image that each unit sees,
        excluding row y2 and column x2; [1, 1, 4] for an endpoint without positions.
    """

    size: tuple[int, int]
    stride: tuple[float, float]
    offset: tuple[int, int]
    exact: bool
    boxes: np.ndarray


def receptive_field(
    model: nn.Module, endpoint: str, *, image_shape: tuple[int, int, int] | None = None
) -> ReceptiveField:
    """Finds the receptive field of an endpoint's units, from shapes alone.

    Args:
      model: A network of the zoo.
      endpoint: Name of a map [B, H', W', C], or of activations [B, ..., C], as one
        unit.
      image_shape: (H, W, C) of the images; None for the network's own or, for a
        classifier, the largest registered shape that it takes.

    Returns:
      A `ReceptiveField`.

    Raises:
      ValueError: The endpoint is unknown or does not depend on the image, or no known
        image fits the network.
    """
    shape = image_shape or _own_shape(model)
    return _find(model, endpoint, tuple(shape))


@lru_cache(maxsize=256)
def _find(model: nn.Module, endpoint: str, shape: tuple) -> ReceptiveField:
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    traced = jax.make_jaxpr(make_forward(model, endpoint))(variables, images)
    cut, whole = (_edges(traced, shape, extended) for extended in (False, True))
    sizes = np.array(shape[:2])
    first, last = cut[::2], 1 - cut[1::2]  # [2, H', W'] each.
    seen = (first < NOTHING).all(axis=0)
    if not seen.any():
        raise ValueError(f"endpoint {endpoint!r} does not depend on the image.")
    first = np.where(seen, np.maximum(first, 0), 0)
    last = np.where(seen, np.minimum(last, sizes.reshape(2, 1, 1)), 0)
    boxes = np.stack([first[1], first[0], last[1], last[0]], axis=-1)
    lengths = 1 - whole[1::2] - whole[::2]
    size = lengths.max(axis=(1, 2))
    offset, stride, exact = [], [], bool((lengths == size.reshape(2, 1, 1)).all())
    for axis in range(2):
        starts = whole[2 * axis].min(axis=1 - axis)
        steps = np.diff(starts)
        offset.append(int(starts[0]))
        stride.append(float(steps.mean()) if len(steps) else 0.0)
        exact &= bool((steps == steps[:1]).all())
        exact &= bool((whole[2 * axis] == np.expand_dims(starts, 1 - axis)).all())
    begins = np.stack(whole[::2]), np.stack(1 - whole[1::2])
    ends = sizes.reshape(2, 1, 1)
    exact &= bool((np.maximum(begins[0], 0) == first).all())
    exact &= bool((np.minimum(begins[1], ends) == last).all())
    if not exact:
        maps = first.shape[1:]
        stride = [n / m if m > 1 else 0 for n, m in zip(sizes, maps, strict=True)]
    stride = [int(s) if s == int(s) else float(s) for s in stride]
    boxes = boxes.astype(np.int32)
    boxes.flags.writeable = False  # Later calls return the same array.
    return ReceptiveField(
        tuple(map(int, size)),
        tuple(stride),
        tuple(offset),
        exact,
        boxes,
    )


def _own_shape(model: nn.Module) -> tuple[int, int, int]:
    own = getattr(model, "preprocess", None)
    if own is not None:
        return own.shape
    names = list_models(task="classification")
    shapes = {get_spec(name).preprocess.shape for name in names}
    for shape in sorted(shapes, reverse=True):
        try:
            abstract_variables(model, shape)
        except (ValueError, TypeError):
            continue
        return shape
    raise ValueError(
        f"this {type(model).__name__} takes none of the registered image sizes; give "
        "image_shape=(H, W, C)."
    )


def _edges(traced: core.ClosedJaxpr, shape: tuple, extended: bool) -> np.ndarray:
    """Returns the edges of what each unit depends on, [4, H', W']."""
    height, width, _ = shape
    rows = np.broadcast_to(
        np.arange(height).reshape(1, -1, 1, 1), (1, height, width, 1)
    )
    columns = np.broadcast_to(np.arange(width).reshape(1, 1, -1, 1), rows.shape)
    image = np.stack([rows, -rows, columns, -columns]).astype(np.int32)
    program = traced.jaxpr
    given = [None] * (len(program.invars) - 1) + [Field(image, (1, *shape))]
    consts = [np.asarray(c) if isinstance(c, np.ndarray) else c for c in traced.consts]
    (found,) = Reader(extended).run(program, consts, given)
    if not isinstance(found, Field):
        return np.full((EDGES, 1, 1), NOTHING)
    edges = found.whole() if len(found.shape) != 4 else found.edges
    if len(found.shape) != 4:
        return edges.min(axis=tuple(range(1, edges.ndim))).reshape(EDGES, 1, 1)
    full = np.broadcast_to(edges, (EDGES, 1, *found.shape[1:3], edges.shape[4]))
    return full.min(axis=(1, 4))
