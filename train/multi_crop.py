"""Evaluation by a published protocol, which averages several views of each image."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from train.data import Source
from train.steps import make_mesh
from train.tasks import softmax_cross_entropy
from zoo.cpu import jit_inference
from zoo.metrics import classification as metrics
from zoo.preprocess import normalize
from zoo.protocols import Protocol, mean_probabilities
from zoo.spec import Preprocess

T = TypeVar("T")

# Threads that read, decode and resize; Pillow releases Python's lock.
THREADS = 8
_COUNTED_AT_ONCE = 1024


def evaluate_multi_crop(
    model: nn.Module,
    variables: Any,
    source: Source,
    preprocess: Preprocess,
    protocol: Protocol,
    *,
    batch_size: int,
) -> dict[str, float]:
    """Evaluates a network by a protocol, on each image once.

    Each process evaluates its own share of the images on its own devices; the counts
    of all processes are summed at the end, see `count_views`.

    Args:
      model: A classification network.
      variables: The model's variables.
      source: The images, of any size.
      preprocess: The network's input.
      protocol: The views of each image.
      batch_size: Number of views of the network's input size in a step of one process;
        of larger views, a step has fewer. If views differ in shape, several steps are
        compiled, up to two for each shape.

    Returns:
      `count`, `correct`, `accuracy`, `loss` (of the mean probabilities) and, with 6
      or more classes, `top5`.

    Raises:
      ValueError: The network cannot take the protocol's views or one of the images,
        or the set is empty.
    """
    check_views(model, variables, preprocess, protocol)
    state = count_views(
        model,
        variables,
        source,
        preprocess,
        protocol,
        batch_size=batch_size,
        process=(jax.process_index(), jax.process_count()),
    )
    if jax.process_count() > 1:
        gathered = multihost_utils.process_allgather(state)
        state = jax.tree.map(lambda x: x.sum(axis=0), gathered)
    return metrics.compute(state)


def count_views(
    model: nn.Module,
    variables: Any,
    source: Source,
    preprocess: Preprocess,
    protocol: Protocol,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
) -> metrics.State:
    """Evaluates the images of one process.

    Args:
      model: A classification network.
      variables: The model's variables.
      source: The images of all processes.
      preprocess: The network's input.
      protocol: The views of each image.
      batch_size: The number of views in a step, as in `evaluate_multi_crop`.
      process: The index of this process, and the number of processes.

    Returns:
      The metric's state; the states of all processes can be summed.
    """
    mine = range(process[0], len(source), process[1])

    def read(index: int) -> list[np.ndarray]:
        image = source.image(index)
        try:
            return protocol.views(image, preprocess)
        except ValueError as error:
            raise ValueError(f"{source.provenance(index)}: {error}") from error

    shown = tqdm(
        _ahead(read, mine), protocol.name, len(mine), unit=" images", disable=None
    )
    parts = ((slot, part) for slot, parts in enumerate(shown) for part in parts)
    mesh = make_mesh(jax.local_devices())
    pixels = batch_size * preprocess.size**2
    batches = batch_by_shape(parts, pixels, mesh.size)

    @jit_inference
    def step(variables, views):
        images = normalize(views.reshape(-1, *views.shape[2:]), preprocess)
        logits = model.apply(variables, images)
        return mean_probabilities(logits.reshape(*views.shape[:2], -1))

    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    batched = NamedSharding(mesh, P("data"))
    totals = np.zeros((len(mine), len(source.class_names)), np.float32)
    running: deque[tuple[np.ndarray, jax.Array]] = deque()

    def finish(at_most: int) -> None:
        while len(running) > at_most:
            slots, found = running.popleft()
            # A batch may have several parts of one image.
            np.add.at(totals, slots, np.asarray(found)[: len(slots)])

    for slots, views in batches:
        running.append((slots, step(variables, jax.device_put(views, batched))))
        finish(1)  # The device computes while the next batch is assembled.
    finish(0)
    totals /= max(1, len(protocol.scales))
    return _count(totals, source.labels[mine.start :: mine.step])


def check_views(
    model: nn.Module, variables: Any, preprocess: Preprocess, protocol: Protocol
) -> None:
    """Checks that a network can take the views of a protocol.

    Raises:
      ValueError: It cannot; the message says why.
    """
    protocol.check(preprocess)
    for scale in () if protocol.cropped else protocol.scales:
        shape = (1, scale, scale, preprocess.channels)
        try:
            jax.eval_shape(
                model.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32)
            )
        except ValueError as error:
            raise ValueError(
                f"{protocol.name} shows whole images, from {scale} x {scale} pixels "
                f"on: {error}"
            ) from error


def _ahead(function: Callable[[int], T], indices: range) -> Iterator[T]:
    """Yields `function(index)` in order, computing a few results ahead in threads."""
    with ThreadPoolExecutor(THREADS) as threads:
        waiting: deque = deque()
        try:
            for index in indices:
                waiting.append(threads.submit(function, index))
                if len(waiting) > 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def batch_by_shape(
    parts: Iterator[tuple[int, np.ndarray]],
    pixels: int,
    devices: int,
    *,
    megabytes: int = 1024,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups views of the same shape into batches.

    Args:
      parts: Pairs of an image's number and views uint8 [V, H, W, C].
      pixels: The approximate number of pixels in a batch.
      devices: The number of devices. A batch's length is this times a power of two, so
        that few shapes are compiled.
      megabytes: The most memory for views that wait for others of the same shape.

    Yields:
      Numbers int [n] and views uint8 [N, V, H, W, C], padded with zeros from n on.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    size = 0

    def take(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        nonlocal size
        group = waiting.pop(shape)
        count = devices * 2 ** math.ceil(math.log2(max(1, len(group) / devices)))
        views = np.zeros((count, *shape), np.uint8)
        for i, (_, part) in enumerate(group):
            views[i] = part
        size -= len(group) * math.prod(shape)
        return np.array([number for number, _ in group]), views

    for number, part in parts:
        group = waiting.setdefault(part.shape, [])
        group.append((number, part))
        size += part.size
        room = max(1, pixels // (math.prod(part.shape[:3]) * devices))
        if len(group) >= devices * 2 ** int(math.log2(room)):
            yield take(part.shape)
        elif size > megabytes * 2**20:
            yield take(max(waiting, key=lambda s: len(waiting[s]) * math.prod(s)))
    for shape in [*waiting]:
        yield take(shape)


def _count(probabilities: np.ndarray, labels: np.ndarray) -> metrics.State:
    """Updates the metric with probabilities [N, K] and labels [N]."""

    @jax.jit
    def update(state, probabilities, labels):
        logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
        losses = softmax_cross_entropy(logits, labels)
        return metrics.update(
            state, logits, labels, losses, jnp.ones(labels.shape, bool)
        )

    state = metrics.empty(probabilities.shape[-1])
    for start in range(0, len(labels), _COUNTED_AT_ONCE):
        some = slice(start, start + _COUNTED_AT_ONCE)
        state = update(state, probabilities[some], labels[some])
    return state
