"""SSD: the head, default boxes, losses and decoding, for any backbone.

Reference:
  Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector,
  2016, sections 2.1 and 2.2.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.detection.types import Candidates, LossSum, Postprocess, Targets, divide_losses
from zoo.layers import INITIALIZERS, ClassOutputs, Conv, Layer
from zoo.ops.anchors import ssd_boxes
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_bipartite
from zoo.ops.sampling import mine_hard_negatives
from zoo.spec import Preprocess

Array = jax.Array

# The authors' variances 0.1, 0.1, 0.2 and 0.2 as factors of the deltas.
BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Section 2.2: IoU threshold of matching, and negatives for each positive.
FG_IOU_THRESH = 0.5
NEG_TO_POS_RATIO = 3.0
# The values of the authors' code and of torchvision.
POSTPROCESS = Postprocess(
    score_threshold=0.01, iou_threshold=0.45, max_detections=200, max_candidates=400
)


class Level(NamedTuple):
    """A feature map and its default boxes.

    Attributes:
      source: Name of the feature map among the backbone's endpoints.
      grid: Height and width of the feature map.
      step: Distance between its cells, in pixels of the image.
      size: Side length of the square default box, in pixels.
      ratios: Aspect ratios of the other default boxes. Each has a portrait and a
        landscape box.
    """

    source: str
    grid: int
    step: float
    size: float
    ratios: tuple[float, ...]

    @property
    def boxes_per_cell(self) -> int:
        """The number of default boxes: two squares, and two for each ratio."""
        return 2 + 2 * len(self.ratios)


@cache
def default_boxes(
    levels: tuple[Level, ...], last_size: float, max_side: float | None
) -> np.ndarray:
    """Makes the default boxes of all levels, float32 [A, 4], xyxy in pixels.

    Args:
      levels: The levels, in the order of the head.
      last_size: Size that one more level would have.
      max_side: Maximum side length of a box, in pixels; None for no limit.
    """
    boxes = ssd_boxes(
        [(level.grid, level.grid) for level in levels],
        [level.step for level in levels],
        [*(level.size for level in levels), last_size],
        [level.ratios for level in levels],
        max_sides=None if max_side is None else (max_side, max_side),
    )
    boxes.flags.writeable = False  # Later calls return the same array.
    return boxes


class MultiBoxHead(Layer):
    """Section 2.1: class logits and deltas for each default box, by 3x3 convolutions.

    Attributes:
      num_classes: Number of classes, without background, the first of the logits.
      levels: The feature maps that are read, and their default boxes.
      kernel_init: Initializer of the kernels.
    """

    num_classes: int
    levels: tuple[Level, ...]
    kernel_init: Callable = INITIALIZERS["glorot"]

    @nn.compact
    def __call__(self, features: dict[str, Array]) -> dict[str, Array]:
        """Computes "deltas" [B, A, 4] and "class_logits" [B, A, K + 1]."""
        conv = partial(
            Conv, kernel=3, padding=1, kernel_init=self.kernel_init, **self.dtypes
        )
        out = {}
        for part, name, columns in (
            ("loc", "deltas", 4),
            ("conf", "class_logits", self.num_classes + 1),
        ):
            levels = []
            for level in self.levels:
                layer = conv(
                    level.boxes_per_cell * columns, name=f"{level.source}_{part}"
                )
                y = layer(features[level.source])
                # [B, H, W, boxes * columns] -> [B, H * W * boxes, columns]
                levels.append(y.reshape(y.shape[0], -1, columns))
            y = jnp.concatenate(levels, axis=1)
            out[name] = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the layers for classes."""
        classes = np.arange(-1, self.num_classes)
        return {
            f"{level.source}_conf": ClassOutputs(
                np.tile(classes, level.boxes_per_cell), self.kernel_init
            )
            for level in self.levels
        }


class SSD(nn.Module):
    """A detector with one stage, see `zoo.detection.types`.

    Its outputs are "deltas" float32 [B, A, 4] of the default boxes, and "class_logits"
    float32 [B, A, K + 1], background first.

    Attributes:
      backbone: Computes named endpoints, including those of the head's levels.
      head: Computes the outputs from the endpoints.
      last_size: See `default_boxes`.
      max_side: See `default_boxes`.
      preprocess: The preprocessing of images.
      postprocess: The parameters of the conversion from candidates to detections.
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
        """Computes the named activations, in the order of the network."""
        features = self.backbone(images, train=train)
        return {**features, **self.head(features)}

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes."""
        return {"head": self.head}

    @nn.nowrap
    def default_boxes(self) -> np.ndarray:
        """Returns the default boxes float32 [A, 4], xyxy in pixels of the input."""
        return default_boxes(self.head.levels, self.last_size, self.max_side)

    @nn.nowrap
    def losses(self, outputs: dict[str, Array], targets: Targets) -> dict[str, Array]:
        """Computes the two parts of equation 1, "classification" and "box".

        Both are sums over the batch, divided by the number of matched default boxes, or
        0 if there is none. Of the background boxes, only those with the largest
        classification loss count, three for each matched box of an image.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: dict[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the losses as sums and the number of matched default boxes."""
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
        # One more slot, so that there is one to index if there are no objects.
        boxes, classes = jnp.pad(boxes, ((0, 1), (0, 0))), jnp.pad(classes, (0, 1))
        valid = jnp.pad(valid, (0, 1))
        matches = match_bipartite(anchors, boxes, valid, positive=FG_IOU_THRESH)
        positive, match = matches >= 0, jnp.maximum(matches, 0)
        labels = jnp.where(positive, classes[match] + 1, 0)
        true_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        cross_entropy = jax.nn.logsumexp(logits, axis=1) - true_logits
        negative = mine_hard_negatives(
            cross_entropy, positive, ~positive, ratio=NEG_TO_POS_RATIO
        )
        expected = encode(boxes[match], anchors, weights=BBOX_REG_WEIGHTS)
        box_errors = smooth_l1(deltas - expected).sum(axis=-1)
        return (
            jnp.where(positive | negative, cross_entropy, 0).sum(),
            jnp.where(positive, box_errors, 0).sum(),
            positive.sum(),
        )

    @nn.nowrap
    def decode(
        self, outputs: dict[str, Array], sizes: Array | None = None
    ) -> Candidates:
        """Applies the deltas to the default boxes and the softmax to the logits."""
        boxes = decode(
            outputs["deltas"], self.default_boxes()[None], weights=BBOX_REG_WEIGHTS
        )
        if sizes is None:
            height, width, _ = self.preprocess.shape
            boxes = clip(boxes, height, width)
        else:
            boxes = jax.vmap(clip)(boxes, sizes[:, 0], sizes[:, 1])
        scores = jax.nn.softmax(outputs["class_logits"])[..., 1:]
        return Candidates(boxes, scores, jnp.ones(boxes.shape[:2], bool))
