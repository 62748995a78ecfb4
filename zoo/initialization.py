"""The variables of a new network, without compiling the network."""

from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import linen as nn


def init_variables(model: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> dict:
    """Returns what `model.init` does for images of a shape [B, H, W, C]."""
    with nn.intercept_methods(_compile_draws):
        return model.lazy_init(key, jax.ShapeDtypeStruct(shape, jnp.float32))


def _compile_draws(call, args, kwargs, context):
    init = getattr(context.module, "kernel_init", None)
    if init is not None and getattr(init, "func", None) is not _draw:
        # The module is a copy that lives as long as the call.
        object.__setattr__(context.module, "kernel_init", partial(_draw, init))
    return call(*args, **kwargs)


def _draw(init, key, *args):
    # Compiler options are for a program of its own, which there is not within `scan`.
    nested = isinstance(key, jax.core.Tracer)
    return (init if nested else partial(_jit(jax.default_backend()), init))(key, *args)


@cache
def _jit(backend: str):
    # A kernel is drawn once: optimizing that takes longer than it saves.
    cheap = {"xla_backend_optimization_level": 1}
    cheap["xla_llvm_disable_expensive_passes"] = True
    options = cheap if backend == "cpu" else {}
    return jax.jit(
        lambda init, *args: init(*args),
        static_argnums=(0, 2, 3),
        compiler_options=options,
    )
