"""Conversion between Linen variables and PyTorch state dicts of the same network."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.paths import flatten, unflatten
from zoo.registry import build, get_spec
from zoo.spec import TorchRule
from zoo.weights.fit import expected_shapes, require_fit

logger = logging.getLogger("zoo")

_NAMES = {
    "scale": "weight",
    "slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_TILE = 64


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One array of the network, and its place in a state dict.

    Attributes:
      path: Path in the variables, such as "params/backbone/stem/conv/kernel".
      shape: Shape in the variables.
      rule: Rule of its module.
    """

    path: str
    shape: tuple[int, ...]
    rule: TorchRule

    @property
    def is_kernel(self) -> bool:
        """Whether it is a `weight` in PyTorch, with the axes in another order."""
        return self.path.endswith("/kernel") and len(self.shape) in (2, 4)

    @property
    def key(self) -> str:
        """Its name in the state dict, such as "layer1.0.conv1.weight"."""
        name = self.path.rsplit("/", 1)[-1]
        name = "weight" if self.is_kernel else _NAMES.get(name, name)
        return f"{self.rule.key}.{name}"

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Its shape in the state dict."""
        if not self.is_kernel:
            return self.shape
        *window, inputs, outputs = self.shape
        if self.rule.transposed:
            return (inputs, outputs, *window)
        return (outputs, inputs, *window)

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Converts the array of a state dict to our order of axes."""
        if self.is_kernel and self.rule.transposed:
            array = array.swapaxes(0, 1)
        if self.is_kernel and self.rule.flatten:
            array = array.reshape(-1, *self.rule.flatten)  # out, C, H, W
        if self.is_kernel:
            # [out, in, H, W] -> [H, W, in, out], or [out, in] -> [in, out]
            array = np.moveaxis(array, (0, 1), (-1, -2))
        # A copy, so that the result does not share memory with the caller's tensors.
        return copy_in_c_order(array).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.is_kernel and self.rule.flatten:
            channels, *window = self.rule.flatten
            array = array.reshape(*window, channels, -1)
        if self.is_kernel:
            array = np.moveaxis(array, (-1, -2), (0, 1))
        if self.is_kernel and self.rule.transposed:
            array = array.swapaxes(0, 1)
        return copy_in_c_order(array).reshape(self.torch_shape)


def copy_in_c_order(array: np.ndarray) -> np.ndarray:
    """Copies a transposed array tile by tile.

    A single copy by numpy has no locality: it is six times slower for VGG's fc6.
    """
    if array.ndim < 2:
        return array.copy()
    out = np.empty(array.shape, array.dtype)
    a, b = np.argsort(array.shape)[-2:]
    for i in range(0, array.shape[a], _TILE):
        for j in range(0, array.shape[b], _TILE):
            tile = [slice(None)] * array.ndim
            tile[a], tile[b] = slice(i, i + _TILE), slice(j, j + _TILE)
            out[*tile] = array[*tile]
    return out


def from_torch(
    name: str, state_dict: Mapping[str, Any], **overrides: Any
) -> dict[str, Any]:
    """Converts a PyTorch state dict to variables of the same network.

    Every tensor must be used and every variable filled, except `num_batches_tracked`
    and the modules that the network's rules name as unused. A prefix of all keys that
    the network does not have, such as DataParallel's `module.`, Lightning's `model.` or
    torch.compile's `_orig_mod.`, is removed and logged.

    Args:
      name: Name of the model.
      state_dict: Tensors or numpy arrays by name.
      **overrides: Options of the model. `num_classes` follows from the head's weights
        if it is not given.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays, in the tensors' dtypes.

    Raises:
      ValueError: The model or an option is unknown, or the tensors do not fit; the
        message lists what is missing, unexpected or of another shape.
    """
    given = {key: to_numpy(value, key) for key, value in state_dict.items()}
    return move_from_torch(name, given, **overrides)[1]


