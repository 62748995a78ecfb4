"""How a network looks at an image that fills a part of an array: borders, windows.

How much of the array an image fills is a value that only the running program knows, so
that one program serves images of many sizes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Size = tuple[int, int]


def place(
    images: Array, filled: Array, size: Size, *, margin: int = 0, flip: bool = False
) -> Array:
    """Puts images into an array of another size.

    Args:
      images: [B, H, W, C].
      filled: int32 [2]: height and width of what the images fill of [H, W], from the
        upper left corner on.
      size: Height and width of the result.
      margin: Where to put the upper left corner, on both axes.
      flip: Whether to mirror the images, left to right; the corner stays.

    Returns:
      [B, size[0], size[1], C]. Around the images is, with a margin, what a mirror shows
      whose edge is their last pixel; without one, that pixel again.
    """
    rows = _places(filled[0], size[0], margin)
    columns = _places(filled[1], size[1], margin)
    if flip:
        columns = filled[1] - 1 - columns
    images = jnp.take(images, rows, axis=1, mode="clip")
    return jnp.take(images, columns, axis=2, mode="clip")


def clear_rest(images: Array, filled: Array) -> Array:
    """Sets to zero what images [B, H, W, C] do not fill; see `place`."""
    rows, columns = (
        jnp.arange(n) < filled[axis] for axis, n in enumerate(images.shape[1:3])
    )
    inside = (rows[:, None] & columns[None])[None, ..., None]
    return jnp.where(inside, images, jnp.zeros((), images.dtype))


def slide(
    function: Callable[[Array], Array],
    images: Array,
    filled: Array,
    window: Size,
    *,
    overlap: float,
    margin: int = 0,
) -> Array:
    """Averages over overlapping windows what a function makes of each.

    They are taken one after the other, so that memory holds one. The last of each
    direction ends with the image. Their number is that of the largest image that the
    array can hold; those that a smaller one does not need count nothing.

    Args:
      function: From windows [B, *window, C] to [B, *window - 2 * margin, K].
      images: [B, H, W, C], at least a window.
      filled: int32 [2]: height and width of what is asked for, without the margins.
      window: Height and width.
      overlap: Part of a window that its neighbour has, too, from 0 to below 1.
      margin: By how much the function's results are smaller on each side.

    Returns:
      [B, H - 2 * margin, W - 2 * margin, K].
    """
    whole = [n - 2 * margin for n in images.shape[1:3]]
    starts, used, seen = [], [], []
    for axis in (0, 1):
        inner = window[axis] - 2 * margin
        step = math.ceil(inner * (1 - overlap))
        index = np.arange(math.ceil((whole[axis] - inner) / step) + 1)
        last = jnp.maximum(filled[axis] - inner, 0)
        starts.append(jnp.minimum(index * step, last))
        used.append((index == 0) | ((index - 1) * step < last))
        offset = np.arange(whole[axis])[None] - starts[axis][:, None]
        inside = (offset >= 0) & (offset < inner) & used[axis][:, None]
        # How many windows see each row, or each column.
        seen.append(inside.sum(axis=0))

    def add(total: Array, spot: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, column, weight = spot
        part = lax.dynamic_slice_in_dim(images, row, window[0], axis=1)
        part = function(lax.dynamic_slice_in_dim(part, column, window[1], axis=2))
        corner = (0, row, column, 0)
        before = lax.dynamic_slice(total, corner, part.shape)
        return lax.dynamic_update_slice(total, before + weight * part, corner), None

    part = jax.eval_shape(function, images[:, : window[0], : window[1]])
    total = jnp.zeros((images.shape[0], *whole, part.shape[-1]), part.dtype)
    spots = [grid.ravel() for grid in jnp.meshgrid(*starts, indexing="ij")]
    weights = (used[0][:, None] & used[1][None]).ravel().astype(part.dtype)
    total, _ = lax.scan(add, total, (*spots, weights))
    count = (seen[0][:, None] * seen[1][None])[None, ..., None]
    return total / jnp.maximum(count, 1)


def _places(filled: Array, count: int, margin: int) -> Array:
    """Which of the image's pixels stands at each of `count` places."""
    places, last = jnp.arange(count) - margin, filled - 1
    if margin:
        places = jnp.mod(places, jnp.maximum(2 * last, 1))
        places = last - jnp.abs(last - places)
    return jnp.clip(places, 0, last)
