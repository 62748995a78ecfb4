"""Boxes `xyxy`: float [..., 4], the corners (x1, y1, x2, y2) in pixels.

Coordinates are continuous, so that a box is x2 - x1 wide. What the code of R-CNN and
of PASCAL VOC calls a box has its last pixel in x2 and is one pixel wider: `inclusive`
says so where it matters.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def area(boxes: Array, *, inclusive: bool = False) -> Array:
    """Returns the areas [...] of boxes [..., 4]; 0 for a box that is inside out."""
    one = 1 if inclusive else 0
    width = boxes[..., 2] - boxes[..., 0] + one
    height = boxes[..., 3] - boxes[..., 1] + one
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def clip(boxes: Array, height: float | Array, width: float | Array) -> Array:
    """Moves corners that lie outside of an image onto its border.

    Args:
      boxes: [..., 4].
      height: Of the image, in pixels.
      width: Of the image, in pixels.

    Returns:
      [..., 4] with 0 <= x <= width and 0 <= y <= height.
    """
    limits = jnp.stack(
        [jnp.asarray(n, boxes.dtype) for n in (width, height, width, height)]
    )
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def to_cxcywh(boxes: Array) -> Array:
    """Converts corners [..., 4] to (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def from_cxcywh(boxes: Array) -> Array:
    """Converts (centre x, centre y, width, height) [..., 4] to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def to_xywh(boxes: Array) -> Array:
    """Converts corners [..., 4] to (x1, y1, width, height), which COCO's files have."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([low, high - low], axis=-1)


def from_xywh(boxes: Array) -> Array:
    """Converts (x1, y1, width, height) [..., 4] to corners."""
    low, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([low, low + size], axis=-1)


def iou(a: Array, b: Array, *, inclusive: bool = False) -> Array:
    """Divides the area that two boxes share by the area that they cover together.

    Args:
      a: [..., 4].
      b: [..., 4]; leading axes broadcast with those of `a`. For all pairs of [N, 4] and
        [M, 4] give `a[:, None]` and `b[None]`.
      inclusive: Whether the last pixel belongs to a box.

    Returns:
      [...], 0 to 1; 0 where both boxes are empty.
    """
    shared = intersection(a, b, inclusive=inclusive)
    union = area(a, inclusive=inclusive) + area(b, inclusive=inclusive) - shared
    return shared / jnp.where(union > 0, union, 1)


def intersection(a: Array, b: Array, *, inclusive: bool = False) -> Array:
    """Returns the area [...] that boxes [..., 4] share with boxes [..., 4]."""
    one = 1 if inclusive else 0
    # A coordinate at a time: CPUs take as many pairs at once as they have lanes.
    sides = [
        jnp.minimum(a[..., i + 2], b[..., i + 2]) - jnp.maximum(a[..., i], b[..., i])
        for i in range(2)
    ]
    width, height = (jnp.maximum(side + one, 0) for side in sides)
    return width * height


def giou(a: Array, b: Array) -> Array:
    """Generalised IoU: less than 0 for boxes far apart, so that there is a gradient.

    Args:
      a: [..., 4].
      b: [..., 4]; leading axes broadcast with those of `a`.

    Returns:
      [...], -1 to 1: the IoU, less the share of the smallest box around both that
      neither covers.

    Reference:
      Rezatofighi et al., Generalized Intersection over Union, 2019, algorithm 1.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    low = jnp.minimum(a[..., :2], b[..., :2])
    high = jnp.maximum(a[..., 2:], b[..., 2:])
    around = area(jnp.concatenate([low, high], axis=-1))
    around = jnp.where(around > 0, around, 1)
    return shared / jnp.where(union > 0, union, 1) - (around - union) / around
