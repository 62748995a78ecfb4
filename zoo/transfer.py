"""Transfer learning: graft variables, replace heads, freeze by path patterns."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.face.layers import DescriptorLayer
from zoo.layers import BatchNorm, Classifier, ClassOutputs
from zoo.paths import flatten, match_paths, unflatten

Tree = Mapping[str, Any]


def split(params: Tree, frozen: Sequence[str]) -> tuple[dict, dict]:
    """Splits parameters into trained and frozen ones.

    Differentiate with respect to the trained ones only: XLA then removes the backward
    pass below the lowest trained layer, and the optimizer has no state for the rest.

    Args:
      params: Nested dict of arrays.
      frozen: Path patterns of the frozen parameters, such as `"backbone/**"`.

    Returns:
      `(trained, frozen)`, two nested dicts.

    Raises:
      ValueError: A pattern matches nothing, or every parameter is frozen.
    """
    flat = flatten(params)
    hit = match_paths([*flat], frozen)
    if flat and len(hit) == len(flat):
        raise ValueError(f"the patterns {[*frozen]} freeze every parameter.")
    return (
        unflatten({k: v for k, v in flat.items() if k not in hit}),
        unflatten({k: v for k, v in flat.items() if k in hit}),
    )


def merge(*trees: Tree) -> dict:
    """Merges nested dicts; of leaves with the same path, the last is kept."""
    return unflatten({k: v for tree in trees for k, v in flatten(tree).items()})


def frozen_modules(params: Tree, frozen: Sequence[str]) -> frozenset[str]:
    """Lists the paths of the modules whose own parameters are all frozen."""
    trained, kept = split(params, frozen)
    moving = {path.rsplit("/", 1)[0] for path in flatten(trained)}
    return frozenset(path.rsplit("/", 1)[0] for path in flatten(kept)) - moving


def freeze_statistics(modules: frozenset[str]) -> AbstractContextManager:
    """Makes a context in which frozen batch norm runs as in inference.

    It uses its running averages and does not update them, whatever `train` is; frozen
    descriptor layers do not update their maxima.

    Args:
      modules: Paths of the frozen modules, from `frozen_modules`.

    Raises:
      ValueError: A frozen module is in a loop (`scan=True`). The network raises it.
    """

    def intercept(call, args, kwargs, context):
        module, is_call = context.module, context.method_name == "__call__"
        if is_call and getattr(module, "scan", False):
            path = "/".join(module.path)
            if any(name.startswith(f"{path}/") for name in modules):
                raise ValueError(
                    f"scan=True: {path} runs as a loop, in which batch norm cannot be "
                    "frozen; build the network with scan=False."
                )
        # Only the modules of a running network have a path.
        is_norm = isinstance(module, BatchNorm | DescriptorLayer) and is_call
        if is_norm and "/".join(module.path) in modules:
            kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def graft(
    target: Tree,
    source: Tree,
    *,
    rename: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> dict:
    """Copies the leaves of `source` into a copy of `target`, by path.

    Args:
      target: Variables to fill: {"params": ..., "batch_stats": ...}.
      source: Variables to copy, in the same form.
      rename: Prefixes of the source's paths and their names in the target, such as
        `{"backbone": "encoder"}`.
      keep: Patterns of the target's paths that are not filled, such as `"head/**"`.
      ignore: Patterns of the source's paths that are not copied.

    Returns:
      New variables of the target's structure, in the target's dtypes.

    Raises:
      ValueError: A leaf of the target is not filled, a leaf of the source is not used,
        or shapes differ; the message lists both sides. Or a pattern or prefix matches
        nothing, or `rename` gives two leaves the same path.
    """
    ours = _with_collections(target)
    theirs = _with_collections(source)
    ignored = match_paths([path for _, path in theirs], ignore)
    theirs = {k: leaf for k, leaf in theirs.items() if k[1] not in ignored}
    theirs = _rename(theirs, rename or {})
    kept = match_paths([path for _, path in (*ours, *theirs)], keep)
    wanted = {k for k in ours if k[1] not in kept}
    offered = {k for k in theirs if k[1] not in kept}
    differ = {k for k in wanted & offered if jnp.shape(ours[k]) != jnp.shape(theirs[k])}
    if wanted - offered or offered - wanted or differ:
        raise ValueError(
            "graft: the source does not fit the target. Name what stays in `keep`, "
            "what has no place in `ignore`, or use `rename`."
            + _listing("not filled", wanted - offered, ours)
            + _listing("not used", offered - wanted, theirs)
            + _listing("shape in the target", differ, ours)
            + _listing("shape in the source", differ, theirs)
        )
    filled = {
        k: jnp.asarray(theirs[k], leaf.dtype) if k in wanted else leaf
        for k, leaf in ours.items()
    }
    return {
        collection: unflatten({p: v for (c, p), v in filled.items() if c == collection})
        for collection in target
    }


def replace_head(
    model: Classifier,
    variables: Tree,
    num_classes: int,
    *,
    key: jax.Array,
    shared: Mapping[int, int] | None = None,
) -> tuple[Classifier, dict]:
    """Replaces the layers whose outputs are classes by new ones.

    Auxiliary heads are replaced as well. Outputs of a detector that do not depend on
    the classes, such as SSD's boxes and background scores, keep their weights.

    Args:
      model: A network with a head.
      variables: Variables of the model, which are not changed.
      num_classes: Number of classes of the new head.
      key: Key for the initialization of the new head.
      shared: Maps the new to the old number of each class whose weights are kept.

    Returns:
      The model with its new head, and its variables.

    Raises:
      ValueError: The model has no head, a class number is out of range, or `shared`
        changes the numbers of classes in a head with fixed codes.
    """
    before = model.heads()
    if not before:
        raise ValueError("replace_head: the model has no head; create it with one.")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    shared = shared or {}
    old = next(iter(before.values())).num_classes
    for new_class, old_class in shared.items():
        if not (0 <= new_class < num_classes and 0 <= old_class < old):
            raise ValueError(
                f"replace_head: shared has {new_class}: {old_class}, but there are "
                f"{num_classes} new and {old} old classes."
            )
    heads = {
        name: head.clone(num_classes=num_classes, parent=None, name=None)
        for name, head in before.items()
    }
    params = dict(variables["params"])
    for i, (name, head) in enumerate(heads.items()):
        if name in params:
            layers = before[name].class_outputs(), head.class_outputs()
            part = jax.random.fold_in(key, i)
            params[name] = _renew_outputs(*layers, params[name], part, shared)
        elif any(new_class != old_class for new_class, old_class in shared.items()):
            raise ValueError(
                f"replace_head: shared={shared} moves classes, but the head has no "
                "weights to move: each class's code is fixed."
            )
    return model.clone(**heads, parent=None), {**variables, "params": params}


def _renew_outputs(
    before: Mapping[str, ClassOutputs],
    after: Mapping[str, ClassOutputs],
    params: Tree,
    key: jax.Array,
    shared: Mapping[int, int],
) -> dict:
    """Reinitializes the layers of a head whose outputs belong to classes.

    Args:
      before: The old head's `class_outputs()`.
      after: The new head's `class_outputs()`.
      params: The parameters of the old head.
      key: A random key.
      shared: Maps the new to the old number of each class whose weights are kept.

    Returns:
      The parameters of the new head. Outputs without a class keep their weights.
    """
    params = dict(params)
    for i, (name, layer) in enumerate(after.items()):
        old = {kind: jnp.asarray(leaf) for kind, leaf in params[name].items()}
        rows, columns = [], []
        for new_class, old_class in {-1: -1, **shared}.items():
            rows += [*np.flatnonzero(layer.classes == new_class)]
            columns += [*np.flatnonzero(before[name].classes == old_class)]
        to, of = np.array(rows, int), np.array(columns, int)
        outputs, new = len(layer.classes), {}
        for kind, leaf in old.items():
            if kind == "kernel":
                inputs = outputs if layer.reads_classes else leaf.shape[-2]
                shape = (*leaf.shape[:-2], inputs, outputs)
                drawn = layer.kernel_init(jax.random.fold_in(key, i), shape, leaf.dtype)
            else:
                drawn = jnp.zeros((*leaf.shape[:-1], outputs), leaf.dtype)
            if kind == "kernel" and layer.reads_classes:
                kept = leaf[..., of[:, None], of]
                new[kind] = drawn.at[..., to[:, None], to].set(kept)
            else:
                new[kind] = drawn.at[..., to].set(leaf[..., of])
        params[name] = new
    return params


def change_input_channels(variables: Tree, layer: str, channels: int) -> dict:
    """Adapts the first convolution to images with another number of channels.

    For fewer channels the kernel's input planes are summed; for more they are repeated
    cyclically and scaled. The response to an image with equal channels stays the same.

    Args:
      variables: Variables of a model, which are not changed.
      layer: Path of the first convolution, such as "backbone/stem/conv".
      channels: New number of input channels.

    Raises:
      ValueError: `layer` is not a convolution, or `channels` is not positive.
    """
    flat = flatten(variables["params"])
    path = f"{layer}/kernel"
    if path not in flat or jnp.ndim(flat[path]) != 4:
        convolutions = [p[:-7] for p, v in flat.items() if jnp.ndim(v) == 4][:3]
        raise ValueError(
            f"change_input_channels: {layer!r} is no convolution; the model's first in "
            f"alphabetical order are {convolutions}."
        )
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}.")
    kernel = jnp.asarray(flat[path])
    old = kernel.shape[2]
    # Both kernels' input planes are cycled: old plane i % old goes to new i % channels.
    turn = np.arange(max(old, channels))
    scale = 1 / np.bincount(turn % old)[turn % old]
    planes = kernel[:, :, turn % old] * scale[None, None, :, None].astype(kernel.dtype)
    shape = (*kernel.shape[:2], channels, kernel.shape[3])
    kernel = jnp.zeros(shape, kernel.dtype).at[:, :, turn % channels].add(planes)
    return {**variables, "params": unflatten({**flat, path: kernel})}


def _with_collections(variables: Tree) -> dict[tuple[str, str], Any]:
    return {
        (collection, path): leaf
        for collection, tree in variables.items()
        for path, leaf in flatten(tree).items()
    }


def _rename(leaves: Mapping, prefixes: Mapping[str, str]) -> dict:
    out, used = {}, set()
    for (collection, path), leaf in leaves.items():
        hit = [p for p in prefixes if path == p or path.startswith(f"{p}/")]
        old = max(hit, key=len, default="")
        key = (collection, prefixes.get(old, "") + path[len(old) :])
        if key in out:
            raise ValueError(f"graft: rename gives two leaves the path {key[1]!r}.")
        out[key] = leaf
        used |= {*hit}
    if {*prefixes} - used:
        parts = sorted({path.split("/")[0] for _, path in leaves})
        raise ValueError(
            f"graft: rename has {sorted({*prefixes} - used)}, but the source's paths "
            f"begin with {parts}."
        )
    return out


def _listing(title: str, keys: set, leaves: Mapping) -> str:
    lines = [
        f"\n  {title}: {'/'.join(k)} {list(leaves[k].shape)}" for k in sorted(keys)
    ]
    more = f"\n  {title}: and {len(lines) - 12} more" if len(lines) > 12 else ""
    return "".join(lines[:12]) + more
