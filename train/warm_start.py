"""Creates the network to train: a new one, a trained one, or with another's layers."""

import dataclasses
import logging
from typing import Any

import jax
from flax import linen as nn

import zoo
from train.config import ModelConfig, TrainConfig, parse_options
from zoo.paths import flatten, match_paths
from zoo.spec import Card, Preprocess
from zoo.transfer import graft, replace_head

logger = logging.getLogger("train")


def check_layers(model: ModelConfig) -> None:
    """Raises ValueError if layers of another network are requested without weights."""
    if model.layers and not model.weights:
        raise ValueError(
            f"model.layers={model.layers} are those of another network's run, and "
            "there is none: give --from RUN, or --model.layers without a value."
        )


def create_model(
    config: TrainConfig, class_names: tuple[str, ...]
) -> tuple[nn.Module, dict[str, Any], Card]:
    """Creates the network for these classes, and the variables it starts from.

    If weights were trained on other classes, the head is replaced; it keeps the weights
    of the classes that both have, and those that depend on no class. With `layers`,
    only those layers are copied from another network, along with its scale and order
    of colors.

    Args:
      config: The config of the run.
      class_names: The names of the classes to train on.

    Returns:
      The network, its variables and their card.

    Raises:
      ValueError: The model, its options or weights are unknown or do not fit.
    """
    name, weights = config.model.name, config.model.weights
    layers = config.model.layers
    check_layers(config.model)
    options = parse_options(config.model.options)
    if config.model.dtype != "float32":
        options["dtype"] = config.model.dtype
    key, count = jax.random.key(config.seed), len(class_names)
    fresh = not weights or layers
    model, variables, card = zoo.create_with_card(
        name,
        weights=None if fresh else weights,
        num_classes=count if fresh else None,
        key=key,
        **options,
    )
    if layers:
        source, other = read_other(weights)
        convert = zoo.get_spec(name).from_classifier
        preprocess = other.preprocess
        if convert is not None:
            source, preprocess = convert(source, other)
        card = _take_colors(card, preprocess)
        variables = take_layers(variables, source, layers)
    known = card.class_names
    if not fresh and (card.num_classes != count or (known and known != class_names)):
        shared = {i: known.index(c) for i, c in enumerate(class_names) if c in known}
        logger.warning(
            "%s has %d classes of its own; the head for %d is new, but for the %d that "
            "both have.",
            weights,
            card.num_classes,
            count,
            len(shared),
        )
        model, variables = replace_head(model, variables, count, key=key, shared=shared)
    # The dtype of the computation is a choice of the run, not a property of weights.
    overrides = {k: v for k, v in card.overrides.items() if k != "dtype"}
    card = dataclasses.replace(card, num_classes=count, overrides=overrides)
    return model, variables, card


def read_other(weights: str) -> tuple[dict[str, Any], Card]:
    """Reads the variables of a network other than the one to train.

    Args:
      weights: A run folder, or MODEL:WEIGHTS, such as "vgg16:imagenet".
    """
    name, sign, rest = weights.partition(":")
    if sign and name in zoo.list_models():
        return zoo.create_with_card(name, weights=rest)[1:]
    return zoo.weights.read_checkpoint(weights)[:2]


def take_layers(
    target: dict[str, Any], source: dict[str, Any], layers: tuple[str, ...]
) -> dict[str, Any]:
    """Copies some layers of one network's variables into another's.

    Args:
      target: Variables to copy into.
      source: Variables to copy from; the copied paths must have the same shapes.
      layers: Path patterns of the layers.

    Raises:
      ValueError: A pattern matches nothing, or the layers differ between the networks.
    """
    trees = *target.values(), *source.values()
    paths = {path for tree in trees for path in flatten(tree)}
    others = paths - match_paths([*paths], layers)
    return graft(target, source, keep=sorted(others))


def _take_colors(card: Card, preprocess: Preprocess) -> Card:
    """Takes the scale and order of colors from another network's preprocessing."""
    names = ("mean", "std", "channel_order")
    if preprocess.channels != card.preprocess.channels:
        return card
    colors = {name: getattr(preprocess, name) for name in names}
    preprocess = dataclasses.replace(card.preprocess, **colors)
    return dataclasses.replace(card, preprocess=preprocess)
