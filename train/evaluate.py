"""Evaluation: every image exactly once, whatever the batch and the devices."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from train.data import Source, eval_batches, resident_bytes
from train.steps import Batch, check_divides, make_eval_step, put_batch, put_everywhere
from train.tasks import Loss
from zoo.metrics import classification as metrics
from zoo.spec import Preprocess

KEPT_MEGABYTES = 1024  # A set up to this size is decoded once and stays on the device.


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


class Evaluator:
    """Evaluates a network's variables on one set, again and again.

    Args:
      model: A classification network.
      loss: From logits and labels to losses [B].
      source: The set.
      preprocess: What the network takes.
      mesh: The devices.
      batch_size: Images per step, over all processes.
      progress: Whether to show a bar where standard error is a terminal.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        source: Source,
        preprocess: Preprocess,
        mesh: Mesh,
        batch_size: int,
        *,
        progress: bool = False,
    ):
        check_divides("eval_batch_size", batch_size, mesh)
        self.source = source
        self._everywhere = NamedSharding(mesh, P())
        self._batched = NamedSharding(mesh, P("data"))
        self._step = make_eval_step(model, loss, preprocess, mesh)
        self._preprocess, self._batch_size = preprocess, batch_size
        self._progress = progress
        small = resident_bytes(source, preprocess) <= KEPT_MEGABYTES * 2**20
        # Read at once, so that a bad image is met before a network is trained.
        self._kept = [*self._bar(self._read(), "reading")] if small else None

    def __call__(
        self, variables: Any
    ) -> tuple[dict[str, float], np.ndarray, Predictions]:
        """Evaluates.

        Args:
          variables: Of the model, on every device.

        Returns:
          The metrics (`count`, `correct`, `accuracy`, `loss`, `top5`), the confusion
          matrix (rows are true classes), and the prediction for each image.
        """
        state = jax.tree.map(
            lambda x: put_everywhere(x, self._everywhere),
            metrics.empty(len(self.source.class_names)),
        )
        count = len(self.source)
        out = Predictions(
            np.zeros(count, np.int32),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
        )
        for batch in self._bar(self._kept or self._read(), "evaluating"):
            state, each = self._step(variables, state, batch)
            each = jax.device_get(each)
            where = each["index"][each["valid"]]
            for name, values in out._asdict().items():
                values[where] = each[name][each["valid"]]
        return metrics.compute(state), np.asarray(state.confusion), out

    def _read(self) -> Iterator[Batch]:
        batches = eval_batches(
            self.source,
            self._preprocess,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (put_batch(batch, self._batched) for batch in batches)

    def _bar(self, batches: Iterable[Batch], what: str) -> Iterable[Batch]:
        count = -(-len(self.source) // self._batch_size)
        hidden = None if self._progress else True
        return tqdm(batches, what, count, unit=" batches", disable=hidden)
