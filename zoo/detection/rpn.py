"""The region proposal network.

Reference:
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015, section 3.1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from zoo.detection.types import LossSum, Targets
from zoo.layers import INITIALIZERS, Conv, Layer
from zoo.ops.anchors import tile_anchors
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_by_iou
from zoo.ops.nms import nms
from zoo.ops.sampling import sample_balanced

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RPNConfig:
    """The parameters of a region proposal network, named as in torchvision.

    Attributes:
      cell_anchors: The anchors of one position of each level, xyxy relative to it.
      stride: Distance between positions in pixels of the image; None for the size of
        the image divided by that of the feature map, rounded down.
      pre_nms_top_n_train: Number of proposals of each level kept before non-maximum
        suppression in training.
      pre_nms_top_n_test: The same number for inference.
      post_nms_top_n_train: Number of proposals of an image kept after non-maximum
        suppression in training.
      post_nms_top_n_test: The same number for inference.
      nms_thresh: IoU threshold of non-maximum suppression within a level.
      min_size: Minimum width and height of a proposal, in pixels.
      fg_iou_thresh: Minimum IoU of a positive anchor. The anchors with the largest IoU
        of each object are positive too.
      bg_iou_thresh: Anchors with a lower IoU are negative.
      batch_size_per_image: Number of anchors of an image sampled for the loss.
      positive_fraction: Maximum fraction of positive anchors among them.
      ignore_cross_boundary: Whether anchors that cross the border of the image are
        ignored in training.
      smooth_l1_beta: Error at which the smooth L1 loss becomes linear.
    """

    cell_anchors: tuple[tuple[tuple[float, ...], ...], ...]
    stride: int | None = None
    pre_nms_top_n_train: int = 2000
    pre_nms_top_n_test: int = 1000
    post_nms_top_n_train: int = 2000
    post_nms_top_n_test: int = 1000
    nms_thresh: float = 0.7
    min_size: float = 1e-3
    fg_iou_thresh: float = 0.7
    bg_iou_thresh: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5
    ignore_cross_boundary: bool = False
    smooth_l1_beta: float = 1 / 9


class RPN(Layer):
    """A 3x3 convolution, followed by scores and deltas for each anchor.

    Attributes:
      anchors: Number of anchors at each position.
      features: Number of channels of the 3x3 convolution.
      two_scores: Whether each anchor has a score for background and one for object, as
        in the paper: all background scores first, then all object scores. Only their
        difference is returned.
      kernel_init: Initializer of the kernels.
    """

    anchors: int
    features: int = 256
    two_scores: bool = False
    kernel_init: Callable = INITIALIZERS["gaussian_0.01"]

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Computes the scores and deltas of each level.

        Args:
          maps: The feature maps [B, h, w, C] of each level.

        Returns:
          The logits float32 [B, h * w * anchors] and the deltas float32
          [B, h * w * anchors, 4] of each level, with all anchors of a position before
          those of the next position of the row.
        """
        conv = partial(Conv, kernel_init=self.kernel_init, **self.dtypes)
        scores = self.anchors * (2 if self.two_scores else 1)
        hidden = conv(self.features, 3, padding=1, name="conv")
        cls_logits = conv(scores, 1, name="cls_logits")
        bbox_pred = conv(4 * self.anchors, 1, name="bbox_pred")
        logits, deltas = [], []
        for x in maps:
            x = nn.relu(hidden(x))
            s, d = (layer(x).astype(jnp.float32) for layer in (cls_logits, bbox_pred))
            if self.two_scores:
                s = s[..., self.anchors :] - s[..., : self.anchors]
            logits.append(s.reshape(x.shape[0], -1))
            deltas.append(d.reshape(x.shape[0], -1, 4))
        return logits, deltas


def grid_anchors(
    maps: Sequence[Array], canvas: tuple[int, int], config: RPNConfig
) -> list[np.ndarray]:
    """Places the anchors of each level on the image.

    Args:
      maps: The feature maps [B, h, w, C] of each level.
      canvas: Height and width of the network's input, in pixels.
      config: The `cell_anchors` and the `stride` are used.

    Returns:
      float32 [h * w * anchors, 4] for each level, xyxy in pixels.
    """
    anchors = []
    for x, cell in zip(maps, config.cell_anchors, strict=True):
        height, width = x.shape[1:3]
        strides = [
            config.stride or c // n
            for c, n in zip(canvas, (height, width), strict=True)
        ]
        cell = np.array(cell, np.float32)
        anchors.append(tile_anchors(cell, height, width, *strides))
    return anchors


