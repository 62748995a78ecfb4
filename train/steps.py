"""The jitted training and evaluation steps, for any task."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.state import TrainState
from train.task import Task
from zoo.cpu import compiler_options, jit_inference
from zoo.preprocess import normalize
from zoo.spec import Preprocess
from zoo.transfer import freeze_statistics, frozen_modules, merge, split

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
# Maps a state and batches to the new state and metrics with one value per step.
RunSteps = Callable[
    [TrainState, Iterable[Batch]], tuple[TrainState, dict[str, np.ndarray]]
]


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with one axis, "data", over all devices of all processes."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def check_divides(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that a batch can be spread evenly over the devices.

    Raises:
      ValueError: It cannot; the message names the setting, the batch size and the
        number of devices.
    """
    if batch_size % (mesh.size * parts):
        split_in = f", each of {parts} accumulated parts" if parts > 1 else ""
        step = mesh.size * parts
        lower, upper = batch_size // step * step, -(-batch_size // step) * step
        fitting = f"{lower} or {upper}" if lower else str(upper)
        raise ValueError(
            f"{name}={batch_size} does not divide by the {mesh.size} devices"
            f"{split_in}; take a multiple of {step}, such as {fitting}."
        )


def make_prepare(
    preprocess: Preprocess, augment: Callable[[jax.Array, jax.Array], jax.Array] | None
) -> Callable[[jax.Array, Batch], jax.Array]:
    """Makes the function that turns a batch of uint8 images into the network's input.

    Each image's random numbers depend on the key and its index in the data set, so
    that they are the same on any number of devices and processes. Where a batch has
    `size` int32 [B, 2], the height and width that each image fills, the rest of the
    input is 0, which is the mean color.

    Args:
      preprocess: The network's input.
      augment: A function from a key and one uint8 image [H, W, C] to another, which
        may be float32 in the same range, to avoid rounding. None for no augmentation.
    """

    def prepare(key: jax.Array, batch: Batch) -> jax.Array:
        images = batch["image"]
        if augment is not None:
            keys = jax.vmap(partial(jax.random.fold_in, key))(batch["index"])
            images = jax.vmap(augment)(keys, images)
        images = normalize(images, preprocess)
        if "size" in batch:
            images = jnp.where(_filled(images, batch["size"]), images, 0)
        return images

    return prepare


