"""Images that a network cannot take are refused in the same words everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.paths import flatten, unflatten
from zoo.summary import abstract_variables


@pytest.fixture(scope="module")
def small():
    """A network that is quick to run, and arrays for it."""
    model, shape = zoo.build("lenet5_modern"), (28, 28, 1)
    variables = abstract_variables(model, shape)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), variables)
    return model, zeros, np.ones((2, *shape), np.float32)


WRONG = {
    "type": lambda x: x.astype(np.uint8),
    "batch": lambda x: x[0],
    "size": lambda x: x[:, 1:],
    "channels": lambda x: np.repeat(x, 3, -1),
    "order": lambda x: x.transpose(0, 3, 1, 2),
}


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


def test_variables_of_another_network_are_said(small):
    model, variables, images = small
    path = "params/backbone/conv2/kernel"
    other = unflatten({**flatten(variables), path: jnp.zeros((5, 5, 30, 50))})
    words = (
        r"conv2: the kernel is \[5, 5, 30, 50\], .* \[5, 5, 20, 50\]; .* this network"
    )
    with pytest.raises(ValueError, match=words):
        model.apply(other, images)


def test_types_of_images_do_not_change_what_is_computed(small):
    model, variables, images = small
    variables = jax.tree.map(lambda v: v + 0.01, variables)
    expected = model.apply(variables, images)
    for dtype in (np.float64, np.float16, jnp.bfloat16):
        np.testing.assert_array_equal(
            model.apply(variables, images.astype(dtype)), expected
        )
