"""R-CNN: an image classifier applied to each warped region proposal.

The network takes regions, not images: `zoo.make_region_detector` crops them. Its head
is linear on the features of the classifier; `canon-zoo train rcnn` fits it with support
vector machines and ridge regression, as in the paper.

Reference:
  Girshick, Donahue, Darrell, Malik, Rich Feature Hierarchies for Accurate Object
  Detection and Semantic Segmentation, 2014 (the tech report's version 5, and its code).
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_detector_classes
from zoo.classification import alexnet, vgg
from zoo.detection.types import Candidates, Postprocess
from zoo.layers import INITIALIZERS, Layer, NetworkConfig
from zoo.ops import box_coding
from zoo.ops.boxes import clip
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Girshick, Donahue, Darrell, Malik: Rich Feature Hierarchies for Accurate Object "
    "Detection and Semantic Segmentation, 2014"
)
CONTEXT = 16  # Pixels of context around the box in a warped region.
OUTPUTS = ("margins", "deltas")  # Names of the network's outputs.
# The score of the margin -1, beyond which negatives have no loss.
POSTPROCESS = Postprocess(
    score_threshold=0.26894, iou_threshold=0.3, max_detections=100, max_candidates=400
)


class RegionHead(Layer):
    """A linear SVM and a linear box regressor for each class.

    Attributes:
      num_classes: Number of classes K, without background.
    """

    num_classes: int

    @nn.compact
    def __call__(self, pool5: Array, fc7: Array) -> tuple[Array, Array]:
        """Computes margins float32 [R, K] and deltas float32 [R, K, 4]."""
        dense = partial(
            nn.Dense, kernel_init=INITIALIZERS["gaussian_0.01"], **self.dtypes
        )
        margins = dense(self.num_classes, name="svm")(fc7)
        flat = pool5.reshape(len(pool5), -1)  # height, width, channel
        deltas = dense(4 * self.num_classes, name="box")(flat)
        shape = len(pool5), self.num_classes, 4
        return margins.astype(jnp.float32), deltas.reshape(shape).astype(jnp.float32)


class RCNN(nn.Module):
    """A classifier up to fc7, and a linear head.

    Attributes:
      backbone: A classifier's backbone with the endpoints pool5 and fc7.
      head: Computes margins and box deltas from them.
      preprocess: The classifier's preprocessing; `size` is that of a warped region.
      context: Number of pixels on each side of a warped region that are context.
      postprocess: The parameters of the conversion from candidates to detections.
    """

    backbone: nn.Module
    head: RegionHead
    preprocess: Preprocess
    context: int = CONTEXT
    postprocess: Postprocess = POSTPROCESS

    def __call__(self, regions: Array, train: bool = False) -> dict[str, Array]:
        """Computes the outputs for warped regions.

        Args:
          regions: float32 [R, size, size, 3], preprocessed; see `warp`.
          train: Whether dropout is active.

        Returns:
          `margins` float32 [R, K] and `deltas` float32 [R, K, 4], in units of the
          proposals.
        """
        out = self.endpoints(regions, train)
        return {name: out[name] for name in OUTPUTS}

    def endpoints(self, regions: Array, train: bool = False) -> dict[str, Array]:
        """Computes the named activations, in the order of the network."""
        out = dict(self.backbone(regions, train=train))
        out["margins"], out["deltas"] = self.head(out["pool5"], out["fc7"])
        return out

    @nn.nowrap
    def decode_regions(self, outputs: dict[str, Array], proposals: Array, size: Array):
        """Applies the predicted deltas to the proposals, and scores them.

        Args:
          outputs: The network's outputs for R regions of one image.
          proposals: float32 [R, 4], xyxy in pixels of the image.
          size: [2], height and width of the image.

        Returns:
          `Candidates` of a batch of one image, all valid. The scores are the logistic
          function of the margins, which preserves their order.
        """
        boxes = box_coding.decode(outputs["deltas"], proposals[:, None])
        boxes = clip(boxes, size[0], size[1])
        scores = jax.nn.sigmoid(outputs["margins"])
        valid = jnp.ones(len(proposals), bool)
        return Candidates(boxes[None], scores[None], valid[None])

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes."""
        return {"head": self.head}


