"""Variables drawn kind by kind are those of Flax's own `init`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from zoo.drawing import draw_variables

pytestmark = pytest.mark.quick
KEYS = {
    "typed": jax.random.key,
    "raw": jax.random.PRNGKey,
    "rbg": partial(jax.random.key, impl="rbg"),
}


def assert_same(ours, theirs):
    """Asserts equality but for the rounding that XLA's optimisation level changes."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max(initial=0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet5", {}),
        ("cifar_resnet20", {}),
        ("cifar_resnet20", {"remat": True}),
        ("unet_small", {}),
    ],
)
def test_the_numbers_are_those_of_init(name, options):
    model = zoo.build(name, **options)
    images = jnp.zeros((1, *zoo.get_spec(name).preprocess.shape))
    expected = jax.jit(zoo.build(name).init)(jax.random.key(3), images)
    assert_same(draw_variables(model, jax.random.key(3), images), expected)


def draw(key):
    return jax.random.normal(key)


class Odd(nn.Module):
    """Variables that are drawn in ways of their own."""

    @nn.compact
    def __call__(self, x):
        twice = self.param("twice", lambda key: jax.random.normal(key, (3,)) * 2)
        for name in "ab":
            self.param(name, nn.initializers.normal(0.5, jnp.bfloat16), (2, 3))
        self.param("steps", lambda key: jnp.int32(7))
        self.param("ramp", lambda key: jnp.arange(3.0))
        self.param("pair", lambda key: jnp.stack([*map(draw, jax.random.split(key))]))
        self.variable("seen", "mean", lambda: x.mean(0) + 1)
        self.variable("seen", "noise", self.noise)
        return x + twice[None]

    def noise(self):
        """A sum of two keys' numbers."""
        one, two = (draw(self.make_rng("params")) for _ in range(2))
        return one + two


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_what_is_not_drawn_of_one_key_alone(key):
    images = jnp.ones((4, 3))
    expected = Odd().init(key(5), images)
    assert_same(draw_variables(Odd(), key(5), images), expected)


def test_an_equal_network_is_not_compiled_again(monkeypatch):
    first = zoo.create("lenet5_modern", key=jax.random.key(1))[1]
    monkeypatch.setattr(jax, "make_jaxpr", None)
    second = zoo.create("lenet5_modern", key=jax.random.key(2))[1]
    assert jax.tree.structure(first) == jax.tree.structure(second)
    kernels = (jax.tree.leaves(v["params"])[-1] for v in (first, second))
    assert not jnp.array_equal(*kernels)


def test_no_two_variables_share_memory():
    variables = zoo.create("cifar_resnet20")[1]
    leaves = jax.tree.leaves(variables)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    # So all can be donated at once.
    doubled = jax.jit(lambda v: jax.tree.map(lambda a: 2 * a, v), donate_argnums=0)
    assert len(jax.tree.leaves(doubled(variables))) == len(leaves)
    assert all(leaf.is_deleted() for leaf in leaves)
