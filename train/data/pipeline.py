"""Batches of examples, loaded by grain.

A **batch** is a dict of numpy arrays: `image` uint8 [B, H, W, C], `index` int32 [B]
(position in the source), for evaluation `valid` bool [B], and by the source's task

- classification and verification: `label` int32 [B], -1 for people who are not trained
  on;
- detection: `boxes` float32 [B, N, 4], xyxy in pixels of the batch's image, `classes`
  int32 [B, N], `box_valid` bool [B, N] and `difficult` bool [B, N];
- segmentation: `mask` uint8 [B, H, W], 255 where it is to be ignored;
- detection and segmentation: `size` int32 [B, 2], the height and width of the image
  within [H, W], and `original_size` int32 [B, 2], those of the stored image.
"""

import functools
import multiprocessing
import os
import threading
import weakref
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from train.data.box_transforms import Geometry, parse_geometry
from train.data.crops import Crop, draw_numbers, parse_crop
from train.data.preprocess import MAX_BOXES, FittedSource, fit_example, fit_source
from train.data.source import Example, Source
from zoo.spec import Preprocess

Batch = dict[str, np.ndarray]

# Each process prefetches few batches: one takes B * H * W * C bytes, so that grain's
# default of 500 would fill the memory.
_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
_ENDLESS = 2**62


class WorkerError(RuntimeError):
    """A process that reads images has ended, for instance because it was killed."""


def _end_with_parent(index: int, count: int) -> None:
    """Makes a worker exit when the training process ends, for any reason."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Order:
    """A function from a step to positions; see `epoch_order`."""

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.batch_size, self.seed = n, batch_size, seed

    def __call__(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self.n // self.batch_size)
        order = _permutation(self.n, self.seed, epoch)
        return order[batch * self.batch_size :][: self.batch_size]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation that is the same in all versions of numpy.

    grain's own shuffle takes 10 to 40 microseconds for each position (more in small
    sets), which is longer than a small network takes to train on an image.
    """
    numbers = np.random.Philox(key=[seed, epoch]).random_raw(n)
    order = np.argsort(numbers, kind="stable").astype(np.int32)
    order.flags.writeable = False  # every caller gets this same array
    return order


def epoch_order(n: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Returns the order in which training visits examples.

    Every epoch is a new permutation, divided into `n // batch_size` batches; the last
    `n % batch_size` examples are dropped.

    Args:
      n: The number of examples.
      batch_size: The number of examples in a global batch.
      seed: The seed of the permutations, 0 or more.

    Returns:
      An infinite data set, whose element s is the positions int32 [batch_size] of the
      examples of global step s.

    Raises:
      ValueError: There are fewer examples than a batch takes, or the seed is negative.
    """
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size={batch_size} of a set of {n} examples: expected 1 to {n}."
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: expected 0 or more.")
    return grain.MapDataset.range(_ENDLESS).map(_Order(n, batch_size, seed))


class _Load:
    """Loads one process's part of the training batch of a step."""

    def __init__(
        self,
        source: FittedSource,
        crop: Crop,
        geometry: Geometry,
        seed: int,
        process_index: int,
        process_count: int,
    ):
        self.source, self.crop, self.geometry = source, crop, geometry
        self.seed = seed
        self.process_index, self.process_count = process_index, process_count

    def __call__(self, step: int, indices: np.ndarray) -> Batch:
        share = len(indices) // self.process_count
        mine = indices[share * self.process_index :][:share]
        examples = [
            self.source.read(int(i), functools.partial(self._fit, step)) for i in mine
        ]
        return {k: np.stack([e[k] for e in examples]) for k in examples[0]}

    def _fit(self, step: int, example: Example, preprocess: Preprocess) -> Example:
        index = int(example["index"])
        if self.source.task in ("classification", "verification"):
            numbers = draw_numbers(self.seed, step, index)
            image = self.crop(numbers, example["image"], preprocess)
            return example | {"image": image}
        return fit_example(self.geometry(example, step, index), preprocess)


class _TrainIterator(grain.DatasetIterator):
    """Yields the batches of steps 0, 1, ..; its state is the step."""

    def __init__(self, batches: grain.MapDataset, workers: int):
        super().__init__()
        self._batches, self._workers = batches, workers
        self._step = 0
        self._inner: list[grain.DatasetIterator] = []
        # Workers that are alive when the interpreter exits print errors.
        weakref.finalize(self, _close_all, self._inner)

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if not self._inner:
            self._inner.append(self._start())
        try:
            batch = next(self._inner[0])
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise WorkerError(
                f"one of the data.workers={self._workers} processes that read images "
                f"has ended: {error} Where memory is short the system kills them: take "
                "fewer workers or smaller batches."
            ) from error
        self._step += 1
        if self._workers:
            # A copy, since closing the iterator frees the workers' shared memory.
            batch = {key: np.array(value) for key, value in batch.items()}
        return batch

    def _start(self) -> grain.DatasetIterator:
        batches = self._batches[self._step :].to_iter_dataset(_AHEAD)
        if self._workers:
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=2
                ),
                worker_init_fn=_end_with_parent,
            )
        return iter(batches)

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        _close_all(self._inner)
        self._step = int(state["next_index"])

    def close(self) -> None:
        super().close()
        _close_all(self._inner)


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