def filter_proposals(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[np.ndarray],
    size: Array,
    config: RPNConfig,
    train: bool,
) -> tuple[Array, Array]:
    """Decodes and selects the proposals of one image. They have no gradient.

    Args:
      logits: [A] for each level.
      deltas: [A, 4] for each level.
      anchors: [A, 4] for each level.
      size: [2], height and width of the image within the network's input.
      config: The parameters of the selection.
      train: Whether the numbers for training are used.

    Returns:
      `(boxes, valid)`: float32 [R, 4], xyxy in pixels, and bool [R].
    """
    pre_nms, post_nms = (
        (config.pre_nms_top_n_train, config.post_nms_top_n_train)
        if train
        else (config.pre_nms_top_n_test, config.post_nms_top_n_test)
    )
    scores, boxes, levels = [], [], []
    for i, (s, d, a) in enumerate(zip(logits, deltas, anchors, strict=True)):
        s, d = lax.stop_gradient((s, d))
        s, top = lax.top_k(s, min(pre_nms, len(s)))
        scores.append(s)
        boxes.append(decode(d[top], jnp.asarray(a)[top]))
        levels.append(jnp.full(s.shape, i))
    scores, boxes, levels = map(jnp.concatenate, (scores, boxes, levels))
    boxes = clip(boxes, *size)
    large = (boxes[:, 2:] - boxes[:, :2] >= config.min_size).all(axis=-1)
    indices, valid = nms(
        boxes,
        scores,
        iou_threshold=config.nms_thresh,
        max_outputs=post_nms,
        classes=levels if len(logits) > 1 else None,
        valid=large,
    )
    return boxes[indices], valid


def sample_anchors(
    key: Array,
    anchors: Array,
    boxes: Array,
    valid: Array,
    size: Array,
    config: RPNConfig,
) -> tuple[Array, Array]:
    """Samples the anchors of one image that enter the loss.

    Args:
      key: Random key.
      anchors: [A, 4].
      boxes: [N, 4], the boxes of the objects.
      valid: bool [N].
      size: [2], height and width of the image within the network's input.
      config: The parameters of matching and sampling.

    Returns:
      `(labels, matches)`: int32 [A], 1 for object, 0 for background and -1 for anchors
      that are not sampled; and int32 [A], the index of the object where the label is 1.
    """
    usable = None
    if config.ignore_cross_boundary:
        within = anchors[:, 2:] <= size[::-1].reshape(1, 2)
        usable = ((anchors[:, :2] >= 0) & within).all(axis=-1)
    matches = match_by_iou(
        anchors,
        boxes,
        valid,
        positive=config.fg_iou_thresh,
        negative=config.bg_iou_thresh,
        low_quality=True,
        usable=usable,
    )
    labels = jnp.minimum(matches + 1, 1)  # 1 object, 0 background, -1 ignored
    positive, negative = sample_balanced(
        key,
        labels,
        count=config.batch_size_per_image,
        positive_fraction=config.positive_fraction,
    )
    labels = jnp.where(positive, 1, jnp.where(negative, 0, -1))
    return labels.astype(jnp.int32), jnp.maximum(matches, 0)


def rpn_loss_sums(
    outputs: Mapping[str, Array], targets: Targets, config: RPNConfig
) -> dict[str, LossSum]:
    """Computes the two losses of equation 1, divided by the number of sampled anchors.

    Args:
      outputs: "rpn_logits" [B, A], "rpn_deltas" [B, A, 4], "anchors" [B, A, 4], and the
        results of `sample_anchors`, "rpn_labels" and "rpn_matches" [B, A].
      targets: The ground truth.
      config: The `smooth_l1_beta` is used.

    Returns:
      The losses "rpn_objectness" and "rpn_box".
    """
    labels = outputs["rpn_labels"]
    sampled = (labels >= 0).sum().astype(jnp.float32)
    logits = outputs["rpn_logits"]
    # The softmax of two classes is the logistic function of the difference.
    objectness = nn.softplus(jnp.where(labels == 1, -logits, logits))
    matches = outputs["rpn_matches"][..., None]
    boxes = jnp.take_along_axis(targets.boxes, matches, axis=1)
    errors = outputs["rpn_deltas"] - encode(boxes, outputs["anchors"])
    box = smooth_l1(errors, config.smooth_l1_beta).sum(axis=-1)
    return {
        "rpn_objectness": LossSum(jnp.where(labels >= 0, objectness, 0).sum(), sampled),
        "rpn_box": LossSum(jnp.where(labels == 1, box, 0).sum(), sampled),
    }
