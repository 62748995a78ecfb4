"""Loaders of training batches, from a set on the device or streamed from the host."""

from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from train.config import DataConfig
from train.data import Source, epoch_order, load_resident, resident_bytes, train_stream
from train.steps import Batch, put_batch, put_replicated
from zoo.spec import Preprocess


class Loader(Protocol):
    """An endless iterator over the batches of a training set.

    Attributes:
      data: The set's arrays [N, ...] on every device; a batch then holds only the
        positions `index` int32 [B] of its images. None if batches hold the arrays.
      stream: The grain iterator, whose position is saved in checkpoints; None if the
        step determines the position.
    """

    data: Batch | None
    stream: Any

    def __iter__(self) -> "Loader":
        """Returns itself."""

    def __next__(self) -> Batch:
        """Returns the next step's batch."""

    def indices(self, step: int) -> np.ndarray:
        """Returns the positions in the set of the images of a step."""


def make_loader(
    config: DataConfig,
    source: Source,
    preprocess: Preprocess,
    mesh: Mesh,
    seed: int,
    *,
    start: int = 0,
) -> Loader:
    """Makes the loader that a config asks for.

    With `placement="auto"` a set is kept on the device if it takes at most
    `device_megabytes` and needs no random crops or geometry, which run on the host.
    Both kinds of loader visit the same images in the same order.

    Args:
      config: The batch size, the transforms and the placement.
      source: The images to train on.
      preprocess: The network's input.
      mesh: The devices.
      seed: The seed of the order and of random crops.
      start: The step of the first batch. A stream ignores it: it begins at step 0, and
        restoring a checkpoint sets its position.

    Raises:
      ValueError: `config` has random crops or geometry for a set on the device.
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
        return ResidentLoader(data, mesh, config.batch_size, seed, start=start)
    return StreamLoader(config, source, preprocess, mesh, seed)


class ResidentLoader:
    """Yields the positions of each batch's images in a set that every device holds."""

    stream = None

    def __init__(
        self,
        data: dict[str, np.ndarray],
        mesh: Mesh,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
    ):
        self.data = put_replicated(data, mesh)
        self._order = epoch_order(len(data["image"]), batch_size, seed)
        self._step = start

    def __iter__(self) -> "ResidentLoader":
        return self

    def __next__(self) -> Batch:
        indices = self.indices(self._step)
        self._step += 1
        return {"index": indices}

    def indices(self, step: int) -> np.ndarray:
        """Returns the positions in the set of the images of a step."""
        return self._order[step]


class StreamLoader:
    """Yields batches that grain reads and decodes while the device computes."""

    data = None

    def __init__(
        self,
        config: DataConfig,
        source: Source,
        preprocess: Preprocess,
        mesh: Mesh,
        seed: int,
    ):
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
        self.stream = iter(stream)
        self._order = epoch_order(len(source), config.batch_size, seed)
        self._mesh = mesh

    def __iter__(self) -> "StreamLoader":
        return self

    def __next__(self) -> Batch:
        return put_batch(next(self.stream), self._mesh)

    def indices(self, step: int) -> np.ndarray:
        """Returns the positions in the set of the images of a step."""
        return self._order[step]
