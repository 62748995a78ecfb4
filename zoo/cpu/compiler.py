"""Compiler options with which convolutional networks run faster on CPUs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

# XLA delegates a part of its work to the library YNNPACK. The library's convolutions
# are slow for the gradients of kernels, and its reductions if preceding layers are
# fused into them. Alone, its reductions, such as sums over a batch, are ten times as
# fast as XLA's own, so training keeps them. The option lists what is delegated.
LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
INFERENCE = {LIBRARY: ""}
TRAINING = {
    LIBRARY: "LIBRARY_FUSION_TYPE_REDUCE",
    # Keeps `lax.optimization_barrier`, which XLA otherwise removes on CPUs before it
    # fuses layers: those around each convolution, and those of `remat`.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def compiler_options(*, training: bool = False) -> dict[str, str]:
    """Returns compiler options for convolutional networks.

    The functions of `zoo.make_classifier`, `zoo.make_detector` and `zoo.make_segmenter`
    and the steps of `train` are compiled with them. To compile your own functions:

        apply = jax.jit(model.apply, compiler_options=zoo.cpu.compiler_options())
        step = jax.jit(step, compiler_options=zoo.cpu.compiler_options(training=True))

    JAX takes compiler options of the outermost `jit` only.

    Args:
      training: Whether gradients are computed.

    Returns:
      Options for `jax.jit` and `jax.stages.Lowered.compile`, which change results by
      rounding alone. Empty if JAX's default backend is not the CPU, or if jaxlib does
      not know the options.
    """
    if jax.default_backend() != "cpu":
        return {}
    return keep_known(TRAINING if training else INFERENCE)


def keep_known(options: Mapping[str, str]) -> dict[str, str]:
    """Keeps the options with which the installed jaxlib compiles for CPUs."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile({name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def jit_inference(function: Callable, **options: Any) -> Callable:
    """Compiles like `jax.jit`, with `compiler_options` where JAX takes them.

    Args:
      function: The function to compile.
      **options: Other options of `jax.jit`.

    Returns:
      A function like the given one, which may be called in traced functions, too.
    """
    return _jit(function, compiler_options, options)


def jit_gradients(function: Callable, **options: Any) -> Callable:
    """Like `jit_inference`, for functions that compute gradients."""
    choose_options = functools.partial(compiler_options, training=True)
    return _jit(function, choose_options, options)


def _jit(function: Callable, choose_options: Callable, options: dict) -> Callable:
    nested = jax.jit(function, **options)

    @functools.cache
    def outermost() -> Callable:
        # Made by the first call, as asking for the backend initializes it.
        return jax.jit(function, compiler_options=choose_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Within a traced function, a new array is a tracer, too.
        leaves = jax.tree.leaves((args, kwargs, lax.full((), 0.0)))
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (nested if traced else outermost())(*args, **kwargs)

    return call