def warp(
    image: Array, boxes: Array, extent: Array, *, size: int, context: int = CONTEXT
) -> Array:
    """Crops regions of an image and warps each of them to a square.

    The box is warped to the square without its `context`, which is filled with the
    surroundings of the box. Interpolation is bilinear. Pixels outside of the image are
    0, the mean color of a preprocessed image.

    Args:
      image: float32 [H, W, C], preprocessed.
      boxes: float32 [R, 4], xyxy in pixels.
      extent: [2], height and width of the image within [H, W].
      size: Height and width of the result, in pixels.
      context: Number of pixels on each side of the result that are context.

    Returns:
      float32 [R, size, size, C].

    Reference:
      Appendix A, figure 7 (D), with context.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    grown = (high - low) * size / (size - 2 * context)
    # Centers of the result's pixels; pixel i of the image is at coordinate i.
    steps = (jnp.arange(size) + 0.5) / size - 0.5
    center = ((low + high) / 2)[:, None, :]
    places = center + grown[:, None, :] * steps[None, :, None] - 0.5  # [R, size, xy]
    limits = jnp.asarray(extent)[::-1].reshape(1, 1, 2).astype(places.dtype)
    inside = (places >= -0.5) & (places <= limits - 0.5)
    places = jnp.clip(places, 0, limits - 1)
    first = jnp.floor(places)
    part = places - first
    first = first.astype(jnp.int32)
    second = jnp.minimum(first + 1, limits.astype(jnp.int32) - 1)
    (x0, y0), (x1, y1), (px, py) = (
        (v[:, None, :, 0], v[:, :, None, 1]) for v in (first, second, part)
    )
    px, py = px[..., None], py[..., None]
    upper = image[y0, x0] * (1 - px) + image[y0, x1] * px
    lower = image[y1, x0] * (1 - px) + image[y1, x1] * px
    seen = inside[:, None, :, 0] & inside[:, :, None, 1]
    return jnp.where(seen[..., None], upper * (1 - py) + lower * py, 0)


_CLASSIFIERS = {spec.name: spec for family in (alexnet, vgg) for spec in family.SPECS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RCNNConfig(NetworkConfig):
    """Options of R-CNN.

    Attributes:
      widths: The classifier's option `widths`; None for its default.
      dense: Number of outputs of fc6 and fc7.
      context: Number of pixels of context around the box in a warped region.
    """

    widths: tuple[int, ...] | None = None
    dense: int = vgg.DENSE
    context: int = CONTEXT


def rcnn(*, classifier: str, num_classes: int = 20, **options: Any) -> RCNN:
    """Builds an R-CNN.

    Args:
      classifier: Name of the classifier, "alexnet" or "vgg16".
      num_classes: Number of classes, without background.
      **options: Fields of `RCNNConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    spec = _CLASSIFIERS[classifier]
    size = spec.preprocess.size
    check_detector_classes(f"rcnn_{classifier}", num_classes)
    config = RCNNConfig(**options)
    if not 0 <= config.context < size // 2:
        raise ValueError(f"context={config.context} must be 0 to {size // 2 - 1}.")
    widths = {} if config.widths is None else {"widths": config.widths}
    options = dict(num_classes=0, dense=config.dense, **widths, **config.dtypes)
    return RCNN(
        backbone=spec.build(**options).backbone,
        head=RegionHead(num_classes, **config.dtypes),
        preprocess=dataclasses.replace(spec.preprocess, resize=None, fit="stretch"),
        context=config.context,
    )


def _torch_rules(model: RCNN, *, classifier: str) -> tuple[TorchRule, ...]:
    rules = _CLASSIFIERS[classifier].torch_rules(model)
    rules = [r for r in rules if r.module and r.module.startswith("backbone/")]
    pool5 = next(r.flatten for r in rules if r.flatten)
    return (
        *rules,
        TorchRule("head/svm", "svm"),
        TorchRule("head/box", "bbox_pred", flatten=pool5),
    )


def _spec(classifier: str, params: int, macs: int, published: tuple[str, ...]):
    spec = _CLASSIFIERS[classifier]
    return ModelSpec(
        name=f"rcnn_{classifier}",
        task="detection",
        build=partial(rcnn, classifier=classifier),
        config=RCNNConfig,
        paper=f"{PAPER}, sections 2 and 3, appendices A to C",
        num_classes=20,
        preprocess=rcnn(classifier=classifier).preprocess,
        params=params,
        macs=macs,
        torch_rules=partial(_torch_rules, classifier=classifier),
        loss="hinge and ridge",
        reads_regions=True,
        init=f"the classifier's: {spec.init}; the head is fitted, not trained",
        published=published,
        deviations=(
            "counts are of one region; a region is sampled from the continuous box, "
            "whose corners the paper's code rounds to whole pixels",
            "the classifier is not fine-tuned on warped regions before the head is "
            "fitted (54.2 % with it, 44.7 % without, for AlexNet's fc7)",
            "scores are the logistic function of the SVMs' margins",
            *spec.deviations,
        ),
    )


SPECS = (
    _spec(
        "alexnet",
        57_687_524,
        721_130_016,
        (
            "VOC 2007 test mAP 58.5 % with fine-tuning and box regression, 54.2 % "
            "without the latter, 44.7 % without both (table 2)",
            "VOC 2010 test mAP 53.7 % (table 1), VOC 2012 53.3 %",
        ),
    ),
    _spec(
        "vgg16",
        136_349_604,
        15_468_257_280,
        (
            "VOC 2007 test mAP 66.0 % with fine-tuning and box regression, 62.2 % "
            "without the latter (table 3)",
        ),
    ),
)