def _filled(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns the mask [B, H, W, 1] of pixels within each image's height and width."""
    rows, columns = jnp.indices(images.shape[1:3])[:, None]
    heights, widths = sizes.T[:, :, None, None]
    return ((rows < heights) & (columns < widths))[..., None]


def make_train_step(
    model: nn.Module,
    task: Task,
    tx: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    prepare: Callable[[jax.Array, Batch], jax.Array],
    seed: int,
    frozen: tuple[str, ...] = (),
    ema_decay: float | None = None,
    accumulate: int = 1,
) -> Step:
    """Makes the pure function of one training step.

    Args:
      model: The network.
      task: The task, which defines the loss.
      tx: The optimizer of the trained parameters.
      schedule: The learning rate by step, for the log.
      prepare: A function from `make_prepare`.
      seed: The seed of augmentation and dropout.
      frozen: Paths or path patterns of the parameters that are not trained.
      ema_decay: The decay of the moving average; None for no average.
      accumulate: The number of parts that the batch is split into, which are processed
        one after another. Up to rounding, the gradient is that of the whole batch,
        unless there is dropout or batch norm: batch norm normalizes each part by its
        own statistics, and updates its running averages once for each part.

    Returns:
      `step(state, batch) -> (state, metrics)`; metrics are the float32 scalars `loss`,
      the sum of all losses, `grad_norm`, `learning_rate`, and those of the task.
    """

    def inputs(key, batch, part):
        """Returns images and random keys; only the dropout key depends on the part."""
        key_images, key_dropout = jax.random.split(key)
        rngs = {"sample": jax.random.fold_in(key_dropout, 1)}
        if part is not None:
            key_dropout = jax.random.fold_in(key_dropout, part + 2)
        return prepare(key_images, batch), {"dropout": key_dropout, **rngs}

    def count(trained, kept, batch_stats, key, batch, part):
        images, rngs = inputs(key, batch, part)
        variables = {"params": merge(trained, kept), "batch_stats": batch_stats}
        with freeze_statistics(frozen_modules(variables["params"], frozen)):
            return task.counts(model, variables, images, batch, rngs)

    def gradients(trained, kept, batch_stats, key, batch, part=None, counts=None):
        images, rngs = inputs(key, batch, part)
        still = frozen_modules(merge(trained, kept), frozen)

        def objective(trained):
            variables = {"params": merge(trained, kept), "batch_stats": batch_stats}
            with freeze_statistics(still):
                loss, scalars, stats = task.objective(
                    model, variables, images, batch, rngs, counts
                )
            return loss, (stats, scalars)

        differentiate = jax.value_and_grad(objective, has_aux=True)
        (loss, (stats, scalars)), grads = differentiate(trained)
        return grads, stats, {"loss": loss, **scalars}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, kept = split(state.params, frozen)
        if accumulate == 1:
            grads, stats, scalars = gradients(
                trained, kept, state.batch_stats, key, batch
            )
        else:
            grads, stats, scalars = _accumulate(
                partial(count, trained, kept),
                partial(gradients, trained, kept),
                state.batch_stats,
                key,
                batch,
                accumulate,
            )
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema_decay is not None:
            # In this form the average of a constant stays constant, bit for bit.
            ema = jax.tree.map(
                lambda old, new: old + (1 - ema_decay) * (new - old),
                ema,
                {"params": trained, "batch_stats": stats},
            )
        scalars |= {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        state = TrainState(state.step + 1, merge(kept, trained), stats, opt_state, ema)
        return state, scalars

    return step


def _accumulate(count, gradients, batch_stats, key, batch, parts):
    """Averages gradients over parts of the batch; each part updates the statistics.

    Losses are divided by the counts of the whole batch, which are computed first.
    """
    # A part is every parts-th image, so that no image moves to another device.
    batches = [{k: v[i::parts] for k, v in batch.items()} for i in range(parts)]
    counts = [count(batch_stats, key, part, i) for i, part in enumerate(batches)]
    total = jax.tree.map(lambda *each: jnp.maximum(sum(each), 1) / parts, *counts)
    grads = scalars = None
    for i, part in enumerate(batches):
        new, batch_stats, values = gradients(batch_stats, key, part, i, total)
        if grads is None:
            grads, scalars = new, values
        else:
            grads, scalars = jax.tree.map(jnp.add, (grads, scalars), (new, values))
    grads, scalars = jax.tree.map(lambda x: x / parts, (grads, scalars))
    return grads, batch_stats, scalars


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, P())


def data_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is split over the devices."""
    return NamedSharding(mesh, P("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Puts this process's part of a batch on its devices."""
    sharding = data_sharded(mesh)
    return {
        k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()
    }


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Replicates a tree of arrays, the same in all processes, on every device."""
    put = partial(jax.make_array_from_process_local_data, replicated(mesh))
    return jax.tree.map(lambda x: put(np.asarray(x), np.shape(x)), tree)


def jit_step(step: Callable, sharding: NamedSharding) -> Callable:
    """Compiles a training step, which donates its first argument.

    Args:
      step: A function from a state and anything else to a new state and anything else.
      sharding: The sharding of all results.
    """
    options = compiler_options(training=True)
    return jax.jit(
        step, donate_argnums=0, out_shardings=sharding, compiler_options=options
    )


def make_run_steps(
    step: Step,
    mesh: Mesh,
    data: Batch | None = None,
    *,
    most: int = 1,
    loop: bool | None = None,
) -> RunSteps:
    """Makes the function that runs a training step on several batches.

    Args:
      step: The training step.
      mesh: The devices.
      data: The arrays [N, ...] of a set on the devices, from which each batch's images
        are gathered by their `index`; None if batches hold the arrays themselves.
      most: The largest number of batches in a call, if `data` is given.
      loop: Whether all steps of a call are compiled into one loop, if `data` is given.
        None for yes, except on the CPU, where XLA runs convolutions inside a loop about
        thirty times slower than outside.

    Returns:
      `run(state, batches) -> (state, metrics)`; the state is donated, and each metric
      has one value per step.
    """
    everywhere = replicated(mesh)
    if loop is None:
        loop = mesh.devices.flat[0].platform != "cpu"

    def gather_step(state, data, indices):
        batch = {k: jnp.take(v, indices, axis=0) for k, v in data.items()}
        batch = {**batch, "index": indices}
        batch = jax.lax.with_sharding_constraint(batch, data_sharded(mesh))
        return step(state, batch)

    def loop_steps(state, data, order, count):
        shapes = jax.eval_shape(gather_step, state, data, order[0])[1]
        out = {k: jnp.zeros(len(order), v.dtype) for k, v in shapes.items()}

        def body(i, carry):
            state, out = carry
            state, scalars = gather_step(state, data, order[i])
            return state, {k: out[k].at[i].set(scalars[k]) for k in out}

        return jax.lax.fori_loop(0, count, body, (state, out))

    one = jit_step(step if data is None else gather_step, everywhere)
    many = jit_step(loop_steps, everywhere)

    def run_each(state, batches):
        out = []
        for batch in batches:
            if data is not None:
                batch = data, put_replicated(batch["index"], mesh)
            else:
                batch = (batch,)
            state, scalars = one(state, *batch)
            out.append(scalars)
        out = jax.device_get(out)
        return state, {k: np.stack([s[k] for s in out]) for k in out[0]}

    def run_loop(state, batches):
        order = np.stack([batch["index"] for batch in batches])
        # Padded to a fixed length, so that one loop serves every number of batches.
        rows = np.zeros((most, order.shape[1]), np.int32)
        rows[: len(order)] = order
        rows, count = put_replicated((rows, len(order)), mesh)
        state, out = many(state, data, rows, count)
        return state, {k: v[: len(order)] for k, v in jax.device_get(out).items()}

    return run_loop if loop and data is not None else run_each


def make_eval_step(
    model: nn.Module, task: Task, preprocess: Preprocess, mesh: Mesh
) -> Callable[[Any, Any, Batch], tuple[Any, Metrics]]:
    """Makes the jitted evaluation step for one batch.

    Returns:
      `step(variables, state, batch) -> (state, each)`: the metric's new state, and the
      results for each image with the batch's `index` and `valid`.
    """
    prepare = make_prepare(preprocess, None)

    def step(variables, state, batch):
        images = prepare(None, batch)
        state, each = task.evaluate(model, variables, images, state, batch)
        return state, {**each, "index": batch["index"], "valid": batch["valid"]}

    return jit_inference(step, out_shardings=replicated(mesh))
