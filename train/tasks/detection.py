"""Detection: boxes with classes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.config import DataConfig, OptimConfig
from train.data import Source
from train.report.detection import evaluate_detector
from train.task import Task, format_rows
from train.tasks.classification import check_no_aux_loss, check_no_smoothing
from zoo.detect import select_detections
from zoo.detection.types import Detections, Targets, divide_losses
from zoo.metrics import coco
from zoo.metrics import detection as metrics
from zoo.metrics.detection import Objects
from zoo.preprocess import resize_boxes
from zoo.spec import PRIMARY_METRICS, ModelSpec


class Detected(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: `ap50`, `ap50_voc07`, `images`, `objects` and `detections`. `ap50` is NaN
        if an output of the network is not finite.
      precision: Average precision of each class at an IoU of 0.5; None for a class
        without objects in the set.
      curves: Recall and precision of each class.
      detections: The detections in all images, as numpy arrays, in pixels of the stored
        images.
      objects: The objects in all images, likewise.
    """

    metrics: dict[str, float]
    precision: Sequence[float | None]
    curves: Sequence[tuple[np.ndarray, np.ndarray]]
    detections: Detections
    objects: Objects


@dataclasses.dataclass(frozen=True)
class Detection(Task):
    """Finds objects. A batch has boxes with classes, and the sizes of its images.

    Attributes:
      difficult: Whether to train on objects that are marked difficult. Evaluation
        counts them neither as found nor as missed.
    """

    difficult: bool = False
    name = "detection"
    primary_metric = PRIMARY_METRICS[name]
    report = staticmethod(evaluate_detector)

    @classmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Detection":
        """Creates the task of a detector, which has losses of its own."""
        check_no_smoothing(spec, optim)
        check_no_aux_loss(spec, optim)
        if spec.reads_regions:
            raise ValueError(
                f"{spec.name} reads regions, and a data set has none; `canon-zoo train "
                "rcnn` fits an R-CNN to proposals of its own."
            )
        if optim.loss:
            raise ValueError(
                f"{spec.name} has losses of its own, and not {optim.loss!r}."
            )
        return cls(data.difficult)

    def objective(self, model, variables, images, batch, rngs, counts=None):
        """Returns the sum of the losses, each loss, and new batch statistics."""
        sums, statistics = self._sum_losses(model, variables, images, batch, rngs)
        if counts is None:
            losses = divide_losses(sums)
        else:
            losses = {name: each.total / counts[name] for name, each in sums.items()}
        return sum(losses.values()), losses, statistics

    def counts(self, model, variables, images, batch, rngs):
        """Counts, for each loss, its matched or sampled anchors, regions or images."""
        sums, _ = self._sum_losses(model, variables, images, batch, rngs)
        return {name: each.count for name, each in sums.items()}

    def _sum_losses(self, model, variables, images, batch, rngs):
        valid = batch["box_valid"]
        if not self.difficult:
            valid &= ~batch["difficult"]
        # Sampling in an image does not depend on the part of the batch it is in.
        draw = jax.vmap(lambda i: jax.random.fold_in(rngs["sample"], i))
        keys = draw(batch["index"])
        targets = Targets(batch["boxes"], batch["classes"], valid, keys)
        outputs, updated = model.apply(
            variables,
            images,
            batch["size"].astype(jnp.float32),
            train=True,
            targets=targets,
            mutable=["batch_stats"],
            rngs=rngs,
        )
        sums = model.loss_sums(outputs, targets)
        return sums, updated.get("batch_stats", {})

    def empty(self, num_classes: int) -> tuple[()]:
        """Returns no state: the detections of each image are kept."""
        return ()

    def evaluate(self, model, variables, images, state, batch):
        """Keeps the objects and the detections of each image."""
        sizes = batch["size"].astype(jnp.float32)
        candidates = model.decode(model.apply(variables, images, sizes), sizes)
        found = select_detections(candidates, model.postprocess)
        scale = batch["size"], batch["original_size"]
        each = {
            "boxes": resize_boxes(found.boxes, *scale),
            "scores": found.scores,
            "classes": found.classes,
            "found": found.valid,
            "object_boxes": resize_boxes(batch["boxes"], *scale),
            "object_classes": batch["classes"],
            "object_valid": batch["box_valid"],
            "difficult": batch["difficult"],
            "finite": jnp.isfinite(candidates.scores).all((1, 2)),
        }
        return state, each

    def collect(
        self, state: tuple[()], each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Detected:
        """Computes the metrics."""
        detections = Detections(
            each["boxes"], each["scores"], each["classes"], each["found"]
        )
        objects = Objects(
            each["object_boxes"],
            each["object_classes"],
            each["object_valid"],
            each["difficult"],
        )
        state = metrics.update(metrics.empty(len(class_names)), detections, objects)
        if not state.objects.any():
            raise ValueError(
                f"none of the {state.images} images has an object, and there is no "
                "average precision without."
            )
        found = metrics.compute(state)
        precision, curves = found.pop("by_class"), found.pop("curves")
        del found["by_class_voc07"]
        if not each["finite"].all():
            found["ap50"] = float("nan")
        return Detected(found, precision, curves, detections, objects)

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the average precision."""
        return (
            f"AP50 {metrics['ap50']:.2%}, {metrics['objects']} objects in "
            f"{metrics['images']} images"
        )

    def summarize(self, evaluated: Detected, protocol: str) -> Iterator[str]:
        """Yields the metrics, including those of COCO."""
        state = coco.empty(len(evaluated.precision))
        state = coco.update(state, evaluated.detections, evaluated.objects)
        found = coco.compute(state)
        more = {f"coco_{name}": found[name] for name in coco.NAMES}
        return format_rows({**evaluated.metrics, **more})
