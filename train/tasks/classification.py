"""Classification: one class for each image."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.config import DataConfig, OptimConfig
from train.data import Source
from train.report.classification import evaluate_classifier
from train.task import Task, apply_and_compare
from zoo import protocols
from zoo.metrics import classification as metrics
from zoo.ops.losses import lenet_map_loss
from zoo.paths import unknown
from zoo.spec import PRIMARY_METRICS, ModelSpec, Preprocess

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Computes the cross-entropy with label smoothing.

    Args:
      logits: float32 [B, K].
      labels: int32 [B].
      smoothing: Probability that is spread evenly over all K classes.

    Returns:
      Losses float32 [B].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, smoothing) if smoothing else targets
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def make_loss(name: str, *, smoothing: float = 0.0) -> Loss:
    """Makes the loss of a classifier, with one value per example.

    Args:
      name: `ModelSpec.loss`: "softmax_cross_entropy" or "lenet_map".
      smoothing: Label smoothing, for the softmax cross-entropy only.

    Raises:
      ValueError: The name is unknown, or the loss has no label smoothing.
    """
    if name == "softmax_cross_entropy":
        return lambda logits, labels: softmax_cross_entropy(logits, labels, smoothing)
    if name == "lenet_map":
        if smoothing:
            raise ValueError(
                f"the loss lenet_map has no label smoothing ({smoothing})."
            )
        return lenet_map_loss
    raise ValueError(unknown("loss", name, ("softmax_cross_entropy", "lenet_map")))


class Predictions(NamedTuple):
    """The prediction for each image of a set, in the set's order.

    Attributes:
      predicted: int32 [N], the most probable class.
      probability: float32 [N], the probability of that class.
      loss: float32 [N], the loss.
    """

    predicted: np.ndarray
    probability: np.ndarray
    loss: np.ndarray


class Classified(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: `count`, `correct`, `accuracy`, `loss` and, with 6 or more classes,
        `top5`.
      confusion: int32 [K, K], rows are true classes.
      predictions: The prediction for each image.
    """

    metrics: dict[str, float]
    confusion: np.ndarray
    predictions: Predictions


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Gives each image a class. A batch has `label` int32 [B].

    Attributes:
      loss: A function from logits and labels to losses [B].
      aux_losses: The endpoints with auxiliary logits and the factor of each one's loss,
        see `ModelSpec`; endpoints that the network does not have are skipped.
    """

    loss: Loss
    aux_losses: Sequence[tuple[str, float]] = ()
    name = "classification"
    primary_metric = PRIMARY_METRICS[name]
    report = staticmethod(evaluate_classifier)
    has_targets_in_place = False
    eval_batch_size = 512
    evaluate_options = frozenset({"scales"})

    @classmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Classification":
        """Creates the task of a classifier."""
        check_no_aux_loss(spec, optim)
        loss = make_loss(optim.loss or spec.loss, smoothing=optim.label_smoothing)
        return cls(loss, spec.aux_losses)

    @classmethod
    def tiny_data(cls, preprocess: Preprocess) -> dict[str, Any]:
        """Returns options for two training images of each digit."""
        few = preprocess.size > 64  # A few large images are enough.
        return {
            "dataset": "digits",
            "eval_split": "test[:16]" if few else "test",
            "per_class": 2,
            "batch_size": 8,
            "eval_batch_size": 16 if few else 72,
        }

    def objective(self, model, variables, images, batch, rngs, counts=None):
        """Returns the mean of the losses, the accuracy, and new batch statistics."""
        labels = batch["label"]
        logits, losses, statistics = apply_and_compare(
            model,
            variables,
            images,
            rngs,
            lambda logits: self.loss(logits, labels),
            self.aux_losses,
        )
        hits = logits.argmax(-1) == labels
        return losses.mean(), {"accuracy": hits.mean()}, statistics

    def empty(self, num_classes: int) -> metrics.State:
        """Returns the metric's state before any image."""
        return metrics.empty(num_classes)

    def evaluate(self, model, variables, images, state, batch):
        """Updates the metric; keeps the fields of `Predictions` for each image."""
        logits = model.apply(variables, images)
        losses = self.loss(logits, batch["label"])
        state = metrics.update(state, logits, batch["label"], losses, batch["valid"])
        each = {
            "predicted": logits.argmax(-1),
            "probability": jax.nn.softmax(logits).max(-1),
            "loss": losses,
        }
        return state, each

    def collect(
        self, state: metrics.State, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Classified:
        """Computes the metrics."""
        found = metrics.compute(state)
        return Classified(found, np.asarray(state.confusion), Predictions(**each))

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the accuracy and the loss."""
        return (
            f"{metrics['accuracy']:.2%} right, {metrics['correct']} of "
            f"{metrics['count']} images, loss {metrics['loss']:.4f}"
        )

    @classmethod
    def choose_protocol(
        cls, name: str, scales: tuple[int, ...], model: str
    ) -> protocols.Protocol | None:
        """Chooses a published protocol; None for the center crop at its own scale."""
        protocol = protocols.get_protocol(name, scales)
        return None if protocol == protocols.get_protocol("center_crop") else protocol

    def summarize(self, evaluated: Classified, protocol: str) -> Iterator[str]:
        """Yields the accuracies with their intervals, and the loss."""
        found, count = evaluated.metrics, protocols.get_protocol(protocol).count
        views = "one view" if count == 1 else f"{count} views"
        yield f"  protocol  {protocol}, {views} of each image"
        yield f"  top-1     {_format_share(found['correct'], found['count'])}"
        if "top5" in found:
            hits = round(found["top5"] * found["count"])
            yield f"  top-5     {_format_share(hits, found['count'])}"
        yield f"  loss      {found['loss']:.4f}"


def check_no_aux_loss(spec: ModelSpec, optim: OptimConfig) -> None:
    """Raises ValueError if an auxiliary loss is requested, which is for pixels only."""
    if optim.aux_loss:
        raise ValueError(
            f"aux_loss={optim.aux_loss!r} is of pixels; {spec.name} is for {spec.task}."
        )


def check_no_smoothing(spec: ModelSpec, optim: OptimConfig) -> None:
    """Raises ValueError if label smoothing is requested, which is for classifiers."""
    if optim.label_smoothing:
        raise ValueError(
            f"label smoothing is for classifiers; {spec.name} is for {spec.task}."
        )


def _format_share(count: int, total: int) -> str:
    low, high = metrics.confidence_interval(count, total)
    return f"{count / total:.2%} ({count} of {total}), {low:.2%} to {high:.2%} at 95 %"
