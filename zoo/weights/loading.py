"""Loads a model's variables by its name from a source of weights."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.paths import flatten, unknown
from zoo.registry import build, check_options, get_spec, list_options
from zoo.spec import Card, Weights, plain_options
from zoo.weights.checkpoints import find_tree, read_checkpoint, read_tree
from zoo.weights.darknet import SUFFIX, read_darknet
from zoo.weights.download import fetch, file_sha256
from zoo.weights.files import (
    check_file,
    has_our_names,
    nest,
    read_safetensors,
    read_state_dict,
    save_safetensors,
)
from zoo.weights.fit import expected_shapes, require_fit, warn_not_finite
from zoo.weights.torch_format import build_for, count_classes, move_from_torch
from zoo.weights.trained import find_trained, list_trained

# Options of the computation and of the training, which do not change the parameters.
FREE_OPTIONS = (
    *("dtype", "param_dtype", "remat", "init", "momentum", "dropout"),
    *("fully_convolutional", "output_stride", "scan", "bias"),
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Variables, their card and their model.

    Attributes:
      variables: {"params": ..., "batch_stats": ...} of numpy arrays.
      card: Model, options, preprocessing, class names and origin of the variables.
      model: The module of the variables.
    """

    variables: dict[str, Any]
    card: Card
    model: nn.Module


def load(name: str, source: str | os.PathLike, **overrides: Any) -> Loaded:
    """Loads the variables of a model.

    Args:
      name: Name of the model.
      source: A name of published weights, which are downloaded once, or of weights that
        the package includes; or the path of a .safetensors file (ours, or with
        PyTorch's names), of a .pt, .pth, .th, .bin or .ckpt file, of a .weights file of
        Darknet, of a run folder, of one of its checkpoints, or of any orbax checkpoint
        of a tree with "params" and, where the network has batch norm, "batch_stats". A
        name takes precedence over a path; write "./cifar10" for a file with the name of
        published weights.
      **overrides: Options of the model, and `num_classes`; a source with a card has its
        own. `dtype` and other options that do not change the parameters may differ from
        the card's.

    Returns:
      Variables in the model's dtypes, whatever the source's are: parameters are
      `param_dtype`, float32 by default, and batch statistics float32.

    Raises:
      FileNotFoundError: A folder has no checkpoint, or a download is forbidden.
      ConnectionError: A download failed.
      ValueError: The model, an option or the source is unknown; the source is damaged,
        is another model's, or was made with other options; or its arrays are not
        exactly those of the model. (NaN in them is logged and is no error.)
    """
    loaded = _load(name, source, overrides)
    options = {"param_dtype": "float32", **loaded.card.overrides, **overrides}
    types = {"params": jnp.dtype(options["param_dtype"])}
    for collection, tree in loaded.variables.items():
        _cast(tree, types.get(collection, jnp.dtype("float32")))
    warn_not_finite(f"{source} for {name}", flatten(loaded.variables))
    return loaded


def _load(name: str, source: str | os.PathLike, overrides: Mapping[str, Any]) -> Loaded:
    """Loads variables as `load` does, in the dtypes of the source."""
    check_options(name, overrides)
    facts = _published(name, source)
    options, model = {**dict(facts.options if facts else ()), **overrides}, None
    if facts is not None:
        model = build(name, **options)  # A wrong option is an error before a download.
    path = find_source(name, source)
    try:
        arrays, card = _read(name, path, overrides)
        if card is not None:
            _check_card(card, name, path, overrides, arrays)
            options = {**card.overrides, **overrides, "num_classes": card.num_classes}
            try:
                model = build(name, **options)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        elif facts is None:
            # Published weights are recognized by the hash of the file.
            if get_spec(name).weights and path.is_file():
                facts = recognize(name, file_sha256(path))
            options = {**dict(facts.options if facts else ()), **overrides}
            model = build(name, **options)
        model, variables = _fit(name, path, arrays, model, options)
        card = card or _make_card(name, path, facts, model, variables, options)
        return Loaded(variables, card, model)
    except (ValueError, OSError, ImportError):
        raise
    # A damaged file can raise any error in the code that reads it.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights of {name}: {type(error).__name__}: "
            f"{str(error)[:400]}"
        ) from error


def _cast(tree: dict[str, Any], dtype: np.dtype) -> None:
    """Casts the arrays of a tree in place, one at a time to save memory."""
    for key, value in tree.items():
        if isinstance(value, dict):
            _cast(value, dtype)
        elif value.dtype != dtype:
            # Values that are too large become infinite, which `load` logs.
            with np.errstate(over="ignore"):
                tree[key] = value.astype(dtype)


