"""Completes a recipe of `train.configs.my_data` for a data set, and explains it."""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    parse_options,
)
from train.configs.detection import FROZEN
from train.data.inspect import SMALLEST_BOX, Findings, inspect
from train.experiment import fit_preprocess
from train.splits import open_splits
from zoo.cpu import jit_inference
from zoo.initialization import abstract_variables
from zoo.spec import Weights

Parse = Callable[[TrainConfig], TrainConfig]

SMALL = 48  # pixels; images up to this size are treated like CIFAR's
# Steps of a training, within the limits on epochs below.
STEPS = {"classification": 1500, "detection": 1000, "segmentation": 1000}
EPOCHS = 5, 100
EVALUATIONS = 5
WARMUP = 0.05  # of the steps
# With fewer images per class than this, the backbone of a network that was trained on
# photographs stays frozen.
FEW = 50
MIDDLE_BOX = 36  # pixels; wanted median side of the boxes in a small network's input
# Largest number of pixels of a small network's input, on CPUs and elsewhere.
PIXELS = 192 * 256, 512 * 512
# Time of a training step as a multiple of inference, without and with frozen layers.
STEP_FACTOR, FROZEN_FACTOR = 4.0, 1.5
# Seconds to compile a run, open its files and write its report.
OVERHEAD = 60.0


class Candidate(NamedTuple):
    """A network that may be chosen, and its weights.

    Attributes:
      model: The name of the network.
      weights: The name of its weights; None for a new network.
      frozen: Path patterns of the parameters that are not trained.
      accelerator: Whether the network wants a GPU or TPU.
    """

    model: str
    weights: str | None
    frozen: tuple[str, ...] = ()
    accelerator: bool = False


# In each task, the best candidate comes first.
PHOTOGRAPHS = (
    Candidate("resnet50", "imagenet", ("backbone/**",), accelerator=True),
    Candidate("resnet18", "imagenet", ("backbone/**",)),
)
CANDIDATES = {
    "classification": (
        Candidate("cifar_resnet20", "cifar10"),
        Candidate("cifar_resnet20", "cifar10_20epochs"),
    ),
    "detection": (
        Candidate("faster_rcnn_resnet50_fpn", "coco", FROZEN, accelerator=True),
        Candidate("ssd300_vgg16", "coco", accelerator=True),
        Candidate("faster_rcnn_small", "digits_canvas"),
    ),
    "segmentation": (
        Candidate("fcn_resnet50", "coco_voc", accelerator=True),
        Candidate("unet_small", "digits_canvas"),
    ),
}


def choose(
    recipe: TrainConfig,
    parse: Parse = lambda config: config,
    *,
    accelerator: bool | None = None,
    say: Callable[[str], None] = print,
) -> TrainConfig:
    """Inspects the data, and completes a recipe accordingly.

    Args:
      recipe: One of `train.configs.my_data`.
      parse: Function from default values to the config with the options that the user
        gave; it is called after each choice, so that later ones agree with them.
      accelerator: Whether there is a GPU or TPU; None to detect it.
      say: Function that prints the summary of the data and of the choices.

    Returns:
      The config of the training.

    Raises:
      ValueError: There is no data set, or it cannot be read.
    """
    accelerator = jax.default_backend() != "cpu" if accelerator is None else accelerator
    task = zoo.get_spec(recipe.model.name).task
    blank = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, name=""),
        data=dataclasses.replace(recipe.data, train_split="", eval_split=""),
    )
    given = parse(blank)
    if not given.data.dataset:
        raise ValueError("--dataset FORMAT:PATH says where the images are.")
    data, sources, notes = open_splits(given.data, task, given.seed)
    found = inspect(*sources)

    def parse_others(config: TrainConfig) -> TrainConfig:
        """Parses all options but the training split, of which a part is held out."""
        config = parse(config)
        split = dataclasses.replace(config.data, train_split=data.train_split)
        return dataclasses.replace(config, data=split)

    # Each choice depends on the earlier ones: the network, then its input, and so on.
    config = dataclasses.replace(blank, data=data)
    model, frozen, better = choose_model(given.model, task, found, accelerator)
    config = apply(config, parse_others, model=model)
    frozen = frozen if config.model == model else ()
    count = len(sources[0])
    config = apply(config, parse_others, data=choose_data(config, found, accelerator))
    config = apply(config, parse_others, **choose_length(config, task, count))
    config = apply(config, parse_others, optim=choose_optim(config, frozen, count))

    say(describe_choices(config, found, notes, better))
    return config


