"""The variables of a new network are those of Flax's own `init`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.initialization import init_variables

KEYS = {
    "typed": jax.random.key,
    "raw": jax.random.PRNGKey,
    "rbg": partial(jax.random.key, impl="rbg"),
}


def build(name, **options):
    spec = zoo.get_spec(name)
    if name == "cifar_resnet20":
        options["blocks"] = (1, 1, 1)
    model = spec.build(num_classes=spec.num_classes, **options)
    return model, (1, *spec.preprocess.shape)


def assert_same(ours, theirs):
    """Asserts equality but for the rounding that XLA's optimization level changes."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max(initial=0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet5", {}),
        ("lenet5_modern", {"param_dtype": jnp.bfloat16}),
        ("cifar_resnet20", {}),
        ("cifar_resnet20", {"remat": True}),
        ("cifar_resnet20", {"scan": True}),
        pytest.param("unet_small", {}, marks=pytest.mark.apart),
    ],
)
def test_the_numbers_are_those_of_init(name, options, cheap_jit):
    model, shape = build(name, **options)
    key, images = jax.random.key(3), jnp.zeros(shape)
    assert_same(init_variables(model, key, shape), cheap_jit(model.init)(key, images))


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_keys_of_every_kind(key, cheap_jit):
    model, shape = build("lenet5_modern")
    expected = cheap_jit(model.init)(key(5), jnp.zeros(shape))
    assert_same(init_variables(model, key(5), shape), expected)


def test_it_can_be_traced():
    model, shape = build("lenet5_modern")
    run = partial(init_variables, model, shape=shape)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    assert jax.eval_shape(run, jax.random.key(0)) == shapes


def test_an_equal_network_is_not_compiled_again():
    first = zoo.create("lenet5_modern", key=jax.random.key(1))[1]
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    second = zoo.create("lenet5_modern", key=jax.random.key(2))[1]
    jax.monitoring.clear_event_listeners()
    assert not compiled
    kernels = (jax.tree.leaves(v["params"])[-1] for v in (first, second))
    assert not jnp.array_equal(*kernels)


def test_the_module_is_left_as_it_was():
    model, shape = build("lenet5_modern")
    before = hash(model)
    init_variables(model, jax.random.key(0), shape)
    assert hash(model) == before


def test_no_two_variables_share_memory():
    variables = zoo.create("unet_small")[1]
    leaves = jax.tree.leaves(variables)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    # So all can be donated at once.
    doubled = jax.jit(lambda v: jax.tree.map(lambda a: 2 * a, v), donate_argnums=0)
    assert len(jax.tree.leaves(doubled(variables))) == len(leaves)
    assert all(leaf.is_deleted() for leaf in leaves)
