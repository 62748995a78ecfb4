"""Pooling of regions of interest from feature maps to one size."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.ops.bilinear_gather import Samples, bilinear_gather, gather, sample_bins
from zoo.ops.boxes import area

Array = jax.Array


def roi_align(
    features: Array,
    rois: Array,
    *,
    output_size: int = 7,
    spatial_scale: float,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Array:
    """Averages bilinear samples in each bin of each region, as in torchvision.

    A sample that is more than one cell outside of the feature map is 0.

    Args:
      features: floating [H, W, C].
      rois: float32 [R, 4], xyxy in pixels of the image. They have no gradient.
      output_size: Height and width of the result.
      spatial_scale: Cells of the feature map per pixel of the image, such as 1 / 16.
      sampling_ratio: Number of samples of a bin in each direction, 1 or more.
        torchvision's 0 and -1, with a number that depends on the size of the region,
        have no static shape and are not supported.
      aligned: Whether the value of a cell is at its center; False for its upper left
        corner, and a minimum of one cell for the height and width of regions.

    Returns:
      [R, output_size, output_size, C] of the dtype of the features.

    Raises:
      ValueError: Shapes do not match, or a number is out of range.

    Reference:
      He et al., Mask R-CNN, 2017, section 3, "RoIAlign".
    """
    _check("roi_align", [features], rois, output_size, sampling_ratio)
    level = jnp.zeros(len(rois), jnp.int32)
    cells = rois * spatial_scale
    return _align([features], cells, level, output_size, sampling_ratio, aligned)


def multiscale_roi_align(
    levels: Sequence[Array],
    rois: Array,
    *,
    strides: Sequence[int],
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Array:
    """Applies `roi_align` to each region in the level of a pyramid that suits its size.

    Args:
      levels: floating [Hi, Wi, C], the finest first.
      rois: float32 [R, 4], xyxy in pixels of the image. They have no gradient.
      strides: Pixels of the image per cell of each level: powers of 2, each twice the
        one before. The number of a level is log2 of its stride.
      output_size: See `roi_align`.
      sampling_ratio: See `roi_align`.
      aligned: See `roi_align`.
      canonical_size: See `assign_levels`.
      canonical_level: See `assign_levels`.

    Returns:
      [R, output_size, output_size, C] of the dtype of the features.

    Raises:
      ValueError: Shapes do not match, or a number is out of range.
    """
    _check("multiscale_roi_align", levels, rois, output_size, sampling_ratio)
    first = math.floor(math.log2(strides[0])) if strides and strides[0] >= 1 else 0
    if [*strides] != [2 ** (first + i) for i in range(len(levels))]:
        raise ValueError(
            f"multiscale_roi_align: strides={[*strides]} must be powers of 2, each "
            f"twice the one before, of {len(levels)} levels."
        )
    level = assign_levels(
        rois,
        min_level=first,
        max_level=first + len(levels) - 1,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )
    index = level - first
    cells = rois / jnp.asarray(strides, jnp.float32)[index][:, None]
    return _align(levels, cells, index, output_size, sampling_ratio, aligned)


def assign_levels(
    boxes: Array,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Array:
    """Assigns boxes to levels of a feature pyramid, larger boxes to coarser levels.

    Args:
      boxes: [..., 4], xyxy in pixels of the image.
      min_level: The finest level; level l has a stride of 2^l pixels.
      max_level: The coarsest level.
      canonical_size: Side in pixels of a square box that is assigned to
        `canonical_level`; a box of twice the side is assigned to the next level.
      canonical_level: The level of a box of `canonical_size`.

    Returns:
      int32 [...], min_level to max_level; min_level for boxes without area.

    Reference:
      Lin et al., Feature Pyramid Networks, 2017, equation 1, with torchvision's 1e-6,
      which prevents exact sizes from being rounded down.
    """
    side = jnp.sqrt(area(lax.stop_gradient(jnp.asarray(boxes, jnp.float32))))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def _align(
    levels: Sequence[Array],
    cells: Array,
    index: Array,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """Applies `roi_align` to regions [R, 4] in cells of their levels `index` [R]."""
    sizes = np.array([x.shape[:2] for x in levels], np.int32)
    starts = np.cumsum([0, *sizes.prod(axis=1)[:-1]], dtype=np.int32)
    start, height, width = (
        jnp.asarray(values)[index] for values in (starts, sizes[:, 0], sizes[:, 1])
    )
    cells = lax.stop_gradient(cells)
    options = {"bins": output_size, "samples": sampling_ratio, "aligned": aligned}
    y = sample_bins(cells[:, 1::2], height, **options)
    x = sample_bins(cells[:, ::2], width, **options)
    # With one table of all levels, each region is pooled from one level only.
    table = jnp.concatenate([level.reshape(-1, level.shape[2]) for level in levels])
    return bilinear_gather(table, Samples(start, width, y, x))


def roi_max_pool(
    features: Array, rois: Array, *, output_size: int = 7, spatial_scale: float
) -> Array:
    """Computes the maximum in each bin of each region, as in Fast R-CNN.

    A region consists of whole cells, including those of both corners; its bins may
    overlap by a cell. Among equal values, only one has a gradient.

    Args:
      features: floating [H, W, C].
      rois: float32 [R, 4], xyxy in pixels of the image, with x2 and y2 the last pixel.
        They have no gradient.
      output_size: Height and width of the result.
      spatial_scale: Cells of the feature map per pixel of the image, such as 1 / 16.

    Returns:
      [R, output_size, output_size, C] of the dtype of the features; 0 for bins outside
      of the feature map.

    Raises:
      ValueError: Shapes do not match, or a number is out of range.

    Reference:
      Girshick, Fast R-CNN, 2015, section 2.1; roi_pooling_layer.cpp of its Caffe.
    """
    _check("roi_max_pool", [features], rois, output_size, 1)
    height, width, channels = features.shape
    cells = lax.stop_gradient(rois) * spatial_scale
    # Rounds half away from zero as in C; clipped to fit into integers.
    cells = jnp.sign(cells) * jnp.floor(jnp.abs(cells) + 0.5)
    cells = jnp.clip(cells, -(2**20), 2**20).astype(jnp.int32)
    ys = _cover_bins(cells[:, 1::2], height, output_size)
    xs = _cover_bins(cells[:, ::2], width, output_size)
    table, row_starts = _span_maxima(features, 0)
    table, column_starts = _span_maxima(table, 1)
    rows = jnp.asarray(row_starts)[ys.power][..., None] + ys.firsts  # [R, S, 2]
    columns = jnp.asarray(column_starts)[xs.power][..., None] + xs.firsts
    indices = (rows * table.shape[1])[:, :, None, :, None] + columns[:, None, :, None]
    indices = indices.reshape(*indices.shape[:3], 4)
    found = gather(table.reshape(-1, channels), indices)
    best = reduce(_larger, [found[..., i, :] for i in range(4)])
    empty = ys.empty[:, :, None] | xs.empty[:, None]
    return jnp.where(empty[..., None], 0, best)


class _Cover(NamedTuple):
    """Bins along one axis, each the union of two spans of 2^power cells.

    Attributes:
      firsts: int32 [R, S, 2], the first cell of both spans.
      power: int32 [R, S].
      empty: bool [R, S], bins outside of the feature map.
    """

    firsts: Array
    power: Array
    empty: Array


def _cover_bins(ends: Array, length: int, bins: int) -> _Cover:
    """Divides spans [R, 2] from the first to the last cell of an axis into bins."""
    first, last = ends[:, :1], ends[:, 1:]
    size = jnp.maximum(last - first + 1, 1)
    number = jnp.arange(bins, dtype=jnp.int32)[None]
    low = jnp.clip(first + number * size // bins, 0, length)
    high = jnp.clip(first - (-(number + 1) * size // bins), 0, length)
    empty = high <= low
    low, high = jnp.where(empty, 0, low), jnp.where(empty, 1, high)
    power = 31 - lax.clz(high - low)
    firsts = jnp.stack([low, high - (1 << power)], axis=-1)
    return _Cover(firsts, power, empty)


def _span_maxima(x: Array, axis: int) -> tuple[Array, np.ndarray]:
    """Computes the maxima of all spans of 1, 2, 4, ... elements of an axis.

    Returns:
      The maxima of all spans of 1 element, of 2 elements, and so on, concatenated along
      the axis; and the index of the first span of each length.
    """
    parts, step = [x], 1
    while 2 * step <= x.shape[axis]:
        last = parts[-1]
        end = last.shape[axis]
        first = lax.slice_in_dim(last, 0, end - step, axis=axis)
        parts.append(_larger(first, lax.slice_in_dim(last, step, end, axis=axis)))
        step *= 2
    starts = np.cumsum([0, *(part.shape[axis] for part in parts[:-1])], dtype=np.int32)
    return jnp.concatenate(parts, axis), starts


def _larger(first: Array, second: Array) -> Array:
    # Unlike `jnp.maximum`, whose gradient is divided among equal values.
    return jnp.where(second > first, second, first)


def _check(
    function: str, levels: Sequence[Array], rois: Array, output_size: int, ratio: int
) -> None:
    shapes = [list(jnp.shape(x)) for x in levels]
    if not shapes or any(len(s) != 3 or s[2] != shapes[0][2] for s in shapes):
        raise ValueError(
            f"{function} takes feature maps [H, W, C], of one C, got {shapes}."
        )
    if any(0 in shape[:2] for shape in shapes):
        raise ValueError(f"{function}: a feature map has no cells: {shapes}.")
    if rois.ndim != 2 or rois.shape[1] != 4:
        raise ValueError(f"{function} takes rois [R, 4], got {list(rois.shape)}.")
    if output_size < 1 or ratio < 1:
        raise ValueError(
            f"{function}: output_size={output_size} and sampling_ratio={ratio} must be "
            "1 or more; a ratio that follows the size of each region is not supported."
        )
