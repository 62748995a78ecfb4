"""Both sides of a comparison: weights, images, endpoints and a training step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.registry import build, get_spec, list_options
from zoo.verify.deterministic import fill_all, make_images, make_labels, make_masks
from zoo.verify.summaries import Summaries, summarize
from zoo.weights.torch_format import from_torch, list_torch_shapes, to_torch


def make_example(
    name: str, size: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes the deterministic images, preprocessed, and their labels or masks.

    Args:
      name: Name of the model.
      size: Height and width of the images in pixels; None for those of the model's
        preprocessing.
    """
    spec = get_spec(name)
    pre = spec.preprocess
    if size is not None:
        height, width = size
        pre = dataclasses.replace(pre, size=height, width=width)
    if spec.task == "segmentation":
        margin = 2 * build(name).margin
        height, width = (n - margin for n in pre.shape[:2])
        return make_images(pre), make_masks(spec.num_classes, height, width)
    return make_images(pre), make_labels(spec.num_classes)


def training_options(name: str) -> dict[str, Any]:
    """Returns the options for the comparison of a training step: all heads."""
    return {"aux": True} if "aux" in list_options(name) else {}


def evaluation_options(name: str) -> dict[str, Any]:
    """Returns the options for the comparison of endpoints.

    The references, except classifiers, compute auxiliary heads in evaluation, too.
    """
    is_classifier = get_spec(name).task == "classification"
    return {} if is_classifier else training_options(name)


def deterministic_state(
    name: str, *, branch_gain: float = 1.0, **overrides: Any
) -> dict[str, np.ndarray]:
    """Makes the deterministic weights of a network, by PyTorch's names."""
    return fill_all(list_torch_shapes(name, **overrides), branch_gain=branch_gain)


def compute_endpoints(
    name: str,
    state: Mapping[str, np.ndarray],
    dtype: str = "float32",
    jit: Callable = jax.jit,
    *,
    size: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Computes the endpoints of the deterministic images in evaluation mode.

    Args:
      name: Name of the model.
      state: Weights by PyTorch's names, of a network with `evaluation_options`.
      dtype: The dtype of variables and computation, "float32" or "float64".
      jit: Function that compiles the network.
      size: Height and width of the images, as for `make_example`.
    """
    images, _ = make_example(name, size)
    options = evaluation_options(name)
    variables = from_torch(name, state, **options)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    options |= {"dtype": dtype, "param_dtype": dtype}
    with _enable_x64(dtype == "float64"):
        return run_endpoints(name, variables, images.astype(dtype), options, jit)


def compute_step(
    name: str,
    state: Mapping[str, np.ndarray],
    dtype: str = "float32",
    jit: Callable = jax.jit,
    *,
    size: Sequence[int] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Computes a training step on the deterministic images.

    Args:
      name: Name of the model.
      state: Weights by PyTorch's names, with those of auxiliary heads.
      dtype: The dtype of variables and computation, "float32" or "float64".
      jit: Function that compiles the step.
      size: Height and width of the images, as for `make_example`.

    Returns:
      "loss", "gradients" and "statistics", by PyTorch's names.
    """
    spec, options = get_spec(name), training_options(name)
    model = build(name, dtype=dtype, param_dtype=dtype, **options)
    variables = from_torch(name, state, **options)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    images, labels = make_example(name, size)
    images = images.astype(dtype)

    def loss(params: Any, rest: Any, images: Any) -> tuple[jax.Array, Any]:
        with nn.intercept_methods(_skip_dropout):
            out, updated = model.apply(
                {"params": params, **rest},
                images,
                train=True,
                method="endpoints",
                mutable=["batch_stats"],
            )
        total = _cross_entropy(out["logits"], labels)
        for head, factor in spec.aux_losses:
            total += factor * _cross_entropy(out[head], labels)
        return total, updated

    params = variables.pop("params")
    with _enable_x64(dtype == "float64"):
        step = jit(jax.value_and_grad(loss, has_aux=True))
        (value, updated), gradients = step(params, variables, images)
        value, updated, gradients = jax.device_get((value, updated, gradients))
    state = to_torch(name, {"params": gradients, **updated}, **options)
    statistics = {k: v for k, v in state.items() if ".running_" in k}
    return {
        "loss": {"loss": value[None]},
        "gradients": {k: v for k, v in state.items() if k not in statistics},
        "statistics": statistics,
    }


def summarize_endpoints(arrays: Mapping[str, np.ndarray]) -> Summaries:
    """Summarizes endpoints for a golden file."""
    return summarize(arrays, samples=256, sums=8)


def summarize_parameters(arrays: Mapping[str, np.ndarray]) -> Summaries:
    """Summarizes gradients or statistics for a golden file, sorted by name."""
    return summarize(dict(sorted(arrays.items())), samples=8, sums=2)


def run_endpoints(
    name: str,
    variables: Mapping[str, Any],
    images: np.ndarray,
    options: Mapping[str, Any],
    jit: Callable = jax.jit,
) -> dict[str, np.ndarray]:
    """Computes the endpoints in evaluation mode.

    Args:
      name: Name of the model.
      variables: Variables of the model.
      images: [B, H, W, C], preprocessed.
      options: Options of the model, and `num_classes`.
      jit: Function that compiles the network.
    """
    model = build(name, **options)

    def endpoints(variables: Any, images: Any) -> dict[str, jax.Array]:
        return model.apply(variables, images, method="endpoints")

    out = jit(endpoints)(variables, images)
    return {endpoint: np.asarray(value) for endpoint, value in out.items()}


def _skip_dropout(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)


def _enable_x64(enable: bool) -> Any:
    """Makes a context in which arrays may have 64 bits, in any version of jax."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enable)
    from jax.experimental import enable_x64

    return enable_x64(enable)


def _cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    rows = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(rows, jnp.asarray(labels)[..., None], axis=-1).mean()
