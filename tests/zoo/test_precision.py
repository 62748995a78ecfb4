"""What computes in which type, and at which precision: from traces alone."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from families import build_small, image_shape, smallest_of_each_family, train
from jax.extend.core import ClosedJaxpr, Jaxpr

import zoo
from zoo.ops.convolution import convolve, convolve_transposed
from zoo.paths import flatten
from zoo.summary import abstract_variables

pytestmark = pytest.mark.quick

FAMILIES = [*smallest_of_each_family(), "alexnet"]
PRODUCTS = ("conv_general_dilated", "dot_general")


def setting(name, **options):
    """The network, and the shapes of its variables and of two images."""
    model, shape = build_small(name, **options), image_shape(name)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return model, abstract_variables(model, shape), images


def endpoints(model, variables, images):
    return model.apply(variables, images, method="endpoints")


def list_products(function, *arguments):
    """Lists the operations of a trace, inner ones included, that multiply and sum.

    Returns:
      The equations, and the shapes of what the function returns.
    """

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in PRODUCTS:
                yield eqn
            for value in jax.tree.leaves(
                [*eqn.params.values()], is_leaf=lambda x: isinstance(x, ClosedJaxpr)
            ):
                if isinstance(value, ClosedJaxpr):
                    yield from walk(value.jaxpr)
                elif isinstance(value, Jaxpr):
                    yield from walk(value)

    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = [*walk(jaxpr.jaxpr)]
    assert found
    return found, shapes


def types_of(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_computes_every_layer_in_it(name):
    model, variables, images = setting(name, dtype=jnp.bfloat16)
    assert types_of(variables) == {"float32"}

    products, found = list_products(partial(endpoints, model), variables, images)
    assert {v.aval.dtype.name for eqn in products for v in eqn.invars} == {"bfloat16"}
    assert found.pop("logits").dtype == jnp.float32
    assert types_of(found) == {"bfloat16"}, found


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_trains_float32(name):
    model, variables, images = setting(name, dtype=jnp.bfloat16)
    grads, (logits, new) = jax.eval_shape(partial(train, model), variables, images)
    assert types_of((grads, logits)) == {"float32"}
    assert logits.shape == (2, zoo.get_spec(name).num_classes)
    assert types_of(new) <= {"float32"}
    assert flatten(new).keys() == {k for k in flatten(variables) if "batch_stats" in k}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_can_be_bfloat16_too(name):
    _, variables, _ = setting(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert types_of(variables["params"]) == {"bfloat16"}
    # Averages of many steps would stand still in eight bits.
    assert types_of(variables.get("batch_stats", {})) <= {"float32"}


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


@pytest.mark.parametrize("name", FAMILIES)
def test_highest_precision_reaches_every_product(name):
    model, variables, images = setting(name)
    with jax.default_matmul_precision("highest"):
        text = lower(partial(train, model), variables, images)
    assert list_precisions(text) == {("HIGHEST", "HIGHEST")}


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