def move_from_torch(
    name: str,
    given: dict[str, np.ndarray],
    model: nn.Module | None = None,
    **overrides: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Converts arrays as `from_torch` does, and removes each from `given`.

    This saves memory: the arrays are not all held twice.

    Args:
      name: Name of the model.
      given: Arrays by name.
      model: The module with these options; None to build it.
      **overrides: Options of the model, as for `from_torch`.

    Returns:
      `(model, variables)`: the module is rebuilt only if no number of classes was given
      and the head's weights are for another number than the paper's.
    """
    spec = get_spec(name)
    if model is None:
        model = build(name, **overrides)
    rules = spec.torch_rules(model)
    given.pop("n_averaged", None)  # A counter that AveragedModel adds.
    hint = _remove_prefix(name, given, rules)
    unused = tuple(f"{rule.key}." for rule in rules if rule.module is None)
    for key in [*given]:
        if key.endswith("num_batches_tracked") or key.startswith(unused):
            del given[key]
    renamed = _rename_aliases(given, rules)

    if overrides.get("num_classes") is None:
        overrides.pop("num_classes", None)
        outputs = {rule.key: given.get(f"{rule.key}.weight") for rule in rules}
        number = _read_classes(rules, {k: np.shape(v)[:1] for k, v in outputs.items()})
        if number not in (None, spec.num_classes):
            model = build(name, num_classes=number, **overrides)
    leaves = _list_leaves(name, model)
    for leaf in leaves:
        array = given.get(leaf.key)
        if leaf.key in renamed and len(leaf.torch_shape) == 2 and array.ndim == 4:
            # A convolution over the whole map has the kernel of a dense layer.
            given[leaf.key] = array.reshape(len(array), -1)
    require_fit(
        f"{name}: the state dict does not fit the network{hint}",
        {leaf.key: leaf.torch_shape for leaf in leaves},
        given,
    )
    moved = {leaf.path: leaf.to_ours(given.pop(leaf.key)) for leaf in leaves}
    return model, unflatten(moved)


def to_torch(
    name: str, variables: Mapping[str, Any], **overrides: Any
) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state dict; the inverse of `from_torch`.

    Args:
      name: Name of the model.
      variables: {"params": ..., "batch_stats": ...} of arrays.
      **overrides: Options of the model. `num_classes` follows from the head's
        parameters if it is not given.

    Returns:
      Arrays by PyTorch's names, in the variables' dtypes.

    Raises:
      ValueError: The model or an option is unknown, or the variables do not fit.
    """
    given = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    leaves = _list_leaves(name, build_for(name, variables, **overrides))
    require_fit(
        f"{name}: the variables do not fit the network",
        {leaf.path: leaf.shape for leaf in leaves},
        given,
    )
    return {leaf.key: leaf.to_torch(given[leaf.path]) for leaf in leaves}


def list_torch_shapes(name: str, **overrides: Any) -> dict[str, tuple[int, ...]]:
    """Lists the shapes of the arrays of a network's state dict, by PyTorch's names.

    Args:
      name: Name of the model.
      **overrides: Options of the model, and `num_classes`.

    Raises:
      ValueError: The model or an option is unknown.
    """
    return {
        leaf.key: leaf.torch_shape
        for leaf in _list_leaves(name, build(name, **overrides))
    }


def build_for(
    name: str,
    variables: Mapping[str, Any],
    model: nn.Module | None = None,
    **overrides: Any,
) -> nn.Module:
    """Builds the module that fits some variables.

    Args:
      name: Name of the model.
      variables: {"params": ..., "batch_stats": ...} of arrays.
      model: The module with these options; None to build it.
      **overrides: Options of the model. `num_classes` follows from the head's
        parameters if it is not given; the module is rebuilt only if these are for
        another number than the paper's.
    """
    if model is None:
        model = build(name, **overrides)
    if overrides.get("num_classes") is not None:
        return model
    overrides.pop("num_classes", None)
    number = count_classes(name, model, variables)
    if number in (None, get_spec(name).num_classes):
        return model
    return build(name, num_classes=number, **overrides)


def count_classes(
    name: str, model: nn.Module, variables: Mapping[str, Any]
) -> int | None:
    """Derives the number of classes from the shape of the head's kernel.

    Args:
      name: Name of the model.
      model: The module, for any number of classes above 0.
      variables: {"params": ..., "batch_stats": ...} of arrays.

    Returns:
      The number, or None if the head has no kernel.
    """
    flat, rules = flatten(variables), get_spec(name).torch_rules(model)
    kernels = {rule.key: flat.get(f"params/{rule.module}/kernel") for rule in rules}
    return _read_classes(rules, {k: np.shape(v)[-1:] for k, v in kernels.items()})


def to_numpy(value: Any, key: str) -> np.ndarray:
    """Converts a tensor to numpy, without importing its package.

    Raises:
      ValueError: `value` is not an array of numbers.
    """
    if not isinstance(key, str):
        raise ValueError(f"tensors are found by name, got {key!r} as one.")
    if hasattr(value, "detach"):
        kind = f"{value.dtype} ({value.layout}, on {value.device.type})"
        try:
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":  # numpy has no such type itself
                return value.float().numpy().astype(jnp.bfloat16)
            value = value.numpy()
        except Exception as error:
            # Sparse, quantized, nested and meta tensors raise different errors.
            raise ValueError(
                f"{key!r} is no plain tensor but one of {kind}: "
                f"{str(error).splitlines()[0][:200]}"
            ) from error
    array = np.asarray(value)
    if array.dtype.kind in "OUSMm":
        raise ValueError(f"{key!r} must be a tensor, got {type(value).__name__}.")
    return array


def _remove_prefix(
    name: str, given: dict[str, np.ndarray], rules: Sequence[TorchRule]
) -> str:
    """Removes a prefix of all keys if they fit the network better without it.

    Returns:
      A hint for the error message if only some keys have the prefix; else "".
    """
    known = {key for rule in rules for key in (rule.key, rule.alias) if key}
    modules = {key.rpartition(".")[0] for key in given}

    def count(prefix: str) -> int:
        return len(known & {m[len(prefix) :] for m in modules if m.startswith(prefix)})

    parts = (key.split(".") for key in given)
    prefixes = {"".join(f"{p}." for p in own[:n]) for own in parts for n in range(4)}
    best = max(sorted(prefixes), key=count, default="")
    if count(best) <= count(""):
        return ""
    others = [key for key in given if not key.startswith(best)]
    if others:
        return (
            f" (names that begin with {best!r} would fit without, but {len(others)} of "
            f"{len(given)} begin otherwise, such as {others[0]!r})"
        )
    logger.warning("%s: removed the prefix %r from all names.", name, best)
    for key in [*given]:
        given[key.removeprefix(best)] = given.pop(key)
    return ""


def _read_classes(
    rules: Sequence[TorchRule], outputs: Mapping[str, tuple[int, ...]]
) -> int | None:
    """Derives the number of classes from the outputs of the head's layers.

    Args:
      rules: Rules of the network.
      outputs: `(outputs,)` of each rule's layer, empty if it has no weights.
    """
    counts = []
    for rule in rules:
        if rule.module and (rule.outputs or rule.module.startswith("head/")):
            factor, rest = rule.outputs or (1, 0)
            counts += [(count - rest) // factor for count in outputs[rule.key]]
    return counts[-1] if counts else None


def _rename_aliases(
    given: dict[str, np.ndarray], rules: Sequence[TorchRule]
) -> set[str]:
    """Renames arrays from the rules' aliases to their keys; returns the new names."""
    keys, renamed = {rule.alias: rule.key for rule in rules if rule.alias}, set()
    for name in [*given]:
        module, kind = name.rpartition(".")[::2]
        if module in keys:
            given[f"{keys[module]}.{kind}"] = given.pop(name)
            renamed.add(f"{keys[module]}.{kind}")
    return renamed


def _list_leaves(name: str, module: nn.Module) -> list[_Leaf]:
    """Pairs every variable of a network with the rule of its module."""
    rules = {r.module: r for r in get_spec(name).torch_rules(module) if r.module}
    leaves = []
    for path, shape in expected_shapes(name, module).items():
        owner = path.split("/", 1)[1].rsplit("/", 1)[0]
        if owner not in rules:
            raise ValueError(f"{name} has no rule for the PyTorch name of {path}.")
        leaf = _Leaf(path, shape, rules[owner])
        flat = leaf.rule.flatten
        if leaf.is_kernel and flat and math.prod(flat) != shape[0]:
            raise ValueError(
                f"{name}: {path} has {shape[0]} rows, its rule says {flat}."
            )
        leaves.append(leaf)
    return leaves
