"""Between a Linen variables dict and the state dict of the same network in PyTorch."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

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
    """One array of the network, and where PyTorch keeps it.

    Attributes:
      path: Ours, such as "params/backbone/stem/conv/kernel".
      shape: Ours.
      rule: Of the module that it belongs to.
    """

    path: str
    shape: tuple[int, ...]
    rule: TorchRule

    @property
    def is_kernel(self) -> bool:
        """Whether PyTorch has it as a `weight` with its axes in another order."""
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
        """Brings the array of the state dict into our order of axes."""
        if self.is_kernel and self.rule.transposed:
            array = array.swapaxes(0, 1)
        if self.is_kernel and self.rule.flatten:
            array = array.reshape(-1, *self.rule.flatten)  # out, C, H, W
        if self.is_kernel:
            array = _inputs_then_outputs(array)
        # A copy: the result must not change with the caller's tensors.
        return _in_c_order(array).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.is_kernel and self.rule.flatten:
            channels, *window = self.rule.flatten
            array = array.reshape(*window, channels, -1)
        if self.is_kernel:
            array = _outputs_then_inputs(array)
        if self.is_kernel and self.rule.transposed:
            array = array.swapaxes(0, 1)
        return _in_c_order(array).reshape(self.torch_shape)


def _inputs_then_outputs(array: np.ndarray) -> np.ndarray:
    """[out, in, H, W] or [out, in] -> [H, W, in, out] or [in, out]."""
    return array.transpose(*range(2, array.ndim), 1, 0)


def _outputs_then_inputs(array: np.ndarray) -> np.ndarray:
    """[H, W, in, out] or [in, out] -> [out, in, H, W] or [out, in]."""
    last = array.ndim - 1
    return array.transpose(last, last - 1, *range(last - 1))


def _in_c_order(array: np.ndarray) -> np.ndarray:
    """Copies an array whose axes were transposed, tile by tile.

    In one go numpy strides through all memory: six times slower for VGG's fc6.
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
    """Converts a PyTorch state dict to variables of the same network here.

    Every tensor must be used and every variable filled; only `num_batches_tracked`,
    for which batch norm has no use here, and what the network's rules name as unused
    are dropped. A prefix that all keys share and the network's names do not, such as
    DataParallel's `module.`, Lightning's `model.` or torch.compile's `_orig_mod.`, is
    removed, and the log says so.

    Args:
      name: Of the model.
      state_dict: Tensors or numpy arrays by name.
      **overrides: Options of the model. `num_classes` follows from the head's weights
        where it is not given.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays, in the tensors' dtypes.

    Raises:
      ValueError: The model or an option is unknown, or the tensors do not fit; the
        message lists what is missing, unexpected or of another shape.
    """
    given = {key: to_numpy(value, key) for key, value in state_dict.items()}
    return move_from_torch(name, given, **overrides)


def move_from_torch(
    name: str, given: dict[str, np.ndarray], **overrides: Any
) -> dict[str, Any]:
    """Does what `from_torch` does, and takes each array out of `given` on the way.

    So memory never holds all of them twice.
    """
    rules = get_spec(name).torch_rules(build(name, **overrides))
    given.pop("n_averaged", None)  # A counter that AveragedModel adds.
    hint = _remove_prefix(name, given, rules)
    unused = tuple(f"{rule.key}." for rule in rules if rule.module is None)
    for key in [*given]:
        if key.endswith("num_batches_tracked") or key.startswith(unused):
            del given[key]
    renamed = _rename_aliases(given, rules)

    if "num_classes" not in overrides:
        heads = {f"{rule.key}.weight": rule for rule in _head_rules(name, overrides)}
        counts = [_classes(r, len(given[k])) for k, r in heads.items() if k in given]
        overrides["num_classes"] = counts[-1] if counts else None
    leaves = _list_leaves(name, overrides)
    for leaf in leaves:
        array = given.get(leaf.key)
        if leaf.key in renamed and len(leaf.torch_shape) == 2 and array.ndim == 4:
            # A convolution over the whole map is the dense layer behind it.
            given[leaf.key] = array.reshape(len(array), -1)
    require_fit(
        f"{name}: the state dict does not fit the network{hint}",
        {leaf.key: leaf.torch_shape for leaf in leaves},
        given,
    )
    return unflatten({leaf.path: leaf.to_ours(given.pop(leaf.key)) for leaf in leaves})


