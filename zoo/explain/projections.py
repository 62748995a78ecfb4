"""Projects an activation back into the image, to show what excites it.

Three methods go back through a network in the same way and differ only at rectifiers,
in how much of the reconstruction g from above they pass:

    saliency         g where the rectifier's input was positive: the gradient
    deconvnet        g where g itself is positive
    guided_backprop  g where both are

All other layers are treated as linear, and pass it through their transpose:

| layer | what happens to the reconstruction |
|---|---|
| convolution, grouped, dilated or transposed | the transposed (for a transposed one, the plain) convolution with the same, flipped, filters; biases are ignored |
| dense layer | the transposed matrix; biases are ignored |
| batch normalization | the factor of each channel, as if it were folded into the filters; shifts are ignored |
| max pooling, of any kind | to the pixel that was the largest, the first of equals; overlapping windows are added |
| mean pooling | equal parts to all pixels of the window |
| resizing, bilinear or nearest | to each pixel as much as it contributed |
| unpooling by indices | read at the indices |
| residual sum | the whole reconstruction to the branch and to the shortcut, added where the two split; a rectifier after the sum is passed before both |
| concatenation, as in inception | to each branch its channels, added where the branches split |
| ReLU | see above |
| leaky ReLU, PReLU | the same function of the reconstruction (deconvnet) or of the gradient (guided_backprop); the gradient (saliency) |
| local response normalization | skipped by deconvnet, as published; otherwise the gradient |
| sigmoid, tanh and other smooth functions | the gradient, as no other rule is known |
| dropout | nothing: it is not active |

The rules for convolutions, max pools, rectifiers and contrast normalization are those of
Zeiler and Fergus; those of means, sums and resizing follow from the same principle, that
each linear layer is replaced by its transpose, as Simonyan et al. show for
convolutions. The paper does not say whether overlapping windows are added or
overwritten; here they are added, as in the gradient.

References:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014, section 2.
  Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2014, section 4.
  Springenberg, Dosovitskiy, Brox, Riedmiller, Striving for Simplicity, 2015, section 3.
"""  # noqa: E501

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.cpu import jit_gradients
from zoo.explain import targets
from zoo.explain.rewrite import Rule, count_calls, rewrite

Array = jax.Array

# Names of jitted functions in a trace; ReLU6 is treated like ReLU.
RECTIFIERS = ("relu", "relu6", "leaky_relu", "prelu")
NORMALIZATIONS = ("local_response_norm",)


def deconvnet(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    positions: Array | None = None,
) -> Array:
    """Projects one activation of each image back to the pixels, by a deconvnet.

    All activations of the endpoint but one are set to zero, and its value is projected.

    Args:
      model: A network of the zoo, with rectifiers.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: Name of an activation [B, ..., C]; `zoo.list_endpoints` has them. For a
        detector also one of its outputs, such as "class_logits" [B, A, K + 1].
      channels: A channel number, int [B], or None for each image's strongest channel.
      positions: int [B, P], one index for each axis between the first and the last (row
        and column in a map); None for the strongest position of the channel.

    Returns:
      float32 [B, H, W, C], in the network's input space.

    Raises:
      ValueError: The network has no rectifiers, or an argument is invalid.
    """
    return _project(
        "deconvnet", model, variables, images, endpoint, channels, positions
    )


def guided_backprop(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    positions: Array | None = None,
) -> Array:
    """Computes the gradient of an activation; rectifiers pass only its positive part.

    Args:
      model: A network of the zoo, with rectifiers.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: See `deconvnet`.
      channels: See `deconvnet`.
      positions: See `deconvnet`.

    Returns:
      float32 [B, H, W, C], in the network's input space.

    Raises:
      ValueError: The network has no rectifiers, or an argument is invalid.
    """
    return _project(
        "guided_backprop", model, variables, images, endpoint, channels, positions
    )