def apply(config: TrainConfig, parse: Parse, **changes: Any) -> TrainConfig:
    """Replaces parts of a config, then applies the user's options again."""
    return parse(dataclasses.replace(config, **changes))


def choose_model(
    given: ModelConfig, task: str, found: Findings, accelerator: bool
) -> tuple[ModelConfig, tuple[str, ...], str]:
    """Chooses the network, and the best weights that need no download.

    Args:
      given: The user's options of the network.
      task: The name of the task.
      found: What is in the data.
      accelerator: Whether there is a GPU or TPU.

    Returns:
      The network, path patterns of the parameters to freeze, and options that would
      give a better result, in words.

    Raises:
      ValueError: Weights are given that do not name their network.
    """
    if given.weights is not None and not given.name:
        if not Path(given.weights).is_dir():
            raise ValueError(f"--from {given.weights} is no run: say --model.name too.")
        name = zoo.weights.read_card(given.weights).model
        return dataclasses.replace(given, name=name), (), ""
    if given.name:
        if given.weights is None:
            return dataclasses.replace(given, weights=find_weights(given.name)), (), ""
        return given, (), ""
    candidates = CANDIDATES[task]
    photographs = task == "classification" and _side(found) > SMALL
    if photographs:
        candidates = PHOTOGRAPHS + candidates
    better = ""
    for one in candidates:
        weights = find_weights(one.model, one.weights)
        if weights and (accelerator or not one.accelerator):
            break
        if not better and one is not candidates[-1]:
            why = "published weights, fetched once"
            why += ", wants a GPU or TPU" if one.accelerator and not accelerator else ""
            better = f"--model.name {one.model} --from {one.weights}  ({why})"
    frozen = one.frozen
    if task == "classification":
        per_class = found.train.count / max(len(found.class_names), 1)
        frozen = frozen if per_class < FEW or not accelerator else ()
    chosen = dataclasses.replace(given, name=one.model, weights=weights)
    return chosen, frozen if weights else (), better


def find_weights(model: str, name: str | None = None) -> str | None:
    """Returns the name of weights that need no download, or None.

    Args:
      model: The name of the network.
      name: The name of the weights; None for any.
    """
    for one in (*zoo.weights.list_trained(model), *zoo.get_spec(model).weights):
        if name in (None, one.name) and _is_there(one):
            return one.name
    return None


def _is_there(weights: Weights) -> bool:
    if not weights.url:
        return True  # The package carries it.
    path = zoo.weights.cache_path(weights)
    torch = path.suffix != ".safetensors"
    return path.exists() and not (torch and importlib.util.find_spec("torch") is None)


def _side(found: Findings) -> float:
    """Returns the median of the images' shorter sides, in pixels."""
    return float(np.median(found.sizes.min(1)))


