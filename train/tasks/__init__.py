"""The tasks: each is a class with its losses, metrics and predictions."""

from collections.abc import Sequence

from train.config import DataConfig, OptimConfig
from train.data import Source
from train.task import Task
from train.tasks.classification import (
    Classification,
    Loss,
    make_loss,
    softmax_cross_entropy,
)
from train.tasks.detection import Detected, Detection
from train.tasks.segmentation import Segmentation, make_pixel_loss
from train.tasks.verification import Verification, Verified
from zoo.spec import ModelSpec

__all__ = [
    "TASKS",
    "Classification",
    "Detected",
    "Detection",
    "Loss",
    "Segmentation",
    "Verification",
    "Verified",
    "make_loss",
    "make_pixel_loss",
    "make_task",
    "softmax_cross_entropy",
]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Detection, Segmentation, Verification)
}


def make_task(
    spec: ModelSpec,
    optim: OptimConfig | None = None,
    data: DataConfig | None = None,
    sources: Sequence[Source] = (),
) -> Task:
    """Makes the task of a network.

    Args:
      spec: The specification of the network.
      optim: The losses, if they differ from the network's own; None for the network's
        own.
      data: The data config; None for the defaults.
      sources: The examples, those to evaluate on last; empty to trace the task without
        any.

    Raises:
      ValueError: A loss is unknown, or an option does not fit the task.
    """
    optim, data = optim or OptimConfig(), data or DataConfig("")
    return TASKS[spec.task].create(spec, optim, data, sources)
