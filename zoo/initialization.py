"""Initializers that compile quickly, and the variables of a new network."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array

# A kernel is initialized once: optimization takes longer than it saves.
_QUICK = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}


def init_variables(model: nn.Module, key: Array, shape: tuple[int, ...]) -> dict:
    """Returns the variables of `model.init` without compiling the network.

    Args:
      model: A network.
      key: Key of the random numbers.
      shape: Shape of the images, [B, H, W, C].
    """
    return model.lazy_init(key, jax.ShapeDtypeStruct(shape, jnp.float32))


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """Returns the variables' shapes and dtypes, without allocating them.

    Args:
      model: A network of the zoo.
      image_shape: (H, W, C).
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


@functools.cache
def compile_quickly(init: Callable) -> Callable:
    """Compiles an initializer by itself, on CPUs with few optimizations.

    Args:
      init: Function from a key, a shape and a dtype to an array.
    """
    plain = jax.jit(init, static_argnums=(1, 2))
    quick = jax.jit(init, static_argnums=(1, 2), compiler_options=_QUICK)

    def draw(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        # A part of another program cannot have compiler options.
        if isinstance(key, jax.core.Tracer):
            return init(key, shape, dtype)
        return (quick if jax.default_backend() == "cpu" else plain)(key, shape, dtype)

    return draw
