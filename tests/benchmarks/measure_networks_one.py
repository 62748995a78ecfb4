"""Measures one network, in a process of its own."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from train.data.preprocess import MAX_BOXES, fitted_shapes
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.tasks import make_pixel_loss, make_task
from zoo.summary import abstract_variables
from zoo.verify.deterministic import BRANCH_GAIN, fill_all, make_images
from zoo.weights.torch_format import from_torch, list_torch_shapes

# Memory is assigned before machine code is generated, which can therefore be cheap.
CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Compiling these takes more than ten minutes without.
OPTIONS = {"cifar_resnet1202": {"scan": True}}


def clocked(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """Calls a function; returns its result, when it is ready, and the seconds."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - began


def measure_first_call(name: str) -> dict[str, float]:
    """Measures what a user waits for, from the name to the first logits of one image.

    Returns:
      Seconds: `create` with random weights, `load` from a safetensors file, `trace`,
      `compile` and the first `run`, and `again` a later one.
    """
    # What jax itself has to begin with.
    jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(1)))
    seconds = {}
    create = partial(zoo.create_with_card, name, **OPTIONS.get(name, {}))
    (_, variables, card), seconds["create"] = clocked(create)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        zoo.weights.save_safetensors(path, variables, card)
        del variables
        load = partial(zoo.create, name, weights=str(path))
        (model, variables), seconds["load"] = clocked(load)
    images = jnp.asarray(make_images(card.preprocess, 1))
    lowered, seconds["trace"] = clocked(jax.jit(model.apply).lower, variables, images)
    apply, seconds["compile"] = clocked(lowered.compile)
    _, seconds["run"] = clocked(apply, variables, images)
    seconds["again"] = min(clocked(apply, variables, images)[1] for _ in range(3))
    return {k: round(v, 4) for k, v in seconds.items()}


def measure_deviation(name: str, *, images: int = 8) -> float:
    """Returns how far bfloat16 logits are from float32 ones.

    Both are of the same deterministic weights and images; the largest difference is
    in units of the largest logit.
    """
    shapes = list_torch_shapes(name)
    state = fill_all(shapes, branch_gain=BRANCH_GAIN if "resnet" in name else 1.0)
    variables = jax.tree.map(jnp.asarray, from_torch(name, state))
    batch = jnp.asarray(make_images(zoo.get_spec(name).preprocess, images))
    exact, rounded = (
        np.asarray(jax.jit(model.apply)(variables, batch))
        for model in (
            zoo.build(name, dtype=dtype, **OPTIONS.get(name, {}))
            for dtype in (jnp.float32, jnp.bfloat16)
        )
    )
    return float(f"{np.abs(rounded - exact).max() / np.abs(exact).max():.3g}")


def make_training_step(name: str, batch: int, model: Any) -> tuple[Callable, Any, Any]:
    """Makes the step of `train` with SGD and momentum.

    Args:
      name: Name of the network whose preprocessing and loss are taken.
      batch: Number of images.
      model: The network.

    Returns:
      The step, and the shapes of its state and of a batch.
    """
    spec = zoo.get_spec(name)
    pre = spec.preprocess
    balanced = spec.loss == "median_frequency"  # With a weight for each class.
    task = make_task(spec)
    if balanced:
        loss = make_pixel_loss(spec.loss, (1.0,) * spec.num_classes)
        task = dataclasses.replace(task, loss=loss)
    schedule = optax.constant_schedule(0.1)
    tx = optax.sgd(schedule, momentum=0.9)
    step = make_train_step(
        model,
        task,
        tx,
        schedule=schedule,
        prepare=make_prepare(pre, None),
        seed=0,
    )
    variables = abstract_variables(model, pre.shape)
    state = jax.eval_shape(lambda variables: create_state(variables, tx), variables)
    arrays = fitted_shapes(spec.task, pre, MAX_BOXES)
    batch = {k: jax.ShapeDtypeStruct((batch, *s), t) for k, (s, t) in arrays.items()}
    return step, state, batch


def lower_training_step(name: str, batch: int, **options: Any) -> jax.stages.Lowered:
    """Traces a network's step of `train` from shapes alone.

    Args:
      name: Name of the network.
      batch: Number of images.
      **options: Options of the network.
    """
    step, *shapes = make_training_step(name, batch, zoo.build(name, **options))
    return jax.jit(step, donate_argnums=0).lower(*shapes)


def measure_training(name: str, batch: int = 8, **options: Any) -> dict[str, float]:
    """Measures the seconds to trace and to compile a training step."""
    lowered, trace = clocked(lambda: lower_training_step(name, batch, **options))
    _, compile_ = clocked(lowered.compile)
    return {"trace": round(trace, 2), "compile": round(compile_, 2)}


def measure_memory(name: str, batches: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """Asks the compiler for the memory of a training step, whose state is donated.

    Returns:
      MiB by batch, without and with `remat`. For the latter the compiler is kept from
      merging what is computed again with what was computed before, which that of CPUs
      does and those of accelerators do not.
    """
    apart = {**CHEAP, "xla_disable_hlo_passes": "cse_barrier_expander"}
    found = {}
    for kind, options in {"plain": CHEAP, "remat": apart}.items():
        found[kind] = {}
        for batch in batches:
            lowered = lower_training_step(name, batch, remat=kind == "remat")
            mebibytes = total_memory(lowered.compile(options)) // 2**20
            found[kind][str(batch)] = mebibytes
    return found


def total_memory(compiled: jax.stages.Compiled) -> int:
    """Adds up the bytes that a compiled function holds at once, at most.

    These are its arguments, temporary values, and outputs that do not take the place of
    arguments.
    """
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def measure(name: str, parts: tuple[str, ...], batches: tuple[int, ...]) -> dict:
    """Measures parts of what is measured of a network.

    Args:
      name: Name of the network.
      parts: Keys of the result.
      batches: For which batches to ask for the memory of training.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    measures = {
        "first_call_seconds": measure_first_call,
        "training_step_seconds": measure_training,
        "bfloat16_deviation": measure_deviation,
        "training_mebibytes": lambda name: measure_memory(name, batches),
    }
    return {part: measures[part](name) for part in parts}
