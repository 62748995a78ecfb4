"""Cells of feature maps, looked up for each bin of each region.

What is looked up often adds up to a gradient in which many regions meet. XLA's scatter
takes them one by one anyway on CPUs, and takes least time and memory over it where it
is asked for one region at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class Taps(NamedTuple):
    """Which cells of a table [P, C] make the bins of a region, and with what weights.

    Attributes:
      start: int32 [R], where the region's map [H, W, C] begins in the table.
      row: int32 [R], the map's width.
      y: Rows int32 [R, S, T] of each row of bins, and their weights float32 [R, S, T].
      x: The same for columns.
    """

    start: Array
    row: Array
    y: tuple[Array, Array]
    x: tuple[Array, Array]


def place_samples(
    spans: Array, length: Array, *, bins: int, samples: int, aligned: bool
) -> tuple[Array, Array]:
    """Spreads samples over spans of one axis, and interpolates each from two cells.

    Args:
      spans: float32 [R, 2], where regions begin and end, in cells.
      length: int32 [R], of the axis. Samples beyond -1 or `length` have no weight.
      bins: S.
      samples: Of a bin.
      aligned: See `zoo.ops.roi.roi_align`.

    Returns:
      Cells int32 [R, S, T] and weights float32 [R, S, T], T = 2 * samples.
    """
    begin, end = jnp.split(spans - (0.5 if aligned else 0), 2, axis=1)  # [R, 1]
    extent = end - begin if aligned else jnp.maximum(end - begin, 1)
    # [R, 1, 1] from here on.
    begin, extent, length = (a.reshape(-1, 1, 1) for a in (begin, extent, length))
    extent = extent / bins
    number = jnp.arange(bins, dtype=jnp.float32).reshape(1, -1, 1)
    step = (jnp.arange(samples, dtype=jnp.float32).reshape(1, 1, -1) + 0.5) / samples
    at = begin + number * extent + step * extent
    # Never true of what is not a number.
    inside = (at >= -1) & (at <= length)
    at = jnp.clip(jnp.where(inside, at, 0), 0, length - 1)
    low = jnp.minimum(at.astype(jnp.int32), jnp.maximum(length - 2, 0))
    high = jnp.minimum(low + 1, length - 1)
    part = at - low
    weights = jnp.concatenate(
        [jnp.where(inside, w / samples, 0) for w in (1 - part, part)], axis=-1
    )
    return jnp.concatenate([low, high], axis=-1), weights


def weigh(table: Array, taps: Taps) -> Array:
    """Sums cells of a table with the products of their two weights.

    Nothing but the result is of its size, in the forward direction on all platforms
    and in the backward direction on CPUs. `taps` have no derivative.

    Args:
      table: floating [P, C].
      taps: Of R regions and S * S bins.

    Returns:
      [R, S, S, C] of the table's type, summed in float32.
    """
    return _weigh(table, taps, len(table))


def gather(table: Array, places: Array) -> Array:
    """Looks up rows of a table.

    Args:
      table: floating [P, C].
      places: int32 [R, ...], 0 to P - 1.

    Returns:
      [R, ..., C].
    """
    return _gather(table, places, len(table))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(table: Array, places: Array, cells: int) -> Array:
    return table.at[places].get(mode="promise_in_bounds")


def _gather_forward(table: Array, places: Array, cells: int) -> tuple[Array, Array]:
    return _gather(table, places, cells), places


def _gather_backward(cells: int, places: Array, gradient: Array) -> tuple[Array, None]:
    def at_once(total: Array, places: Array, gradient: Array) -> Array:
        return total.at[places].add(gradient, mode="promise_in_bounds")

    def in_turn(total: Array, *regions: Array) -> Array:
        def body(total: Array, region: tuple[Array, Array]) -> tuple[Array, None]:
            return at_once(total, *region), None

        return lax.scan(body, total, regions)[0]

    return _add_up(cells, places, gradient, at_once, in_turn), None


_gather.defvjp(_gather_forward, _gather_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weigh(table: Array, taps: Taps, cells: int) -> Array:
    total = 0.0
    for i, j in _pairs(taps):
        places, weights = _pair(taps, i, j)
        values = table.at[places].get(mode="promise_in_bounds")
        total += weights[..., None] * values.astype(jnp.float32)
    return total.astype(table.dtype)


def _pairs(taps: Taps) -> list[tuple[int, int]]:
    count = taps.y[0].shape[-1]
    return [(i, j) for i in range(count) for j in range(count)]


def _pair(taps: Taps, i: int, j: int) -> tuple[Array, Array]:
    """Where row tap i and column tap j of bins meet: places and weights [R, S, S]."""
    rows = taps.start[:, None] + taps.row[:, None] * taps.y[0][..., i]
    places = rows[:, :, None] + taps.x[0][..., j][:, None]
    return places, taps.y[1][..., i][:, :, None] * taps.x[1][..., j][:, None]


def _weigh_forward(table: Array, taps: Taps, cells: int) -> tuple[Array, Taps]:
    return _weigh(table, taps, cells), taps


def _weigh_backward(cells: int, taps: Taps, gradient: Array) -> tuple[Array, None]:
    def at_once(total: Array, taps: Taps, gradient: Array) -> Array:
        for i, j in _pairs(taps):
            places, weights = _pair(taps, i, j)
            updates = weights[..., None] * gradient
            total = total.at[places].add(updates, mode="promise_in_bounds")
        return total

    def in_turn(total: Array, *regions: Array) -> Array:
        def body(total: Array, region: tuple[Taps, Array]) -> tuple[Array, None]:
            (start, row, (y, y_weights), (x, x_weights)), updates = region
            # [S, S, C] to [S, S, T, C] to [S, T, S, T, C].
            updates = updates[:, :, None] * x_weights[None, :, :, None]
            updates = updates[:, None] * y_weights[:, :, None, None, None]
            places = (start + row * y)[:, :, None, None] + x[None, None]
            return total.at[places].add(updates, mode="promise_in_bounds"), None

        return lax.scan(body, total, regions)[0]

    return _add_up(cells, taps, gradient, at_once, in_turn), None


_weigh.defvjp(_weigh_forward, _weigh_backward)


def _add_up(
    cells: int, where: Any, gradient: Array, at_once: Callable, in_turn: Callable
) -> Array:
    """Adds gradients [R, ..., C] up in a table [cells, C], in float32."""
    zeros = jnp.zeros((cells, gradient.shape[-1]), jnp.float32)
    exact = gradient.astype(jnp.float32)
    total = lax.platform_dependent(zeros, where, exact, cpu=in_turn, default=at_once)
    return total.astype(gradient.dtype)
