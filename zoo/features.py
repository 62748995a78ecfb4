"""Features of a network: its endpoints, and the outputs of its modules.

found = zoo.features(model, variables, images, ["stage2", "stage3/block*"])
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from zoo.paths import compile_pattern, flatten, unknown


def features(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: str | Sequence[str],
    *,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Computes named activations; under `jit`, nothing beyond them is computed.

    A name is an endpoint, such as "stage3", or the path of a module within the network,
    such as "stage3/block2" or "stage3/block2/conv1", which selects the module's output.
    Paths are those of the parameters without "backbone/". Names may be patterns, as in
    `zoo.transfer`: "stage*" stands for all stages, "stage3/block*" for the blocks of
    one, "**" for everything.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed, of any size that the network takes.
      names: Names or patterns; `zoo.list_endpoints` lists the names.
      train: Whether batch norm uses the statistics of the batch and dropout is active.
        The updated running averages are not returned: for these, call `model.apply`
        with `method="endpoints"` and `mutable=["batch_stats"]`.
      rngs: Random keys for training, such as {"dropout": key}.

    Returns:
      The activations by name (a dict that `jit` returns is sorted by name).

    Raises:
      ValueError: A name or a pattern is unknown, or `model` or `variables` is of
        another type.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model={model!r} must be a network, as zoo.build and zoo.create return."
        )
    if "params" not in variables:
        raise ValueError(
            f"variables have {[*variables][:4]} and no 'params': zoo.create returns "
            "them whole, and of parameters alone they are {'params': params}."
        )
    names = [names] if isinstance(names, str) else [*names]
    selects = [compile_pattern(name).fullmatch for name in names]
    found = collect(model, variables, images, selects, train=train, rngs=rngs)
    selected: dict[str, jax.Array] = {}
    for name, select in zip(names, selects, strict=True):
        matched = {each: value for each, value in found.items() if select(each)}
        if not matched:
            everything = jax.eval_shape(
                lambda v, x: collect(model, v, x, [lambda name: True]),
                variables,
                images,
            )
            raise ValueError(unknown("endpoint", name, everything))
        selected.update(matched)
    return selected


def collect(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    selects: Sequence[Callable[[str], Any]],
    *,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Computes all endpoints, followed by the outputs of the selected modules.

    A module that returns several arrays, or runs on several maps, has no name.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      selects: Functions from a name to whether the module is selected.
      train: See `features`.
      rngs: See `features`.
    """

    def is_selected(module: nn.Module, method: str) -> bool:
        name = _name(module.path)
        return method == "__call__" and any(select(name) for select in selects)

    out, updated = model.apply(
        variables,
        images,
        train,
        method="endpoints",
        capture_intermediates=is_selected,
        mutable=["intermediates", *(["batch_stats"] if train else [])],
        rngs=rngs,
    )
    found = dict(out)
    for path, calls in flatten(updated.get("intermediates", {})).items():
        name = _name(path.split("/")[:-1])
        if len(calls) == 1 and isinstance(calls[0], jax.Array):
            found.setdefault(name, calls[0])
    return found


def _name(path: Sequence[str]) -> str:
    return "/".join(path).removeprefix("backbone/")
