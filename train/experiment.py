"""The parts of a run, made from its config and checked before the first step."""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
from flax import linen as nn

import zoo
from train import optim
from train.config import DataConfig, TrainConfig, parse_options
from train.data import Source, find_problems, fit_source, load_dataset
from train.run import Experiment
from train.steps import check_divides, make_mesh
from train.task import Task
from train.tasks import TASKS
from train.warm_start import check_layers, create_model
from zoo.ops import augment
from zoo.spec import Preprocess

# The options of `DataConfig` and of `evaluate` that only some tasks support.
TASK_OPTIONS = {"scales", "align", "landmark_noise", "mirror", "ensemble"}

PACKAGES = ("canon-zoo", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def prepare_experiment(
    config: TrainConfig, sources: tuple[Source, Source] | None = None
) -> Experiment:
    """Opens the data, builds the model and checks that all of it fits together.

    Args:
      config: The config of the run.
      sources: Images to train and to evaluate on, for instance from `array_source`;
        None to open what `config.data` names.

    Raises:
      ValueError: A setting is unknown, out of range, or does not fit the others. All
        problems with the data are reported at once.
    """
    data, problems = config.data, []
    spec = zoo.get_spec(config.model.name)
    task = TASKS[spec.task]
    mesh = make_mesh()
    with _collect(problems):
        check_divides("data.batch_size", data.batch_size, mesh, config.optim.accumulate)
    with _collect(problems):
        check_task_options(data, task, spec.name)
    with _collect(problems):
        check_augment(data.augment, task)
    with _collect(problems):
        check_layers(config.model)
    if sources is None:
        opened = []
        for split in (data.train_split, data.eval_split):
            with _collect(problems):
                opened.append(open_split(data, split, spec.task, config.seed))
        sources = tuple(opened)
    if len(sources) < 2:
        _raise_any(problems)
    check_sources(config, sources)
    if config.optim.freeze and parse_options(config.model.options).get("scan"):
        raise ValueError(
            f"optim.freeze={config.optim.freeze}: with the option scan=True blocks run "
            "as one loop, in which batch norm cannot be frozen; leave it out."
        )
    class_names = sources[0].class_names
    created, preprocess = None, spec.preprocess
    if not problems:
        with _collect(problems):
            created = create_model(config, class_names)
            preprocess = created[-1].preprocess
    train_preprocess = fit_preprocess(preprocess, data.fit, data.size)
    eval_preprocess = fit_preprocess(train_preprocess, data.fit, data.eval_size)
    preprocesses = train_preprocess, eval_preprocess
    # Settings that depend on the images, such as their alignment, are now decided.
    data, prepared = task.prepare_sources(data, sources, preprocesses)
    config = dataclasses.replace(config, data=data)
    train_source, eval_source = fitted = [
        fit_source(
            source, pre, on_bad_image=data.on_bad_image, max_boxes=data.max_boxes
        )
        for source, pre in zip(prepared, preprocesses, strict=True)
    ]
    if len(train_source) < data.batch_size:
        problems.append(
            f"data.batch_size={data.batch_size} is more than the "
            f"{len(train_source)} images of {train_source.name}, "
            f"split {train_source.split}."
        )
    # Random crops give images of any size the network's input size.
    cropped = any(name.split(":")[0] == "random_crop" for name in data.geometry)
    skip = data.on_bad_image == "skip"
    known = created is not None  # the input size; else images cannot be fitted
    problems += find_problems(train_source, fitted=known and not cropped, skip=skip)
    problems += find_problems(eval_source, fitted=known, skip=skip)
    if created is not None:
        flags = "--size", "--data.eval-size"
        for flag, taken in zip(flags, preprocesses, strict=True):
            if taken.shape != spec.preprocess.shape:
                with _collect(problems):
                    check_size(*created[:2], taken, flag)
    _raise_any(problems)
    model, variables, card = created
    card = dataclasses.replace(
        card,
        preprocess=eval_preprocess,
        class_names=class_names,
        source=f"trained on {data.dataset}, split {data.train_split}",
        accuracy="",
        versions=versions(),
    )
    steps_per_epoch = len(train_source) // data.batch_size
    total_steps = config.total_steps(len(train_source))
    config = dataclasses.replace(
        config, optim=optim.scale_warmup(config.optim, total_steps)
    )
    experiment = Experiment(
        config=config,
        spec=spec,
        model=model,
        variables=variables,
        card=card,
        train_source=train_source,
        eval_source=eval_source,
        train_preprocess=train_preprocess,
        mesh=mesh,
        task=task.create(
            spec, config.optim, data, [source.source for source in fitted]
        ),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    # Patterns, schedules and augmentations are checked by tracing them here.
    _ = experiment.make_step(0), jax.eval_shape(experiment.create_state)
    image = jax.ShapeDtypeStruct(train_preprocess.shape, "uint8")
    jax.eval_shape(augment.compose(data.augment), jax.random.key(0), image)
    return experiment


def check_sources(config: TrainConfig, sources: tuple[Source, Source]) -> None:
    """Raises ValueError for different classes, another task, or none to evaluate on."""
    data, spec = config.data, zoo.get_spec(config.model.name)
    train, evaluation = (source.class_names for source in sources)
    if train != evaluation:
        raise ValueError(
            f"the splits {data.train_split} and {data.eval_split} of {data.dataset} "
            f"differ in classes: {train}, {evaluation}."
        )
    for source in sources:
        if source.task != spec.task:
            raise ValueError(
                f"{spec.name} is for {spec.task}, and {data.dataset}, split "
                f"{source.split}, for {source.task}."
            )
    if not len(sources[1]):
        raise ValueError(
            f"data.eval_split={data.eval_split}: {sources[1].name} has no images "
            "there; expected at least one."
        )


@contextlib.contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    """Keeps the message of a ValueError, so that all are reported at once."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def _raise_any(problems: list[str]) -> None:
    """Raises ValueError with all messages, each of them once."""
    found = list(dict.fromkeys(problems))
    if len(found) > 1:
        lines = [f"{i + 1}. {problem}" for i, problem in enumerate(found)]
        raise ValueError("\n".join([f"{len(found)} problems:", *lines]))
    if found:
        raise ValueError(found[0])


def fit_preprocess(
    preprocess: Preprocess, fit: str, size: tuple[int, ...]
) -> Preprocess:
    """Overrides how images are fitted, and the input size, if they are given."""
    changes = {"fit": fit} if fit else {}
    if size:
        changes |= {"size": size[0], "width": size[1]}
    return dataclasses.replace(preprocess, **changes)


def check_size(
    model: nn.Module, variables: Any, preprocess: Preprocess, flag: str
) -> None:
    """Raises ValueError if a network cannot take images of the size."""
    images = jax.ShapeDtypeStruct((1, *preprocess.shape), "float32")
    try:
        jax.eval_shape(partial(model.apply, train=False), variables, images)
    except ValueError as error:
        size = f"{preprocess.shape[0]} {preprocess.shape[1]}"
        raise ValueError(f"{flag} {size}: {error}") from error


def check_task_options(options: Any, task: type[Task], model: str) -> None:
    """Checks that options which only some tasks support have their default values.

    Args:
      options: A dataclass with some of `TASK_OPTIONS` as fields.
      task: The task.
      model: The name of the network, for messages.

    Raises:
      ValueError: Another option is set than the task's `evaluate_options`.
    """
    others = TASK_OPTIONS - task.evaluate_options
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), field.name.replace("_", "-")
        if field.name in others and value != field.default:
            raise ValueError(
                f"--{flag} is not for {model}, whose task is {task.name}; got {value}."
            )


def check_augment(names: tuple[str, ...], task: type[Task]) -> None:
    """Raises ValueError if an augmentation moves pixels but not boxes or masks."""
    moving = [n for n in names if n.split(":")[0] in augment.GEOMETRIC]
    if moving and task.has_targets_in_place:
        raise ValueError(
            f"data.augment={moving[0]} moves pixels and not what {task.name} has "
            "beside them; data.geometry has what moves both."
        )


def open_split(data: DataConfig, split: str, task: str, seed: int = 0) -> Source:
    """Opens one split of a data set; only the training split is sampled (few-shot).

    Args:
      data: The data set and its options.
      split: The name of the split.
      task: The name of the task.
      seed: The seed of few-shot sampling.
    """
    few = data.per_class if split == data.train_split else 0
    return load_dataset(
        data.dataset,
        split,
        data_dir=data.data_dir,
        classes=data.classes or None,
        per_class=few or None,
        seed=seed,
        color=None if data.color == "as_stored" else data.color,
        task=task,
        ignored=data.ignored,
        values=data.values,
        orientation=data.orientation,
    )


def versions() -> dict[str, str]:
    """Returns the versions of the packages that affect a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
