"""Runs the trainings of a study: short ones in memory, long ones by the trainer."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import zoo
from train.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    parse_options,
    to_json,
)
from train.configs import get_config
from train.data.formats.digits import read_digits
from train.fit import fit, resume_run
from train.history import read_history
from train.optim import make_optimizer, make_schedule
from train.state import TrainState, create_state
from train.steps import make_train_step
from train.studies.study import Job, save_values
from train.tasks import Classification, softmax_cross_entropy
from zoo.cpu import compiler_options, jit_inference
from zoo.initialization import init_variables

Array = jax.Array


class Arrays(NamedTuple):
    """Preprocessed images, float32 [N, H, W, C], and their labels, int32 [N]."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """The curves of a run; each list has one value for each entry of `step`.

    Attributes:
      step: Steps done.
      loss: Mean training loss since the last entry; not finite if the run diverged.
      train_error: Error on the training images since the last entry.
      test_error: Error on the test images after the step.
      grad_norm: Mean norm of the gradient since the last entry.
    """

    step: list[int]
    loss: list[float]
    train_error: list[float]
    test_error: list[float]
    grad_norm: list[float]

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or not a number."""
        return not math.isfinite(self.loss[-1])

    def steps_to(self, error: float, *, test: bool = False) -> float:
        """Returns the first step whose training error is at most `error`, or inf.

        Args:
          error: The error to reach.
          test: Whether the test error is to reach it.
        """
        errors = self.test_error if test else self.train_error
        for step, value in zip(self.step, errors, strict=True):
            if value <= error:
                return step
        return math.inf


def digits(side: int, channels: int = 1) -> Arrays:
    """Returns scikit-learn's digits, resized, with mean 0 and standard deviation 1.

    Args:
      side: Height and width, in pixels.
      channels: Number of equal channels.
    """
    images, labels, test = read_digits()
    images = images[..., None].astype(np.float32) / 255
    shape = (len(images), side, side, 1)
    images = np.asarray(jax.image.resize(images, shape, "bilinear"))
    images = (images - images[~test].mean()) / images[~test].std()
    images = np.repeat(images, channels, axis=-1)
    labels = labels.astype(np.int32)
    return Arrays(images[~test], labels[~test], images[test], labels[test])


def build_resnet(name: str, depth: int, width: int) -> nn.Module:
    """Builds a residual or plain CIFAR network of any depth, for 10 classes.

    Args:
      name: Registered network of the same kind, such as "cifar_plain20".
      depth: Layers with weights: 6n + 2, and 9n + 2 with pre-activation.
      width: Channels of the first stage.
    """
    blocks = (depth - 2) // (9 if name.endswith("_v2") else 6)
    options = dict(blocks=(blocks,) * 3, width=width, num_classes=10)
    return zoo.get_spec(name).build(**options)


def short_config(
    name: str,
    *,
    options: tuple[str, ...] = (),
    batch_size: int,
    steps: int,
    seed: int,
    entries: int = 20,
    **optim: Any,
) -> TrainConfig:
    """Returns the config of a short run on digits.

    Args:
      name: Registered name of the network.
      options: Options of the network as name=value.
      batch_size: Images per step.
      steps: Length, in steps.
      seed: Seed of the initialization and of the order of the images.
      entries: Number of entries in the run's curve.
      **optim: Fields of `OptimConfig`; by default a constant rate and no weight decay.
    """
    return TrainConfig(
        model=ModelConfig(name, options=options),
        data=DataConfig("digits", batch_size=batch_size),
        optim=OptimConfig(**{"schedule": "constant", "weight_decay": 0.0, **optim}),
        steps=steps,
        seed=seed,
        log_every=max(1, steps // entries),
    )


def train_short(
    config: TrainConfig,
    arrays: Arrays,
    folder: Path,
    name: str,
    *,
    model: nn.Module | None = None,
    change: Callable[[dict], dict] | None = None,
    frozen: tuple[str, ...] = (),
) -> Curve:
    """Trains a classifier on images in memory; a finished run is read from its file.

    Args:
      config: The run: model, batch size, optimizer, steps, seed and log_every.
      arrays: The images and labels.
      folder: Folder of the study; the curve is kept in `runs/NAME.json` below it.
      name: Name of the run in its study.
      model: Network in place of the one that the config names.
      change: Function that is applied to the initial variables.
      frozen: Path patterns of parameters that are not trained.
    """

    def run() -> Curve:
        options = dict(model=model, change=change, frozen=frozen)
        return train_in_memory(config, arrays, **options)[0]

    # The config does not say where images in memory are from.
    checksum = zlib.crc32(arrays.images.tobytes(), zlib.crc32(arrays.labels.tobytes()))
    plan = {**to_json(config), "images": checksum}
    return read_curve(keep(folder, name, plan, run))


def keep(
    folder: Path, name: str, plan: Mapping[str, Any], run: Callable[[], Any]
) -> dict[str, Any]:
    """Returns the result of a run, which is read if the same run was made before.

    Args:
      folder: Folder of the study; the result is kept in `runs/NAME.json` below it.
      name: Name of the run in its study.
      plan: Description of the run as JSON values; the result of another plan is
        replaced.
      run: Function that makes the run; it returns values that `save_values` accepts.
    """
    path = folder / "runs" / f"{name}.json"
    plan = json.loads(json.dumps(plan))
    if path.exists():
        try:
            kept = json.loads(path.read_bytes())
            same, found = kept["plan"] == plan, kept["found"]
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {error}); without it "
                "the run is done again."
            ) from error
        if same:
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    save_values(path, {"plan": plan, "found": run()})
    return json.loads(path.read_text(encoding="utf-8"))["found"]


