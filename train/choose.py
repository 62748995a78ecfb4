"""Completes a recipe of `train.configs.my_data` by a look at the data."""

import contextlib
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
from train.config import COLORS, DataConfig, ModelConfig, TrainConfig, parse_options
from train.configs.detection import FROZEN
from train.data.annotations import IGNORED, UnnamedClasses
from train.data.formats.image_files import FileMasks
from train.data.inspect import Findings, file_source, inspect
from train.data.source import Source, UnknownSplit, map_in_threads
from train.experiment import fit_preprocess, open_split
from zoo.cpu import jit_inference
from zoo.decode import BadImage
from zoo.spec import Weights
from zoo.summary import abstract_variables

Parse = Callable[[TrainConfig], TrainConfig]

SMALL = 48  # pixels; pictures up to this are taken to be like CIFAR's
# Steps of a training, unless that is fewer or more epochs than these.
STEPS = {"classification": 1500, "detection": 1000, "segmentation": 1000}
EPOCHS = 5, 100
EVALUATIONS = 5
WARMUP = 0.05  # of the steps
# Below this number of images of each class the layers of a network that was trained on
# photographs stay as they are.
FEW = 50
# Small networks' boxes: side in pixels that the middle one, and the smallest, should
# have.
MIDDLE_BOX, SMALLEST_BOX = 36, 8
# Largest number of pixels of a small network's input, on CPUs and elsewhere.
PIXELS = 192 * 256, 512 * 512
# A step of training takes this many times what inference takes; with frozen layers
# about as long again as inference.
STEP_FACTOR, FROZEN_FACTOR = 4.0, 1.5
# Seconds for which a run is compiled, its files are opened and its report is written.
OVERHEAD = 60.0


class Candidate(NamedTuple):
    """A network that may be chosen, and its weights.

    Attributes:
      model: The name of the network.
      weights: The name of its weights; None for a new network.
      frozen: Path patterns of what is not trained.
      accelerator: Whether it wants a GPU or TPU.
    """

    model: str
    weights: str | None
    frozen: tuple[str, ...] = ()
    accelerator: bool = False


# The best first.
PHOTOGRAPHS = (
    Candidate("resnet50", "imagenet", ("backbone/**",), accelerator=True),
    Candidate("resnet18", "imagenet", ("backbone/**",)),
)
CANDIDATES = {
    "classification": (Candidate("cifar_resnet20", "cifar10"),),
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


class Report:
    """Collects what there is to say, and prints it in columns."""

    def __init__(self):
        self.lines: list[str] = []

    def title(self, text: str) -> None:
        self.lines.append(text)

    def row(self, name: str, text: str, flag: str = "") -> None:
        text = f"{text}  ({flag})" if flag else text
        self.lines.append(f"  {name:<12}{text}")

    def item(self, text: str) -> None:
        self.lines.append(f"  - {text}")


def choose(
    recipe: TrainConfig,
    parse: Parse = lambda config: config,
    *,
    accelerator: bool | None = None,
    say: Callable[[str], None] = print,
) -> TrainConfig:
    """Looks at the data, and completes a recipe by what it finds.

    Args:
      recipe: One of `train.configs.my_data`.
      parse: Function from default values to the config with the options that the user
        gave; it is called after each choice, so that later ones agree with them.
      accelerator: Whether there is a GPU or TPU; None to look.
      say: Function that prints what was found, what is odd and what was chosen.

    Returns:
      The config of the training.

    Raises:
      ValueError: There is no data set, or it cannot be read.
    """
    accelerator = jax.default_backend() != "cpu" if accelerator is None else accelerator
    task, report = zoo.get_spec(recipe.model.name).task, Report()
    blank = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, name=""),
        data=dataclasses.replace(recipe.data, train_split="", eval_split=""),
    )
    given = parse(blank)
    if not given.data.dataset:
        raise ValueError("--dataset FORMAT:PATH says where the images are.")
    report.title(f"What {given.data.dataset} has:")
    data, sources, notes = open_splits(given.data, task, given.seed)
    found = inspect(*sources)
    for name, text in found.describe():
        report.row(name, text)
    odd = [*notes, *found.warnings()]

    # The later choices depend on the network, and those on the size of its input.
    config = dataclasses.replace(blank, data=data)
    model, frozen, better = choose_model(given.model, task, found, accelerator)
    config = apply(config, parse, model=model)
    frozen = frozen if config.model == model else ()
    config = apply(config, parse, data=choose_data(config, found, accelerator))
    config = apply(config, parse, **choose_length(config, task, len(sources[0])))
    config = apply(config, parse, optim=choose_optim(config, frozen, len(sources[0])))

    for line in warn_of_size(config, found):
        odd.append(line)
    report.title("What is odd:" if odd else "Nothing in it is odd.")
    for line in odd:
        report.item(line)
    report.title("What was chosen, and the option that changes it:")
    for row in describe_choices(config, found, task):
        report.row(*row)
    if better:
        report.row("better", better)
    minutes = expect_minutes(config, found)
    where = jax.devices()[0].device_kind
    report.row("takes", f"about {minutes} on {jax.device_count()} x {where}")
    say("\n".join(report.lines))
    return config


