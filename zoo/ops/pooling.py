"""Pooling with the border rules of Caffe and PyTorch."""

import math
from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import cpu

Array = jax.Array
# Padding before and after each axis.
Pads = tuple[tuple[int, int], ...]

# Maximum number of elements of a window for the implementation with one operation for
# each element; larger windows use XLA's.
MAX_TAPS = 25
# An index that no element of a window has.
NO_TAP = np.uint8(255)


def max_pool(
    x: Array, window: int, stride: int, padding: int = 0, *, ceil: bool = False
) -> Array:
    """Computes the maximum of each window.

    Args:
      x: [B, H, W, C], floating.
      window: Height and width of a window.
      stride: Distance between windows.
      padding: Number of pixels of minus infinity on each of the four sides.
      ceil: Whether to round the number of windows up, as in Caffe and with PyTorch's
        `ceil_mode`; the last window may extend beyond the border but not start there.

    Returns:
      [B, H', W', C].

    Raises:
      ValueError: The window is larger than the padded image, or fits into the padding.
    """
    pads = pool_padding(x, window, stride, padding, ceil)
    return _max_pool(x, window, stride, pads)


# The jit makes JAX trace and differentiate equal layers once; it is inlined.
@partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    by_xla = partial(_max_by_xla, window=window, stride=stride, pads=pads)
    if window**2 > MAX_TAPS:
        return by_xla(x)

    def by_taps(x: Array) -> Array:
        return _max_of_taps(x, window, stride, pads)

    return lax.platform_dependent(x, cpu=by_taps, default=by_xla)