def read_curve(values: Mapping[str, list]) -> Curve:
    """Reads the JSON of a curve, with null for values that are not finite."""
    return Curve(
        **{k: [math.nan if x is None else x for x in v] for k, v in values.items()}
    )


def train_in_memory(
    config: TrainConfig,
    arrays: Arrays,
    *,
    model: nn.Module | None = None,
    change: Callable[[dict], dict] | None = None,
    frozen: tuple[str, ...] = (),
    watch: Callable[[int, TrainState], None] | None = None,
) -> tuple[Curve, dict[str, Any]]:
    """Trains like `train_short`, and returns the curve and the variables.

    Args:
      config: The run, as for `train_short`.
      arrays: The images and labels.
      model: Network in place of the one that the config names.
      change: Function that is applied to the initial variables.
      frozen: Path patterns of parameters that are not trained.
      watch: Called with the step and the state at the start and at each entry.
    """
    key = jax.random.key(config.seed)
    if model is None:
        classes = int(arrays.labels.max()) + 1
        options = parse_options(config.model.options)
        model, variables = zoo.create(
            config.model.name, num_classes=classes, key=key, **options
        )
    else:
        variables = init_variables(model, key, arrays.images[:1].shape)
    variables = change(variables) if change else variables
    # Copied, since the step donates its state, and the caller may keep the variables.
    variables = jax.tree.map(jnp.copy, variables)
    schedule = make_schedule(config.optim, config.steps)
    tx = make_optimizer(config.optim, schedule, variables["params"])
    state = create_state(variables, tx, frozen=frozen)
    make = make_train_step(
        model,
        Classification(softmax_cross_entropy),
        tx,
        schedule=schedule,
        prepare=lambda key, batch: batch["image"],
        seed=config.seed,
        frozen=frozen,
    )
    images, labels = jnp.asarray(arrays.images), jnp.asarray(arrays.labels)

    def step_on(state, images, labels, chosen):
        return make(state, {"image": images[chosen], "label": labels[chosen]})

    step_on = jax.jit(
        step_on, donate_argnums=0, compiler_options=compiler_options(training=True)
    )
    predict = jit_inference(
        lambda variables, images: model.apply(variables, images).argmax(-1)
    )
    curve = Curve([], [], [], [], [])
    sums: list[Mapping[str, Array]] = []
    if watch:
        watch(0, state)
    for step, chosen in enumerate(_batches(config, len(images)), start=1):
        state, scalars = step_on(state, images, labels, chosen)
        sums.append(scalars)
        if step % config.log_every and step != config.steps:
            continue
        mean = {k: float(np.mean([float(s[k]) for s in sums])) for k in scalars}
        sums.clear()
        predicted = np.asarray(predict(state.variables(), arrays.test_images))
        curve.step.append(step)
        curve.loss.append(mean["loss"])
        curve.train_error.append(1 - mean["accuracy"])
        curve.test_error.append(float((predicted != arrays.test_labels).mean()))
        curve.grad_norm.append(mean["grad_norm"])
        if watch:
            watch(step, state)
        if not math.isfinite(mean["loss"]):
            break
    return curve, state.variables()


def _batches(config: TrainConfig, count: int):
    """Yields the indices of each step's images, epoch by epoch in random order."""
    size = config.data.batch_size
    if size > count:
        raise ValueError(f"batch_size={size} is more than the {count} images.")
    rng, order = np.random.default_rng(config.seed), np.zeros(0, int)
    for _ in range(config.steps):
        if len(order) < size:
            order = rng.permutation(count)
        yield order[:size]
        order = order[size:]