def apply(config: TrainConfig, parse: Parse, **changes: Any) -> TrainConfig:
    """Replaces parts of a config, and what the user gave again."""
    return parse(dataclasses.replace(config, **changes))


def open_splits(
    data: DataConfig, task: str, seed: int
) -> tuple[DataConfig, tuple[Source, Source], list[str]]:
    """Opens the images to train and to evaluate on, as far as that is not given.

    Args:
      data: The data set; splits are "" where they are to be found.
      task: The name of the task.
      seed: The seed of few-shot sampling.

    Returns:
      The options, the two sources, and what there is to say about them.

    Raises:
      ValueError: The data set cannot be read, or has no images to train on.
    """
    data = dataclasses.replace(data, color=data.color)
    notes: list[str] = []
    if not data.train_split:
        data, train = _open_first(data, ("train", "trainval", "all"), task, seed, notes)
    else:
        data, train = _open_named(data, data.train_split, task, seed, notes)
    if data.eval_split:
        return data, (train, open_split(data, data.eval_split, task, seed)), notes
    for split in ("test", "val"):
        try:
            evaluation = open_split(data, split, task, seed)
        except UnknownSplit:
            continue
        if {*map(evaluation.identity, range(len(evaluation)))} & {
            *map(train.identity, range(len(train)))
        } and data.train_split in ("trainval", "all"):
            continue
        data = dataclasses.replace(data, eval_split=split)
        if split == "test" and data.train_split == "train":
            with contextlib.suppress(UnknownSplit):
                unused = len(open_split(data, "val", task, seed))
                notes.append(
                    f"the {unused:,} images of val are not used; --data.train-split "
                    "train+val trains on them, too."
                )
        return data, (train, evaluation), notes
    whole = data.train_split
    data = dataclasses.replace(
        data, train_split=f"{whole}[:80%]", eval_split=f"{whole}[80%:]"
    )
    notes.append(
        f"there is no split test or val: a fifth of {whole} is held out to evaluate on."
    )
    sources = [
        open_split(data, s, task, seed) for s in (data.train_split, data.eval_split)
    ]
    return data, tuple(sources), notes


def _open_first(
    data: DataConfig, splits: Sequence[str], task: str, seed: int, notes: list[str]
) -> tuple[DataConfig, Source]:
    """Opens the first of some splits that exists."""
    first: UnknownSplit | None = None
    for split in splits:
        try:
            return _open_named(data, split, task, seed, notes)
        except UnknownSplit as error:
            first = first or error
    assert first is not None
    raise first


