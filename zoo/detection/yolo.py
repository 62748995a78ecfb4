"""YOLO, version 1: the full network, and the small ones called Fast or tiny.

Reference:
  Redmon, Divvala, Girshick, Farhadi, You Only Look Once: Unified, Real-Time Object
  Detection, 2016, section 2; detection_layer.c, cfg/yolo-tiny.cfg of 2015 and
  cfg/yolov1-tiny.cfg of the authors' Darknet.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images
from zoo.detection.types import (
    Candidates,
    DetectorConfig,
    LossSum,
    Postprocess,
    Targets,
    divide_losses,
)
from zoo.layers import BatchNorm, ClassOutputs, Conv, FullyConnected, Layer, remat_stage
from zoo.ops.boxes import clip, from_cxcywh, iou, to_cxcywh
from zoo.ops.pooling import max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Redmon, Divvala, Girshick, Farhadi: You Only Look Once: Unified, Real-Time Object "
    "Detection, 2016"
)
# Size of the images in pixels, size of the grid, and number of boxes of each cell.
SIZE, GRID, PREDICTORS = 448, 7, 2
LEAK = 0.1  # Slope of the leaky ReLU for negative inputs.
# Section 2.2: factors of the losses of coordinates and of cells without an object.
LAMBDA_COORD = 5.0
LAMBDA_NOOBJ = 0.5
# Darknet's values for evaluation; its demo shows scores above 0.2 only.
POSTPROCESS = Postprocess(score_threshold=0.001, iou_threshold=0.5, max_detections=200)
PREPROCESS = Preprocess(
    size=SIZE,
    channels=3,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    fit="stretch",
    antialias=False,
)

# Convolutions (kernel, channels[, stride]) of each stage; 2 x 2 max pools are between.
FULL = (
    ((7, 64, 2),),
    ((3, 192),),
    ((1, 128), (3, 256), (1, 256), (3, 512)),
    (*((1, 256), (3, 512)) * 4, (1, 512), (3, 1024)),
    (
        *((1, 512), (3, 1024)) * 2,
        *((3, 1024), (3, 1024, 2)),
        *((3, 1024), (3, 1024)),
    ),
)
_NARROW = (((3, 16),), ((3, 32),), ((3, 64),), ((3, 128),), ((3, 256),), ((3, 512),))
TINY = (*_NARROW, ((3, 1024), (3, 1024), (3, 1024)))
TINY_BN = (*_NARROW, ((3, 1024), (3, 256)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class YOLOConfig(DetectorConfig):
    """Options of YOLO; `init` is the initializer of all layers.

    Attributes:
      stages: Convolutions (kernel, channels[, stride]) of each stage, with 2 x 2 max
        pools between the stages; None for the variant's.
      hidden: Numbers of outputs of the dense layers before the last; None for the
        variant's.
      dropout: Dropout rate before the last layer, if there are several dense layers.
    """

    init: str = "he_fan_in"
    stages: tuple | None = None
    hidden: tuple[int, ...] | None = None
    dropout: float = 0.5


class YOLOBackbone(Layer):
    """The convolutions of figure 3, each followed by a leaky ReLU.

    Attributes:
      label: Name of the network, for error messages.
      stages: Convolutions (kernel, channels[, stride]) of each stage, with 2 x 2 max
        pools between the stages.
      batch_norm: Whether each convolution has batch norm instead of a bias.
      kernel_init: Initializer of the kernels.
      remat: Whether to recompute each stage's activations in the backward pass.
    """

    label: str
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    batch_norm: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label, size=SIZE)
        conv = partial(
            Conv,
            use_bias=not self.batch_norm,
            kernel_init=self.kernel_init,
            **self.dtypes,
        )

        def stage(self, x: Array, number: int, first: int) -> dict[str, Array]:
            out = {}
            for i, (kernel, channels, *stride) in enumerate(self.stages[number], first):
                steps = dict(stride=stride[0] if stride else 1, padding=kernel // 2)
                x = conv(channels, kernel, name=f"conv{i}", **steps)(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"bn{i}", **self.dtypes)(x, train=train)
                x = out[f"conv{i}"] = nn.leaky_relu(x, LEAK)
            if number < len(self.stages) - 1:
                out[f"pool{number + 1}"] = max_pool(x, 2, 2)
            return out

        out, x, first = {}, images, 1
        for number, convs in enumerate(self.stages):
            run = partial(stage, number=number, first=first)
            out |= remat_stage(run, self.remat)(self, x)
            x, first = [*out.values()][-1], first + len(convs)
        return out


class YOLOHead(Layer):
    """Dense layers, the last of which predicts the boxes of all cells.

    Its outputs are in Darknet's order: the classes of all cells, then all confidences,
    then all boxes.

    Attributes:
      num_classes: Number of classes K.
      hidden: Numbers of outputs of the layers before the last. The last of these has a
        leaky ReLU; the others are linear, as in Darknet's file of Fast YOLO.
      dropout: Dropout rate before the last layer.
      kernel_init: Initializer of the kernels.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dropout: float = 0.5
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[dict, dict]:
        """Computes named activations, and the outputs described in `YOLO`."""
        cells, per_cell = GRID**2, self.num_classes + 5 * PREDICTORS
        options = dict(kernel_init=self.kernel_init, **self.dtypes)
        features = {}
        for i, outputs in enumerate((*self.hidden, cells * per_cell), start=1):
            layer = partial(FullyConnected, window=GRID) if i == 1 else nn.Dense
            x = layer(outputs, name=f"fc{i}", **options)(x)
            if i == len(self.hidden):
                drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
                x = features[f"fc{i}"] = drop(nn.leaky_relu(x, LEAK))
            elif i < len(self.hidden):
                features[f"fc{i}"] = x
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        ends = [cells * self.num_classes, cells * (self.num_classes + PREDICTORS)]
        classes, confidences, boxes = jnp.split(x, ends, axis=1)
        grid = (x.shape[0], GRID, GRID)
        return features, {
            "classes": classes.reshape(*grid, self.num_classes),
            "confidences": confidences.reshape(*grid, PREDICTORS),
            "boxes": boxes.reshape(*grid, PREDICTORS, 4),
        }

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the last layer."""
        classes = np.tile(np.arange(self.num_classes), GRID**2)
        rest = np.full(GRID**2 * 5 * PREDICTORS, -1)
        outputs = ClassOutputs(np.concatenate([classes, rest]), self.kernel_init)
        return {f"fc{len(self.hidden) + 1}": outputs}


class YOLO(nn.Module):
    """A detector with one stage, see `zoo.detection.types`.

    The image is divided into S x S cells, each of which predicts P boxes and the
    classes of its object. The outputs are

    - "classes" float32 [B, S, S, K], the probability of each class given an object;
    - "confidences" float32 [B, S, S, P], the predicted IoU of each box;
    - "boxes" float32 [B, S, S, P, 4]: x and y of the center, 0 to 1 within the cell,
      and the square roots of width and height, 0 to 1 of the image.

    No activation function bounds them.

    Attributes:
      backbone: Computes named endpoints.
      head: Computes further endpoints and the outputs from the last of them.
      preprocess: The preprocessing of images.
      postprocess: The parameters of the conversion from candidates to detections.
    """

    backbone: nn.Module
    head: nn.Module
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
        return self._run(images, train)[1]

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes the named activations, in the order of the network."""
        features, outputs = self._run(images, train)
        return {**features, **outputs}

    def _run(self, images: Array, train: bool) -> tuple[dict, dict]:
        features = self.backbone(images, train=train)
        more, outputs = self.head([*features.values()][-1], train=train)
        return {**features, **more}, outputs

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes."""
        return {"head": self.head}

    @nn.nowrap
    def losses(self, outputs: dict[str, Array], targets: Targets) -> dict[str, Array]:
        """Computes the parts of equation 3, each with its factor.

        "coordinates", "confidence_object", "confidence_no_object" and "class" are sums
        over an image and means over the batch. (Darknet's gradients are those of half
        the loss.) A cell has one object, the first one whose center is in it. The
        responsible predictor is the one with the largest IoU, or the closest one if
        none overlaps; the target of its confidence is the IoU.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: dict[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the losses as sums and the number of images."""
        height, width, _ = self.preprocess.shape
        sides = jnp.array([width, height] * 2, jnp.float32)
        losses = jax.vmap(_losses_of_image)(
            outputs, targets.boxes / sides[None, None], targets.classes, targets.valid
        )
        count = jnp.float32(len(targets.valid))
        return {name: LossSum(loss.sum(), count) for name, loss in losses.items()}

    @nn.nowrap
    def decode(
        self, outputs: dict[str, Array], sizes: Array | None = None
    ) -> Candidates:
        """Multiplies confidences by class probabilities, and clips the boxes."""
        height, width, _ = self.preprocess.shape
        batch, classes = outputs["classes"].shape[0], outputs["classes"].shape[-1]
        boxes = from_cxcywh(_to_image(outputs["boxes"])).reshape(batch, -1, 4)
        boxes *= jnp.array([width, height] * 2, boxes.dtype)[None, None]
        if sizes is None:
            boxes = clip(boxes, height, width)
        else:
            boxes = jax.vmap(clip)(boxes, sizes[:, 0], sizes[:, 1])
        scores = outputs["confidences"][..., None] * outputs["classes"][..., None, :]
        scores = jnp.clip(scores.reshape(batch, -1, classes), 0, 1)
        return Candidates(boxes, scores, jnp.ones(boxes.shape[:2], bool))


def assign_cells(centers: Array, valid: Array, grid: int) -> Array:
    """Finds the object of each cell, the first one whose center is in it.

    Args:
      centers: float [N, 2], x and y, 0 to 1 of the image.
      valid: bool [N]; False for padding.
      grid: Number of rows and columns S.

    Returns:
      int32 [S, S], rows first: the index of an object, or N if there is none.
    """
    count = len(centers)
    column, row = jnp.clip((centers * grid).astype(jnp.int32), 0, grid - 1).T
    index = jnp.where(valid, jnp.arange(count, dtype=jnp.int32), count)
    first = jnp.full((grid, grid), count, jnp.int32)
    return first.at[row, column].min(index)


def choose_predictors(predicted: Array, boxes: Array) -> tuple[Array, Array]:
    """Finds the predictor of each cell that is responsible for its object.

    Args:
      predicted: [..., P, 4], center, width and height, in units of the image.
      boxes: [..., 4], the boxes of the objects, likewise.

    Returns:
      int32 [...], the index of the predictor with the largest IoU or, if all are 0,
      with the smallest squared distance; and its IoU, float [...].
    """
    overlaps = iou(from_cxcywh(predicted), from_cxcywh(boxes)[..., None, :])
    distances = jnp.square(predicted - boxes[..., None, :]).sum(axis=-1)
    best = jnp.where(
        (overlaps > 0).any(axis=-1), overlaps.argmax(axis=-1), distances.argmin(axis=-1)
    ).astype(jnp.int32)
    return best, jnp.take_along_axis(overlaps, best[..., None], axis=-1)[..., 0]


def _losses_of_image(
    outputs: dict[str, Array], boxes: Array, classes: Array, valid: Array
) -> dict[str, Array]:
    # One more slot, which cells without an object index.
    boxes = jnp.pad(jnp.where(valid[:, None], boxes, 0), ((0, 1), (0, 0)))
    classes, valid = jnp.pad(classes, (0, 1)), jnp.pad(valid, (0, 1))
    objects = to_cxcywh(boxes)
    grid, confidences = len(outputs["classes"]), outputs["confidences"]
    index = assign_cells(objects[:-1, :2], valid[:-1], grid)
    present, objects = valid[index], objects[index]  # [S, S], [S, S, 4]

    predicted = jax.lax.stop_gradient(_to_image(outputs["boxes"]))
    best, overlap = choose_predictors(predicted, objects)
    responsible = jax.nn.one_hot(best, confidences.shape[-1], dtype=bool)
    responsible &= present[..., None]  # [S, S, P]

    offsets = objects[..., :2] * grid - _cells(grid)
    roots = jnp.sqrt(jnp.maximum(objects[..., 2:], 0))
    expected = jnp.concatenate([offsets, roots], axis=-1)[..., None, :]
    box_errors = jnp.square(outputs["boxes"] - expected).sum(axis=-1)
    one_hot = jax.nn.one_hot(classes[index], outputs["classes"].shape[-1])
    class_errors = jnp.square(outputs["classes"] - one_hot).sum(axis=-1)
    confidence_errors = jnp.square(confidences - overlap[..., None])

    def total(mask: Array, errors: Array) -> Array:
        return jnp.where(mask, errors, 0).sum()

    return {
        "coordinates": LAMBDA_COORD * total(responsible, box_errors),
        "confidence_object": total(responsible, confidence_errors),
        "confidence_no_object": LAMBDA_NOOBJ * total(~responsible, confidences**2),
        "class": total(present, class_errors),
    }


def _to_image(boxes: Array) -> Array:
    """Converts boxes [..., S, S, P, 4] of the outputs to cxcywh in units of the image.

    The root of a side may be negative; the side is not.
    """
    grid = boxes.shape[-3]
    cells = _cells(grid).reshape((1,) * (boxes.ndim - 4) + (grid, grid, 1, 2))
    centers = (boxes[..., :2] + cells) / grid
    return jnp.concatenate([centers, jnp.square(boxes[..., 2:])], axis=-1)


def _cells(grid: int) -> Array:
    """Returns the column and row of each cell: float32 [S, S, 2]."""
    rows, columns = jnp.indices((grid, grid), jnp.float32)
    return jnp.stack([columns, rows], axis=-1)


def yolo_v1(*, variant: str, num_classes: int, **options: Any) -> YOLO:
    """Builds a network of YOLO's first version.

    Args:
      variant: Name of the model, one of `SPECS`.
      num_classes: Number of classes, without background.
      **options: Fields of `YOLOConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or `init` is unknown.
    """
    check_detector_classes(variant, num_classes)
    row, config = _NETWORKS[variant], YOLOConfig(**options)
    stages = row.stages if config.stages is None else config.stages
    hidden = row.hidden if config.hidden is None else config.hidden
    layers = dict(kernel_init=config.kernel_init, **config.dtypes)
    return YOLO(
        YOLOBackbone(variant, stages, row.batch_norm, remat=config.remat, **layers),
        YOLOHead(num_classes, hidden, config.dropout, **layers),
        preprocess=PREPROCESS,
    )


def _torch_rules(model: YOLO) -> tuple[TorchRule, ...]:
    """Returns the rules for names of this zoo, in the order of Darknet's files."""
    count = sum(len(stage) for stage in model.backbone.stages)
    channels, last = model.backbone.stages[-1][-1][1], len(model.head.hidden) + 1
    kinds = ("conv", "bn") if model.backbone.batch_norm else ("conv",)
    rules = []
    for i in range(1, count + 1):
        rules += [TorchRule(f"backbone/{kind}{i}", f"{kind}{i}") for kind in kinds]
    for i in range(1, last + 1):
        flatten = (channels, GRID, GRID) if i == 1 else None
        outputs = (GRID**2, GRID**2 * 5 * PREDICTORS) if i == last else None
        rules.append(TorchRule(f"head/fc{i}", f"fc{i}", flatten, outputs=outputs))
    return tuple(rules)


class _Network(NamedTuple):
    """A row of the table of networks; counts are for 20 classes."""

    stages: tuple
    hidden: tuple[int, ...]
    batch_norm: bool
    params: int
    macs: int
    source: str
    published: tuple[str, ...]
    deviations: tuple[str, ...]


_UNTRAINED = (
    "the authors start from convolutions that were trained on ImageNet at 224 x 224",
)
_NETWORKS = {
    "yolo_v1": _Network(
        stages=FULL,
        hidden=(4096,),
        batch_norm=False,
        params=271_703_550,
        macs=20_285_153_280,
        source="section 2.1 and figure 3",
        published=(
            "PASCAL VOC 2007 test mAP 63.4 %, trained on 07+12",
            "PASCAL VOC 2012 test mAP 57.9 %",
        ),
        deviations=_UNTRAINED,
    ),
    "yolo_v1_tiny": _Network(
        stages=TINY,
        hidden=(256, 4096),
        batch_norm=False,
        params=45_089_374,
        macs=2_418_728_960,
        source="Fast YOLO of section 2.1, cfg/yolo-tiny.cfg of the authors' Darknet",
        published=("PASCAL VOC 2007 test mAP 52.7 %, trained on 07+12",),
        deviations=(
            "the paper says no more of Fast YOLO than its 9 convolutions: the layers "
            "are those of the authors' file of 2015",
            *_UNTRAINED,
        ),
    ),
    "yolo_v1_tiny_bn": _Network(
        stages=TINY_BN,
        hidden=(),
        batch_norm=True,
        params=27_095_374,
        macs=1_608_015_360,
        source="after it, cfg/yolov1-tiny.cfg of the authors' Darknet",
        published=("none: it is the authors' later network, not the paper's",),
        deviations=(
            "8 convolutions with batch norm and one dense layer, as the authors' later "
            "file has them; the paper has 9 without, and several dense layers",
        ),
    ),
}


def _spec(name: str, row: _Network) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(yolo_v1, variant=name),
        config=YOLOConfig,
        paper=f"{PAPER}, {row.source}",
        num_classes=20,
        preprocess=PREPROCESS,
        params=row.params,
        macs=row.macs,
        torch_rules=_torch_rules,
        loss="squared errors of boxes, confidences and classes",
        init="He et al. 2015, normal of variance 2 / fan-in; biases 0",
        published=row.published,
        deviations=(
            *row.deviations,
            "boxes are clipped to the image before suppression, not after it",
            "initialized by He et al. 2015; the paper does not say how",
        ),
    )


SPECS = tuple(_spec(name, row) for name, row in _NETWORKS.items())
