"""The precision at which convolutions multiply: from their programs alone."""

import re

import jax
import jax.numpy as jnp
import pytest

from zoo.ops.convolution import convolve, convolve_transposed


def list_precisions(text):
    """The precision of each product in a program's text."""
    lines = [
        line
        for line in text.splitlines()
        if re.search(r"stablehlo\.(convolution|dot_general)\b", line)
    ]
    assert lines
    return {tuple(re.findall(r"\b(HIGHEST|HIGH|DEFAULT)\b", line)) for line in lines}


def lower(function, *shapes):
    """The program with what each platform has of its own."""
    platforms = ["cpu", "tpu"]
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*shapes)
    return exported.mlir_module()


CONVOLUTIONS = {
    "pointwise": ((1, 1, 8, 6), {}),
    "dense": ((3, 3, 8, 6), {"padding": ((1, 1), (1, 1))}),
    "strided": ((3, 3, 8, 6), {"strides": (2, 2)}),
    "large": ((11, 11, 8, 6), {"padding": ((5, 5), (5, 5))}),
    "dilated": ((3, 3, 8, 6), {"dilation": (2, 2)}),
    "grouped": ((3, 3, 4, 6), {"groups": 2}),
    "depthwise": ((3, 3, 1, 8), {"groups": 8}),
    "transposed": ((4, 4, 8, 6), {"strides": (2, 2), "crop": ((1, 1), (1, 1))}),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_highest_precision_reaches_every_formulation(kind):
    kernel, options = CONVOLUTIONS[kind]
    function = convolve_transposed if kind == "transposed" else convolve
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 32, 32, 8), kernel)]

    def loss(x, kernel):
        return jnp.square(function(x, kernel, **options)).sum()

    # Of both orders: Hessian times vector.
    def curvature(x, kernel):
        grad = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(grad, (x, kernel), (x, kernel))

    with jax.default_matmul_precision("highest"):
        text = lower(curvature, *shapes)
    assert list_precisions(text) == {("HIGHEST", "HIGHEST")}
    assert list_precisions(lower(curvature, *shapes)) == {()}
