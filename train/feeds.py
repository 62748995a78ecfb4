"""Where a step's batches come from: a set on the device, or a stream of the host."""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.config import DataConfig
from train.data import (
    Source,
    epoch_order,
    load_resident,
    resident_bytes,
    train_stream,
)
from train.state import TrainState
from train.steps import Metrics, Step, jit_step, put_batch, put_everywhere
from zoo.spec import Preprocess


class Feed(Protocol):
    """Runs steps on the batches of a training set.

    Attributes:
      steps_per_epoch: Whole batches in the set.
      batches: The grain iterator, whose position belongs into a checkpoint, or None
        where the position is the step itself.
    """

    steps_per_epoch: int
    batches: Any

    def bind(self, step: Step) -> None:
        """Takes the step to run, and compiles it at its first use."""

    def run(
        self, state: TrainState, start: int, count: int
    ) -> tuple[TrainState, Metrics]:
        """Runs the steps from `start` on, within one epoch.

        Args:
          state: At `start`; it is donated.
          start: Step of the first batch.
          count: Number of steps.

        Returns:
          The new state, and each metric with one value a step.
        """

    def indices(self, step: int) -> np.ndarray:
        """Returns the places in the set of the images of a step."""


def make_feed(
    config: DataConfig, source: Source, preprocess: Preprocess, mesh: Mesh, seed: int
) -> Feed:
    """Makes the feed that a config asks for.

    With `placement="auto"` a set goes to the device where it takes at most
    `device_megabytes` and nothing is cut or moved on the host. Both kinds visit the
    same images in the same order.

    Raises:
      ValueError: A random crop is asked for of a set that shall be on the device.
    """
    size = resident_bytes(source, preprocess, max_boxes=config.max_boxes)
    still = config.crop == "center" and not config.geometry
    fits = size <= config.device_megabytes * 2**20 and still
    if config.placement == "device" and not still:
        name = "geometry" if config.geometry else "crop"
        raise ValueError(
            f"data.{name}={getattr(config, name)} cuts each image anew in every epoch, "
            "which a set on the device cannot: data.placement must be auto or stream."
        )
    if config.placement == "device" or (config.placement == "auto" and fits):
        data = load_resident(source, preprocess, max_boxes=config.max_boxes)
        return ResidentFeed(data, mesh, config.batch_size, seed)
    return StreamFeed(config, source, preprocess, mesh, seed)


class ResidentFeed:
    """A set that is on every device; many steps run in one compiled call.

    Attributes:
      loop: Whether steps are compiled into one loop. Not on the CPU, where XLA runs
        convolutions inside a loop about thirty times slower than outside.
    """

    batches = None

    def __init__(
        self,
        data: dict[str, np.ndarray],
        mesh: Mesh,
        batch_size: int,
        seed: int,
        *,
        loop: bool | None = None,
    ):
        count = len(data["image"])
        self._order = epoch_order(count, batch_size, seed)
        self.steps_per_epoch = count // batch_size
        self._everywhere = NamedSharding(mesh, P())
        self._batched = NamedSharding(mesh, P("data"))
        self._data = {k: put_everywhere(v, self._everywhere) for k, v in data.items()}
        platform = mesh.devices.flat[0].platform
        self.loop = platform != "cpu" if loop is None else loop

    def bind(self, step: Step) -> None:
        """Takes the step to run."""

        def one(state, data, indices):
            batch = {k: jnp.take(v, indices, axis=0) for k, v in data.items()}
            batch = {**batch, "index": indices}
            return step(state, jax.lax.with_sharding_constraint(batch, self._batched))

        def many(state, data, order, count):
            shapes = jax.eval_shape(one, state, data, order[0])[1]
            out = {k: jnp.zeros(len(order), v.dtype) for k, v in shapes.items()}

            def body(i, carry):
                state, out = carry
                state, scalars = one(state, data, order[i])
                return state, {k: out[k].at[i].set(scalars[k]) for k in out}

            return jax.lax.fori_loop(0, count, body, (state, out))

        jit = partial(jit_step, sharding=self._everywhere)
        self._one, self._many = jit(one), jit(many)

    def run(
        self, state: TrainState, start: int, count: int
    ) -> tuple[TrainState, Metrics]:
        """Runs the steps from `start` on, within one epoch."""
        order = np.stack([self._order[start + i] for i in range(count)])
        if self.loop:
            # Always as long as an epoch, so that one loop serves every `count`.
            rows = np.zeros((self.steps_per_epoch, order.shape[1]), np.int32)
            rows[:count] = order
            rows, limit = (put_everywhere(x, self._everywhere) for x in (rows, count))
            state, out = self._many(state, self._data, rows, limit)
            return state, {k: v[:count] for k, v in jax.device_get(out).items()}
        out = []
        for indices in order:
            indices = put_everywhere(indices, self._everywhere)
            state, scalars = self._one(state, self._data, indices)
            out.append(scalars)
        return state, _stack(out)

    def indices(self, step: int) -> np.ndarray:
        """Returns the places in the set of the images of a step."""
        return self._order[step]


class StreamFeed:
    """A set that grain reads, decodes and batches while the device computes."""

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        preprocess: Preprocess,
        mesh: Mesh,
        seed: int,
    ):
        self._order = epoch_order(len(source), config.batch_size, seed)
        self.steps_per_epoch = len(source) // config.batch_size
        stream = train_stream(
            source,
            preprocess,
            batch_size=config.batch_size,
            seed=seed,
            crop=config.crop,
            geometry=config.geometry,
            max_boxes=config.max_boxes,
            workers=config.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.batches = iter(stream)
        self._everywhere = NamedSharding(mesh, P())
        self._batched = NamedSharding(mesh, P("data"))

    def bind(self, step: Step) -> None:
        """Takes the step to run."""
        self._step = jit_step(step, self._everywhere)

    def run(
        self, state: TrainState, start: int, count: int
    ) -> tuple[TrainState, Metrics]:
        """Runs the next `count` steps of the stream."""
        out = []
        for _ in range(count):
            batch = put_batch(next(self.batches), self._batched)
            state, scalars = self._step(state, batch)
            out.append(scalars)
        return state, _stack(out)

    def indices(self, step: int) -> np.ndarray:
        """Returns the places in the set of the images of a step."""
        return self._order[step]


def _stack(scalars: list[Metrics]) -> dict[str, np.ndarray]:
    scalars = jax.device_get(scalars)
    return {k: np.stack([s[k] for s in scalars]) for k in scalars[0]}