class _TrainStream(grain.IterDataset):
    def __init__(self, batches: grain.MapDataset, workers: int):
        super().__init__([])
        self._batches, self._workers = batches, workers

    def __iter__(self) -> _TrainIterator:
        return _TrainIterator(self._batches, self._workers)


def train_stream(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    crop: str = "center",
    geometry: Sequence[str] = (),
    workers: int = 0,
    max_boxes: int = MAX_BOXES,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Streams training batches endlessly, in the order of `epoch_order`.

    The concatenated batches of all processes at step s are the examples of step s in
    `epoch_order`. The state of the iterator (`get_state`, `set_state`, which grain's
    checkpointing uses) is the step alone: training resumes exactly, with any number of
    workers. Close the iterator when done.

    Args:
      source: The source.
      preprocess: The preprocessing of the network's input.
      batch_size: The number of examples in a global batch, over all processes.
      seed: The seed of the order, the crops and the geometry.
      crop: For classification: the crop of each image, see `parse_crop`.
      geometry: For detection and segmentation: the random transforms of images with
        their boxes or masks, see `parse_geometry`.
      workers: The number of processes that read and decode; 0 to read in threads of
        this process. They are spawned, so that a script needs
        `if __name__ == "__main__"`.
      max_boxes: The number of slots for objects, see `fit_source`.
      process_index: The index of this training process.
      process_count: The number of training processes.

    Returns:
      A data set of batches of `batch_size // process_count` examples.

    Raises:
      ValueError: The batch size does not fit the set or the processes, or the crop
        or the geometry does not fit the network or the task.
    """
    _check_processes(batch_size, process_index, process_count)
    labeled = source.task in ("classification", "verification")
    if not labeled and crop != "center":
        raise ValueError(
            f"crop={crop!r} is for classification; for {source.task} there is geometry."
        )
    order = epoch_order(len(source), batch_size, seed)
    _mark_flags_as_parsed()
    load = _Load(
        fit_source(source, preprocess, max_boxes=max_boxes),
        parse_crop(crop, preprocess),
        parse_geometry(geometry, preprocess, task=source.task, seed=seed),
        seed,
        process_index,
        process_count,
    )
    return _TrainStream(order.map_with_index(load), workers)


class _LoadPadded:
    """Loads one process's part of an evaluation batch."""

    def __init__(self, source: FittedSource, batch_size: int, start: int, share: int):
        self.source = source
        self.batch_size, self.start, self.share = batch_size, start, share

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size + self.start
        batch = {
            name: np.zeros((self.share, *shape), dtype)
            for name, (shape, dtype) in self.source.shapes.items()
        }
        batch["valid"] = np.zeros(self.share, bool)
        last = min(first + self.share, len(self.source))
        for slot, index in enumerate(range(first, last)):
            for key, value in self.source[index].items():
                batch[key][slot] = value
            batch["valid"][slot] = True
        return batch


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    max_boxes: int = MAX_BOXES,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Returns batches of every example once, in order, over all processes.

    Args:
      source: The source.
      preprocess: The preprocessing of the network's input.
      batch_size: The number of examples in a global batch, over all processes.
      max_boxes: The number of slots for objects, see `fit_source`.
      process_index: The index of this process.
      process_count: The number of processes.

    Returns:
      A data set of `ceil(N / batch_size)` batches, in each process. All batches have
      `batch_size // process_count` slots; padding at the end is zero and has `valid`
      False.

    Raises:
      ValueError: The batch size does not fit the processes.
    """
    _check_processes(batch_size, process_index, process_count)
    _mark_flags_as_parsed()
    share = batch_size // process_count
    fitted = fit_source(source, preprocess, max_boxes=max_boxes)
    load = _LoadPadded(fitted, batch_size, share * process_index, share)
    steps = -(-len(source) // batch_size)
    return grain.MapDataset.range(steps).map(load).to_iter_dataset(_AHEAD)


def _check_processes(batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index}: expected 0 .. {process_count - 1} "
            f"(process_count={process_count})."
        )
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} cannot be divided over {process_count} "
            "process(es)."
        )


def _mark_flags_as_parsed() -> None:
    # grain reads absl's flags, which only absl's own `app.run` parses.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
