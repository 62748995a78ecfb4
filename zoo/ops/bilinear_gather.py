"""Bilinear interpolation of feature maps at the bins of many regions.

In the gradient, many regions add to the same cells of a feature map. On CPUs XLA's
scatter is sequential, and needs the least time and memory for one region at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class Samples(NamedTuple):
    """The cells of a table [P, C] that are summed in each bin of a region.

    Attributes:
      start: int32 [R], index in the table of the first cell of the region's feature map
        [H, W, C].
      width: int32 [R], width of the feature map.
      y: Rows int32 [R, S, T] of each row of bins, and their weights float32 [R, S, T].
      x: The same for columns.
    """

    start: Array
    width: Array
    y: tuple[Array, Array]
    x: tuple[Array, Array]


def sample_bins(
    spans: Array, length: Array, *, bins: int, samples: int, aligned: bool
) -> tuple[Array, Array]:
    """Distributes samples over the bins of regions along one axis.

    Each sample is interpolated linearly between two cells.

    Args:
      spans: float32 [R, 2], start and end of each region, in cells.
      length: int32 [R], length of the axis. Samples before -1 or after `length` have
        the weight 0.
      bins: Number of bins S.
      samples: Number of samples of a bin.
      aligned: See `zoo.ops.roi.roi_align`.

    Returns:
      Cells int32 [R, S, T] and weights float32 [R, S, T], with T = 2 * samples.
    """
    begin, end = jnp.split(spans - (0.5 if aligned else 0), 2, axis=1)  # [R, 1]
    extent = end - begin if aligned else jnp.maximum(end - begin, 1)
    # [R, 1, 1] from here on.
    begin, extent, length = (a.reshape(-1, 1, 1) for a in (begin, extent, length))
    extent = extent / bins
    number = jnp.arange(bins, dtype=jnp.float32).reshape(1, -1, 1)
    step = (jnp.arange(samples, dtype=jnp.float32).reshape(1, 1, -1) + 0.5) / samples
    at = begin + number * extent + step * extent
    # False for NaN.
    inside = (at >= -1) & (at <= length)
    at = jnp.clip(jnp.where(inside, at, 0), 0, length - 1)
    low = jnp.minimum(at.astype(jnp.int32), jnp.maximum(length - 2, 0))
    high = jnp.minimum(low + 1, length - 1)
    part = at - low
    weights = jnp.concatenate(
        [jnp.where(inside, w / samples, 0) for w in (1 - part, part)], axis=-1
    )
    return jnp.concatenate([low, high], axis=-1), weights


def bilinear_gather(table: Array, samples: Samples) -> Array:
    """Sums cells of a table, weighted by the products of their row and column weights.

    No intermediate array is larger than the result, in the forward pass on all
    platforms and in the backward pass on CPUs. `samples` have no derivative.

    Args:
      table: floating [P, C].
      samples: The samples of R regions with S * S bins.

    Returns:
      [R, S, S, C] of the dtype of the table; the sums are float32.
    """
    return _bilinear_gather(table, samples, len(table))


def gather(table: Array, indices: Array) -> Array:
    """Gathers rows of a table.

    Args:
      table: floating [P, C].
      indices: int32 [R, ...], 0 to P - 1.

    Returns:
      [R, ..., C].
    """
    return _gather(table, indices, len(table))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(table: Array, indices: Array, cells: int) -> Array:
    return table.at[indices].get(mode="promise_in_bounds")


def _gather_forward(table: Array, indices: Array, cells: int) -> tuple[Array, Array]:
    return _gather(table, indices, cells), indices


def _gather_backward(cells: int, indices: Array, gradient: Array) -> tuple[Array, None]:
    def add_all(total: Array, indices: Array, gradient: Array) -> Array:
        return total.at[indices].add(gradient, mode="promise_in_bounds")

    def add_by_region(total: Array, *regions: Array) -> Array:
        def body(total: Array, region: tuple[Array, Array]) -> tuple[Array, None]:
            return add_all(total, *region), None

        return lax.scan(body, total, regions)[0]

    return _accumulate(cells, indices, gradient, add_all, add_by_region), None


_gather.defvjp(_gather_forward, _gather_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bilinear_gather(table: Array, samples: Samples, cells: int) -> Array:
    total = 0.0
    for i, j in _pairs(samples):
        indices, weights = _pair(samples, i, j)
        values = table.at[indices].get(mode="promise_in_bounds")
        total += weights[..., None] * values.astype(jnp.float32)
    return total.astype(table.dtype)


def _pairs(samples: Samples) -> list[tuple[int, int]]:
    count = samples.y[0].shape[-1]
    return [(i, j) for i in range(count) for j in range(count)]


def _pair(samples: Samples, i: int, j: int) -> tuple[Array, Array]:
    """Returns indices and weights [R, S, S] of row sample i and column sample j."""
    rows = samples.start[:, None] + samples.width[:, None] * samples.y[0][..., i]
    indices = rows[:, :, None] + samples.x[0][..., j][:, None]
    return indices, samples.y[1][..., i][:, :, None] * samples.x[1][..., j][:, None]


def _bilinear_forward(
    table: Array, samples: Samples, cells: int
) -> tuple[Array, Samples]:
    return _bilinear_gather(table, samples, cells), samples


def _bilinear_backward(
    cells: int, samples: Samples, gradient: Array
) -> tuple[Array, None]:
    def add_all(total: Array, samples: Samples, gradient: Array) -> Array:
        for i, j in _pairs(samples):
            indices, weights = _pair(samples, i, j)
            updates = weights[..., None] * gradient
            total = total.at[indices].add(updates, mode="promise_in_bounds")
        return total

    def add_by_region(total: Array, *regions: Array) -> Array:
        def body(total: Array, region: tuple[Samples, Array]) -> tuple[Array, None]:
            (start, row, (y, y_weights), (x, x_weights)), updates = region
            # [S, S, C] to [S, S, T, C] to [S, T, S, T, C].
            updates = updates[:, :, None] * x_weights[None, :, :, None]
            updates = updates[:, None] * y_weights[:, :, None, None, None]
            indices = (start + row * y)[:, :, None, None] + x[None, None]
            return total.at[indices].add(updates, mode="promise_in_bounds"), None

        return lax.scan(body, total, regions)[0]

    return _accumulate(cells, samples, gradient, add_all, add_by_region), None


_bilinear_gather.defvjp(_bilinear_forward, _bilinear_backward)


def _accumulate(
    cells: int, where: Any, gradient: Array, add_all: Callable, add_by_region: Callable
) -> Array:
    """Sums gradients [R, ..., C] in a table [cells, C], in float32."""
    zeros = jnp.zeros((cells, gradient.shape[-1]), jnp.float32)
    exact = gradient.astype(jnp.float32)
    total = lax.platform_dependent(
        zeros, where, exact, cpu=add_by_region, default=add_all
    )
    return total.astype(gradient.dtype)
