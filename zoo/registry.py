"""The registry of networks: from a name to a spec and a module."""

import contextlib
import fnmatch
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flax.core import FrozenDict

from zoo.checks import check_num_classes
from zoo.classification import (
    alexnet,
    cifar_resnet,
    googlenet,
    he_init,
    imagenet_resnet,
    lenet,
    preact_resnet,
    resnext,
    vgg,
)
from zoo.detection import fast_rcnn, faster_rcnn, rcnn, small, ssd_vgg, yolo
from zoo.face import deepface
from zoo.paths import unknown
from zoo.segmentation import fcn, frrn, pspnet, segnet, unet, unet_resnet
from zoo.spec import ModelSpec

_FAMILIES = (
    lenet,
    alexnet,
    vgg,
    googlenet,
    imagenet_resnet,
    preact_resnet,
    cifar_resnet,
    resnext,
    he_init,
    rcnn,
    fast_rcnn,
    faster_rcnn,
    ssd_vgg,
    yolo,
    small,
    fcn,
    pspnet,
    unet,
    unet_resnet,
    segnet,
    frrn,
    deepface,
)
_SPECS: dict[str, ModelSpec] = {
    spec.name: spec for family in _FAMILIES for spec in family.SPECS
}


@contextlib.contextmanager
def registered(*specs: ModelSpec) -> Iterator[None]:
    """Registers models, such as your own, within a `with` statement.

        with zoo.registry.registered(spec):
            model, variables = zoo.create(spec.name)

    Args:
      *specs: The models. A model with a registered name replaces that one.
    """
    before = dict(_SPECS)
    _SPECS.update({spec.name: spec for spec in specs})
    try:
        yield
    finally:
        _SPECS.clear()
        _SPECS.update(before)


def list_models(pattern: str = "*", *, task: str | None = None) -> list[str]:
    """Lists the names of the registered models.

    Args:
      pattern: Shell pattern that the name must match, such as "*resnet*".
      task: "classification", "detection", "segmentation" or "verification"; None for
        all.

    Raises:
      ValueError: No model has this task.
    """
    tasks = sorted({spec.task for spec in _SPECS.values()})
    if task is not None and task not in tasks:
        raise ValueError(unknown("task", task, tasks))
    return [
        name
        for name, spec in _SPECS.items()
        if fnmatch.fnmatch(name, pattern) and task in (None, spec.task)
    ]


def get_spec(name: str) -> ModelSpec:
    """Returns the spec of the model `name`.

    Raises:
      ValueError: There is no such model; the message suggests the nearest names.
    """
    if name not in _SPECS:
        raise ValueError(unknown("model", name, _SPECS))
    return _SPECS[name]


def build(name: str, *, num_classes: int | None = None, **overrides: Any):
    """Builds the Linen module of the model `name`, without variables.

    Args:
      name: Name of the model.
      num_classes: 0 for no head; None for the paper's number.
      **overrides: Options of the family's builder, such as `dtype` or `shortcut`.

    Raises:
      ValueError: The model or an option is unknown, or a value is out of range.
    """
    spec = get_spec(name)
    check_options(name, overrides)
    if num_classes is None:
        num_classes = spec.num_classes
    check_num_classes(num_classes)
    options = {option: _hashable(value) for option, value in overrides.items()}
    return spec.build(num_classes=num_classes, **options)


def _hashable(value: Any) -> Any:
    """Converts lists to tuples and dicts to frozen dicts, as in a card's options."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, Mapping):
        return FrozenDict({key: _hashable(item) for key, item in value.items()})
    return value


def check_options(name: str, overrides: Iterable[str]) -> None:
    """Checks that a model has options of these names, or `num_classes`.

    Raises:
      ValueError: The model or an option is unknown.
    """
    options = list_options(name)
    for option in overrides:
        if option != "num_classes" and option not in options:
            raise ValueError(unknown(f"option of {name}", option, options))


def list_options(name: str) -> dict[str, Any]:
    """Lists the options of a model's builder with their defaults."""
    spec = get_spec(name)
    # Arguments that the spec has fixed are facts of the model, not options.
    fixed = {"num_classes", *getattr(spec.build, "keywords", {})}
    parameters = inspect.signature(spec.config or spec.build).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in fixed}
