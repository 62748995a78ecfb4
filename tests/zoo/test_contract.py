"""What holds of every family of classifiers: types, precision, memory, bad images.

Narrow networks are traced, not run, wherever values do not matter.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import (
    build_small,
    family_of,
    image_shape,
    narrow,
    smallest_of_each_family,
    train,
)
from jax.extend.core import ClosedJaxpr, Jaxpr

import zoo
from zoo.paths import flatten
from zoo.summary import abstract_variables

FAMILIES = [
    *smallest_of_each_family(),
    *("alexnet", "alexnet_tv", "zfnet", "plain18", "cifar_resnet164_v2"),
]
REMAT = [name for name in FAMILIES if "remat" in zoo.list_options(name)]
# Where networks of one family read images differently, several of them.
READERS = [*FAMILIES, "lenet5_modern", "googlenet", "msra_a"]


def setting(name, batch=2, **options):
    """A narrow network, and the shapes of its variables and of its images."""
    model, shape = build_small(name, **options), image_shape(name)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    return model, abstract_variables(model, shape), images


def list_equations(jaxpr):
    """Lists all equations of a trace, those of inner functions included."""
    for eqn in jaxpr.eqns:
        yield eqn
        inner = jax.tree.leaves(
            [*eqn.params.values()], is_leaf=lambda x: isinstance(x, ClosedJaxpr)
        )
        for value in inner:
            if isinstance(value, ClosedJaxpr):
                yield from list_equations(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from list_equations(value)


def types_of(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def list_products(jaxpr):
    """Lists the equations of a trace, on any platform, that multiply and sum."""
    names = ("conv_general_dilated", "dot_general")
    products = [e for e in list_equations(jaxpr.jaxpr) if e.primitive.name in names]
    assert products
    return products


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_and_highest_precision_reach_every_product(name):
    model, variables, images = setting(name, dtype=jnp.bfloat16)
    assert types_of(variables) == {"float32"}
    jaxpr, found = jax.make_jaxpr(
        partial(model.apply, method="endpoints"), return_shape=True
    )(variables, images)
    types = {v.aval.dtype.name for e in list_products(jaxpr) for v in e.invars}
    assert types == {"bfloat16"}
    assert found.pop("logits").dtype == jnp.float32
    assert types_of(found) == {"bfloat16"}, found

    with jax.default_matmul_precision("highest"):
        jaxpr, (grads, (logits, new)) = jax.make_jaxpr(
            partial(train, model), return_shape=True
        )(variables, images)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {e.params["precision"] for e in list_products(jaxpr)} == {highest}
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


def keep_for_backward(model, variables, images):
    """Runs a training step's forward pass.

    Returns:
      The names of the endpoints, and the bytes that the backward pass needs beside as
      many as the parameters have.
    """
    names = []

    def keep(variables, images):
        def forward(params):
            found, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
                method="endpoints",
            )
            names[:] = found
            return found["logits"]

        return jax.vjp(forward, variables["params"])[1]

    kept = jax.eval_shape(keep, variables, images)
    sizes = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (kept, variables["params"])
    ]
    return names, sizes[0] - sizes[1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.apart] * (name == "googlenet_tv"))
        for name in REMAT
    ],
)
def test_remat_keeps_all_names_and_less_for_the_backward_pass(name):
    model, variables, images = setting(name, batch=32)
    again, same, _ = setting(name, batch=32, remat=True)
    assert same == variables
    names, size = keep_for_backward(model, variables, images)
    assert names[-1] == "logits"
    names_again, less = keep_for_backward(again, variables, images)
    assert names_again == names
    # Of so few channels the images themselves are a large part of what is kept.
    assert less < 0.75 * size


# Without them XLA's CPU compiler merges what is computed again with what was computed
# before.
BARRIERS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **zoo.cpu.compiler_options(training=True),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.apart] * (name != "cifar_resnet20"))
        for name in REMAT
    ],
)
def test_remat_computes_the_same_gradients(name):
    any_size = family_of(name) not in ("alexnet", "vgg")
    size = min(64, image_shape(name)[0]) if any_size else image_shape(name)[0]
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    images = jnp.asarray(images, jnp.float32)
    init = jax.jit(build_small(name).init, compiler_options=BARRIERS)
    variables = init(jax.random.key(0), images[:1])
    found = [
        jax.jit(
            partial(train, build_small(name, remat=remat)), compiler_options=BARRIERS
        )(variables, images)
        for remat in (False, True)
    ]
    for expected, again in zip(*map(jax.tree.leaves, found), strict=True):
        limit = 1e-5 * max(float(jnp.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=limit)


# Where one stage needs the most by far, as AlexNet's first, the peak stays what it is.
def test_remat_takes_less_memory():
    name, peak = "cifar_resnet20", {}
    for remat in (False, True):
        model, variables, images = setting(name, batch=32, remat=remat)
        step = jax.jit(partial(train, model)).lower(variables, images)
        peak[remat] = step.compile(BARRIERS).memory_analysis().temp_size_in_bytes
    assert peak[True] < 0.9 * peak[False]


def test_every_large_network_has_remat():
    small = {name for name in zoo.list_models() if zoo.get_spec(name).params < 10**6}
    without = {
        name for name in zoo.list_models() if "remat" not in zoo.list_options(name)
    }
    # Of these the head alone is fitted.
    assert without <= small | {"rcnn_alexnet", "rcnn_vgg16"}


SMALLEST = {
    "lenet5": 32,
    "lenet5_modern": 28,
    "alexnet": 227,
    "alexnet_tv": 224,
    "zfnet": 224,
    "zfnet64_small": 64,
    "vgg11": 224,
    "googlenet": 47,
    "googlenet_tv": 31,
    "plain18": 1,
    "msra_a": 15,
    "msra_small14": 17,
    "cifar_resnet20": 1,
    "cifar_resnet164_v2": 1,
}
ANY_SIZE = {
    "alexnet": 227,
    "alexnet_tv": 223,
    "zfnet": 207,
    "zfnet64_small": 51,
    "vgg11": 224,
}


@cache
def reader(name, **options):
    if name == "msra_a":
        options |= dict(widths=(4, 5, 6, 3), depths=(2, 1, 2))
    model, variables, _ = setting(name, **options)
    return model, variables


def trace(name, shape, dtype=jnp.float32, **options):
    model, variables = reader(name, **options)
    return jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, dtype))


def test_every_family_reads_images():
    names = zoo.list_models(task="classification")
    assert {*map(family_of, READERS)} == {*map(family_of, names)}
    assert {*SMALLEST} == {*READERS}


@pytest.mark.parametrize("name", READERS)
def test_images_that_a_network_cannot_take_are_named(name):
    height, width, channels = image_shape(name)
    side = SMALLEST[name]
    assert trace(name, (2, side, side, channels)).shape[0] == 2
    words = rf"{name} takes images .*"
    wrong = {
        (2, side - 1, side - 1, channels): rf"\b{side}\b.*, got \[2, {side - 1}, ",
        (height, width, channels): r"got .*images\[None\]",
        (2, channels, height, width): r"got .*images\.transpos",
        (height,): rf"got \[{height}\]",
    }
    for shape, end in wrong.items():
        with pytest.raises(ValueError, match=words + end):
            trace(name, shape)
    for dtype in (jnp.uint8, jnp.int32, jnp.bool_):
        with pytest.raises(ValueError, match=rf"got {np.dtype(dtype)}; zoo\.normalize"):
            trace(name, (2, height, width, channels), dtype)
    for other in {1, 3, 4} - {channels}:
        words = f"images have {other} channel.* takes {channels} .*transfer"
        if name == "lenet5":  # It has a kernel for each pair of maps.
            words = "backbone/c1: the kernel is .* images' size and channels"
        with pytest.raises(ValueError, match=words):
            trace(name, (2, height, width, other))


@pytest.mark.parametrize(("name", "side"), ANY_SIZE.items())
def test_a_fully_convolutional_network_names_its_smallest_image(name, side):
    options = {"fully_convolutional": True}
    trace(name, (1, side, side + 40, 3), **options)
    with pytest.raises(ValueError, match=f"{name} takes .* {side} x {side} pixels"):
        trace(name, (1, side - 1, side + 40, 3), **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exported_for_any_batch(name):
    options = narrow(name)
    if "scan" in zoo.list_options(name):  # Else the deep ones' programs are long.
        options = {**options, "scan": True}
    model = zoo.build(name, **options)
    shapes = abstract_variables(model, image_shape(name))
    artifact = zoo.export(name, shapes, constants=False, **options)
    exported = jax.export.deserialize(bytearray(artifact))
    assert exported.out_avals[0].dtype == jnp.float32
    batch, classes = exported.out_avals[0].shape
    assert (str(batch), classes) == ("b", zoo.get_spec(name).num_classes)
