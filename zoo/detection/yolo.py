"""YOLO's losses and decoding, on whatever network says boxes for a grid of cells.

Reference:
  Redmon, Divvala, Girshick, Farhadi, You Only Look Once: Unified, Real-Time Object
  Detection, 2016, section 2; detection_layer.c of the authors' Darknet.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.detection.contract import (
    Candidates,
    LossSum,
    Postprocess,
    Targets,
    divide_losses,
)
from zoo.ops.boxes import clip, from_cxcywh, iou, to_cxcywh
from zoo.spec import Preprocess

Array = jax.Array

# Section 2.2: factors of errors in boxes, and of confidence where there is no object.
COORDINATES = 5.0
NO_OBJECT = 0.5
# Darknet's, where it evaluates; its demonstration shows scores above 0.2 alone.
POSTPROCESS = Postprocess(score_threshold=0.001, iou_threshold=0.5, max_detections=200)


class YOLO(nn.Module):
    """A detector as `zoo.detection.contract` says.

    The image falls into S x S cells, and each says B boxes and what is in the cell. The
    outputs are

    - "classes" float32 [B, S, S, K], how probable each class is if there is an object;
    - "confidences" float32 [B, S, S, P], the IoU that each of P predictors expects;
    - "boxes" float32 [B, S, S, P, 4]: the centre's x and y, 0 to 1 within the cell, and
      the roots of width and height, 0 to 1 of the image.

    None of them is bounded.

    Attributes:
      backbone: Returns named endpoints.
      head: From the last of these to further endpoints and the outputs.
      preprocess: What the images must be like.
      postprocess: What candidates become detections.
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
        """Computes every named activation, in the order of the network."""
        features, outputs = self._run(images, train)
        return {**features, **outputs}

    def _run(self, images: Array, train: bool) -> tuple[dict, dict]:
        features = self.backbone(images, train=train)
        more, outputs = self.head([*features.values()][-1], train=train)
        return {**features, **more}, outputs

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Lists the parts that have classes, by the names of their fields."""
        return {"head": self.head}

    @nn.nowrap
    def losses(self, outputs: dict[str, Array], targets: Targets) -> dict[str, Array]:
        """Computes equation 3 in its parts, each with its factor.

        "coordinates", "confidence_object", "confidence_no_object" and "class" are sums
        over an image, and means over the batch. (Darknet's gradient is that of half of
        them.) A cell has one object, the first of those whose centres are in it. Its
        responsible predictor is that of the largest IoU, or the nearest one where none
        overlaps, and shall be as confident as its IoU is.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: dict[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the sums of `losses`, and the number of images."""
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
        """Multiplies confidences and classes; boxes are clipped to the image."""
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


def assign_cells(centres: Array, valid: Array, grid: int) -> Array:
    """Finds the object of each cell: the first whose centre is in it.

    Args:
      centres: float [N, 2], x and y, 0 to 1 of the image.
      valid: bool [N]; False for padding.
      grid: S.

    Returns:
      int32 [S, S], rows first: the index of an object, or N where there is none.
    """
    count = len(centres)
    column, row = jnp.clip((centres * grid).astype(jnp.int32), 0, grid - 1).T
    index = jnp.where(valid, jnp.arange(count, dtype=jnp.int32), count)
    first = jnp.full((grid, grid), count, jnp.int32)
    return first.at[row, column].min(index)


def choose_predictors(predicted: Array, boxes: Array) -> tuple[Array, Array]:
    """Finds which predictor of a cell is responsible for its object.

    Args:
      predicted: [..., P, 4], centre, width and height, in the image's.
      boxes: [..., 4], likewise, of the objects.

    Returns:
      int32 [...], the predictor of the largest IoU, or where all are 0 that whose four
      numbers are nearest; and its IoU, float [...].
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
    # One slot more, which cells without an object read.
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

    within = objects[..., :2] * grid - _cells(grid)
    roots = jnp.sqrt(jnp.maximum(objects[..., 2:], 0))
    goal = jnp.concatenate([within, roots], axis=-1)[..., None, :]
    away = jnp.square(outputs["boxes"] - goal).sum(axis=-1)
    kinds = jax.nn.one_hot(classes[index], outputs["classes"].shape[-1])
    wrong = jnp.square(outputs["classes"] - kinds).sum(axis=-1)
    unsure = jnp.square(confidences - overlap[..., None])

    def total(mask: Array, errors: Array) -> Array:
        return jnp.where(mask, errors, 0).sum()

    return {
        "coordinates": COORDINATES * total(responsible, away),
        "confidence_object": total(responsible, unsure),
        "confidence_no_object": NO_OBJECT * total(~responsible, confidences**2),
        "class": total(present, wrong),
    }


def _to_image(boxes: Array) -> Array:
    """The boxes [..., S, S, P, 4] of the outputs as centres and sides, in the image's.

    A side's root may be less than 0; the side is not.
    """
    grid = boxes.shape[-3]
    cells = _cells(grid).reshape((1,) * (boxes.ndim - 4) + (grid, grid, 1, 2))
    centres = (boxes[..., :2] + cells) / grid
    return jnp.concatenate([centres, jnp.square(boxes[..., 2:])], axis=-1)


def _cells(grid: int) -> Array:
    """Column and row of each cell: float32 [S, S, 2]."""
    rows, columns = jnp.indices((grid, grid), jnp.float32)
    return jnp.stack([columns, rows], axis=-1)
