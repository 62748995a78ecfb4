"""Images that a network cannot take are refused with words that help, traced or not."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.classification.preact_resnet import preact_resnet
from zoo.paths import flatten, unflatten
from zoo.summary import abstract_variables

# One of each family or, where they read images differently, several.
BUILD = {
    name: zoo.get_spec(name).build
    for name in (
        *("lenet5", "lenet5_modern", "alexnet", "alexnet_tv", "zfnet", "vgg11"),
        *("googlenet", "googlenet_tv", "resnet18", "msra_a", "msra_small14"),
        "cifar_resnet20",
    )
}
# The registered ones are deep, and slow to trace.
BUILD["cifar_resnet11_v2"] = partial(
    preact_resnet, depth=11, small=True, num_classes=10
)
NAMES = [*BUILD]
SMALLEST = {
    "lenet5": 32,
    "lenet5_modern": 28,
    "alexnet": 227,
    "alexnet_tv": 224,
    "zfnet": 224,
    "vgg11": 224,
    "googlenet": 47,
    "googlenet_tv": 31,
    "resnet18": 1,
    "msra_a": 15,
    "msra_small14": 17,
    "cifar_resnet20": 1,
    "cifar_resnet11_v2": 1,
}
ANY_SIZE = {"alexnet": 227, "alexnet_tv": 223, "zfnet": 207, "vgg11": 224}


@functools.cache
def network(name, **options):
    """A model with the shapes of its variables, and of its image."""
    pre = zoo.get_spec(name.replace("11_v2", "164_v2")).preprocess
    shape = pre.shape
    model = BUILD[name](**options)
    return model, abstract_variables(model, shape), shape


def trace(name, shape, dtype=jnp.float32, **options):
    model, variables, _ = network(name, **options)
    images = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(model.apply, variables, images)


def test_every_family_is_tried():
    names = zoo.list_models(task="classification")
    builds = [zoo.get_spec(name).build for name in names]
    modules = [
        {getattr(build, "func", build).__module__ for build in some}
        for some in (builds, BUILD.values())
    ]
    assert modules[0] == modules[1]


@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_the_smallest_image_is_said(name, side):
    channels = network(name)[2][2]
    assert trace(name, (2, side, side, channels)).shape[0] == 2
    words = rf"{name} takes images .*\b{side}\b.*, got \[2, {side - 1}, {side - 1}, "
    with pytest.raises(ValueError, match=words):
        trace(name, (2, side - 1, side - 1, channels))


@pytest.mark.parametrize(("name", "side"), ANY_SIZE.items())
def test_the_smallest_image_of_a_network_for_any_size_is_said(name, side):
    options = {"fully_convolutional": True}
    trace(name, (1, side, side + 40, 3), **options)
    with pytest.raises(
        ValueError, match=f"{name} takes .* {side} x {side} pixels or mo"
    ):
        trace(name, (1, side - 1, side + 40, 3), **options)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_channels_is_said(name):
    height, width, channels = network(name)[2]
    for other in {1, 3, 4} - {channels}:
        words = f"images have {other} channel.* the network takes {channels} .*transfer"
        if name == "lenet5":  # It has a kernel for each pair of maps.
            words = (
                "backbone/c1: the kernel is .* look at the images' size and channels"
            )
        with pytest.raises(ValueError, match=words):
            trace(name, (2, height, width, other))


@pytest.mark.parametrize("name", NAMES)
def test_other_types_than_floats_are_refused(name):
    shape = (2, *network(name)[2])
    for dtype in (jnp.uint8, jnp.int32, jnp.bool_):
        words = rf"floating point, got {np.dtype(dtype)}; zoo\.normalize"
        with pytest.raises(ValueError, match=words):
            trace(name, shape, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_batch_and_leading_channels_are_recognised(name):
    height, width, channels = network(name)[2]
    with pytest.raises(ValueError, match=r"got .*images\[None\] is a batch of one"):
        trace(name, (height, width, channels))
    with pytest.raises(ValueError, match=r"got .*Channels come last: images\.transpos"):
        trace(name, (2, channels, height, width))
    with pytest.raises(ValueError, match=rf"takes images .*got \[{height}\]"):
        trace(name, (height,))


@pytest.fixture(scope="module")
def small():
    """A network that is quick to run, and arrays for it."""
    model, variables, shape = network("lenet5_modern")
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), variables)
    return model, zeros, np.ones((2, *shape), np.float32)


WRONG = {
    "type": lambda x: x.astype(np.uint8),
    "batch": lambda x: x[0],
    "size": lambda x: x[:, 1:],
    "channels": lambda x: np.repeat(x, 3, -1),
    "order": lambda x: x.transpose(0, 3, 1, 2),
}


@pytest.mark.quick
@pytest.mark.parametrize("what", WRONG)
def test_the_words_are_the_same_under_jit_grad_and_eagerly(small, what):
    model, variables, images = small
    images = WRONG[what](images)
    gradient = jax.grad(lambda v: model.apply(v, images).sum())
    calls = {
        "eager": lambda: model.apply(variables, images),
        "jit": lambda: jax.jit(model.apply)(variables, images),
        "features": lambda: zoo.features(model, variables, images, ["pool1"]),
        "grad": lambda: gradient(variables),
    }
    said = set()
    for call in calls.values():
        with pytest.raises(ValueError, match=r"images") as caught:
            call()
        said.add(str(caught.value))
    assert len(said) == 1, said


@pytest.mark.quick
def test_variables_of_another_network_are_said(small):
    model, variables, images = small
    path = "params/backbone/conv2/kernel"
    other = unflatten({**flatten(variables), path: jnp.zeros((5, 5, 30, 50))})
    words = (
        r"conv2: the kernel is \[5, 5, 30, 50\], .* \[5, 5, 20, 50\]; .* this network"
    )
    with pytest.raises(ValueError, match=words):
        model.apply(other, images)


@pytest.mark.quick
def test_types_of_images_do_not_change_what_is_computed(small):
    model, variables, images = small
    variables = jax.tree.map(lambda v: v + 0.01, variables)
    expected = model.apply(variables, images)
    for dtype in (np.float64, np.float16, jnp.bfloat16):
        np.testing.assert_array_equal(
            model.apply(variables, images.astype(dtype)), expected
        )