def long_config(name: str, job: Job, *, seed: int = 0, **fields: Any) -> TrainConfig:
    """Returns a config of the trainer with a study's length, seed and data set.

    Args:
      name: Name of the config.
      job: The study's `sizes.steps` replaces the config's own length, unless it is 0,
        and its data set, if it has one, the config's.
      seed: Seed of the run.
      **fields: Fields of `TrainConfig`, or of its sections, to replace: a dict for
        "model", "data" or "optim".
    """
    config = get_config(name)
    if job.dataset:
        fields["data"] = {**fields.get("data", {}), "dataset": job.dataset}
    for section in ("model", "data", "optim"):
        if section in fields:
            values = fields[section]
            fields[section] = dataclasses.replace(getattr(config, section), **values)
    steps = job.sizes.steps or config.steps
    often = dict(eval_every=1, save_every=1)
    return dataclasses.replace(
        config, **{"steps": steps, "seed": seed, **often, **fields}
    )


def train_long(config: TrainConfig, folder: Path) -> Curve:
    """Trains a classifier by the trainer, see `run_trainer`, and reads its curve."""
    run_trainer(config, folder)
    return read_run(folder)


def run_trainer(config: TrainConfig, folder: Path) -> None:
    """Trains by the trainer; resumes an unfinished run, and keeps a finished one.

    Args:
      config: The config of the run.
      folder: Folder of the run.

    Raises:
      ValueError: A signal stopped the run.
    """
    config = dataclasses.replace(config, run_dir=str(folder))
    if (folder / "config.json").exists():
        result = resume_run(folder, config=config)
    else:
        result = fit(config, folder)
    _ = result.metrics  # Raises if the training is not finished.


def read_run(folder: Path) -> Curve:
    """Reads the curve of a run of the trainer, with one entry for each evaluation."""
    curve, since = Curve([], [], [], [], []), []
    for row in read_history(folder):
        if row["kind"] == "train":
            since.append(row)
        elif since:
            curve.step.append(row["step"])
            curve.test_error.append(1 - row["accuracy"])
            curve.loss.append(float(np.mean([r["loss"] for r in since])))
            accuracy = np.mean([r["accuracy"] for r in since])
            curve.train_error.append(float(1 - accuracy))
            curve.grad_norm.append(float(np.mean([r["grad_norm"] for r in since])))
            since = []
    return curve


class Signal(NamedTuple):
    """The activations of a module and their gradient.

    Attributes:
      input: The module's input.
      output: The module's output; that of a layer is before any activation.
      gradient: Gradient of the loss with respect to `output`.
    """

    input: Array
    output: Array
    gradient: Array


def make_probe(
    model: nn.Module, *, where: str | None = None, train: bool = False
) -> Callable[[Mapping[str, Any], Array, Array], dict[str, Signal]]:
    """Makes the function that reads the signals in the layers of a classifier.

    Args:
      model: A classifier.
      where: Regular expression of the paths of the modules to read; None for every
        convolution and dense layer.
      train: Whether batch norm uses the statistics of the batch.

    Returns:
      `probe(variables, images, labels) -> signals`, jitted, for preprocessed images
      float32 [B, H, W, C] and labels int32 [B]. The loss is the softmax cross-entropy,
      summed over the images; signals are by path, in the order of the network.
    """
    order: list[str] = []

    def run(shifts, variables, images, labels):
        record: dict[str, tuple[Array, Array]] = {}

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            module, path = context.module, "/".join(context.module.path)
            if where is None:
                chosen = module.has_variable("params", "kernel")
            else:
                chosen = re.fullmatch(where, path)
            if context.method_name != "__call__" or not chosen:
                return out
            out = out + shifts[path] if shifts else out
            record[path] = (args[0], out)
            return out

        mutable = ["batch_stats"] if train else []
        with nn.intercept_methods(intercept):
            logits, _ = model.apply(variables, images, train=train, mutable=mutable)
        order[:] = record
        return softmax_cross_entropy(logits, labels).sum(), record

    @jax.jit
    def read(*inputs):
        _, record = jax.eval_shape(lambda *inputs: run({}, *inputs), *inputs)
        shifts = {path: jnp.zeros(x.shape, x.dtype) for path, (_, x) in record.items()}
        gradients, record = jax.grad(run, has_aux=True)(shifts, *inputs)
        return {path: Signal(*record[path], gradients[path]) for path in record}

    def probe(variables, images, labels):
        found = read(variables, images, labels)
        return {path: found[path] for path in order}

    return probe