def _open_named(
    data: DataConfig, split: str, task: str, seed: int, notes: list[str]
) -> tuple[DataConfig, Source]:
    """Opens a split to train on, and finds the classes of masks."""
    data = dataclasses.replace(data, train_split=split)
    try:
        source = open_split(data, split, task, seed)
    except UnnamedClasses:
        # One name for each value, to read what values there are.
        names = tuple(map(str, range(IGNORED)))
        probe = dataclasses.replace(data, classes=names, ignored=(), values=())
        source = open_split(probe, split, task, seed)
        counts = count_values(source)
        found = class_values(counts, data.ignored)
        names = name_values(data.values or found)
        notes.append(explain_unnamed(counts, data, names))
        data = dataclasses.replace(data, classes=names)
        if not data.values and found != [*range(len(found))]:
            data = dataclasses.replace(data, values=tuple(found))
        return data, open_split(data, split, task, seed)
    masks = file_source(source, FileMasks)
    if masks is not None and not data.values:
        counts, names = count_values(source), source.class_names
        found = class_values(counts, data.ignored)
        unnamed = find_unnamed(counts, masks[0].values)
        if unnamed and not data.ignored:
            notes.append(
                f"the value(s) {describe_values(counts, unnamed)} have no name, and "
                f"each of the {len(names)} names has its value: they are taken for no "
                f"class, and ignored (--data.ignored {' '.join(map(str, unnamed))})."
            )
            data = dataclasses.replace(data, ignored=tuple(unnamed))
            return data, open_split(data, split, task, seed)
        if len(found) == len(names) == 2 and found != [0, 1]:
            notes.append(
                f"masks have the values {found[0]} and {found[1]}: they are taken for "
                f"{names[0]} and {names[1]} (--data.values)."
            )
            data = dataclasses.replace(data, values=tuple(found))
            source = open_split(data, split, task, seed)
    return data, source


def count_values(source: Source) -> np.ndarray:
    """Counts the pixels of each value in up to 500 masks: int [256].

    Args:
      source: Images with masks in files.
    """
    found = file_source(source, FileMasks)
    assert found is not None
    masks, positions = found

    def look(place: int) -> np.ndarray:
        try:
            return np.bincount(masks.mask(positions[place]).ravel(), minlength=256)
        except BadImage:
            return np.zeros(256, int)

    chosen = np.linspace(0, len(positions) - 1, min(len(positions), 500)).round()
    places = np.unique(chosen.astype(int)).tolist()
    each = map_in_threads(lambda i: look(places[i]), len(places), "reading masks")
    return sum(each, np.zeros(256, int))


def class_values(counts: np.ndarray, ignored: Sequence[int]) -> list[int]:
    """Returns the values of masks that stand for classes.

    255 does where the masks have no more than two values; else it is ignored.

    Args:
      counts: int [256], the number of pixels with each value.
      ignored: Values that stand for no class.
    """
    values = {*np.flatnonzero(counts).tolist()} - {*ignored}
    if len(values) > 2:
        values -= {IGNORED}
    return sorted(values)


def find_unnamed(counts: np.ndarray, values: np.ndarray) -> list[int]:
    """Returns the values of masks without a name, where each name has its value.

    Where a name has none, the values may be those of other classes, and none is
    returned.

    Args:
      counts: int [256], the number of pixels with each value.
      values: int16 [256], the table of `make_values`.
    """
    named = (values >= 0) & (values < IGNORED)
    if (counts[named] == 0).any():
        return []
    return np.flatnonzero((counts > 0) & (values < 0)).tolist()


def describe_values(counts: np.ndarray, values: Sequence[int]) -> str:
    """Lists values of masks with their parts of the pixels."""
    return ", ".join(f"{v} ({counts[v] / counts.sum():.1%})" for v in values)


def explain_unnamed(counts: np.ndarray, data: DataConfig, names: Sequence[str]) -> str:
    """Says that each value of masks is a class, and how to leave one out.

    Args:
      counts: int [256], the number of pixels with each value.
      data: The options of the data set.
      names: The names of the classes.
    """
    found = class_values(counts, data.ignored)
    text = (
        "nothing says what the classes are called, so EACH of these values of the "
        f"masks is one: {describe_values(counts, found)} of the pixels."
    )
    if not data.values and not data.ignored and len(found) > 2:
        last = found[-1]
        command = f"canon-zoo train my_masks --dataset {data.dataset}"
        text += (
            " A value that stands for no class, such as pixels without a label, is "
            f"left out by its number; {last} by {command} --data.ignored {last}."
        )
    return (
        f"{text} --classes names the {len(names)} in this order, or a file classes.txt "
        "beside the splits."
    )


