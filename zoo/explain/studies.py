"""The paper's other studies: invariance of features, and removal of layers.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014, figure 5
  and table 3.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.cpu import jit_inference
from zoo.explain import targets
from zoo.paths import flatten, unflatten, unknown

Array = jax.Array


def invariance(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    labels: Array,
    transforms: Sequence[Callable[[Array], Array]],
    endpoints: Sequence[str],
    *,
    scores: str = "logits",
) -> dict[str, np.ndarray]:
    """Measures how features and class probabilities change when images are moved.

    This is the paper's figure 5, for translation, scale and rotation.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      labels: int [B], the true classes.
      transforms: Functions from images to images of the same shape, such as those of
        `translations`, `scalings` and `rotations`.
      endpoints: Names of the endpoints whose features are compared.
      scores: Endpoint with logits [B, K].

    Returns:
      A dict: for each endpoint float32 [T, B], the Euclidean distance between the
      features of the transformed and the original image; and "probability" [T, B], of
      the true class in the transformed image.
    """
    labels = targets.check_labels(model, variables, images, scores, labels)
    run = partial(_read, variables, labels, model=model, names=(*endpoints, scores))
    still, _ = run(images)
    rows: dict[str, list] = {name: [] for name in (*endpoints, "probability")}
    for transform in transforms:
        moved, own = run(transform(images))
        for name, a, b in zip(endpoints, still, moved, strict=True):
            rows[name].append(np.sqrt(np.square(np.asarray(a - b)).sum(axis=1)))
        rows["probability"].append(np.asarray(own))
    return {name: np.stack(values) for name, values in rows.items()}


@partial(jit_inference, static_argnames=("model", "names"))
def _read(
    variables: Mapping[str, Any],
    labels: Array,
    images: Array,
    *,
    model: nn.Module,
    names: tuple[str, ...],
) -> tuple[list[Array], Array]:
    """Returns the features of all endpoints but the last, and the probabilities."""
    found = targets.read_endpoints(model, variables, images, *names)
    found = [each.astype(jnp.float32) for each in found]
    own = targets.class_probability(found.pop(), labels)
    return [each.reshape(len(images), -1) for each in found], own


def translations(pixels: Sequence[float], *, fill: float = 0.0) -> list[Callable]:
    """Makes transforms that move images down by the given numbers of pixels."""
    still = np.eye(2)
    return [partial(_warp, matrix=still, shift=n, fill=fill) for n in pixels]


def scalings(factors: Sequence[float], *, fill: float = 0.0) -> list[Callable]:
    """Makes transforms that enlarge images about their center by the given factors."""
    return [partial(_warp, matrix=np.eye(2) / f, shift=0, fill=fill) for f in factors]


def rotations(degrees: Sequence[float], *, fill: float = 0.0) -> list[Callable]:
    """Makes transforms that turn images about their center, counterclockwise."""
    found = []
    for angle in np.deg2rad(degrees):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, sin], [-sin, cos]])
        found.append(partial(_warp, matrix=matrix, shift=0, fill=fill))
    return found


@partial(jax.jit, static_argnames="fill")
def _warp(images: Array, *, matrix: Array, shift: float, fill: float) -> Array:
    """Samples each pixel bilinearly where a matrix maps it, relative to the center."""
    height, width = images.shape[1:3]
    center = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    y, x = y - center[0] - shift, x - center[1]
    (a, b), (c, d) = matrix
    places = [a * y + b * x + center[0], c * y + d * x + center[1]]
    sample = partial(jax.scipy.ndimage.map_coordinates, order=1, cval=fill)
    one = partial(sample, coordinates=places)
    per_channel = jax.vmap(lambda plane: one(plane), in_axes=-1, out_axes=-1)
    return jax.vmap(per_channel)(images)


def ablate(variables: Mapping[str, Any], paths: Sequence[str]) -> dict:
    """Sets the parameters of some layers to zero, which removes residual branches.

    Args:
      variables: Variables of a model.
      paths: Paths of the layers, as `zoo.list_layers` names them;
        "backbone/stage3/block2/bn2" removes the block's branch, and leaves its
        shortcut.

    Raises:
      ValueError: A layer is unknown.
    """
    params = flatten(variables["params"])
    layers = {name.rsplit("/", 1)[0] for name in params}
    for path in paths:
        if path not in layers:
            raise ValueError(unknown("layer", path, layers))
    kept = {
        name: jnp.zeros_like(leaf) if name.rsplit("/", 1)[0] in paths else leaf
        for name, leaf in params.items()
    }
    return {**variables, "params": unflatten(kept)}
