"""Cutting regions of interest out of feature maps, all to the same size."""

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
    """Averages interpolated values in each of a region's output_size^2 bins.

    Equal to torchvision's operator. A sample further than one cell outside of the map
    counts as 0.

    Args:
      features: floating [H, W, C].
      rois: float32 [R, 4], xyxy in pixels of the image. No gradient goes through them.
      output_size: Height and width of the result.
      spatial_scale: Cells of the map per pixel of the image: 1 / 16 at stride 16.
      sampling_ratio: Samples of a bin in each direction, 1 or more. torchvision's 0 and
        -1, which take the more the larger a region is, have no static shape and are
        refused.
      aligned: Whether the value of a cell lies at its middle; False places it at its
        upper left corner, and takes regions as one cell high and wide at least.

    Returns:
      [R, output_size, output_size, C] of the features' type.

    Raises:
      ValueError: Shapes do not fit, or a number is out of range.

    Reference:
      He et al., Mask R-CNN, 2017, section 3, "RoIAlign".
    """
    _check("roi_align", [features], rois, output_size, sampling_ratio)
    nothing = jnp.zeros(len(rois), jnp.int32)
    cells = rois * spatial_scale
    return _align([features], cells, nothing, output_size, sampling_ratio, aligned)


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
    """Aligns each region within the level of a pyramid that fits its size.

    Args:
      levels: floating [Hi, Wi, C], the finest first.
      rois: float32 [R, 4], xyxy in pixels of the image. No gradient goes through them.
      strides: Pixels of the image per cell of each level: powers of 2, each twice the
        one before. A level's number is log2 of its stride.
      output_size: As in `roi_align`, and the next two.
      sampling_ratio: 1 or more.
      aligned: Where a cell's value lies.
      canonical_size: As in `assign_levels`.
      canonical_level: As in `assign_levels`.

    Returns:
      [R, output_size, output_size, C] of the features' type.

    Raises:
      ValueError: Shapes do not fit, or a number is out of range.
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
    place = level - first
    cells = rois / jnp.asarray(strides, jnp.float32)[place][:, None]
    return _align(levels, cells, place, output_size, sampling_ratio, aligned)


def assign_levels(
    boxes: Array,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Array:
    """Chooses levels of a feature pyramid: the larger a box, the coarser.

    Args:
      boxes: [..., 4], xyxy in pixels of the image.
      min_level: Of the finest map; level l has a stride of 2^l pixels.
      max_level: Of the coarsest map.
      canonical_size: Side in pixels of a square box that belongs to `canonical_level`;
        twice the side is one level more.
      canonical_level: See there.

    Returns:
      int32 [...], min_level to max_level; boxes without area are on the finest.

    Reference:
      Lin et al., Feature Pyramid Networks, 2017, equation 1. The 1e-6 is torchvision's:
      it keeps exact sizes from being rounded down.
    """
    side = jnp.sqrt(area(lax.stop_gradient(jnp.asarray(boxes, jnp.float32))))
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def _align(
    levels: Sequence[Array],
    cells: Array,
    place: Array,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """Aligns regions [R, 4], in cells of their level; `place` [R] says which it is."""
    sizes = np.array([x.shape[:2] for x in levels], np.int32)
    starts = np.cumsum([0, *sizes.prod(axis=1)[:-1]], dtype=np.int32)
    start, height, width = (
        jnp.asarray(facts)[place] for facts in (starts, sizes[:, 0], sizes[:, 1])
    )
    cells = lax.stop_gradient(cells)
    options = {"bins": output_size, "samples": sampling_ratio, "aligned": aligned}
    y = sample_bins(cells[:, 1::2], height, **options)
    x = sample_bins(cells[:, ::2], width, **options)
    # In one table of all levels, a region costs no more than in its own.
    table = jnp.concatenate([level.reshape(-1, level.shape[2]) for level in levels])
    return bilinear_gather(table, Samples(start, width, y, x))


def roi_max_pool(
    features: Array, rois: Array, *, output_size: int = 7, spatial_scale: float
) -> Array:
    """Takes the largest value in each of a region's output_size^2 bins.

    A region covers whole cells, of which its corners are the first and the last; its
    bins may overlap by a cell. Of equal values one alone has a gradient.

    Args:
      features: floating [H, W, C].
      rois: float32 [R, 4], xyxy in pixels of the image, x2 and y2 those of the last
        pixel. No gradient goes through them.
      output_size: Height and width of the result.
      spatial_scale: Cells of the map per pixel of the image: 1 / 16 at stride 16.

    Returns:
      [R, output_size, output_size, C] of the features' type; 0 where a bin lies outside
      of the map.

    Raises:
      ValueError: Shapes do not fit, or a number is out of range.

    Reference:
      Girshick, Fast R-CNN, 2015, section 2.1; roi_pooling_layer.cpp of its Caffe.
    """
    _check("roi_max_pool", [features], rois, output_size, 1)
    height, width, channels = features.shape
    cells = lax.stop_gradient(rois) * spatial_scale
    # C's round, half away from zero; limited for the sake of integers.
    cells = jnp.sign(cells) * jnp.floor(jnp.abs(cells) + 0.5)
    cells = jnp.clip(cells, -(2**20), 2**20).astype(jnp.int32)
    ys = _cover_bins(cells[:, 1::2], height, output_size)
    xs = _cover_bins(cells[:, ::2], width, output_size)
    table, row_starts = _span_maxima(features, 0)
    table, column_starts = _span_maxima(table, 1)
    rows = jnp.asarray(row_starts)[ys.power][..., None] + ys.firsts  # [R, S, 2]
    columns = jnp.asarray(column_starts)[xs.power][..., None] + xs.firsts
    places = (rows * table.shape[1])[:, :, None, :, None] + columns[:, None, :, None]
    places = places.reshape(*places.shape[:3], 4)
    found = gather(table.reshape(-1, channels), places)
    best = reduce(_larger, [found[..., i, :] for i in range(4)])
    empty = ys.empty[:, :, None] | xs.empty[:, None]
    return jnp.where(empty[..., None], 0, best)


class _Cover(NamedTuple):
    """Bins along one axis, each covered by two spans of 2^power cells that may overlap.

    Attributes:
      firsts: int32 [R, S, 2], the first cells of both.
      power: int32 [R, S].
      empty: bool [R, S], bins outside of the map.
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
    """Puts the maxima of all spans of 1, 2, 4 ... elements of an axis one by one.

    Returns:
      `x` with a longer axis: all spans of 1 element, all of 2, of 4 ...; and the place
      of the first one of each.
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
    # Unlike that of `jnp.maximum`, its gradient is not divided among equals.
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
