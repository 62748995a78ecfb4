"""Operations on boxes float [..., 4], the corners (x1, y1, x2, y2) in pixels.

Coordinates are continuous: the width of a box is x2 - x1. In the code of R-CNN and of
PASCAL VOC x2 is the last pixel of a box, which is thus one pixel wider; the argument
`inclusive` selects this convention.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def area(boxes: Array, *, inclusive: bool = False) -> Array:
    """Computes the areas [...] of boxes [..., 4]; 0 if x2 < x1 or y2 < y1."""
    one = 1 if inclusive else 0
    width = boxes[..., 2] - boxes[..., 0] + one
    height = boxes[..., 3] - boxes[..., 1] + one
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def clip(boxes: Array, height: float | Array, width: float | Array) -> Array:
    """Clips boxes to an image.

    Args:
      boxes: [..., 4].
      height: Height of the image, in pixels.
      width: Width of the image, in pixels.

    Returns:
      [..., 4] with 0 <= x <= width and 0 <= y <= height.
    """
    limits = jnp.stack(
        [jnp.asarray(n, boxes.dtype) for n in (width, height, width, height)]
    )
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def to_cxcywh(boxes: Array) -> Array:
    """Converts corners [..., 4] to (center x, center y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def from_cxcywh(boxes: Array) -> Array:
    """Converts (center x, center y, width, height) [..., 4] to corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def iou(a: Array, b: Array, *, inclusive: bool = False) -> Array:
    """Computes the intersection over union of boxes.

    Args:
      a: [..., 4].
      b: [..., 4]; leading axes broadcast with those of `a`. Use `a[:, None]` and
        `b[None]` for all pairs of [N, 4] and [M, 4].
      inclusive: Whether x2 and y2 are the last pixel of a box.

    Returns:
      [...], 0 to 1; 0 if both boxes are empty.
    """
    shared = intersection(a, b, inclusive=inclusive)
    union = area(a, inclusive=inclusive) + area(b, inclusive=inclusive) - shared
    return shared / jnp.where(union > 0, union, 1)


def intersection(a: Array, b: Array, *, inclusive: bool = False) -> Array:
    """Computes the area [...] of the intersection of boxes [..., 4]."""
    one = 1 if inclusive else 0
    # One coordinate at a time, which XLA vectorizes better on CPUs.
    sides = [
        jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i])
        for i in range(2)
    ]
    width, height = (jnp.maximum(side + one, 0) for side in sides)
    return width * height
