"""SSD's head, default boxes, losses and decoding, on whatever backbone.

Reference:
  Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector,
  2016, sections 2.1 and 2.2.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.detection.contract import (
    Candidates,
    ClassOutputs,
    LossSum,
    Postprocess,
    Targets,
    divide_losses,
)
from zoo.layers import INITIALIZERS, Conv
from zoo.ops.anchors import ssd_boxes
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_bipartite
from zoo.ops.sampling import mine_hard_negatives
from zoo.spec import Preprocess

Array = jax.Array

# What the authors write as the variances 0.1, 0.1, 0.2, 0.2.
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Section 2.2: of matching by IoU, and negatives for each positive.
POSITIVE_IOU = 0.5
NEGATIVES = 3.0
# The authors' code, and torchvision's.
POSTPROCESS = Postprocess(
    score_threshold=0.01, iou_threshold=0.45, max_detections=200, max_candidates=400
)


class Level(NamedTuple):
    """One feature map that is searched for objects.

    Attributes:
      source: Its name among the backbone's endpoints.
      grid: Its height and width.
      step: Pixels of the image from one cell to the next.
      size: Side of the square default box, in pixels.
      ratios: Of the other default boxes; each is there upright and lying.
    """

    source: str
    grid: int
    step: float
    size: float
    ratios: tuple[float, ...]

    @property
    def boxes_per_cell(self) -> int:
        """Two squares, and two boxes for each ratio."""
        return 2 + 2 * len(self.ratios)


@cache
def default_boxes(
    levels: tuple[Level, ...], last_size: float, max_side: float | None
) -> np.ndarray:
    """Makes the default boxes of all levels, float32 [A, 4], xyxy in pixels.

    Args:
      levels: In the order of the head.
      last_size: What would be the size of one more level.
      max_side: Longest side that a box may have; None for no limit.
    """
    return ssd_boxes(
        [(level.grid, level.grid) for level in levels],
        [level.step for level in levels],
        [*(level.size for level in levels), last_size],
        [level.ratios for level in levels],
        max_sides=None if max_side is None else (max_side, max_side),
    )


class MultiBoxHead(nn.Module):
    """Section 2.1: at each cell of each level, classes and a box for each default box.

    Attributes:
      num_classes: Without background, which is the first of the logits.
      levels: Where to look.
    """

    num_classes: int
    levels: tuple[Level, ...]
    kernel_init: Callable = INITIALIZERS["glorot"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: dict[str, Array]) -> dict[str, Array]:
        out = {}
        for part, name, columns in (
            ("loc", "deltas", 4),
            ("conf", "class_logits", self.num_classes + 1),
        ):
            levels = []
            for level in self.levels:
                y = Conv(
                    level.boxes_per_cell * columns,
                    kernel=3,
                    padding=1,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"{level.source}_{part}",
                )(features[level.source])
                # [B, H, W, boxes * columns] -> [B, H * W * boxes, columns]
                levels.append(y.reshape(y.shape[0], -1, columns))
            y = jnp.concatenate(levels, axis=1)
            out[name] = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Lists the layers whose outputs have classes, see `ClassOutputs`."""
        classes = np.arange(-1, self.num_classes)
        return {
            f"{level.source}_conf": ClassOutputs(
                np.tile(classes, level.boxes_per_cell), self.kernel_init
            )
            for level in self.levels
        }


class SSD(nn.Module):
    """A detector as `zoo.detection.contract` says.

    Its outputs are "deltas" float32 [B, A, 4] of the default boxes, and "class_logits"
    float32 [B, A, K + 1], of which the first is the background's.

    Attributes:
      backbone: Returns named endpoints, those of the head's levels among them.
      head: Of all levels.
      last_size: See `default_boxes`.
      max_side: See `default_boxes`.
      preprocess: What the images must be like.
      postprocess: What candidates become detections.
    """

    backbone: nn.Module
    head: MultiBoxHead
    last_size: float
    max_side: float | None
    preprocess: Preprocess
    postprocess: Postprocess = POSTPROCESS

    def __call__(
        self,
        images: Array,
        sizes: Array | None = None,
        train: bool = False,
        targets: Targets | None = None,
    ) -> dict[str, Array]:
        """Computes the outputs for images float32 [B, H, W, C]."""
        return self.head(self.backbone(images, train=train))

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation, in the order of the network."""
        features = self.backbone(images, train=train)
        return {**features, **self.head(features)}

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Lists the parts that have classes, by the names of their fields."""
        return {"head": self.head}

    @nn.nowrap
    def default_boxes(self) -> np.ndarray:
        """Returns the default boxes float32 [A, 4], xyxy in pixels of the input."""
        return default_boxes(self.head.levels, self.last_size, self.max_side)

    @nn.nowrap
    def losses(self, outputs: dict[str, Array], targets: Targets) -> dict[str, Array]:
        """Computes equation 1 in its two parts, "classification" and "box".

        Both are sums over the batch, divided by the number of matched default boxes,
        and 0 where there is none. Of the background count the boxes with the largest
        loss, three for each matched box of an image.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: dict[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the sums of `losses`, and the number of matched default boxes."""
        sums = jax.vmap(self._losses_of_image)(
            outputs["class_logits"], outputs["deltas"], *targets[:3]
        )
        classification, box, matched = (jnp.sum(values) for values in sums)
        count = matched.astype(jnp.float32)
        return {
            "classification": LossSum(classification, count),
            "box": LossSum(box, count),
        }

    def _losses_of_image(
        self, logits: Array, deltas: Array, boxes: Array, classes: Array, valid: Array
    ) -> tuple[Array, Array, Array]:
        anchors = jnp.asarray(self.default_boxes())
        # One slot more, so that there is one to read where there are no objects.
        boxes, classes = jnp.pad(boxes, ((0, 1), (0, 0))), jnp.pad(classes, (0, 1))
        valid = jnp.pad(valid, (0, 1))
        matches = match_bipartite(anchors, boxes, valid, positive=POSITIVE_IOU)
        positive, match = matches >= 0, jnp.maximum(matches, 0)
        labels = jnp.where(positive, classes[match] + 1, 0)
        right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        errors = jax.nn.logsumexp(logits, axis=1) - right
        negative = mine_hard_negatives(errors, positive, ~positive, ratio=NEGATIVES)
        goal = encode(boxes[match], anchors, weights=WEIGHTS)
        distances = smooth_l1(deltas - goal).sum(axis=-1)
        return (
            jnp.where(positive | negative, errors, 0).sum(),
            jnp.where(positive, distances, 0).sum(),
            positive.sum(),
        )

    @nn.nowrap
    def decode(
        self, outputs: dict[str, Array], sizes: Array | None = None
    ) -> Candidates:
        """Applies the deltas to the default boxes, and the softmax to the logits."""
        boxes = decode(outputs["deltas"], self.default_boxes()[None], weights=WEIGHTS)
        if sizes is None:
            height, width, _ = self.preprocess.shape
            boxes = clip(boxes, height, width)
        else:
            boxes = jax.vmap(clip)(boxes, sizes[:, 0], sizes[:, 1])
        scores = jax.nn.softmax(outputs["class_logits"])[..., 1:]
        return Candidates(boxes, scores, jnp.ones(boxes.shape[:2], bool))
