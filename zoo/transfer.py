"""Transfer learning: graft variables, exchange heads, freeze by path patterns."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.layers import BatchNorm, Classifier
from zoo.paths import flatten, match_paths, unflatten

Tree = Mapping[str, Any]


def split(params: Tree, frozen: Sequence[str]) -> tuple[dict, dict]:
    """Splits parameters into what is trained and what is frozen.

    Differentiate with respect to the first alone: XLA then drops the backward pass
    below the lowest trained layer, and the optimizer keeps no slots for the rest.

    Args:
      params: Nested dict of arrays.
      frozen: Path patterns, such as `"backbone/**"`; none for nothing frozen.

    Returns:
      `(trained, frozen)`, nested dicts without each other's leaves.

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
    """Joins nested dicts; where a leaf is in several, the last one's stands."""
    return unflatten({k: v for tree in trees for k, v in flatten(tree).items()})


def frozen_modules(params: Tree, frozen: Sequence[str]) -> frozenset[str]:
    """Lists the paths of the modules whose own parameters are all frozen."""
    trained, kept = split(params, frozen)
    moving = {path.rsplit("/", 1)[0] for path in flatten(trained)}
    return frozenset(path.rsplit("/", 1)[0] for path in flatten(kept)) - moving


def freeze_statistics(modules: frozenset[str]) -> AbstractContextManager:
    """Within this context, frozen batch norm runs as at inference.

    It uses its running averages and leaves them as they are, whatever `train` says.

    Args:
      modules: From `frozen_modules`.
    """

    def intercept(call, args, kwargs, context):
        module, is_call = context.module, context.method_name == "__call__"
        frozen = "/".join(module.path) in modules
        if isinstance(module, BatchNorm) and is_call and frozen:
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
      source: Variables to take, in the same form.
      rename: Prefixes of the source's paths and what they are called in the target,
        such as `{"backbone": "encoder"}`.
      keep: Patterns of paths that stay as the target has them, such as `"head/**"`,
        whatever the source has there.
      ignore: Patterns of the source's paths that the target has no place for.

    Returns:
      New variables of the target's structure, in the target's dtypes.

    Raises:
      ValueError: A leaf of the target is not filled, a leaf of the source is not
        used, or shapes differ, and nobody named it; both sides are listed. Or a
        pattern matches nothing.
    """
    ours = _with_collections(target)
    theirs = {
        (collection, _rename(path, rename or {})): leaf
        for (collection, path), leaf in _with_collections(source).items()
    }
    kept = match_paths([path for _, path in (*ours, *theirs)], keep)
    ignored = match_paths([path for _, path in theirs], ignore)
    wanted = {k for k in ours if k[1] not in kept}
    offered = {k for k in theirs if k[1] not in kept | ignored}
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
    """Exchanges a classifier's head for a new one.

    Args:
      model: A classifier with a head.
      variables: Of the model; they are left as they are.
      num_classes: Of the new head.
      key: For the new head's initialisation.
      shared: For classes that the new and the old head share, their new number and
        their old one; their weights are kept.

    Returns:
      The model with its new head, and its variables.

    Raises:
      ValueError: The model has no head, or a class number is out of range.
    """
    if model.head is None:
        raise ValueError("replace_head: the model has no head; create it with one.")
    old = model.head.num_classes
    for new_class, old_class in (shared or {}).items():
        if not (0 <= new_class < num_classes and 0 <= old_class < old):
            raise ValueError(
                f"replace_head: shared has {new_class}: {old_class}, but there are "
                f"{num_classes} new and {old} old classes."
            )
    head = model.head.clone(num_classes=num_classes, parent=None, name=None)
    model = model.clone(head=head, parent=None)
    params = dict(variables["params"])
    if "head" in params:
        before = flatten(params["head"])
        width = next(v for k, v in before.items() if k.endswith("kernel")).shape[0]
        after = flatten(head.init(key, jnp.zeros((1, width)))["params"])
        rows, source = [*(shared or {})], [*(shared or {}).values()]
        if rows:
            for path, leaf in after.items():
                kept = jnp.asarray(before[path])[..., jnp.array(source)]
                after[path] = leaf.at[..., jnp.array(rows)].set(kept)
        params["head"] = unflatten(after)
    return model, {**variables, "params": params}


def change_input_channels(variables: Tree, layer: str, channels: int) -> dict:
    """Adapts the first convolution to images with another number of channels.

    For one channel the kernel is summed over its inputs, so that a grey image gives
    what it gave as an RGB image with three equal channels. For more, the input planes
    are repeated in turn and scaled so that such an image keeps its response.

    Args:
      variables: Of a model; they are left as they are.
      layer: Path of the first convolution, such as "backbone/stem/conv".
      channels: New number of input channels.

    Raises:
      ValueError: `layer` is no convolution, or `channels` is not positive.
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
    if channels == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    else:
        kernel = kernel[:, :, jnp.arange(channels) % old]
        copies = jnp.bincount(jnp.arange(channels) % old, length=old)
        kernel = kernel / copies[jnp.arange(channels) % old, None]
    return {**variables, "params": unflatten({**flat, path: kernel})}


def _with_collections(variables: Tree) -> dict[tuple[str, str], Any]:
    return {
        (collection, path): leaf
        for collection, tree in variables.items()
        for path, leaf in flatten(tree).items()
    }


def _rename(path: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if path == old or path.startswith(f"{old}/"):
            return new + path[len(old) :]
    return path


def _listing(title: str, keys: set, leaves: Mapping) -> str:
    lines = [
        f"\n  {title}: {'/'.join(k)} {list(leaves[k].shape)}" for k in sorted(keys)
    ]
    more = f"\n  {title}: and {len(lines) - 12} more" if len(lines) > 12 else ""
    return "".join(lines[:12]) + more
