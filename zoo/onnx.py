"""From a function of jax to an ONNX file, through the library jax2onnx.

The function's program is first brought to a form that the library translates: of what
is computed differently on CPUs it has the other form, and pooling, padding and
stacking, whose translation fails for maps [B, H, W, C] or an unknown B, become slices
and concatenations. What depends on the variables alone is computed.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from zoo.explain.rewrite import bind

Array = jax.Array

# Calls whose programs are evaluated step by step.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
_CALLS += ("custom_jvp_call", "custom_vjp_call")
_POOLS = {"reduce_window_max": (lax.max, -np.inf), "reduce_window_sum": (lax.add, 0)}


def to_onnx(
    function: Callable[..., Any],
    inputs: Sequence[jax.ShapeDtypeStruct],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    name: str,
) -> bytes:
    """Translates a function to an ONNX model.

    Args:
      function: Function of arrays that returns an array, or a list of arrays.
      inputs: Shape and dtype of each argument; shapes may be symbolic.
      input_names: Names of the arguments.
      output_names: Names of the results.
      name: Name of the model.

    Returns:
      The serialized `onnx.ModelProto`.

    Raises:
      ImportError: jax2onnx is not installed.
      NotImplementedError: The function has an operation that has no translation.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise ImportError(
            "format='onnx' needs jax2onnx, which is not installed; this installs it: "
            "pip install 'canon-zoo[onnx]'"
        ) from error
    # Traced here, where the library has not replaced functions of jax by its own.
    program = jax.make_jaxpr(function)(*inputs)

    def simplified(*arguments: Array) -> tuple[Array, ...]:
        return tuple(_evaluate(program.jaxpr, program.consts, arguments))

    try:
        model = jax2onnx.to_onnx(
            simplified,
            [*inputs],
            model_name=name,
            input_names=[*input_names],
            output_names=[*output_names],
        )
        return model.SerializeToString()
    # The library raises what its parts raise, of every type.
    except Exception as error:
        raise NotImplementedError(
            f"jax2onnx cannot translate {name}: {type(error).__name__}: "
            f"{str(error)[:400]}"
        ) from error


def _evaluate(program: core.Jaxpr, constants: Sequence, arguments: Sequence) -> list:
    values = dict(zip(program.constvars, constants, strict=True))
    values |= dict(zip(program.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        literal = isinstance(variable, core.Literal)
        return variable.val if literal else values[variable]

    for step in program.eqns:
        operands = [read(variable) for variable in step.invars]
        if _is_constant(step, operands):
            with jax.ensure_compile_time_eval():
                results = bind(step, operands, program)
        else:
            results = _step(step, operands, program)
        values.update(zip(step.outvars, results, strict=True))
    return [read(variable) for variable in program.outvars]


def _is_constant(step: Any, operands: list) -> bool:
    """Whether a step is one of the variables alone, and not of the images."""
    sizes = [size for variable in step.outvars for size in variable.aval.shape]
    return (
        bool(operands)
        and step.primitive.name != "platform_index"
        and not any(isinstance(operand, jax.core.Tracer) for operand in operands)
        and all(isinstance(size, int) for size in sizes)
    )


def _step(step: Any, operands: list, program: core.Jaxpr) -> list:
    kind = step.primitive.name
    if kind == "platform_index":
        # What is computed on a platform that has no form of its own.
        platforms = step.params["platforms"]
        return [next(i for i, names in enumerate(platforms) if names is None)]
    if kind == "cond" and isinstance(operands[0], int):
        branch = step.params["branches"][operands[0]]
        return _evaluate(branch.jaxpr, branch.consts, operands[1:])
    if kind == "stack":
        axis = step.params["axis"]
        return [lax.concatenate([lax.expand_dims(x, [axis]) for x in operands], axis)]
    if kind in _CALLS:
        keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        inner = next(step.params[key] for key in keys if key in step.params)
        if isinstance(inner, core.ClosedJaxpr):
            return _evaluate(inner.jaxpr, inner.consts, operands)
        return _evaluate(inner, [], operands)
    if kind in _POOLS and len(step.outvars[0].aval.shape) == 4:
        return [_pool(step, *operands)]
    if kind == "pad" and not any(inner for *_, inner in step.params["padding_config"]):
        return [_pad(*operands, step.params["padding_config"])]
    return bind(step, operands, program)


def _pool(step: Any, x: Array) -> Array:
    """Pools by slices, one for each place in the window."""
    combine, start = _POOLS[step.primitive.name]
    params = step.params
    if {*params["base_dilation"], *params["window_dilation"]} != {1}:
        raise NotImplementedError("pooling with dilation has no translation to ONNX.")
    padding = [(low, high, 0) for low, high in params["padding"]]
    x = _pad(x, np.array(start, x.dtype), padding)
    strides, total = params["window_strides"], None
    for first in itertools.product(*map(range, params["window_dimensions"])):
        sizes = zip(first, step.outvars[0].aval.shape, strides, strict=True)
        last = [place + (count - 1) * stride + 1 for place, count, stride in sizes]
        part = lax.slice(x, first, last, strides)
        total = part if total is None else combine(total, part)
    return total


def _pad(x: Array, value: Any, config: Sequence[tuple[int, int, int]]) -> Array:
    """Pads, or cuts off where the padding is negative, one axis after the other."""
    for axis, (low, high, _) in enumerate(config):
        if min(low, high) < 0:
            stop = x.shape[axis] - max(-high, 0)
            x = lax.slice_in_dim(x, max(-low, 0), stop, axis=axis)
        if max(low, high) <= 0:
            continue
        borders = [
            lax.broadcast(value, [*x.shape[:axis], count, *x.shape[axis + 1 :]])
            for count in (max(low, 0), max(high, 0))
        ]
        parts = [part for part in (borders[0], x, borders[1]) if part.shape[axis] != 0]
        x = lax.concatenate(parts, axis)
    return x