def to_torch(
    name: str, variables: Mapping[str, Any], **overrides: Any
) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state dict; the inverse of `from_torch`.

    Args:
      name: Of the model.
      variables: {"params": ..., "batch_stats": ...} of arrays.
      **overrides: Options of the model. `num_classes` follows from the head's
        parameters where it is not given.

    Returns:
      Arrays by PyTorch's names, in the variables' dtypes.

    Raises:
      ValueError: The model or an option is unknown, or the variables do not fit.
    """
    given = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    if "num_classes" not in overrides:
        overrides["num_classes"] = count_classes(name, variables, **overrides)
    leaves = _list_leaves(name, overrides)
    require_fit(
        f"{name}: the variables do not fit the network",
        {leaf.path: leaf.shape for leaf in leaves},
        given,
    )
    return {leaf.key: leaf.to_torch(given[leaf.path]) for leaf in leaves}


def list_torch_shapes(name: str, **overrides: Any) -> dict[str, tuple[int, ...]]:
    """Lists what a PyTorch state dict of a network holds: shapes by PyTorch's names.

    Args:
      name: Of the model.
      **overrides: Options of the model, and `num_classes`.

    Raises:
      ValueError: The model or an option is unknown.
    """
    return {leaf.key: leaf.torch_shape for leaf in _list_leaves(name, overrides)}


def count_classes(
    name: str, variables: Mapping[str, Any], **overrides: Any
) -> int | None:
    """Reads the number of classes off the head's kernel; None where there is none."""
    flat = flatten(variables)
    heads = {f"params/{r.module}/kernel": r for r in _head_rules(name, overrides)}
    counts = [_classes(r, np.shape(flat[k])[-1]) for k, r in heads.items() if k in flat]
    return counts[-1] if counts else None


def to_numpy(value: Any, key: str) -> np.ndarray:
    """Reads a tensor as numpy, without importing the package that it comes from.

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
            # Sparse, quantized, nested, meta: each raises what its part of torch does.
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
    """Takes off what stands before every key of a state dict, if it fits then.

    Returns:
      Of a prefix that only some keys have, a hint for the error; else nothing.
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
    logger.warning("%s: the prefix %r of all names is taken off.", name, best)
    for key in [*given]:
        given[key.removeprefix(best)] = given.pop(key)
    return ""


def _head_rules(name: str, overrides: Mapping[str, Any]) -> list[TorchRule]:
    rules = get_spec(name).torch_rules(build(name, **overrides))
    return [r for r in rules if r.module and (r.outputs or r.module[:5] == "head/")]


def _classes(rule: TorchRule, outputs: int) -> int:
    """Tells from a layer's outputs for how many classes they are."""
    factor, rest = rule.outputs or (1, 0)
    return (outputs - rest) // factor


def _rename_aliases(
    given: dict[str, np.ndarray], rules: Sequence[TorchRule]
) -> set[str]:
    """Gives arrays our rules' names in place of their other ones; returns the new."""
    keys, renamed = {rule.alias: rule.key for rule in rules if rule.alias}, set()
    for name in [*given]:
        module, kind = name.rpartition(".")[::2]
        if module in keys:
            given[f"{keys[module]}.{kind}"] = given.pop(name)
            renamed.add(f"{keys[module]}.{kind}")
    return renamed


def _list_leaves(name: str, overrides: Mapping[str, Any]) -> list[_Leaf]:
    """Pairs every variable of a network with the rule of its module."""
    module = build(name, **overrides)
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
