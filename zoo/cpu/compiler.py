"""The compiler options with which convolutional networks run faster on CPUs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# XLA hands reductions to YNNPACK, with whole blocks of a network fused into them, and
# these are slower than its own code. No fusion type is listed: none is left.
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compiler_options() -> dict[str, str]:
    """Compiler options for the inference of convolutional networks.

    The functions of `zoo.make_classifier`, `zoo.make_detector` and
    `zoo.make_segmenter` are compiled with them; a function of yours is by

        apply = jax.jit(model.apply, compiler_options=zoo.cpu.compiler_options())

    which runs `resnet18` on one image more than twice as fast as without. JAX takes
    compiler options of the outermost `jit` only. Training steps gain nothing.

    Returns:
      Options for `jax.jit` and `jax.stages.Lowered.compile`, which change no result
      beyond rounding. Empty where JAX's default backend is not the CPU, and where
      jaxlib does not know the options.
    """
    known = jax.default_backend() == "cpu" and _are_known()
    return dict(OPTIONS) if known else {}


@functools.cache
def _are_known() -> bool:
    lowered = jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), jnp.float32))
    try:
        lowered.compile(compiler_options=OPTIONS)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def jit_inference(function: Callable, **options: Any) -> Callable:
    """Does what `jax.jit` does, with `compiler_options` where these are taken.

    Args:
      function: To be compiled.
      **options: Other options of `jax.jit`.

    Returns:
      A function like the given one, which may be called in traced functions, too.
    """
    nested = jax.jit(function, **options)

    @functools.cache
    def outermost() -> Callable:
        # Made by the first call: asking for the backend initializes it.
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Within a traced function a new array, too, is a tracer.
        leaves = jax.tree.leaves((args, kwargs, lax.full((), 0.0)))
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (nested if traced else outermost())(*args, **kwargs)

    return call
