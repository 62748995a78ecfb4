"""Encoding of boxes as deltas of anchors.

A delta is (dx, dy, dw, dh): the offset of the center in units of the anchor's width and
height, and the logarithms of the ratios of width and height.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

# Limit of dw and dh, to prevent the exponential from overflowing.
MAX_LOG_SCALE = math.log(1000 / 16)

# Minimum side in pixels in `encode`, so that its result is finite.
_MIN_SIDE = 1e-6


def encode(
    boxes: Array,
    anchors: Array,
    *,
    weights: Sequence[float] = (1, 1, 1, 1),
    inclusive: bool = False,
) -> Array:
    """Encodes boxes as deltas of anchors.

    Args:
      boxes: [..., 4], xyxy in pixels.
      anchors: [..., 4], xyxy in pixels; leading axes broadcast with those of `boxes`.
      weights: Factors of (dx, dy, dw, dh). The variances of SSD are their inverses: its
        0.1, 0.1, 0.2, 0.2 are the weights 10, 10, 5, 5.
      inclusive: Whether x2 and y2 are the last pixel of a box, see `zoo.ops.boxes`.

    Returns:
      float32 [..., 4], finite even for boxes and anchors without area.

    Raises:
      ValueError: A last axis is not of length 4, or `weights` are not four positive
        numbers.

    Reference:
      Girshick et al., Rich feature hierarchies, 2014, appendix C, equations 6 to 9.
    """
    _check("encode", boxes, anchors, weights)
    wx, wy, ww, wh = weights
    x, y, width, height = _split(boxes, inclusive)
    anchor_x, anchor_y, anchor_width, anchor_height = _split(anchors, inclusive)
    width, height, anchor_width, anchor_height = (
        jnp.maximum(side, _MIN_SIDE)
        for side in (width, height, anchor_width, anchor_height)
    )
    deltas = [
        wx * (x - anchor_x) / anchor_width,
        wy * (y - anchor_y) / anchor_height,
        ww * jnp.log(width / anchor_width),
        wh * jnp.log(height / anchor_height),
    ]
    return jnp.stack(deltas, axis=-1)


def decode(
    deltas: Array,
    anchors: Array,
    *,
    weights: Sequence[float] = (1, 1, 1, 1),
    inclusive: bool = False,
    max_log_scale: float | None = MAX_LOG_SCALE,
) -> Array:
    """Applies deltas to anchors, the inverse of `encode`.

    Args:
      deltas: [..., 4], computed in float32.
      anchors: [..., 4], xyxy in pixels; leading axes broadcast with those of `deltas`,
        such as [R, 1, 4] with the deltas [R, K, 4] of K classes.
      weights: See `encode`.
      inclusive: See `encode`. The code of Fast and Faster R-CNN includes the last pixel
        when it encodes, but not when it decodes: its x2 and y2 are one pixel larger.
      max_log_scale: Upper limit of dw and dh after division by the weights; None for no
        limit, with which sides may become infinite.

    Returns:
      float32 [..., 4], xyxy in pixels, not clipped to an image.

    Raises:
      ValueError: See `encode`.
    """
    _check("decode", deltas, anchors, weights)
    deltas = jnp.asarray(deltas, jnp.float32)
    dx, dy, dw, dh = (deltas[..., i] / weight for i, weight in enumerate(weights))
    if max_log_scale is not None:
        dw, dh = (jnp.minimum(d, max_log_scale) for d in (dw, dh))
    anchor_x, anchor_y, anchor_width, anchor_height = _split(anchors, inclusive)
    x = anchor_x + dx * anchor_width
    y = anchor_y + dy * anchor_height
    half_width = 0.5 * anchor_width * jnp.exp(dw)
    half_height = 0.5 * anchor_height * jnp.exp(dh)
    one = 1 if inclusive else 0
    corners = [
        x - half_width,
        y - half_height,
        x + half_width - one,
        y + half_height - one,
    ]
    return jnp.stack(corners, axis=-1)


def _split(boxes: Array, inclusive: bool) -> tuple[Array, Array, Array, Array]:
    """Returns center x, center y, width and height [...] of boxes [..., 4]."""
    boxes = jnp.asarray(boxes, jnp.float32)
    one = 1 if inclusive else 0
    width = boxes[..., 2] - boxes[..., 0] + one
    height = boxes[..., 3] - boxes[..., 1] + one
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def _check(name: str, values: Array, anchors: Array, weights: Sequence[float]) -> None:
    what = "boxes" if name == "encode" else "deltas"
    for label, array in ((what, values), ("anchors", anchors)):
        if not jnp.ndim(array) or jnp.shape(array)[-1] != 4:
            raise ValueError(
                f"{name} takes {what} [..., 4] and anchors [..., 4], got {label} "
                f"{list(jnp.shape(array))}."
            )
    if len(weights) != 4 or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"{name}: weights={tuple(weights)} must be four numbers above 0."
        )
