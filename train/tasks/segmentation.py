"""Segmentation: one class for each pixel."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from train.config import DataConfig, OptimConfig
from train.data import Source
from train.report.segmentation import evaluate_segmentation
from train.task import Task, apply_and_compare
from train.tasks.classification import check_no_smoothing
from zoo.metrics import segmentation as metrics
from zoo.ops.losses import (
    bootstrapped_cross_entropy,
    median_frequency_weights,
    segmentation_cross_entropy,
)
from zoo.paths import unknown
from zoo.preprocess import center_crop
from zoo.spec import PRIMARY_METRICS, ModelSpec

# Maps logits [B, H, W, K] and masks [B, H, W] to losses [B].
PixelLoss = Callable[[jax.Array, jax.Array], jax.Array]
IGNORED = 255


def make_pixel_loss(name: str, class_weights: tuple[float, ...] = ()) -> PixelLoss:
    """Makes the loss of a segmentation network, with one value per image.

    Args:
      name: "softmax_cross_entropy"; "median_frequency", which weights the classes;
        "background:WEIGHT", in which pixels of class 0 count WEIGHT and all others 1;
        "bootstrapped_cross_entropy:COUNT", over an image's COUNT worst pixels.
      class_weights: The weight of each class, for "median_frequency" only.

    Raises:
      ValueError: The name is unknown, or the weights, weight or count are missing.
    """
    kind, _, count = name.partition(":")
    if kind == "softmax_cross_entropy":
        return segmentation_cross_entropy
    if kind == "median_frequency":
        if not class_weights:
            raise ValueError("the loss median_frequency needs the classes' weights.")
        return partial(segmentation_cross_entropy, class_weights=class_weights)
    if kind == "bootstrapped_cross_entropy":
        if not count.isdigit() or not int(count):
            raise ValueError(
                f"the loss {name!r} must say of how many pixels, as in {kind}:32768."
            )
        return partial(bootstrapped_cross_entropy, count=int(count))
    if kind == "background":
        try:
            weight = float(count)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"the loss {name!r} must say how much the background counts, 0 or "
                f"more, as in {kind}:0.25."
            )
        return partial(_background_cross_entropy, weight=weight)
    known = (
        "softmax_cross_entropy",
        "median_frequency",
        "background",
        "bootstrapped_cross_entropy",
    )
    raise ValueError(unknown("loss", name, known))


def _background_cross_entropy(logits, mask, *, weight):
    weights = jnp.where(mask == 0, weight, 1.0)
    return segmentation_cross_entropy(logits, mask, pixel_weights=weights)


class Segmented(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: `mean_iou`, `pixel_accuracy`, `class_accuracy`,
        `frequency_weighted_iou`, `loss`, `images` and `pixels`.
      classes: The metrics by class: "iou" and "accuracies", lists of K, None for a
        class that did not occur.
      confusion: int64 [K, K], pixels; rows are true classes.
      right: float32 [N], the share of correct pixels in each image; NaN if all pixels
        are ignored.
    """

    metrics: dict[str, float]
    classes: dict[str, list[float | None]]
    confusion: np.ndarray
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """Gives each pixel a class. A batch has `mask` uint8 [B, H, W], 255 is ignored.

    If a network without padding has logits smaller than its images, they are compared
    with the center of the masks.

    Attributes:
      loss: A function from logits and masks to losses [B].
      aux_losses: The endpoints with auxiliary logits and the factor of each one's loss,
        see `ModelSpec`; endpoints that the network does not have are skipped.
      aux_loss: The function for the auxiliary logits; None for `loss`.
    """

    loss: PixelLoss
    aux_losses: Sequence[tuple[str, float]] = ()
    aux_loss: PixelLoss | None = None
    name = "segmentation"
    primary_metric = PRIMARY_METRICS[name]
    report = staticmethod(evaluate_segmentation)

    @classmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Segmentation":
        """Creates the task of a segmentation network.

        The loss median_frequency computes the class weights from the first source's
        pixels; without a source to train on, all classes weigh the same.
        """
        check_no_smoothing(spec, optim)
        if optim.aux_loss and not spec.aux_losses:
            raise ValueError(
                f"aux_loss={optim.aux_loss!r} is of auxiliary scores, which "
                f"{spec.name} has not."
            )
        names, weights = [optim.loss or spec.loss, optim.aux_loss], ()
        if "median_frequency" in names:
            if len(sources) > 1:
                weights = count_class_weights(sources[0])
            else:
                plain = "softmax_cross_entropy"
                names = [plain if n == "median_frequency" else n for n in names]
        loss, aux = (make_pixel_loss(n, weights) if n else None for n in names)
        return cls(loss, spec.aux_losses, aux)

    def objective(self, model, variables, images, batch, rngs, counts=None):
        """Returns the mean loss, the pixel accuracy, and new batch statistics."""
        masks = batch["mask"]

        def compare(loss: PixelLoss) -> Callable[[jax.Array], jax.Array]:
            return lambda logits: loss(logits, crop_mask(masks, logits))

        logits, losses, statistics = apply_and_compare(
            model,
            variables,
            images,
            rngs,
            compare(self.loss),
            self.aux_losses,
            compare(self.aux_loss or self.loss),
        )
        mask = crop_mask(masks, logits)
        valid = mask != IGNORED
        right = (logits.argmax(-1) == mask) & valid
        pixels = counts["pixels"] if counts else jnp.maximum(valid.sum(), 1)
        accuracy = right.sum() / pixels
        return losses.mean(), {"pixel_accuracy": accuracy}, statistics

    def counts(self, model, variables, images, batch, rngs):
        """Counts the valid pixels, for the accuracy; the loss is a mean over images."""
        logits = model.apply(variables, images)
        mask = crop_mask(batch["mask"], logits)
        return {"pixels": (mask != IGNORED).sum().astype(jnp.float32)}

    def empty(self, num_classes: int) -> metrics.State:
        """Returns the metric's state before any image."""
        return metrics.empty(num_classes)

    def evaluate(self, model, variables, images, state, batch):
        """Updates the metric; keeps the share of correct pixels in each image."""
        logits = model.apply(variables, images)
        mask = crop_mask(batch["mask"], logits)
        predicted, losses = logits.argmax(-1), self.loss(logits, mask)
        state = metrics.update(state, predicted, mask, losses, batch["valid"])
        valid = mask != IGNORED
        right = ((predicted == mask) & valid).sum((1, 2)) / valid.sum((1, 2))
        return state, {"right": right}

    def collect(
        self, state: metrics.State, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Segmented:
        """Computes the metrics."""
        found = metrics.compute(state)
        classes = {name: found.pop(name) for name in ("iou", "accuracies")}
        return Segmented(found, classes, metrics.confusion_matrix(state), each["right"])

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the mean intersection over union, the accuracy and the loss."""
        return (
            f"mean IoU {metrics['mean_iou']:.2%} of {metrics['images']} images, "
            f"{metrics['pixel_accuracy']:.2%} of the pixels right, "
            f"loss {metrics['loss']:.4f}"
        )


def count_class_weights(source: Source) -> tuple[float, ...]:
    """Computes class weights by median frequency balancing over a set's pixels.

    Masks are counted at their stored size, since fitting to a network may crop them.

    Args:
      source: The images, with their masks.
    """
    count = len(source.class_names)
    pixels, of_images = np.zeros((2, count), np.int64)
    for i in tqdm(range(len(source)), desc="counting pixels", leave=False):
        found = np.bincount(source[i]["mask"].ravel(), minlength=256)[:count]
        pixels += found
        of_images += (found > 0) * found.sum()
    return tuple(map(float, median_frequency_weights(pixels, of_images)))


def crop_mask(mask: jax.Array, logits: jax.Array) -> jax.Array:
    """Crops masks [B, H, W] to the center that logits [B, h, w, K] predict."""
    return center_crop(mask[..., None], *logits.shape[1:3])[..., 0]