def choose_data(config: TrainConfig, found: Findings, accelerator: bool) -> DataConfig:
    """Chooses size, colors, boxes, batches and augmentation.

    Args:
      config: The config so far, with the network.
      found: What is in the data.
      accelerator: Whether there is a GPU or TPU.
    """
    spec, data = zoo.get_spec(config.model.name), config.data
    small = found.task == "classification" and _side(found) <= SMALL
    changes: dict[str, Any] = {"color": spec.preprocess.color}
    changes |= choose_size(config.model.name, found, accelerator)
    size = data.size or changes.get("size") or spec.preprocess.shape[:2]
    if found.task == "detection":
        # A few more slots than needed, since later evaluations may have other images.
        changes["max_boxes"] = max(8, -(-found.most_objects // 8) * 8)
    pixels = size[0] * size[1]
    most = 128 if pixels <= 32 * 32 else 64 if pixels <= 64 * 64 else 32
    if found.task != "classification":
        most = 16 if pixels <= 96 * 96 else 8 if pixels <= 512 * 512 else 4
    devices = jax.device_count()
    # An epoch has at least four steps.
    each = max(min(most // devices, found.train.count // (4 * devices)), 1)
    changes["batch_size"] = devices * 2 ** (each.bit_length() - 1)
    changes["eval_batch_size"] = devices * max(
        1, min(most, found.evaluation.count) // devices
    )
    if small and data.augment == ("flip",):
        changes["augment"] = ("pad_crop:4", "flip")
    elif found.task == "classification" and data.crop == "center":
        changes["crop"] = "area:0.35:1"
    if found.train.unreadable or found.evaluation.unreadable:
        changes["on_bad_image"] = "skip"
    return dataclasses.replace(data, **changes)


def choose_size(name: str, found: Findings, accelerator: bool) -> dict[str, Any]:
    """Chooses height and width of a network's input, and how images are fitted to it.

    Args:
      name: The name of the network.
      found: What is in the data.
      accelerator: Whether there is a GPU or TPU.
    """
    preprocess = zoo.get_spec(name).preprocess
    if found.task == "classification":
        double = preprocess.size <= SMALL < _side(found)
        return {"size": (2 * preprocess.size,) * 2} if double else {}
    height, width = np.median(found.sizes, 0)
    if preprocess.fit == "sides":
        largest = np.max(found.sizes, 0)
        factor = min(
            preprocess.resize / largest.min(), preprocess.longest / largest.max()
        )
        same = (found.sizes == found.sizes[0]).all()
        sides = largest * factor if same else (preprocess.longest,) * 2
        return {"size": tuple(int(-(-side // 64) * 64) for side in sides)}
    if preprocess.fit != "keep":
        return {}  # The network has one size.
    limit = PIXELS[accelerator]
    pixels = min(height * width, limit)
    if found.task == "detection" and len(found.train.box_sides):
        low, middle = np.quantile(found.train.box_sides, (0.05, 0.5))
        wanted = max(MIDDLE_BOX / middle, SMALLEST_BOX / low) ** 2
        pixels = min(max(wanted, 96 * 96), limit)
    factor = np.sqrt(pixels / (height * width))
    sides = [max(32, round(side * factor / 16) * 16) for side in (height, width)]
    return {"size": tuple(sides), "fit": "stretch"}


def choose_length(config: TrainConfig, task: str, count: int) -> dict[str, int]:
    """Chooses the number of epochs, and the epochs between evaluations and saves.

    Args:
      config: The config so far, with the batch size.
      task: The name of the task.
      count: The number of training images.
    """
    steps = max(count // config.data.batch_size, 1)
    epochs = int(np.clip(round(STEPS[task] / steps), *EPOCHS))
    if config.steps:
        epochs = max(1, -(-config.steps // steps))
    every = max(1, epochs // EVALUATIONS)
    return {"epochs": epochs, "eval_every": every, "save_every": every}


def choose_optim(
    config: TrainConfig, frozen: tuple[str, ...], count: int
) -> OptimConfig:
    """Chooses the learning rate, the warm-up and the frozen layers.

    Args:
      config: The config so far, with its length.
      frozen: Path patterns of the parameters to freeze.
      count: The number of training images.
    """
    changes: dict[str, Any] = {"freeze": frozen}
    task = zoo.get_spec(config.model.name).task
    if config.model.weights and task == "classification":
        changes["learning_rate"] = 0.02
    published = config.model.weights in {
        w.name for w in zoo.get_spec(config.model.name).weights
    }
    if published and task != "classification":
        changes |= {"name": "sgd", "learning_rate": 0.005}
    changes["warmup_steps"] = round(WARMUP * config.total_steps(count))
    return dataclasses.replace(config.optim, **changes)


def describe_choices(
    config: TrainConfig, found: Findings, notes: Sequence[str], better: str
) -> str:
    """Describes the data, what is odd about it, and the choices that were made.

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
    """Lists the choices as headings and texts, with the options that change them."""
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
