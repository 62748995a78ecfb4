"""What is done for each region: pool its features, name it, and correct its box.

References:
  Girshick, Fast R-CNN, 2015, section 2.
  Ren, He, Girshick, Sun, Faster R-CNN, 2015, section 3.2.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.detection.contract import Candidates, ClassOutputs, LossSum, Targets
from zoo.layers import INITIALIZERS, FullyConnected
from zoo.ops.box_coding import decode, encode
from zoo.ops.boxes import clip
from zoo.ops.losses import smooth_l1
from zoo.ops.matching import match_by_iou
from zoo.ops.sampling import sample_balanced, take
from zoo.spec import TorchRule

Array = jax.Array


class Classifying(NamedTuple):
    """How regions become classes and boxes, and which of them are trained.

    Attributes:
      positive: A region is an object's from this IoU on.
      negative: A region is background from the first IoU on and below the second.
      sampled: Regions of an image that are trained.
      fraction: Of these, positive at most.
      weights: What box deltas are multiplied by: the inverse of their usual deviation.
      beta: Where the loss of deltas turns from a square into a line.
    """

    positive: float = 0.5
    negative: tuple[float, float] = (0.0, 0.5)
    sampled: int = 512
    fraction: float = 0.25
    weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    beta: float = 1 / 9


class DenseHead(nn.Module):
    """fc6 and fc7, applied to each region's map.

    Attributes:
      features: Channels of both.
      window: Height and width of a region's map.
      dropout: Rate after both.
    """

    features: int
    window: int = 7
    dropout: float = 0.0
    kernel_init: Callable = INITIALIZERS["torch"]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        options = dict(
            kernel_init=self.kernel_init, dtype=self.dtype, param_dtype=self.param_dtype
        )
        fc6 = FullyConnected(self.features, self.window, name="fc6", **options)
        x = nn.relu(fc6(x))
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop6")(x)
        x = nn.relu(nn.Dense(self.features, name="fc7", **options)(x))
        return nn.Dropout(self.dropout, deterministic=not train, name="drop7")(x)


class Predictor(nn.Module):
    """Two sibling layers: scores of K classes and background, and deltas of each.

    Attributes:
      num_classes: K.
    """

    num_classes: int
    class_init: Callable = INITIALIZERS["gaussian_0.01"]
    box_init: Callable = nn.initializers.normal(0.001)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Computes logits [R, K + 1], background first, and deltas [R, K + 1, 4]."""
        k = self.num_classes + 1
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        score = nn.Dense(k, kernel_init=self.class_init, name="cls_score", **types)
        move = nn.Dense(4 * k, kernel_init=self.box_init, name="bbox_pred", **types)
        logits, deltas = (y(features).astype(jnp.float32) for y in (score, move))
        return logits, deltas.reshape(-1, k, 4)

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Lists the layers whose outputs have classes, see `ClassOutputs`."""
        classes = np.arange(-1, self.num_classes)
        return {
            "cls_score": ClassOutputs(classes, self.class_init),
            "bbox_pred": ClassOutputs(np.repeat(classes, 4), self.box_init),
        }


def predictor_rules(prefix: str = "") -> tuple[TorchRule, ...]:
    """The predictor's layers by the names that all code since Fast R-CNN gives them."""
    return (
        TorchRule("predictor/cls_score", f"{prefix}cls_score", outputs=(1, 1)),
        TorchRule("predictor/bbox_pred", f"{prefix}bbox_pred", outputs=(4, 4)),
    )


def sample_regions(
    key: Array,
    regions: Array,
    usable: Array,
    targets: Targets,
    how: Classifying,
) -> dict[str, Array]:
    """Chooses which regions of one image are trained, and for what.

    The objects' own boxes are regions, too: at first no other ones are near them.

    Args:
      key: Decides which.
      regions: [R, 4].
      usable: bool [R].
      targets: The image's objects, without a batch axis.
      how: Of the choice.

    Returns:
      "rois" [S, 4], "roi_valid" bool [S], "roi_classes" int32 [S], 0 for background and
      k + 1 for class k, and "roi_matches" int32 [S], the number of the object where
      the class is not 0; S as many as are sampled at most.
    """
    regions = jnp.concatenate([regions, targets.boxes])
    usable = jnp.concatenate([usable, targets.valid])
    # No gradient goes through proposals.
    regions = jax.lax.stop_gradient(regions)
    matches = match_by_iou(
        regions,
        targets.boxes,
        targets.valid,
        positive=how.positive,
        negative=how.negative,
        low_quality=False,
        usable=usable,
    )
    labels = jnp.minimum(matches + 1, 1)  # 1 object, 0 background, -1 neither
    positive, negative = sample_balanced(
        key, labels, count=how.sampled, positive_fraction=how.fraction
    )
    chosen, valid = take(positive | negative, how.sampled)
    matches = jnp.maximum(matches, 0)[chosen]
    classes = jnp.where(positive[chosen] & valid, targets.classes[matches] + 1, 0)
    return {
        "rois": regions[chosen],
        "roi_valid": valid,
        "roi_classes": classes.astype(jnp.int32),
        "roi_matches": matches,
    }


def roi_loss_sums(
    outputs: Mapping[str, Array], targets: Targets, how: Classifying
) -> dict[str, LossSum]:
    """Computes Fast R-CNN's equation 1, as sums over all sampled regions.

    Args:
      outputs: "class_logits" [B, S, K + 1], "box_deltas" [B, S, K + 1, 4], and what
        `sample_regions` gives, with a batch axis.
      targets: The objects.
      how: Gives `beta` and `weights`.

    Returns:
      "roi_class" and "roi_box", with the number of regions for both.
    """
    classes, valid = outputs["roi_classes"], outputs["roi_valid"]
    sampled = valid.sum().astype(jnp.float32)
    scores = jax.nn.log_softmax(outputs["class_logits"])
    wrong = -jnp.take_along_axis(scores, classes[..., None], axis=-1)[..., 0]
    matches = outputs["roi_matches"][..., None]
    boxes = jnp.take_along_axis(targets.boxes, matches, axis=1)
    goal = encode(boxes, outputs["rois"], weights=how.weights)
    chosen = classes[..., None, None]
    deltas = jnp.take_along_axis(outputs["box_deltas"], chosen, axis=2)[..., 0, :]
    away = smooth_l1(deltas - goal, how.beta).sum(axis=-1)
    return {
        "roi_class": LossSum(jnp.where(valid, wrong, 0).sum(), sampled),
        "roi_box": LossSum(jnp.where(valid & (classes > 0), away, 0).sum(), sampled),
    }


def decode_regions(
    outputs: Mapping[str, Array], sizes: Array, how: Classifying
) -> Candidates:
    """Corrects each region's box as each class says, and clips it to the image.

    Args:
      outputs: "rois" [B, R, 4], "roi_valid" [B, R], "class_logits" [B, R, K + 1] and
        "box_deltas" [B, R, K + 1, 4].
      sizes: [B, 2], height and width of what an image fills.
      how: Gives `weights`.

    Returns:
      Boxes [B, R, K, 4] and scores [B, R, K], without background.
    """
    deltas = outputs["box_deltas"][:, :, 1:]
    boxes = decode(deltas, outputs["rois"][:, :, None], weights=how.weights)
    boxes = jax.vmap(lambda b, size: clip(b, *size))(boxes, sizes)
    scores = jax.nn.softmax(outputs["class_logits"])[..., 1:]
    return Candidates(boxes, scores, outputs["roi_valid"])
