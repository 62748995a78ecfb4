"""Second moments of signals and gradients before training, measured and by formula."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.studies.runner import Signal, make_probe


@dataclasses.dataclass(frozen=True)
class Layer:
    """Second moments at a convolution, measured and by the formulas.

    For a layer with k x k taps, C input and D output channels and weights of variance
    v, given its input x, E[y^2] = v * (the sum of x^2 over taps and channels). Given
    the gradient at its output, the mean square of the gradient at the output of the
    layer before is v / 2 * (the sum of its squares over taps and channels), as ReLU
    passes half. Taps on the padding contribute nothing, which the paper's factors
    ignore.

    Attributes:
      output: Measured mean square of the output y.
      expected_output: Mean square of the output by the formula.
      gradient: Measured mean square of the gradient with respect to y.
      expected_gradient: Mean square of the gradient by the formula, from the layer
        above; NaN if there is a pool in between, which no formula covers.
      forward: The paper's factor k^2 C v / 2.
      backward: The paper's factor k^2 D v / 2.
    """

    output: float
    expected_output: float
    gradient: float
    expected_gradient: float
    forward: float
    backward: float


def measure_layers(
    name: str,
    init: str,
    draws: int,
    shape: tuple[int, ...],
    options: Mapping[str, Any],
) -> dict[str, Layer]:
    """Measures every convolution of a network, averaged over draws of its weights.

    Args:
      name: Registered name of a network of convolutions without shortcuts.
      init: "he_fan_out" or "glorot".
      draws: Number of draws of the weights.
      shape: Shape [B, H, W, C] of the noise images.
      options: Options of the network.
    """
    found = [_measure_draw(name, init, draw, shape, options) for draw in range(draws)]
    fields = [field.name for field in dataclasses.fields(Layer)]
    return {
        path: Layer(
            *(float(np.mean([getattr(d[path], f) for d in found])) for f in fields)
        )
        for path in found[0]
    }


def _measure_draw(
    name: str, init: str, draw: int, shape: tuple[int, ...], options: Mapping[str, Any]
) -> dict[str, Layer]:
    keys = jax.random.split(jax.random.key(draw), 3)
    model, variables = zoo.create(name, key=keys[0], init=init, dropout=0.0, **options)
    images = jax.random.normal(keys[1], shape)
    labels = jax.random.randint(keys[2], shape[:1], 0, 1000)
    signals = {
        path.split("/")[-1]: signal
        for path, signal in make_probe(model)(variables, images, labels).items()
        if signal.input.ndim == 4
    }
    layers, above = {}, None
    for path, signal in reversed(signals.items()):
        kernel = variables["params"]["backbone"][path]["kernel"]
        size, _, inputs, outputs = kernel.shape
        fan_in, fan_out = size**2 * inputs, size**2 * outputs
        variance = 2 / fan_out if init == "he_fan_out" else 2 / (fan_in + fan_out)
        sum_taps = _make_sum_taps(size, signal)
        squares = jnp.square(signal.input).sum(-1, keepdims=True)
        gradients = jnp.square(signal.gradient).sum(-1, keepdims=True)
        seen, spread = jax.vjp(sum_taps, squares)
        layers[path] = Layer(
            output=float(jnp.square(signal.output).mean()),
            expected_output=variance * float(seen.mean()),
            gradient=float(jnp.square(signal.gradient).mean()),
            expected_gradient=(
                above[1] if above and above[0] == signal.output.shape else float("nan")
            ),
            forward=fan_in * variance / 2,
            backward=fan_out * variance / 2,
        )
        received = variance / 2 * float(spread(gradients)[0].mean())
        above = signal.input.shape, received
    return dict(reversed(layers.items()))


def _make_sum_taps(size: int, signal: Signal):
    """Makes the function that sums a map [B, H, W, 1] over a convolution's taps.

    Stride and padding follow from the sizes of the maps.
    """
    before, after = signal.input.shape[1], signal.output.shape[1]
    stride = max(1, round(before / after))
    # The smallest padding that gives the output's size.
    padding = next(
        p for p in range(size) if (before + 2 * p - size) // stride + 1 == after
    )
    ones = jnp.ones((size, size, 1, 1))
    return lambda x: jax.lax.conv_general_dilated(
        x,
        ones,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
