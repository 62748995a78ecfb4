"""One class for each image."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.tasks.task import apply_and_compare
from zoo.metrics import classification as metrics
from zoo.ops.losses import lenet_map_loss
from zoo.registry import unknown

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy with label smoothing.

    Args:
      logits: float32 [B, K].
      labels: int32 [B].
      smoothing: Probability that is spread evenly over all K classes.

    Returns:
      float32 [B].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(targets, smoothing) if smoothing else targets
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def make_loss(name: str, *, smoothing: float = 0.0) -> Loss:
    """Makes the loss of a classifier, element-wise over the batch.

    Args:
      name: `ModelSpec.loss`: "softmax_cross_entropy" or "lenet_map".
      smoothing: Label smoothing, of the softmax cross-entropy alone.

    Raises:
      ValueError: The name is unknown, or the loss knows no label smoothing.
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
    """What the network says of each image of a set, in the set's order.

    Attributes:
      predicted: int32 [N], the most probable class.
      probability: float32 [N], of that class.
      loss: float32 [N].
    """

    predicted: np.ndarray
    probability: np.ndarray
    loss: np.ndarray


class Classified(NamedTuple):
    """What an evaluation found out.

    Attributes:
      metrics: `count`, `correct`, `accuracy`, `loss` and, from 6 classes on, `top5`.
      confusion: int32 [K, K], rows are true classes.
      predictions: For each image.
    """

    metrics: dict[str, float]
    confusion: np.ndarray
    predictions: Predictions


@dataclasses.dataclass(frozen=True)
class Classification:
    """Gives each image a class. A batch has `label` int32 [B].

    Attributes:
      loss: From logits and labels to losses [B].
      aux_losses: Endpoints with logits of their own and the factor of each one's loss,
        see `ModelSpec`; those that the network does not have are left out.
    """

    loss: Loss
    aux_losses: Sequence[tuple[str, float]] = ()
    name = "classification"

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

    def counts(self, model, variables, images, batch, rngs):
        """Counts nothing: the loss is the mean of those of the images."""
        return {}

    def empty(self, num_classes: int) -> metrics.State:
        """Returns the sums before any image."""
        return metrics.empty(num_classes)

    def evaluate(self, model, variables, images, state, batch):
        """Adds a batch to the sums; keeps what `Predictions` has."""
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

    def say(self, metrics: dict[str, float]) -> str:
        """Says the accuracy and the loss."""
        return (
            f"{metrics['accuracy']:.2%} right, {metrics['correct']} of "
            f"{metrics['count']} images, loss {metrics['loss']:.4f}"
        )
