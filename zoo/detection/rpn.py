"""The region proposal network: where there may be an object, whatever it is.

Reference:
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015, section 3.1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from zoo.detection.contract import LossSum, Targets
from zoo.layers import INITIALIZERS, Conv
from zoo.ops.anchors import tile_anchors
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_by_iou
from zoo.ops.nms import nms
from zoo.ops.sampling import sample_balanced

Array = jax.Array


class Proposing(NamedTuple):
    """How anchors become proposals, and which of them are trained.

    Attributes:
      cells: The anchors of one position, xyxy around it, for each level.
      stride: Pixels of the image between positions; None for the image's size divided
        by the map's, rounded down.
      best: Of each level, those of the highest scores enter suppression: how many at
        inference and in training.
      count: Proposals of an image, at inference and in training.
      iou_threshold: Of non-maximum suppression within a level.
      min_size: Smallest width and height of a proposal, in pixels.
      positive: An anchor is one from this IoU on, or if no other has more.
      negative: An anchor is one below this IoU.
      sampled: Anchors of an image that are trained.
      fraction: Of these, positive at most.
      inside: Whether anchors that cross the image's border are left out of training.
      beta: Where the loss of deltas turns from a square into a line.
    """

    cells: tuple[tuple[tuple[float, ...], ...], ...]
    stride: int | None = None
    best: tuple[int, int] = (1000, 2000)
    count: tuple[int, int] = (1000, 2000)
    iou_threshold: float = 0.7
    min_size: float = 1e-3
    positive: float = 0.7
    negative: float = 0.3
    sampled: int = 256
    fraction: float = 0.5
    inside: bool = False
    beta: float = 1 / 9


class RPN(nn.Module):
    """A small network slid over a map: for each anchor a score and four deltas.

    Attributes:
      anchors: Of one position.
      features: Channels of the 3x3 convolution.
      pairs: Whether there are two scores for each anchor, as in the paper: all of
        "background", then all of "object". Only their difference counts.
    """

    anchors: int
    features: int = 256
    pairs: bool = False
    kernel_init: Callable = INITIALIZERS["gaussian_0.01"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Computes scores and deltas of each level.

        Args:
          maps: [B, h, w, C], one for each level.

        Returns:
          Logits [B, h * w * anchors] and deltas [B, h * w * anchors, 4] of each level,
          float32; all anchors of a position, then the next position of its row.
        """
        options = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )
        scores = self.anchors * (2 if self.pairs else 1)
        conv = Conv(self.features, 3, padding=1, name="conv", **options)
        score = Conv(scores, 1, name="cls_logits", **options)
        move = Conv(4 * self.anchors, 1, name="bbox_pred", **options)
        logits, deltas = [], []
        for x in maps:
            x = nn.relu(conv(x))
            s, d = (y(x).astype(jnp.float32) for y in (score, move))
            if self.pairs:
                s = s[..., self.anchors :] - s[..., : self.anchors]
            logits.append(s.reshape(x.shape[0], -1))
            deltas.append(d.reshape(x.shape[0], -1, 4))
        return logits, deltas


def place_anchors(
    maps: Sequence[Array], canvas: tuple[int, int], how: Proposing
) -> list[np.ndarray]:
    """Lays the anchors of each level onto the image.

    Args:
      maps: [B, h, w, C], one for each level.
      canvas: Height and width of the network's input.
      how: Gives the anchors of a position, and the stride.

    Returns:
      float32 [h * w * anchors, 4] for each level, xyxy in pixels.
    """
    out = []
    for x, cell in zip(maps, how.cells, strict=True):
        height, width = x.shape[1:3]
        strides = [
            how.stride or c // n for c, n in zip(canvas, (height, width), strict=True)
        ]
        out.append(tile_anchors(np.array(cell, np.float32), height, width, *strides))
    return out