def _read(
    name: str, path: Path, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], Card | None]:
    """Reads the arrays of a file or folder by name, and the card if it has one."""
    if path.is_dir():
        tree = find_tree(path)
        if tree is not None:
            return flatten(read_tree(tree)), None
        variables, card, _ = read_checkpoint(path)
        return flatten(variables), card
    if path.suffix == SUFFIX:
        return read_darknet(name, path, **overrides), None
    if check_file(path).suffix == ".safetensors":
        return read_safetensors(path)
    return read_state_dict(path), None


def _fit(
    name: str,
    path: Path,
    arrays: dict[str, Any],
    model: nn.Module,
    options: Mapping[str, Any],
) -> tuple[nn.Module, dict[str, Any]]:
    """Converts arrays with our names or PyTorch's to the variables of the model."""
    if not has_our_names(arrays):
        try:
            return move_from_torch(name, arrays, model, **options)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    variables = nest(arrays, path)
    model = build_for(name, variables, model, **options)
    classes = options.get("num_classes")
    if classes is None:
        classes = count_classes(name, model, variables)
    require_fit(
        f"{path} does not fit {name} with {classes} classes",
        expected_shapes(name, model),
        arrays,
    )
    return model, variables


def convert(
    name: str,
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    layout: str = "zoo",
    **overrides: Any,
) -> None:
    """Writes the weights that `load` finds into one safetensors file.

    The arrays keep the source's dtypes.

    Args:
      name: Name of the model.
      source: As in `load`.
      target: Path that ends in .safetensors.
      layout: "zoo" or "torch", as in `save_safetensors`.
      **overrides: As in `load`.

    Raises:
      ValueError: As in `load` and `save_safetensors`.
      OSError: `target` cannot be written.
    """
    loaded = _load(name, source, overrides)
    warn_not_finite(f"{source} for {name}", flatten(loaded.variables))
    save_safetensors(target, loaded.variables, loaded.card, layout=layout)


def _published(name: str, source: str | os.PathLike) -> Weights | None:
    """Returns the published weights of this name, if there are any."""
    return {w.name: w for w in get_spec(name).weights}.get(source)


def find_source(name: str, source: str | os.PathLike) -> Path:
    """Finds the file or folder of a source, and fetches published weights.

    Args:
      name: Name of the model.
      source: See `load`.

    Raises:
      ConnectionError: A download failed.
      ValueError: The source is unknown.
    """
    facts = _published(name, source)
    if facts is not None:
        # A file may also have the heads that only training used.
        return fetch(facts, max_bytes=(100 << 20) + 8 * get_spec(name).params)
    carried = find_trained(name, str(source))
    if carried is not None:
        return carried
    try:
        path = Path(source).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"weights={str(source)[:200]!r}: {error}.") from error
    if not exists:
        published = [
            weights.name for weights in (*get_spec(name).weights, *list_trained(name))
        ]
        names = unknown(f"weights of {name}", str(source), published)
        raise ValueError(f"{names} Nor is there a file or folder of that path.")
    return path


def _check_card(
    card: Card,
    name: str,
    path: Path,
    overrides: Mapping[str, Any],
    arrays: Mapping[str, Any],
) -> None:
    """Checks that a source was made for this model with these options."""
    if card.model != name:
        raise ValueError(f"{path} holds weights of {card.model}, not of {name}.")
    largest = max((array.size for array in arrays.values()), default=0)
    if card.num_classes > largest:
        raise ValueError(
            f"{path}: its card has {card.num_classes} classes, and its largest array "
            f"{largest} values."
        )
    made_with = plain_options({**list_options(name), **card.overrides})
    made_with["num_classes"] = card.num_classes
    for option, value in plain_options(overrides).items():
        known = made_with[option]
        if option not in FREE_OPTIONS and value not in (None, known):
            raise ValueError(
                f"{path} was made with {option}={known!r}, which contradicts "
                f"{option}={value!r}."
            )


def recognize(name: str, digest: str) -> Weights | None:
    """Finds the published weights whose file has this SHA-256."""
    for weights in get_spec(name).weights:
        if digest.startswith((weights.sha256, *weights.copies)):
            return weights
    return None


def _make_card(
    name: str,
    path: Path,
    published: Weights | None,
    model: nn.Module,
    variables: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Card:
    """Makes the card of a file that has none, from the facts of published weights."""
    spec = get_spec(name)
    options = {k: v for k, v in overrides.items() if k != "num_classes"}
    options = plain_options(options)
    num_classes = overrides.get("num_classes")
    if num_classes is None:
        num_classes = count_classes(name, model, variables)
    card = Card(
        model=name,
        num_classes=spec.num_classes if num_classes is None else num_classes,
        overrides=options,
        preprocess=spec.preprocess,
        source=f"file {path.name}",
    )
    if published is None:
        return card
    return dataclasses.replace(
        card,
        preprocess=published.preprocess or spec.preprocess,
        class_names=published.class_names,
        source=f"{published.source}, {published.url}",
        licence=published.licence,
        accuracy=published.accuracy,
    )
