"""The public entry points: from a name to a model and its variables."""

import dataclasses
import gc
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo import weights as weights_io
from zoo.checks import check_num_classes
from zoo.compilation_cache import use_compilation_cache
from zoo.initialization import init_variables
from zoo.registry import build, get_spec
from zoo.spec import Card, plain_options
from zoo.transfer import replace_head

logger = logging.getLogger("zoo")


def create(
    name: str,
    *,
    weights: str | os.PathLike | None = None,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    **overrides: Any,
) -> tuple[nn.Module, dict]:
    """Creates a model and its variables.

    With `dtype=jnp.bfloat16` every layer computes in bfloat16, while parameters,
    gradients, batch statistics and logits stay float32. In float32, TPUs and GPUs
    multiply in reduced precision by default; trace the model under
    `jax.default_matmul_precision("highest")` for full float32 products and gradients.

    To save memory in training, donate the state to a jitted step, as `train` does, and
    use `remat=True`, which recomputes each stage's activations:

        step = jax.jit(step, donate_argnums=0)
        state, metrics = step(state, batch)  # the buffers of the old state are reused

    Args:
      name: Name of the model, one of `list_models()`.
      weights: None for the paper's initialization; else a registered name, or the
        path of a safetensors or torch file, of a run folder or of a checkpoint.
      num_classes: Number of classes; None for the weights' or, without weights, the
        paper's. A number that differs from the weights' creates a new head and logs a
        warning. 0 creates no head: the output is the last endpoint.
      key: Key for the initialization; None for `jax.random.key(0)`.
      **overrides: Options of the model, such as `dtype=jnp.bfloat16`; `describe`
        lists them.

    Returns:
      `(module, variables)`: a Linen module and {"params": ..., "batch_stats": ...},
      with batch statistics if the network has batch norm.

    Raises:
      ValueError: The model, an option or the weights are unknown or do not fit.
    """
    model, variables, _ = create_with_card(
        name, weights=weights, num_classes=num_classes, key=key, **overrides
    )
    return model, variables


def create_with_card(
    name: str,
    *,
    weights: str | os.PathLike | None = None,
    num_classes: int | None = None,
    key: jax.Array | None = None,
    **overrides: Any,
) -> tuple[nn.Module, dict, Card]:
    """Creates a model, its variables and their card, as `create` does.

    Returns:
      `(module, variables, card)`; the card has the preprocessing and any known class
      names.
    """
    spec = get_spec(name)
    use_compilation_cache()
    key = jax.random.key(0) if key is None else key
    if not hasattr(key, "dtype") or not (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32
    ):
        raise ValueError(f"key must be one of jax.random.key(seed), got {key!r}.")
    if not isinstance(weights, str | os.PathLike | None):
        raise ValueError(
            "weights must be a registered name, a path or None, got "
            f"{type(weights).__name__} {str(weights)[:60]}."
        )
    if weights is None:
        if num_classes is None:
            num_classes = spec.num_classes
        model = build(name, num_classes=num_classes, **overrides)
        pre = spec.preprocess
        options = plain_options(overrides)
        card = Card(name, num_classes, options, pre, source="initialized")
        return model, init_variables(model, key, (1, *pre.shape)), card

    if num_classes is not None:
        check_num_classes(num_classes)
    loaded = weights_io.load(name, weights, **overrides)
    card = loaded.card
    model, options = loaded.model, {**card.overrides, **overrides}
    variables = _move(loaded.variables)
    if num_classes is None or num_classes == card.num_classes:
        return model, variables, card
    old, card = (
        card.num_classes,
        dataclasses.replace(card, num_classes=num_classes, class_names=(), accuracy=""),
    )
    if num_classes == 0:
        heads = model.heads()
        kept = {
            collection: {part: v for part, v in tree.items() if part not in heads}
            for collection, tree in variables.items()
        }
        return build(name, num_classes=0, **options), kept, card
    logger.warning(
        "%s: the weights have %d classes; the head for %d is new and untrained.",
        name,
        old,
        num_classes,
    )
    return *replace_head(model, variables, num_classes, key=key), card


def _move(tree: dict[str, Any]) -> dict[str, Any]:
    """Moves the arrays of a tree to the device, one at a time to save memory."""
    out = {}
    for name in [*tree]:
        if isinstance(tree[name], dict):
            out[name] = _move(tree[name])
        else:
            # Not jnp.asarray, which copies twice.
            out[name] = jax.block_until_ready(jax.device_put(tree.pop(name)))
            # jax frees the copied numpy array at the next garbage collection.
            gc.collect(0)
    return out
