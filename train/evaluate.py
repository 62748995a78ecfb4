"""Evaluation of each image exactly once, for any batch size and devices."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from tqdm import tqdm

from train.data import Source, eval_batches, resident_bytes
from train.steps import Batch, make_eval_step, put_batch, put_replicated
from train.task import Evaluated, Task
from zoo.spec import Preprocess


class Evaluator:
    """Evaluates a network on one data set, any number of times.

    Args:
      model: The network.
      task: The task, which defines the metric.
      source: The images.
      preprocess: The network's input.
      mesh: The devices.
      batch_size: The number of images in a step of all processes; rounded up to a
        multiple of the number of devices.
      max_boxes: The number of slots for the objects of an image.
      progress: Whether to show a progress bar if standard error is a terminal.
      kept_megabytes: A set up to this size is decoded once and stays on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        source: Source,
        preprocess: Preprocess,
        mesh: Mesh,
        batch_size: int,
        *,
        max_boxes: int = 100,
        progress: bool = False,
        kept_megabytes: float = 1024,
    ):
        batch_size = -(-batch_size // mesh.size) * mesh.size
        self.source, self.task = source, task
        self._mesh = mesh
        self._step = make_eval_step(model, task, preprocess, mesh)
        self._preprocess, self._batch_size = preprocess, batch_size
        self._max_boxes, self._progress = max_boxes, progress
        size = resident_bytes(source, preprocess, max_boxes=max_boxes)
        small = size <= kept_megabytes * 2**20
        # Read now, so that a bad image is found before a network is trained.
        self._kept = [*self._bar(self._read(), "reading")] if small else None

    def __call__(self, variables: Any) -> Evaluated:
        """Evaluates the variables on the whole set.

        Args:
          variables: The model's variables, on every device.

        Returns:
          The metrics and the task's other results.
        """
        names, kept = self.source.class_names, {}
        state = put_replicated(self.task.empty(len(names)), self._mesh)
        for batch in self._bar(self._kept or self._read(), "evaluating"):
            state, each = self._step(variables, state, batch)
            each = jax.device_get(each)
            index, valid = each.pop("index"), each.pop("valid")
            for name, values in each.items():
                if name not in kept:
                    shape = len(self.source), *values.shape[1:]
                    kept[name] = np.zeros(shape, values.dtype)
                kept[name][index[valid]] = values[valid]
        return self.task.collect(state, kept, names)

    def _read(self) -> Iterator[Batch]:
        batches = eval_batches(
            self.source,
            self._preprocess,
            batch_size=self._batch_size,
            max_boxes=self._max_boxes,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (put_batch(batch, self._mesh) for batch in batches)

    def _bar(self, batches: Iterable[Batch], what: str) -> Iterable[Batch]:
        count = -(-len(self.source) // self._batch_size)
        hidden = None if self._progress else True
        return tqdm(batches, what, count, unit=" batches", disable=hidden)
