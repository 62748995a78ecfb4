"""Translates jax functions to ONNX models with the library jax2onnx.

The function's program is first brought to a form that the library can translate:
special implementations for CPUs are replaced by the default ones, and pooling, padding
and stacking, whose translation fails for maps [B, H, W, C] or an unknown B, become
slices and concatenations. Values that depend on the variables alone are computed.
Non-maximum suppression, an operation of ONNX, is appended to a detector's program.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from zoo.detection.types import Detections, Postprocess
from zoo.explain.rewrite import bind

Array = jax.Array

# Calls whose programs are evaluated step by step.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
_CALLS += ("custom_jvp_call", "custom_vjp_call")
# The results of a detector's function: boxes float32 [B, R, 4] in pixels of the
# network's input; scores [B, K, R], -inf for removed candidates; and boxes in pixels of
# the images.
CANDIDATES = ("candidate_boxes", "candidate_scores", "resized_boxes")
_POOLS = {"reduce_window_max": (lax.max, -np.inf), "reduce_window_sum": (lax.add, 0)}


def to_onnx(
    function: Callable[..., Any],
    inputs: Sequence[jax.ShapeDtypeStruct],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    name: str,
    postprocess: Postprocess | None = None,
) -> bytes:
    """Translates a function to an ONNX model.

    Args:
      function: Function of arrays that returns an array, or a list of arrays.
      inputs: Shape and dtype of each argument; shapes may be symbolic.
      input_names: Names of the arguments.
      output_names: Names of the results.
      name: Name of the model.
      postprocess: The parameters of the selection among the results, which are
        `CANDIDATES`; the model then returns the fields of `Detections`. None for no
        selection.

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
    # Traced here, before the library replaces functions of jax by its own.
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
        if postprocess is not None:
            append_selection(model.graph, postprocess)
        return model.SerializeToString()
    # The library raises errors of every type.
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
    """Whether a step depends on the variables alone, and not on the images."""
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
        # The default, for platforms without an implementation of their own.
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
    if kind == "conv_general_dilated" and _tiles(step):
        return [_multiply_tiles(*operands, step)]
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


def _tiles(step: Any) -> bool:
    """Whether a convolution is transposed, with adjacent windows as in U-Net."""
    params, kernel = step.params, step.invars[1].aval.shape
    strides = params["lhs_dilation"]
    return (
        len(kernel) == 4
        and max(strides) > 1
        and kernel[:2] == tuple(strides)
        and params["padding"] == tuple((side - 1, side - 1) for side in strides)
        and {*params["window_strides"], *params["rhs_dilation"]} == {1}
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and params["dimension_numbers"].lhs_spec == (0, 3, 1, 2)
        and params["dimension_numbers"].rhs_spec == (3, 2, 0, 1)
        and params["dimension_numbers"].out_spec == (0, 3, 1, 2)
    )


def _multiply_tiles(x: Array, kernel: Array, step: Any) -> Array:
    """Computes such a convolution as a product that maps each pixel to its window."""
    height, width, inputs, outputs = kernel.shape
    kernel = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(inputs, -1)
    tiles = lax.dot_general(
        x,
        kernel,
        (((3,), (0,)), ((), ())),
        precision=step.params["precision"],
        preferred_element_type=step.params["preferred_element_type"],
    )
    batch, rows, columns, _ = x.shape
    tiles = tiles.reshape(batch, rows, columns, height, width, outputs)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows * height, columns * width, outputs)


def _pad(x: Array, value: Any, config: Sequence[tuple[int, int, int]]) -> Array:
    """Pads one axis after the other, or crops it where the padding is negative."""
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


def append_selection(graph: Any, postprocess: Postprocess) -> None:
    """Appends the steps of `zoo.detect.select_detections` to a graph of candidates.

    Args:
      graph: The `onnx.GraphProto`, whose outputs are `CANDIDATES`; replaced by the
        fields of `Detections`.
      postprocess: The parameters of the selection.
    """
    from onnx import TensorProto, helper, numpy_helper

    boxes, scores, resized = CANDIDATES
    shapes = [[*value.type.tensor_type.shape.dim] for value in graph.output]
    batch = shapes[1][0].dim_param or shapes[1][0].dim_value
    num_classes, count = (dim.dim_value for dim in shapes[1][1:])
    slots = postprocess.max_detections
    lowest = float(np.finfo(np.float32).min)

    def constant(name: str, value: Any, dtype: type) -> str:
        array = np.asarray(value, dtype)
        graph.initializer.append(numpy_helper.from_array(array, f"select_{name}"))
        return f"select_{name}"

    def step(kind: str, *inputs: str, into: Sequence[str] = (), **options: Any):
        name = f"select_{len(graph.node)}"
        outputs = [*into] or [name]
        node = helper.make_node(kind, inputs, outputs, name=name, **options)
        graph.node.append(node)
        return outputs[0]

    removed = constant("removed", -np.inf, np.float32)
    least = constant("least", lowest, np.float32)
    zero, no_class = constant("zero", 0, np.float32), constant("no_class", 0, np.int32)
    limit = postprocess.max_candidates
    if limit is not None and limit < count:
        # The best candidates of each class; the others are removed.
        top = "select_limited", "select_limited_to"
        step("TopK", scores, constant("limit", [limit], np.int64), into=top, axis=2)
        none = step("Expand", removed, step("Shape", scores))
        scores = step("ScatterElements", none, top[1], top[0], axis=2)
    # int64 [N, 3]: image, class and candidate.
    kept = step(
        "NonMaxSuppression",
        boxes,
        scores,
        constant("slots", [min(slots, count)], np.int64),
        constant("iou_threshold", [postprocess.iou_threshold], np.float32),
        constant("score_threshold", [lowest], np.float32),
    )
    none = step("Expand", removed, step("Shape", scores))
    scores = step("ScatterND", none, kept, step("GatherND", scores, kept))
    # Over all classes; equal scores are sorted by class, then by candidate.
    scores = step(
        "Reshape", scores, constant("flat", [-1, num_classes * count], np.int64)
    )
    if slots > num_classes * count:
        width = constant("pads", [0, 0, 0, slots - num_classes * count], np.int64)
        scores = step("Pad", scores, width, removed)
    top = "select_best", "select_best_of"
    step("TopK", scores, constant("detections", [slots], np.int64), into=top, axis=1)
    many = constant("count", count, np.int64)
    classes = step("Cast", step("Div", top[1], many), to=TensorProto.INT32)
    rows = step("Mod", top[1], many)
    last = constant("last", [-1], np.int64)
    found = step("GatherND", resized, step("Unsqueeze", rows, last), batch_dims=1)
    valid = step("Greater", top[0], least, into=["valid"])
    step("Where", step("Unsqueeze", valid, last), found, zero, into=["boxes"])
    step("Where", valid, top[0], zero, into=["scores"])
    step("Where", valid, classes, no_class, into=["classes"])
    types = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL)
    del graph.output[:]
    for name, kind in zip(Detections._fields, types, strict=True):
        shape = [batch, slots, 4] if name == "boxes" else [batch, slots]
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