def saliency(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: int | Array | None = None,
    positions: Array | None = None,
) -> Array:
    """Computes the gradient of an activation with respect to the image.

    The paper's map is the largest absolute value of the channels:
    `jnp.abs(saliency(...)).max(-1)`.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [B, H, W, C], preprocessed.
      endpoint: See `deconvnet`.
      channels: See `deconvnet`.
      positions: See `deconvnet`.

    Returns:
      float32 [B, H, W, C], in the network's input space.

    Raises:
      ValueError: An argument is invalid.
    """
    return _project("saliency", model, variables, images, endpoint, channels, positions)


def count_rectifiers(
    model: nn.Module, variables: Mapping[str, Any], images: Array
) -> int:
    """Counts the rectifiers that a network calls, from shapes alone.

    Rectifiers in a loop, such as a scan over blocks, count once.
    """

    def run(variables: Mapping[str, Any], images: Array) -> tuple:
        endpoints = model.apply(variables, images, method="endpoints")
        return endpoints, model.apply(variables, images)

    return count_calls(run, RECTIFIERS, variables, images)


def _project(
    method: str,
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    endpoint: str,
    channels: Any,
    positions: Any,
) -> Array:
    shape = targets.activation_shape(model, variables, images, endpoint)
    channels, positions = targets.check_target(shape, endpoint, channels, positions)
    options = dict(method=method, model=model, endpoint=endpoint)
    return _run(variables, images, channels, positions, **options)


@partial(jit_gradients, static_argnames=("method", "model", "endpoint"))
def _run(
    variables: Mapping[str, Any],
    images: Array,
    channels: Array | None,
    positions: Array | None,
    *,
    method: str,
    model: nn.Module,
    endpoint: str,
) -> Array:
    if method != "saliency" and not count_rectifiers(model, variables, images):
        raise ValueError(
            f"{method} is defined by rectifiers, and this {type(model).__name__} has "
            f"none of {list(RECTIFIERS)}; zoo.explain.saliency takes any network."
        )
    forward = partial(targets.make_forward(model, endpoint), variables)
    activations, back = jax.vjp(rewrite(forward, _RULES[method]), images)
    target = targets.find_target(activations, channels, positions)
    value, spread = jax.vjp(lambda y: targets.take(y, target), activations)
    # A deconvnet projects the activation itself, the others its derivative.
    seed = value if method == "deconvnet" else jnp.ones_like(value)
    return back(*spread(seed))[0].astype(jnp.float32)


def _pass_positive(call: Callable, x: Array, g: Array, *slopes: Array) -> Array:
    return call(g, *slopes)


def _pass_guided(call: Callable, x: Array, g: Array, *slopes: Array) -> Array:
    (gradient,) = jax.vjp(lambda x: call(x, *slopes), x)[1](g)
    return call(gradient, *slopes)


def _pass_all(call: Callable, x: Array, g: Array) -> Array:
    return g


def _backward_rule(backward: Callable, replacement: Callable | None = None) -> Rule:
    """Makes a rule that keeps an operation and replaces its backward pass."""

    def rule(call: Callable, x: Array, *slopes: Array) -> Array:
        @jax.custom_vjp
        def operation(x: Array, slopes: tuple) -> Array:
            return call(x, *slopes)

        def forward(x: Array, slopes: tuple) -> tuple[Array, tuple]:
            return call(x, *slopes), (x, slopes)

        def back(kept: tuple, g: Array) -> tuple[Array, None]:
            x, slopes = kept
            return backward(replacement or call, x, g, *slopes), None

        operation.defvjp(forward, back)
        return operation(x, slopes)

    return rule


def _rules(backward: Callable) -> dict[str, Rule]:
    rules = {name: _backward_rule(backward) for name in RECTIFIERS}
    return rules | {"relu6": _backward_rule(backward, jax.nn.relu)}


_RULES: dict[str, dict[str, Rule]] = {
    "saliency": {},
    "guided_backprop": _rules(_pass_guided),
    "deconvnet": _rules(_pass_positive)
    | {name: _backward_rule(_pass_all) for name in NORMALIZATIONS},
}
