"""Cropping, padding and sliding windows for images that fill a part of an array.

The size of the images is a value on the device, so that one compiled program serves
images of many sizes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Size = tuple[int, int]


def crop_or_pad(
    images: Array, filled: Array, size: Size, *, margin: int = 0, flip: bool = False
) -> Array:
    """Crops or pads images to an array of another size.

    Args:
      images: [B, H, W, C].
      filled: int32 [2], height and width of the images within [H, W], starting at the
        upper left corner.
      size: Height and width of the result.
      margin: Row and column of the upper left corner of the images in the result.
      flip: Whether to flip the images horizontally; the corner stays.

    Returns:
      [B, size[0], size[1], C]. The padding repeats the last pixel or, with a margin,
      reflects the image at it.
    """
    rows = _indices(filled[0], size[0], margin)
    columns = _indices(filled[1], size[1], margin)
    if flip:
        columns = filled[1] - 1 - columns
    images = jnp.take(images, rows, axis=1, mode="clip")
    return jnp.take(images, columns, axis=2, mode="clip")


def zero_padding(images: Array, filled: Array) -> Array:
    """Sets the part of images [B, H, W, C] that is not `filled` to zero."""
    rows, columns = (
        jnp.arange(n) < filled[axis] for axis, n in enumerate(images.shape[1:3])
    )
    inside = (rows[:, None] & columns[None])[None, ..., None]
    return jnp.where(inside, images, jnp.zeros((), images.dtype))


def sliding_window(
    function: Callable[[Array], Array],
    images: Array,
    filled: Array,
    window: Size,
    *,
    overlap: float,
    margin: int = 0,
) -> Array:
    """Applies a function to overlapping windows and averages the results.

    The windows are processed one after the other to save memory. The last window of
    each direction ends at the border of the image. The number of windows is that of the
    largest image that fits into the array; those that a smaller image does not need
    have the weight 0.

    Args:
      function: Function from windows [B, *window, C] to
        [B, *window - 2 * margin, K].
      images: [B, H, W, C], at least as large as a window.
      filled: int32 [2], height and width of the part that is needed, without margins.
      window: Height and width of a window.
      overlap: Fraction of a window that it shares with its neighbor, 0 to below 1.
      margin: Number of pixels by which results are smaller on each side.

    Returns:
      [B, H - 2 * margin, W - 2 * margin, K].
    """
    whole = [n - 2 * margin for n in images.shape[1:3]]
    starts, used, counts = [], [], []
    for axis in (0, 1):
        inner = window[axis] - 2 * margin
        step = math.ceil(inner * (1 - overlap))
        index = np.arange(math.ceil((whole[axis] - inner) / step) + 1)
        last = jnp.maximum(filled[axis] - inner, 0)
        starts.append(jnp.minimum(index * step, last))
        used.append((index == 0) | ((index - 1) * step < last))
        offset = np.arange(whole[axis])[None] - starts[axis][:, None]
        inside = (offset >= 0) & (offset < inner) & used[axis][:, None]
        # Number of windows that cover each row, or each column.
        counts.append(inside.sum(axis=0))

    def add(total: Array, position: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, column, weight = position
        part = lax.dynamic_slice_in_dim(images, row, window[0], axis=1)
        part = function(lax.dynamic_slice_in_dim(part, column, window[1], axis=2))
        corner = (0, row, column, 0)
        before = lax.dynamic_slice(total, corner, part.shape)
        return lax.dynamic_update_slice(total, before + weight * part, corner), None

    part = jax.eval_shape(function, images[:, : window[0], : window[1]])
    total = jnp.zeros((images.shape[0], *whole, part.shape[-1]), part.dtype)
    positions = [grid.ravel() for grid in jnp.meshgrid(*starts, indexing="ij")]
    weights = (used[0][:, None] & used[1][None]).ravel().astype(part.dtype)
    total, _ = lax.scan(add, total, (*positions, weights))
    count = (counts[0][:, None] * counts[1][None])[None, ..., None]
    return total / jnp.maximum(count, 1)


def _indices(filled: Array, count: int, margin: int) -> Array:
    """Returns the pixel of the image at each of `count` positions of the result."""
    indices, last = jnp.arange(count) - margin, filled - 1
    if margin:
        indices = jnp.mod(indices, jnp.maximum(2 * last, 1))
        indices = last - jnp.abs(last - indices)
    return jnp.clip(indices, 0, last)
