"""The variables of a new network, without compiling the network."""

from functools import lru_cache, wraps

import jax
import jax.numpy as jnp
from flax import linen as nn


def init_variables(model: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> dict:
    """Returns what `model.init` does for images [B, H, W, C], without computing any."""
    with nn.intercept_methods(_compile_draws):
        return model.lazy_init(key, jax.ShapeDtypeStruct(shape, jnp.float32))


def _compile_draws(call, args, kwargs, context):
    """Calls a method of a module whose kernels are drawn by a compiled function."""
    init = getattr(context.module, "kernel_init", None)
    if init is not None and not hasattr(init, "__wrapped__"):
        object.__setattr__(context.module, "kernel_init", _compile(init))
    return call(*args, **kwargs)


@lru_cache(maxsize=64)
def _compile(init):
    # A kernel is drawn once: optimizing that takes longer than it saves.
    options = {"xla_backend_optimization_level": 1}
    options["xla_llvm_disable_expensive_passes"] = True
    cpu = jax.default_backend() == "cpu"
    draw = jax.jit(init, static_argnums=(1, 2), compiler_options=options if cpu else {})

    @wraps(init)
    def choose(key, *args):
        # Options are for a program of its own, which it is not within `scan` or `jit`.
        return (init if isinstance(key, jax.core.Tracer) else draw)(key, *args)

    return choose
