"""Checks that arrays are exactly those of a network, with the same shapes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.initialization import abstract_variables
from zoo.paths import flatten
from zoo.registry import build, get_spec, list_models

logger = logging.getLogger("zoo")

_SHOWN = 10


def expected_shapes(name: str, module: Any) -> dict[str, tuple[int, ...]]:
    """Lists the variables of a network by path, without computing them.

    Args:
      name: Name of the model, whose preprocessing sets the size of the images.
      module: The model, built by `zoo.registry.build`.

    Returns:
      Shapes by path, such as {"params/backbone/stem/conv/kernel": (3, 3, 3, 16)}.
    """
    variables = abstract_variables(module, get_spec(name).preprocess.shape)
    return {path: leaf.shape for path, leaf in flatten(variables).items()}


def require_fit(
    what: str,
    needed: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
) -> None:
    """Checks that `given` fills `needed` exactly.

    Args:
      what: Start of the error message: the origin of the arrays, and the network.
      needed: Shapes by name.
      given: Arrays by name.

    Raises:
      ValueError: An array is missing, unexpected, of another shape or not of floating
        point. The message lists all of them, and the networks that have these names.
    """
    both = [key for key in needed if key in given]
    problems = {
        "missing": [f"{k} {[*v]}" for k, v in needed.items() if k not in given],
        "unexpected": [
            f"{k} {[*v.shape]}" for k, v in given.items() if k not in needed
        ],
        "other shape": [
            f"{k} is {[*given[k].shape]}, the network needs {[*needed[k]]}"
            for k in both
            if given[k].shape != needed[k]
        ],
        "not floating point": [
            f"{k} is {given[k].dtype}"
            for k in both
            if not jnp.issubdtype(given[k].dtype, jnp.floating)
        ],
    }
    lines = [_line(title, found) for title, found in problems.items() if found]
    if not lines:
        return
    if problems["missing"] or problems["unexpected"]:
        others = guess_models(given)
        lines += [f"these are names of {' or '.join(others)}"] if others else []
    raise ValueError("\n  ".join([f"{what}:", *lines]))


def guess_models(names: Iterable[str]) -> list[str]:
    """Lists the networks that have the modules of these arrays and the fewest others.

    Args:
      names: Paths such as "params/backbone/conv1/kernel" or PyTorch's names.
    """
    names = [*names]
    torch = {name.rpartition(".")[0] for name in names}
    ours = {name.partition("/")[2].rpartition("/")[0] for name in names}
    extra = {}
    for model in list_models() if names else []:
        rules = get_spec(model).torch_rules(build(model))
        for wanted, known in (
            (torch, {rule.key for rule in rules}),
            (ours, {rule.module for rule in rules}),
        ):
            if wanted <= known:
                extra[model] = len(known - wanted)
    return [model for model, count in extra.items() if count == min(extra.values())]


def warn_not_finite(what: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Logs the arrays with values that are NaN or infinite, and the number of these."""
    bad = {
        name: array.size - int(np.isfinite(array).sum())
        for name, array in arrays.items()
    }
    found = [f"{k} has {n} of {arrays[k].size}" for k, n in bad.items() if n]
    if found:
        logger.warning("%s: %s", what, _line("NaN or infinite", found))


def _line(title: str, found: Sequence[str]) -> str:
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{title} ({len(found)}): {'; '.join(found[:_SHOWN])}{more}"
