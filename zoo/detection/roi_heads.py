"""The second stage: classifies each proposed region and refines its box.

References:
  Girshick, Fast R-CNN, 2015, section 2.
  Ren, He, Girshick, Sun, Faster R-CNN, 2015, section 3.2.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.classification.resnet import Bottleneck, Stage
from zoo.detection.types import Candidates, LossSum, Targets
from zoo.layers import (
    INITIALIZERS,
    BatchNorm,
    ClassOutputs,
    Conv,
    Dense,
    FullyConnected,
    Layer,
)
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_by_iou
from zoo.ops.sampling import sample_balanced, take
from zoo.spec import TorchRule

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RoIHeadConfig:
    """The parameters of the second stage, named as in torchvision.

    Attributes:
      fg_iou_thresh: Minimum IoU with an object of a positive region.
      bg_iou_thresh: Regions are background if their largest IoU is at least the first
        number and below the second.
      batch_size_per_image: Number of regions of an image sampled for the loss.
      positive_fraction: Maximum fraction of positive regions among them.
      bbox_reg_weights: Factors of the four box deltas, the inverses of their typical
        standard deviations.
      smooth_l1_beta: Error at which the smooth L1 loss becomes linear.
    """

    fg_iou_thresh: float = 0.5
    bg_iou_thresh: tuple[float, float] = (0.0, 0.5)
    batch_size_per_image: int = 512
    positive_fraction: float = 0.25
    bbox_reg_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    smooth_l1_beta: float = 1 / 9


class DenseHead(Layer):
    """The dense layers fc6 and fc7, applied to each region's feature map.

    Attributes:
      features: Number of outputs of both layers.
      window: Height and width of a region's feature map.
      dropout: Dropout rate after both layers.
      kernel_init: Initializer of the kernels.
    """

    features: int
    window: int = 7
    dropout: float = 0.0
    kernel_init: Callable = INITIALIZERS["torch"]

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        options = dict(kernel_init=self.kernel_init, **self.dtypes)
        dropout = partial(nn.Dropout, self.dropout, deterministic=not train)
        x = FullyConnected(self.features, self.window, name="fc6", **options)(x)
        x = dropout(name="drop6")(nn.relu(x))
        x = Dense(self.features, name="fc7", **options)(x)
        return dropout(name="drop7")(nn.relu(x))


class StageHead(Layer):
    """A residual network's last stage and average pool, applied to each region.

    Attributes:
      features: Number of channels of the 3x3 convolutions.
      blocks: Number of blocks.
      early_stride: Position of a block's stride, see `zoo.classification.resnet.Block`.
      kernel_init: Initializer of the kernels.
    """

    features: int
    blocks: int
    early_stride: bool
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        block = partial(
            Bottleneck,
            self.features,
            early_stride=self.early_stride,
            conv=partial(
                Conv, use_bias=False, kernel_init=self.kernel_init, **self.dtypes
            ),
            norm=partial(BatchNorm, frozen=True, **self.dtypes),
        )
        stage = Stage(partial(block, stride=2), block, self.blocks, name="stage4")
        return stage(x, train).mean(axis=(1, 2))


class Predictor(Layer):
    """Two dense layers: the scores of all classes and background, and their deltas.

    Attributes:
      num_classes: Number of classes K, without background.
      class_init: Initializer of the kernel of the scores.
      box_init: Initializer of the kernel of the deltas.
    """

    num_classes: int
    class_init: Callable = INITIALIZERS["gaussian_0.01"]
    box_init: Callable = nn.initializers.normal(0.001)

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Computes logits [R, K + 1], background first, and deltas [R, K + 1, 4]."""
        k = self.num_classes + 1
        dense = partial(nn.Dense, **self.dtypes)
        cls_score = dense(k, kernel_init=self.class_init, name="cls_score")
        bbox_pred = dense(4 * k, kernel_init=self.box_init, name="bbox_pred")
        logits = cls_score(features).astype(jnp.float32)
        deltas = bbox_pred(features).astype(jnp.float32)
        return logits, deltas.reshape(-1, k, 4)

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of both layers."""
        classes = np.arange(-1, self.num_classes)
        return {
            "cls_score": ClassOutputs(classes, self.class_init),
            "bbox_pred": ClassOutputs(np.repeat(classes, 4), self.box_init),
        }


def predictor_rules(prefix: str = "") -> tuple[TorchRule, ...]:
    """Returns the rules for the names that have been in use since Fast R-CNN."""
    return (
        TorchRule("predictor/cls_score", f"{prefix}cls_score", outputs=(1, 1)),
        TorchRule("predictor/bbox_pred", f"{prefix}bbox_pred", outputs=(4, 4)),
    )


def sample_regions(
    key: Array,
    regions: Array,
    usable: Array,
    targets: Targets,
    config: RoIHeadConfig,
) -> dict[str, Array]:
    """Samples the regions of one image that enter the loss.

    The objects' own boxes are added to the regions: at the start of training no
    proposal is close to them.

    Args:
      key: Random key.
      regions: [R, 4].
      usable: bool [R].
      targets: The ground truth of the image, without a batch axis.
      config: The parameters of matching and sampling.

    Returns:
      "rois" [S, 4], "roi_valid" bool [S], "roi_classes" int32 [S], 0 for background and
      k + 1 for class k, and "roi_matches" int32 [S], the index of the object where the
      class is not 0. S is the batch size per image.
    """
    regions = jnp.concatenate([regions, targets.boxes])
    usable = jnp.concatenate([usable, targets.valid])
    regions = jax.lax.stop_gradient(regions)
    matches = match_by_iou(
        regions,
        targets.boxes,
        targets.valid,
        positive=config.fg_iou_thresh,
        negative=config.bg_iou_thresh,
        low_quality=False,
        usable=usable,
    )
    labels = jnp.minimum(matches + 1, 1)  # 1 object, 0 background, -1 ignored
    size = config.batch_size_per_image
    positive, negative = sample_balanced(
        key, labels, count=size, positive_fraction=config.positive_fraction
    )
    sampled, valid = take(positive | negative, size)
    matches = jnp.maximum(matches, 0)[sampled]
    classes = jnp.where(positive[sampled] & valid, targets.classes[matches] + 1, 0)
    return {
        "rois": regions[sampled],
        "roi_valid": valid,
        "roi_classes": classes.astype(jnp.int32),
        "roi_matches": matches,
    }


def roi_loss_sums(
    outputs: Mapping[str, Array], targets: Targets, config: RoIHeadConfig
) -> dict[str, LossSum]:
    """Computes the losses of Fast R-CNN's equation 1 over all sampled regions.

    Args:
      outputs: "class_logits" [B, S, K + 1], "box_deltas" [B, S, K + 1, 4], and the
        results of `sample_regions` with a batch axis.
      targets: The ground truth.
      config: The `bbox_reg_weights` and `smooth_l1_beta` are used.

    Returns:
      The losses "roi_class" and "roi_box", both divided by the number of regions.
    """
    classes, valid = outputs["roi_classes"], outputs["roi_valid"]
    sampled = valid.sum().astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(outputs["class_logits"])
    cross_entropy = -jnp.take_along_axis(
        log_probabilities, classes[..., None], axis=-1
    )[..., 0]
    matches = outputs["roi_matches"][..., None]
    boxes = jnp.take_along_axis(targets.boxes, matches, axis=1)
    expected = encode(boxes, outputs["rois"], weights=config.bbox_reg_weights)
    deltas = jnp.take_along_axis(
        outputs["box_deltas"], classes[..., None, None], axis=2
    )[..., 0, :]
    box = smooth_l1(deltas - expected, config.smooth_l1_beta).sum(axis=-1)
    return {
        "roi_class": LossSum(jnp.where(valid, cross_entropy, 0).sum(), sampled),
        "roi_box": LossSum(jnp.where(valid & (classes > 0), box, 0).sum(), sampled),
    }


def decode_regions(
    outputs: Mapping[str, Array], sizes: Array, config: RoIHeadConfig
) -> Candidates:
    """Applies the deltas of each class to the regions and clips them to the image.

    Args:
      outputs: "rois" [B, R, 4], "roi_valid" [B, R], "class_logits" [B, R, K + 1] and
        "box_deltas" [B, R, K + 1, 4].
      sizes: [B, 2], height and width of each image within the network's input.
      config: The `bbox_reg_weights` are used.

    Returns:
      The candidates, with boxes [B, R, K, 4] and scores [B, R, K].
    """
    deltas = outputs["box_deltas"][:, :, 1:]
    rois = outputs["rois"][:, :, None]
    boxes = decode(deltas, rois, weights=config.bbox_reg_weights)
    boxes = jax.vmap(clip)(boxes, sizes[:, 0], sizes[:, 1])
    scores = jax.nn.softmax(outputs["class_logits"])[..., 1:]
    return Candidates(boxes, scores, outputs["roi_valid"])
