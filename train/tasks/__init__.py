"""The tasks: what is minimised, and what is measured."""

from train.tasks.classification import (
    Classification,
    Loss,
    make_loss,
    softmax_cross_entropy,
)
from train.tasks.detection import Detected, Detection
from train.tasks.segmentation import Segmentation, make_pixel_loss
from train.tasks.task import Evaluated, Task
from train.tasks.verification import Verification, Verified
from zoo.face.verification import FaceSet
from zoo.registry import unknown
from zoo.spec import ModelSpec

__all__ = [
    "Classification",
    "Detected",
    "Detection",
    "Evaluated",
    "Loss",
    "Segmentation",
    "Task",
    "Verification",
    "Verified",
    "make_loss",
    "make_pixel_loss",
    "make_task",
    "softmax_cross_entropy",
]


def make_task(
    spec: ModelSpec,
    *,
    loss: str = "",
    aux_loss: str = "",
    smoothing: float = 0.0,
    difficult: bool = False,
    class_weights: tuple[float, ...] = (),
    faces: FaceSet | None = None,
    mirror: bool = False,
) -> Task:
    """Makes the task of a network.

    Args:
      spec: Facts of the network.
      loss: Name of the loss; empty for the network's own. Detectors have but one.
      aux_loss: Of auxiliary scores of pixels; empty for the same.
      smoothing: Label smoothing, of the softmax cross-entropy of classifiers alone.
      difficult: Whether a detector is trained on objects that are marked difficult.
      class_weights: Of the classes' pixels, where the loss is "median_frequency".
      faces: What an evaluation of faces must know of its set.
      mirror: Whether faces are described together with their mirror images.

    Raises:
      ValueError: The task or the loss is unknown, or an option does not fit it.
    """
    if spec.task not in ("classification", "verification") and smoothing:
        raise ValueError(
            f"label smoothing is for classifiers; {spec.name} is for {spec.task}."
        )
    if spec.task != "segmentation" and aux_loss:
        raise ValueError(
            f"aux_loss={aux_loss!r} is of pixels; {spec.name} is for {spec.task}."
        )
    if spec.task == "classification":
        chosen = make_loss(loss or spec.loss, smoothing=smoothing)
        return Classification(chosen, spec.aux_losses)
    if spec.task == "detection":
        if spec.reads_regions:
            raise ValueError(
                f"{spec.name} reads regions, and a data set has none; `canon-zoo train "
                "rcnn` fits an R-CNN to proposals of its own."
            )
        if loss:
            raise ValueError(f"{spec.name} has losses of its own, and not {loss!r}.")
        return Detection(difficult)
    if spec.task == "segmentation":
        if aux_loss and not spec.aux_losses:
            raise ValueError(
                f"aux_loss={aux_loss!r} is of auxiliary scores, which "
                f"{spec.name} has not."
            )
        chosen = make_pixel_loss(loss or spec.loss, class_weights)
        aux = make_pixel_loss(aux_loss, class_weights) if aux_loss else None
        return Segmentation(chosen, spec.aux_losses, aux)
    if spec.task == "verification":
        chosen = make_loss(loss or spec.loss, smoothing=smoothing)
        return Verification(chosen, faces, mirror)
    known = ("classification", "detection", "segmentation", "verification")
    raise ValueError(unknown("task", spec.task, known))
