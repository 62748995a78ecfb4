"""The summary of a user's data and of the training that `train.choose` chose for it."""

import time
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

import zoo
from train.config import TrainConfig, parse_options
from train.data.inspect import Findings
from train.experiment import fit_preprocess
from zoo.cpu import jit_inference
from zoo.summary import abstract_variables

# A step of training takes this many times what inference takes; with frozen layers
# about as long again as inference.
STEP_FACTOR, FROZEN_FACTOR = 4.0, 1.5
# Seconds for which a run is compiled, its files are opened and its report is written.
OVERHEAD = 60.0


def describe_choices(
    config: TrainConfig, found: Findings, notes: Sequence[str], better: str
) -> str:
    """Describes the data, what is odd in it, and what was chosen for it.

    Args:
      config: The config of the training.
      found: What is in the data.
      notes: What was odd when the data was opened.
      better: Options that would give a better result; empty for none.
    """
    shape = config.data.size or zoo.get_spec(config.model.name).preprocess.shape[:2]
    odd = [*notes, *found.warnings(), *found.warn_of_small_boxes(*shape)]
    rows = list_choices(config, found)
    if better:
        rows.append(("better", better))
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    rows.append(("takes", f"about {estimate_time(config, found)} on {where}"))
    lines = [
        f"What {config.data.dataset} has:",
        *(f"  {name:<12}{text}" for name, text in found.describe()),
        "What is odd:" if odd else "Nothing in it is odd.",
        *(f"  - {text}" for text in odd),
        "What was chosen, and the option that changes it:",
        *(f"  {name:<12}{text}" for name, text in rows),
    ]
    return "\n".join(lines)


def list_choices(config: TrainConfig, found: Findings) -> list[tuple[str, str]]:
    """Lists what was chosen: a heading, and the words with the option to change it."""
    model, data, optim = config.model, config.data, config.optim
    height, width = data.size or zoo.get_spec(model.name).preprocess.shape[:2]
    start = f"starts from {model.weights}" if model.weights else "new, from no weights"
    steps = config.total_steps(found.train.count)
    rows = [
        ("network", f"{model.name}, {start}  (--model.name, --from)"),
        ("input", f"{width} x {height} pixels, {data.color}  (--size HEIGHT WIDTH)"),
    ]
    if found.task == "detection":
        slots = f"up to {data.max_boxes} boxes in an image"
        rows.append(("slots", f"{slots}  (--data.max-boxes)"))
    rows += [
        ("batch", f"{data.batch_size} images  (--batch-size)"),
        ("length", f"{config.epochs} epochs, {steps:,} steps  (--epochs)"),
        (
            "rate",
            f"{optim.learning_rate:g} ({optim.name}), {optim.schedule}, after "
            f"{optim.warmup_steps} steps of warm-up"
            "  (--learning-rate, --optim.warmup-steps)",
        ),
        ("frozen", f"{', '.join(optim.freeze) or 'nothing'}  (--freeze)"),
    ]
    if found.task == "classification":
        augmented = ", ".join(data.augment + data.geometry) or "not"
        rows.append(("augmented", f"{augmented}  (--augment)"))
    else:
        rows.append(("augmented", f"{', '.join(data.geometry) or 'not'}  (--geometry)"))
    return rows


def estimate_time(config: TrainConfig, found: Findings) -> str:
    """Estimates the length of a training from the time that inference takes.

    Args:
      config: The config of the training.
      found: What is in the data.

    Returns:
      Minutes, in words.
    """
    spec, data = zoo.get_spec(config.model.name), config.data
    preprocess = fit_preprocess(spec.preprocess, data.fit, data.size)
    options = parse_options(config.model.options)
    model = zoo.build(spec.name, num_classes=len(found.class_names), **options)
    shapes = abstract_variables(model, preprocess.shape)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    images = jnp.zeros((data.batch_size, *preprocess.shape))
    run = jit_inference(partial(model.apply, train=False))
    jax.block_until_ready(run(variables, images))
    started = time.perf_counter()
    jax.block_until_ready(run(variables, images))
    seconds = time.perf_counter() - started
    factor = FROZEN_FACTOR if config.optim.freeze else STEP_FACTOR
    evaluated = found.evaluation.count / data.batch_size
    times = max(1, config.epochs // config.eval_every)
    steps = config.total_steps(found.train.count)
    total = OVERHEAD + seconds * (factor * steps + times * evaluated)
    return "a minute" if total < 90 else f"{total / 60:.0f} minutes"