def name_values(values: Sequence[int]) -> tuple[str, ...]:
    """Names classes by their values; other sets' names are never the same."""
    return tuple(f"value {value}" for value in values)


def choose_model(
    given: ModelConfig, task: str, found: Findings, accelerator: bool
) -> tuple[ModelConfig, tuple[str, ...], str]:
    """Chooses the network, and the best weights there are without a download.

    Args:
      given: What the user said of it.
      task: The name of the task.
      found: What is in the data.
      accelerator: Whether there is a GPU or TPU.

    Returns:
      The network, path patterns of what is to be frozen in it, and options that would
      give a better result, in words.

    Raises:
      ValueError: There are weights, and they do not say of which network.
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
    """Returns the shorter side of the images, in the middle, in pixels."""
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
    changes: dict[str, Any] = {"color": COLORS[spec.preprocess.channels]}
    changes |= choose_size(config.model.name, found, accelerator)
    size = data.size or changes.get("size") or spec.preprocess.shape[:2]
    if found.task == "detection":
        # A few more than the most there are, since evaluations may have other images.
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
    """Chooses epochs, and how often is evaluated and saved.

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


def choose_optim(config: TrainConfig, frozen: tuple[str, ...], count: int):
    """Chooses rate, warm-up and frozen layers.

    Args:
      config: The config so far, with its length.
      frozen: Path patterns of what is to be frozen.
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
    changes["warmup_steps"] = round(WARMUP * total_steps(config, count))
    return dataclasses.replace(config.optim, **changes)


def total_steps(config: TrainConfig, count: int) -> int:
    """Returns the number of steps of a training on a number of images."""
    return config.steps or config.epochs * max(count // config.data.batch_size, 1)


def warn_of_size(config: TrainConfig, found: Findings) -> list[str]:
    """Says what the chosen size does to the boxes."""
    spec, data = zoo.get_spec(config.model.name), config.data
    if found.task != "detection" or not len(found.train.box_sides):
        return []
    height, width = data.size or spec.preprocess.shape[:2]
    sides = found.train.box_sides * np.sqrt(height * width)
    tiny = (sides < SMALLEST_BOX).mean()
    if tiny < 0.02:
        return []
    return [
        f"{tiny:.0%} of the boxes have less than {SMALLEST_BOX} pixels a side in an "
        f"input of {width} x {height}, and will hardly be found: --size takes a "
        "larger one, and cutting the images into parts makes them larger."
    ]


def describe_choices(
    config: TrainConfig, found: Findings, task: str
) -> list[tuple[str, str, str]]:
    """Returns what was chosen: a heading, the words, and the option that changes it."""
    model, data, optim = config.model, config.data, config.optim
    height, width = data.size or zoo.get_spec(model.name).preprocess.shape[:2]
    start = f"starts from {model.weights}" if model.weights else "new, from no weights"
    steps = total_steps(config, found.train.count)
    length = f"{config.epochs} epochs, {steps:,} steps"
    rows = [
        ("network", f"{model.name}, {start}", "--model.name, --from"),
        ("input", f"{width} x {height} pixels, {data.color}", "--size HEIGHT WIDTH"),
        ("batch", f"{data.batch_size} images", "--batch-size"),
        ("length", length, "--epochs"),
        (
            "rate",
            f"{optim.learning_rate:g} ({optim.name}), {optim.schedule}, after "
            f"{optim.warmup_steps} steps of warm-up",
            "--learning-rate, --optim.warmup-steps",
        ),
        ("frozen", ", ".join(optim.freeze) or "nothing", "--freeze"),
        ("augmented", ", ".join(data.augment + data.geometry) or "not", "--augment")
        if task == "classification"
        else ("augmented", ", ".join(data.geometry) or "not", "--geometry"),
    ]
    if task == "detection":
        slots = f"up to {data.max_boxes} boxes in an image"
        rows.insert(2, ("slots", slots, "--data.max-boxes"))
    return rows


def expect_minutes(config: TrainConfig, found: Findings) -> str:
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
    steps = total_steps(config, found.train.count)
    total = OVERHEAD + seconds * (factor * steps + times * evaluated)
    return "a minute" if total < 90 else f"{total / 60:.0f} minutes"