def propose(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[np.ndarray],
    size: Array,
    how: Proposing,
    train: bool,
) -> tuple[Array, Array]:
    """Chooses the best boxes of one image; no gradient flows through them.

    Args:
      logits: [A], for each level.
      deltas: [A, 4], for each level.
      anchors: [A, 4], for each level.
      size: [2], height and width of what the image fills.
      how: Of the choice.
      train: Whether the numbers of training hold.

    Returns:
      `(boxes, valid)`: float32 [R, 4], xyxy in pixels, and bool [R].
    """
    scores, boxes, levels = [], [], []
    for i, (s, d, a) in enumerate(zip(logits, deltas, anchors, strict=True)):
        s, d = lax.stop_gradient((s, d))
        s, best = lax.top_k(s, min(how.best[train], len(s)))
        scores.append(s)
        boxes.append(decode(d[best], jnp.asarray(a)[best]))
        levels.append(jnp.full(s.shape, i))
    scores, boxes, levels = map(jnp.concatenate, (scores, boxes, levels))
    boxes = clip(boxes, *size)
    large = (boxes[:, 2:] - boxes[:, :2] >= how.min_size).all(axis=-1)
    kept = nms(
        boxes,
        scores,
        iou_threshold=how.iou_threshold,
        max_outputs=how.count[train],
        classes=levels if len(logits) > 1 else None,
        valid=large,
    )
    return boxes[kept.indices], kept.valid


def sample_anchors(
    key: Array,
    anchors: Array,
    boxes: Array,
    valid: Array,
    size: Array,
    how: Proposing,
) -> tuple[Array, Array]:
    """Chooses which anchors of one image are trained, and for what.

    Args:
      key: Decides which.
      anchors: [A, 4].
      boxes: [N, 4], of the objects.
      valid: bool [N].
      size: [2], height and width of what the image fills.
      how: Of the choice.

    Returns:
      `(labels, matches)`: int32 [A], 1 for object, 0 for background, -1 for what is not
      trained; and int32 [A], the number of the object where the label is 1.
    """
    usable = None
    if how.inside:
        within = anchors[:, 2:] <= size[::-1].reshape(1, 2)
        usable = ((anchors[:, :2] >= 0) & within).all(axis=-1)
    matches = match_by_iou(
        anchors,
        boxes,
        valid,
        positive=how.positive,
        negative=how.negative,
        low_quality=True,
        usable=usable,
    )
    labels = jnp.minimum(matches + 1, 1)  # 1 object, 0 background, -1 neither
    positive, negative = sample_balanced(
        key, labels, count=how.sampled, positive_fraction=how.fraction
    )
    labels = jnp.where(positive, 1, jnp.where(negative, 0, -1))
    return labels.astype(jnp.int32), jnp.maximum(matches, 0)


def rpn_loss_sums(
    outputs: Mapping[str, Array], targets: Targets, how: Proposing
) -> dict[str, LossSum]:
    """Computes equation 1's two sums, and the number of sampled anchors for both.

    Args:
      outputs: "rpn_logits" [B, A], "rpn_deltas" [B, A, 4], "anchors" [B, A, 4], and
        `sample_anchors`'s "rpn_labels" and "rpn_matches" [B, A].
      targets: The objects.
      how: Gives `beta`.

    Returns:
      "rpn_objectness" and "rpn_box".
    """
    labels = outputs["rpn_labels"]
    sampled = (labels >= 0).sum().astype(jnp.float32)
    logits = outputs["rpn_logits"]
    # Of two classes, softmax is the logistic function of the difference.
    wrong = nn.softplus(jnp.where(labels == 1, -logits, logits))
    matches = outputs["rpn_matches"][..., None]
    boxes = jnp.take_along_axis(targets.boxes, matches, axis=1)
    goal = encode(boxes, outputs["anchors"])
    away = smooth_l1(outputs["rpn_deltas"] - goal, how.beta).sum(axis=-1)
    return {
        "rpn_objectness": LossSum(jnp.where(labels >= 0, wrong, 0).sum(), sampled),
        "rpn_box": LossSum(jnp.where(labels == 1, away, 0).sum(), sampled),
    }
