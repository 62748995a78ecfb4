"""What a task is: something to minimise, and something to measure."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from flax import linen as nn

Array = jax.Array
Batch = dict[str, Array]
Scalars = dict[str, Array]


class Evaluated(Protocol):
    """What an evaluation found out; each task has more beside the metrics.

    Attributes:
      metrics: Numbers by name, the task's headline (`zoo.spec.HEADLINES`) among them.
    """

    metrics: dict[str, float]


class Task(Protocol):
    """What a network is trained for, and how it is judged.

    Attributes:
      name: As in `ModelSpec.task`.
    """

    name: str

    def objective(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        batch: Batch,
        rngs: dict[str, Array],
        counts: Scalars | None = None,
    ) -> tuple[Array, Scalars, dict[str, Any]]:
        """Computes what training minimises.

        Args:
          model: The network.
          variables: Of the model.
          images: float32 [B, H, W, C], preprocessed.
          batch: What the images show; see `train.data`.
          rngs: "dropout" and "sample".
          counts: What losses are divided by, in place of this batch's own `counts`.

        Returns:
          The loss, what else is logged of the step, and the new batch statistics.
        """

    def counts(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        batch: Batch,
        rngs: dict[str, Array],
    ) -> Scalars:
        """Counts what the losses of a batch are divided by, such as matched anchors.

        Gradients of the parts of a batch add up to that of the whole if each part is
        divided by the mean of all parts' counts. Under `jit` no more is computed than
        the counts depend on: of SSD's nothing of the network.

        Args:
          model: The network.
          variables: Of the model.
          images: float32 [B, H, W, C], preprocessed.
          batch: What the images show.
          rngs: As in `objective`.

        Returns:
          float32 [] by name; empty where losses are means over images.
        """

    def empty(self, num_classes: int) -> Any:
        """Returns the sums of an evaluation before any image."""

    def evaluate(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        state: Any,
        batch: Batch,
    ) -> tuple[Any, dict[str, Array]]:
        """Evaluates a batch, some of whose images may be padding (not `valid`).

        Returns:
          The new sums, and what is kept of each image: arrays [B, ...] by name.
        """

    def collect(
        self, state: Any, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Evaluated:
        """Concludes an evaluation.

        Args:
          state: The sums over all images.
          each: What was kept of each image: numpy arrays [N, ...] in the set's order.
          class_names: Of the set.
        """

    def say(self, metrics: dict[str, float]) -> str:
        """Says the metrics in a few words."""


def apply_and_compare(
    model: nn.Module,
    variables: dict[str, Any],
    images: Array,
    rngs: dict[str, Array],
    compare: Callable[[Array], Array],
    aux_losses: Sequence[tuple[str, float]],
    compare_aux: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, dict[str, Any]]:
    """Applies a network with logits, and perhaps auxiliary ones, as in training.

    Args:
      model: The network.
      variables: Of the model.
      images: float32 [B, H, W, C], preprocessed.
      rngs: As in `Task.objective`.
      compare: From logits to losses [B].
      aux_losses: Endpoints with logits of their own and the factor of each one's loss;
        those that the network does not have are left out.
      compare_aux: Like `compare`, for those; None for the same.

    Returns:
      The logits, all losses together [B], and the new batch statistics.
    """
    out, updated = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs=rngs,
        method="endpoints" if aux_losses else "__call__",
    )
    logits = out["logits"] if aux_losses else out
    losses = compare(logits)
    for name, factor in aux_losses:
        if name in out:
            losses += factor * (compare_aux or compare)(out[name])
    return logits, losses, updated.get("batch_stats", {})