def _max_by_xla(x: Array, window: int, stride: int, pads: Pads) -> Array:
    # From numpy, as reduce_window has no derivative if it is a tracer.
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(
        x, lowest, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_of_taps(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Computes `max_pool` on CPUs, with a gradient ten times as fast as XLA's."""
    return reduce(jnp.maximum, window_taps(x, window, stride, pads, -np.inf))


@_max_of_taps.defjvp
def _max_of_taps_jvp(
    window: int, stride: int, pads: Pads, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    y, *others = window_taps(*primals, window, stride, pads, -np.inf)
    # The index of the maximum; the first among equal values.
    chosen = jnp.zeros(y.shape, jnp.uint8)
    for number, tap in enumerate(others, 1):
        chosen = jnp.where(tap > y, jnp.uint8(number), chosen)
        y = jnp.maximum(y, tap)
    y, chosen = lax.optimization_barrier((y, chosen))

    @partial(jax.checkpoint, prevent_cse=False)  # Stores only `chosen`.
    def tangent(dx: Array, chosen: Array) -> Array:
        options = dict(window=window, stride=stride, pads=pads, shape=dx.shape)
        gradient = partial(_to_chosen, chosen=chosen, **options)
        return jax.vjp(gradient, jnp.zeros_like(y))[1](dx)[0]

    # Reverse mode transposes the tangent map, which yields `gradient` itself.
    return y, tangent(*tangents, chosen)


def _to_chosen(
    ct: Array, chosen: Array, window: int, stride: int, pads: Pads, shape: tuple
) -> Array:
    """Adds the value of each window to its chosen pixel in images of shape `shape`.

    The images are divided into blocks of stride x stride pixels, one for each window. A
    pixel belongs to the window of its own block and to those of blocks before it.
    """
    before = math.ceil(window / stride) - 1
    around = ((0, 0, 0), (before, before, 0), (before, before, 0), (0, 0, 0))
    ct, chosen = lax.pad(ct, _zero(ct), around), lax.pad(chosen, NO_TAP, around)
    blocks = [n - before for n in ct.shape[1:3]]
    total = _zero(ct)
    for a, b in np.ndindex(before + 1, before + 1):
        rows = np.arange(stride).reshape(1, 1, -1, 1, 1, 1) + a * stride
        columns = np.arange(stride).reshape(1, 1, 1, 1, -1, 1) + b * stride
        inside = (rows < window) & (columns < window)
        taps = np.where(inside, rows * window + columns, NO_TAP).astype(np.uint8)
        i, j = before - a, before - b
        here = np.s_[:, i : i + blocks[0], None, j : j + blocks[1], None]
        total += jnp.where(chosen[here] == taps, ct[here], _zero(ct))
    height, width = (n * stride for n in blocks)
    total = total.reshape(ct.shape[0], height, width, ct.shape[3])
    sizes = zip(shape, total.shape, pads, strict=True)
    cuts = [(-low, size + low - n, 0) for size, n, (low, _) in sizes]
    # The barrier prevents XLA from computing it again for each of its uses.
    return lax.optimization_barrier(lax.pad(total, _zero(ct), cuts))


def _zero(x: Array) -> np.ndarray:
    return np.zeros((), x.dtype)


def window_taps(x: Array, window: int, stride: int, pads: Pads, fill: float):
    """Yields the pixels [B, H', W', C] at each element of the window.

    Args:
      x: [B, H, W, C].
      window: Height and width of a window.
      stride: Distance between windows.
      pads: The result of `pool_padding`.
      fill: Value of the padding.
    """
    x = lax.pad(x, np.array(fill, x.dtype), [(*sides, 0) for sides in pads])
    spans = [(n - window) // stride * stride + 1 for n in x.shape[1:3]]
    for i in range(window):
        for j in range(window):
            yield x[:, i : i + spans[0] : stride, j : j + spans[1] : stride]


def global_average_pool(x: Array) -> Array:
    """Averages over height and width.

    Args:
      x: [B, H, W, C], floating.

    Returns:
      [B, C], of the dtype of `x`; the sums are float32 or wider.
    """
    return lax.platform_dependent(
        x, cpu=cpu.mean_of_map, default=lambda x: x.mean(axis=(1, 2))
    )


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """Computes the mean of each of `size` x `size` bins that cover the image.

    Bin i of n starts at row `floor(i * H / n)` and ends before `ceil((i + 1) * H / n)`,
    as in PyTorch: if H is not a multiple of n, neighbors share a row.

    Args:
      x: [B, H, W, C], floating.
      size: Number of bins in each direction.

    Returns:
      [B, size, size, C], of the dtype of `x`; sums are float32 or wider.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    means = []
    for length in x.shape[1:3]:
        starts, ends = _bins(length, size)
        pixels = np.arange(length)
        inside = (starts[:, None] <= pixels) & (pixels < ends[:, None])
        means.append((inside / (ends - starts)[:, None]).astype(wide.dtype))
    y = jnp.einsum("ph,qw,bhwc->bpqc", *means, wide, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def spatial_pyramid_pool(
    x: Array, levels: Sequence[int], *, window: int | None = None
) -> Array:
    """Computes the maximum of each bin of several grids that cover the image.

    The number of bins does not depend on the size of the image.

    Args:
      x: [B, H, W, C], floating.
      levels: Number of bins in each direction for each grid; (3, 1) has 9 + 1 bins.
      window: Height and width in pixels of windows at all positions of the image, each
        of which is covered by the grids; None to cover the image once.

    Returns:
      [B, bins, C], or with `window` [B, H', W', bins, C]; grid by grid, and row by row
      within a grid. The bins are those of `adaptive_avg_pool`.

    Raises:
      ValueError: The window is larger than the image.

    Reference:
      He, Zhang, Ren, Sun, Spatial Pyramid Pooling in Deep Convolutional Networks for
      Visual Recognition, 2014, section 2 and appendix A.
    """
    batch, height, width, channels = x.shape
    if window is not None and window > min(height, width):
        raise ValueError(f"a {window}x{window} window does not fit into {[*x.shape]}.")
    positions = [1 if window is None else n - window + 1 for n in (height, width)]
    grids = []
    for level in levels:
        # The last pixel of shorter bins is repeated, so that all bins have the same
        # length and one pooling computes all of them. Its gradient goes to the first of
        # equal values.
        rows = _bin_pixels(window or height, level, positions[0])
        columns = _bin_pixels(window or width, level, positions[1])
        y = jnp.take(x, rows.reshape(-1), axis=1, mode="clip")
        y = jnp.take(y, columns.reshape(-1), axis=2, mode="clip")
        shape = (1, rows.shape[-1], columns.shape[-1], 1)
        lowest = np.array(-np.inf, x.dtype)
        y = lax.reduce_window(y, lowest, lax.max, shape, shape, "VALID")
        y = y.reshape(batch, positions[0], level, positions[1], level, channels)
        y = y.transpose(0, 1, 3, 2, 4, 5)
        grids.append(y.reshape(batch, *positions, level**2, channels))
    bins = jnp.concatenate(grids, axis=3)
    return bins if window is not None else bins[:, 0, 0]


def _bins(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end of each of `count` bins that cover `length` pixels."""
    index = np.arange(count)
    return index * length // count, -(-(index + 1) * length // count)


def _bin_pixels(length: int, count: int, positions: int) -> np.ndarray:
    """Returns the pixels of each bin at each position, [positions, count, longest].

    The last pixel of a bin is repeated up to the length of the longest.
    """
    starts, ends = _bins(length, count)
    pixels = starts[:, None] + np.arange((ends - starts).max())
    pixels = np.minimum(pixels, ends[:, None] - 1)
    return pixels + np.arange(positions)[:, None, None]


def pool_padding(x: Array, window: int, stride: int, padding: int, ceil: bool) -> Pads:
    """Returns the padding of each axis for the arguments of `max_pool`.

    Raises:
      ValueError: The window is larger than the padded image, or fits into the padding.
    """
    if padding >= window:
        raise ValueError(
            f"a {window}x{window} window needs less padding than {window}, got "
            f"{padding}."
        )
    pads = [(0, 0)]
    for axis, size in zip("HW", x.shape[1:3], strict=True):
        room = size + 2 * padding - window
        if room < 0:
            raise ValueError(
                f"a {window}x{window} window with padding {padding} does not fit into "
                f"{axis} of {list(x.shape)}."
            )
        count = (math.ceil(room / stride) if ceil else room // stride) + 1
        if ceil and (count - 1) * stride >= size + padding:
            count -= 1
        # At least the padding: JAX has no gradient otherwise.
        high = (count - 1) * stride + window - size - padding
        pads.append((padding, max(high, padding)))
    return (*pads, (0, 0))
