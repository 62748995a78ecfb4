"""Gradients averaged over noise or along a path, and class activation maps.

References:
  Smilkov, Thorat, Kim, Viegas, Wattenberg, SmoothGrad, 2017.
  Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, 2017.
  Selvaraju et al., Grad-CAM, 2017.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.extend import core

from zoo.cpu import jit_gradients
from zoo.explain import targets
from zoo.explain.rewrite import evaluate, inline
from zoo.ops.resize import resize

Array = jax.Array


class IndependentError(ValueError):
    """The scores do not depend on the endpoint that should explain them."""


def smooth_grad(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    positions: Array | None = None,
    *,
    key: Array,
    samples: int = 50,
    noise: float = 0.15,
    chunk: int = 8,
) -> Array:
    """Averages the gradient of an activation over noisy copies of each image.

    The activation is chosen once, in the image without noise.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: See `zoo.explain.deconvnet`.
      channels: See `zoo.explain.deconvnet`.
      positions: See `zoo.explain.deconvnet`.
      key: Random key of the noise.
      samples: Number of noisy copies.
      noise: Standard deviation of the noise, as a fraction of the range of each image's
        values.
      chunk: Number of image copies to process at once, but at least one of each image;
        memory grows with it.

    Returns:
      float32 [B, H, W, C], in the network's input space.

    Raises:
      ValueError: An argument is invalid.
    """
    _check_count("samples", samples)
    _check_count("chunk", chunk)
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise}.")
    shape = targets.activation_shape(model, variables, images, endpoint)
    channels, positions = targets.check_target(shape, endpoint, channels, positions)
    options = dict(model=model, endpoint=endpoint, samples=samples, chunk=chunk)
    return _smooth(variables, images, channels, positions, key, noise, **options)


@partial(jit_gradients, static_argnames=("model", "endpoint", "samples", "chunk"))
def _smooth(
    variables: Mapping[str, Any],
    images: Array,
    channels: Array | None,
    positions: Array | None,
    key: Array,
    noise: Array,
    *,
    model: nn.Module,
    endpoint: str,
    samples: int,
    chunk: int,
) -> Array:
    forward = partial(targets.make_forward(model, endpoint), variables)
    target = targets.find_target(forward(images), channels, positions)
    axes = (1, 2, 3)
    span = images.max(axes, keepdims=True) - images.min(axes, keepdims=True)

    def perturb(key: Array) -> Array:
        return images + noise * span * jax.random.normal(
            key, images.shape, images.dtype
        )

    keys, weights = jax.random.split(key, samples), np.full(samples, 1 / samples)
    return _sum_gradients(forward, target, perturb, keys, weights, chunk)


def integrated_gradients(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    positions: Array | None = None,
    *,
    baseline: Array | float = 0.0,
    steps: int = 32,
    chunk: int = 8,
) -> Array:
    """Integrates the gradient of an activation from a baseline to each image.

    The sum of a map approximates the activation at the image minus that at the
    baseline, the closer the more `steps`; `completeness_error` measures the error. The
    activation is chosen once, in the image.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: See `zoo.explain.deconvnet`.
      channels: See `zoo.explain.deconvnet`.
      positions: See `zoo.explain.deconvnet`.
      baseline: Baseline that broadcasts to the images, in the network's input space: 0
        is the mean color of the network's preprocessing.
      steps: Number of points of the Gauss-Legendre rule.
      chunk: Number of image copies to process at once, but at least one of each image;
        memory grows with it.

    Returns:
      float32 [B, H, W, C], in the network's input space.

    Raises:
      ValueError: An argument is invalid.
    """
    _check_count("steps", steps)
    _check_count("chunk", chunk)
    shape = targets.activation_shape(model, variables, images, endpoint)
    channels, positions = targets.check_target(shape, endpoint, channels, positions)
    baseline = _check_baseline(baseline, images)
    options = dict(model=model, endpoint=endpoint, steps=steps, chunk=chunk)
    return _integrate(variables, images, channels, positions, baseline, **options)


@partial(jit_gradients, static_argnames=("model", "endpoint", "steps", "chunk"))
def _integrate(
    variables: Mapping[str, Any],
    images: Array,
    channels: Array | None,
    positions: Array | None,
    baseline: Array,
    *,
    model: nn.Module,
    endpoint: str,
    steps: int,
    chunk: int,
) -> Array:
    from scipy.special import roots_legendre  # A dependency of jax.

    forward = partial(targets.make_forward(model, endpoint), variables)
    target = targets.find_target(forward(images), channels, positions)
    points, weights = roots_legendre(steps)
    points = jnp.asarray((points + 1) / 2, images.dtype)
    way = images - baseline

    def perturb(point: Array) -> Array:
        return baseline + point * way

    total = _sum_gradients(forward, target, perturb, points, weights / 2, chunk)
    return total * way.astype(jnp.float32)


def completeness_error(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    maps: Array,
    channels: int | Array | None = None,
    positions: Array | None = None,
    *,
    baseline: Array | float = 0.0,
) -> Array:
    """Measures by how much integrated gradients miss the change of the activation.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: As given to `integrated_gradients`, like all the following.
      maps: float32 [B, H, W, C], the maps that it returned.
      channels: See `zoo.explain.deconvnet`.
      positions: See `zoo.explain.deconvnet`.
      baseline: See `integrated_gradients`.

    Returns:
      float32 [B], `abs(sum(map) - change) / max(abs(change), 1)`, where `change` is the
      activation at the image minus that at the baseline.
    """
    shape = targets.activation_shape(model, variables, images, endpoint)
    channels, positions = targets.check_target(shape, endpoint, channels, positions)
    baseline = _check_baseline(baseline, images)
    forward = partial(targets.make_forward(model, endpoint), variables)
    activations = forward(images)
    target = targets.find_target(activations, channels, positions)
    start = targets.take(forward(baseline), target)
    change = (targets.take(activations, target) - start).astype(jnp.float32)
    found = maps.sum(axis=(1, 2, 3))
    return jnp.abs(found - change) / jnp.maximum(jnp.abs(change), 1)


def grad_cam(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    classes: int | Array | None = None,
    positions: Array | None = None,
    *,
    scores: str = "logits",
) -> Array:
    """Sums the channels of a map, weighted by the mean gradient of a class's score.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: Name of a map [B, h, w, c], such as the last one before the pooling.
      classes: A class number, int [B], or None for the class with the highest score.
      positions: int [B, P], which score to explain if each class has several, as for
        pixels or boxes; None for the highest score of the class. See
        `zoo.explain.deconvnet`.
      scores: Name of the endpoint or detector output with the scores [B, ..., K].

    Returns:
      float32 [B, H, W, 1], nonnegative, resized bilinearly to the images' size.

    Raises:
      IndependentError: The scores do not depend on the endpoint.
      ValueError: An argument is invalid.
    """
    shape = targets.activation_shape(model, variables, images, endpoint)
    if len(shape) != 4:
        raise ValueError(
            f"grad_cam needs a map [B, h, w, c], and endpoint {endpoint!r} is "
            f"{list(shape)}."
        )
    shape = targets.activation_shape(model, variables, images, scores)
    named = dict(name="classes")
    classes, positions = targets.check_target(
        shape, scores, classes, positions, **named
    )
    options = dict(model=model, endpoint=endpoint, scores=scores)
    return _grad_cam(variables, images, classes, positions, **options)


@partial(jit_gradients, static_argnames=("model", "endpoint", "scores"))
def _grad_cam(
    variables: Mapping[str, Any],
    images: Array,
    classes: Array | None,
    positions: Array | None,
    *,
    model: nn.Module,
    endpoint: str,
    scores: str,
) -> Array:
    def run(variables: Mapping[str, Any], images: Array) -> tuple[Array, Array]:
        return tuple(targets.read_endpoints(model, variables, images, endpoint, scores))

    program, shapes = inline(run, variables, images)
    leaves, inner = jax.tree.leaves((variables, images)), program.jaxpr
    # The program's variable that holds the map; `change` is added to its value.
    place = inner.outvars[0]

    def perturbed(change: Array) -> tuple[Array, Array]:
        added = {place: change}
        outputs = evaluate(inner, program.consts, leaves, {}, added=added)
        return outputs[1], outputs[0]

    if not _depends(inner, place, inner.outvars[1]):
        raise IndependentError(
            f"endpoint {scores!r} does not depend on endpoint {endpoint!r}, which "
            "comes after it or beside it."
        )
    zeros = jnp.zeros(shapes[0].shape, shapes[0].dtype)
    found, back, features = jax.vjp(perturbed, zeros, has_aux=True)
    target = targets.find_target(found, classes, positions)
    value, spread = jax.vjp(lambda y: targets.take(y, target), found)
    (gradient,) = back(*spread(jnp.ones_like(value)))
    weights = gradient.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
    maps = (weights * features.astype(jnp.float32)).sum(-1, keepdims=True)
    return resize(jax.nn.relu(maps), images.shape[1:3], antialias=False)


def _depends(program: Any, first: Any, last: Any) -> bool:
    """Whether the variable `last` of a program is computed from `first`."""
    reached = {first}
    for step in program.eqns:
        if any(not isinstance(v, core.Literal) and v in reached for v in step.invars):
            reached.update(step.outvars)
    return last in reached


def _sum_gradients(
    forward: Callable,
    target: targets.Target,
    perturb: Callable,
    points: Array,
    weights: np.ndarray,
    chunk: int,
) -> Array:
    """Sums the gradients of the target in perturbed copies of the images.

    Args:
      forward: Function from images [B, H, W, C] to activations.
      target: The activation of each image.
      perturb: Function from a point to the perturbed images [B, H, W, C].
      points: [N, ...].
      weights: [N], the weight of the gradient at each point.
      chunk: Maximum number of images to process at once, though never less than B.

    Returns:
      float32 [B, H, W, C].
    """
    batch = len(target.channels)
    # The largest number of points at once that fits and divides their number.
    most = max(1, min(chunk // batch, len(points)))
    size = next(n for n in range(most, 0, -1) if len(points) % n == 0)
    repeated = targets.Target(*(jnp.tile(t, (size, 1)[: t.ndim]) for t in target))

    def value(images: Array) -> Array:
        return targets.take(forward(images), repeated).astype(jnp.float32).sum()

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        copies = jax.vmap(perturb)(part[0])
        gradients = jax.grad(value)(copies.reshape(-1, *copies.shape[2:]))
        gradients = gradients.astype(jnp.float32).reshape(copies.shape)
        return total + jnp.tensordot(part[1], gradients, axes=1), None

    def split(x: Array) -> Array:
        return x.reshape(-1, size, *x.shape[1:])

    shape = jax.eval_shape(perturb, points[0]).shape
    parts = split(points), split(jnp.asarray(weights, jnp.float32))
    return lax.scan(add, jnp.zeros(shape, jnp.float32), parts)[0]


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be 1 or more, got {count}.")


def _check_baseline(baseline: Array | float, images: Array) -> Array:
    baseline = jnp.asarray(baseline, images.dtype)
    try:
        return jnp.broadcast_to(baseline, images.shape)
    except ValueError as error:
        raise ValueError(
            f"baseline {list(baseline.shape)} does not broadcast to the images "
            f"{list(images.shape)}."
        ) from error
