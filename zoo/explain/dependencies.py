"""Finds the pixels on which each value of a traced network depends.

Every value of the trace is replaced by the rows and columns of the image that it
depends on: a convolution joins those of its window, a sum those of its terms, and
operations that move values move them along. The network itself is not computed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend import core

from zoo.explain.rewrite import bind

# An edge that depends on nothing: neutral, as edges are joined by their minimum.
NOTHING = np.int32(1 << 24)
EDGES = 4  # First row, -(last row), first column, -(last column).


class Field:
    """The pixels that the elements of an array depend on.

    Attributes:
      edges: int32 [4, ...], the edges of each element, see `EDGES`; an axis along which
        they are equal may have length 1.
      shape: Shape of the array.
    """

    def __init__(self, edges: np.ndarray, shape: tuple):
        self.edges, self.shape = edges, tuple(shape)

    def whole(self) -> np.ndarray:
        """Returns the edges of every element, [4, *shape]."""
        return np.broadcast_to(self.edges, (EDGES, *self.shape))

    def over(self) -> np.ndarray:
        """Returns the joined edges of all elements, [4]."""
        return self.edges.reshape(EDGES, -1).min(axis=1)


def _compressed(edges: np.ndarray, shape: tuple) -> Field:
    """Reduces axes along which the edges are equal to length 1."""
    for axis in range(1, edges.ndim):
        if edges.shape[axis] > 1:
            first = edges.take([0], axis=axis)
            if (edges == first).all():
                edges = first
    return Field(edges, shape)


class Reader:
    """Evaluates dependencies; a value is a `Field`, a known array, or None.

    None stands for an unknown value that depends on no pixel, such as a parameter.
    """

    def __init__(self, extended: bool):
        # Whether to treat padding as if the image continued beyond its border.
        self.extended = extended

    def run(self, program: core.Jaxpr, consts: list, given: list) -> list:
        values = dict(zip(program.constvars, consts, strict=True))
        values |= dict(zip(program.invars, given, strict=True))

        def read(variable: Any) -> Any:
            if isinstance(variable, core.Literal):
                return np.asarray(variable.val)
            return values[variable]

        for step in program.eqns:
            operands = [read(variable) for variable in step.invars]
            found = self.step(step, operands, program)
            values.update(zip(step.outvars, found, strict=True))
        return [read(variable) for variable in program.outvars]

    def step(self, step: Any, operands: list, program: core.Jaxpr) -> list:
        kind, params = step.primitive.name, step.params
        if kind == "platform_index":
            # The default branch, for platforms without a branch of their own.
            known = [i for i, p in enumerate(params["platforms"]) if p is None]
            return [np.int32(known[0])]
        if kind == "cond" and isinstance(operands[0], np.ndarray | np.integer):
            return self.call(params["branches"][int(operands[0])], operands[1:])
        inner = [params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params]
        if kind == "scan":
            return self.scan(step, operands)
        if inner:
            return self.call(inner[0], operands)
        if not any(isinstance(operand, Field) for operand in operands):
            return self.constant(step, operands, program)
        shapes = [variable.aval.shape for variable in step.outvars]
        rule: Callable | None = getattr(self, f"do_{kind}", None)
        if rule is not None:
            found = rule(step, operands, shapes[0])
            return found if isinstance(found, list) else [found]
        fields = [operand for operand in operands if isinstance(operand, Field)]
        same = all(f.shape == shape for f in fields for shape in shapes)
        if kind in _ELEMENTWISE or (same and not kind.startswith(_MIXING)):
            return [self.join(fields, shape) for shape in shapes]
        # An unknown operation: its result may depend on all operands.
        return [self.anything(operands, shape) for shape in shapes]

    def call(self, program: Any, operands: list) -> list:
        closed = isinstance(program, core.ClosedJaxpr)
        consts = list(program.consts) if closed else []
        return self.run(program.jaxpr if closed else program, consts, operands)

    def constant(self, step: Any, operands: list, program: core.Jaxpr) -> list:
        """Computes known values, such as positions; large arrays become None."""
        small = all(np.prod(v.aval.shape) <= 1 << 20 for v in step.outvars)
        if any(operand is None for operand in operands) or not small:
            return [None for _ in step.outvars]
        return [np.asarray(value) for value in bind(step, operands, program)]

    def scan(self, step: Any, operands: list) -> list:
        params = step.params
        consts, carry = params["num_consts"], params["num_carry"]
        fixed, state = operands[:consts], operands[consts : consts + carry]
        rows = [
            None if not isinstance(x, Field) else Field(x.edges.min(1), x.shape[1:])
            for x in operands[consts + carry :]
        ]
        stacked: list = []
        for _ in range(params["length"]):
            out = self.call(params["jaxpr"], [*fixed, *state, *rows])
            state, stacked = out[:carry], out[carry:]
        shapes = [v.aval.shape for v in step.outvars[carry:]]
        joined = [
            y
            if not isinstance(y, Field)
            else Field(y.over().reshape(EDGES, *[1] * len(shape)), shape)
            for y, shape in zip(stacked, shapes, strict=True)
        ]
        return [*state, *[y if isinstance(y, Field) else None for y in joined]]

    def join(self, fields: list, shape: tuple) -> Field:
        edges = fields[0].edges
        for field in fields[1:]:
            other = field.edges
            rank = max(edges.ndim, other.ndim)
            edges, other = (
                e.reshape(EDGES, *[1] * (rank - e.ndim), *e.shape[1:])
                for e in (edges, other)
            )
            edges = np.minimum(edges, other)
        missing = len(shape) + 1 - edges.ndim
        edges = edges.reshape(EDGES, *[1] * missing, *edges.shape[1:])
        return Field(edges, shape)

    # Operations that move values move their edges along.

    def move(self, step: Any, operands: list, shape: tuple) -> Field:
        """Applies an operation that only moves values to the edges."""
        field, *rest = operands
        if not all(isinstance(value, np.ndarray) for value in rest):
            return self.anything(operands, shape)
        moved = [step.primitive.bind(e, *rest, **step.params) for e in field.whole()]
        return _compressed(np.stack(moved), shape)

    def anything(self, operands: list, shape: tuple) -> Field:
        fields = [operand for operand in operands if isinstance(operand, Field)]
        edges = np.min([field.over() for field in fields], axis=0)
        return Field(edges.reshape(EDGES, *[1] * len(shape)), shape)

    def do_reshape(self, step: Any, operands: list, shape: tuple) -> Field:
        field = operands[0]
        kept = [n for n in field.shape if n != 1]
        if kept == [n for n in shape if n != 1]:
            # Only axes of length 1 come or go.
            lengths = [
                m
                for m, n in zip(field.edges.shape[1:], field.shape, strict=True)
                if n != 1
            ]
            lengths = iter(lengths)
            sizes = [1 if n == 1 else next(lengths) for n in shape]
            return Field(field.edges.reshape(EDGES, *sizes), shape)
        # Channels are not reshaped if the edges are equal along them.
        alone = field.shape[-1:] == shape[-1:] and field.edges.shape[-1] == 1
        old, new = ((*s[:-1], 1) if alone else s for s in (field.shape, shape))
        edges = np.broadcast_to(field.edges, (EDGES, *old))
        return _compressed(edges.reshape(EDGES, *new), shape)

    do_squeeze = do_expand_dims = do_reshape

    def do_transpose(self, step: Any, operands: list, shape: tuple) -> Field:
        axes = [axis + 1 for axis in step.params["permutation"]]
        return Field(operands[0].edges.transpose(0, *axes), shape)

    def do_broadcast_in_dim(self, step: Any, operands: list, shape: tuple) -> Field:
        sizes = [1] * len(shape)
        edges = operands[0].edges
        for axis, place in enumerate(step.params["broadcast_dimensions"]):
            sizes[place] = edges.shape[axis + 1]
        return Field(edges.reshape(EDGES, *sizes), shape)

    def do_slice(self, step: Any, operands: list, shape: tuple) -> Field:
        params, edges = step.params, operands[0].edges
        starts, limits = params["start_indices"], params["limit_indices"]
        strides = params["strides"] or (1,) * len(starts)
        cuts = [
            slice(None) if n == 1 else slice(*cut)
            for n, *cut in zip(edges.shape[1:], starts, limits, strides, strict=True)
        ]
        return Field(edges[(slice(None), *cuts)], shape)

    def do_rev(self, step: Any, operands: list, shape: tuple) -> Field:
        axes = [axis + 1 for axis in step.params["dimensions"]]
        return Field(np.flip(operands[0].edges, axes), shape)

    def do_concatenate(self, step: Any, operands: list, shape: tuple) -> Field:
        axis = step.params["dimension"] + 1
        parts = []
        for operand, variable in zip(operands, step.invars, strict=True):
            size = variable.aval.shape
            if not isinstance(operand, Field):
                ones = [1] * len(size)
                operand = Field(np.full((EDGES, *ones), NOTHING), size)
            lengths = list(operand.edges.shape)
            lengths[axis] = size[axis - 1]
            parts.append(np.broadcast_to(operand.edges, lengths))
        sizes = np.max([part.shape for part in parts], axis=0)
        for i, part in enumerate(parts):
            lengths = [*sizes]
            lengths[axis] = part.shape[axis]
            parts[i] = np.broadcast_to(part, lengths)
        return _compressed(np.concatenate(parts, axis=axis), shape)

    def do_split(self, step: Any, operands: list, shape: tuple) -> list:
        axis, edges = step.params["axis"] + 1, operands[0].edges
        found, start = [], 0
        for size, variable in zip(step.params["sizes"], step.outvars, strict=True):
            cut = [slice(None)] * edges.ndim
            if edges.shape[axis] > 1:
                cut[axis] = slice(start, start + size)
            found.append(Field(edges[tuple(cut)], variable.aval.shape))
            start += size
        return found

    def do_pad(self, step: Any, operands: list, shape: tuple) -> Field:
        edges, field = operands[0].edges, operands[0]
        for axis, (low, high, inner) in enumerate(step.params["padding_config"]):
            if low == high == inner == 0:
                continue
            edges = np.broadcast_to(
                edges,
                (*edges.shape[: axis + 1], field.shape[axis], *edges.shape[axis + 2 :]),
            )
            places = np.arange(-low, (field.shape[axis] - 1) * (inner + 1) + 1 + high)
            edges = self.at(edges, axis + 1, places, inner + 1)
        return _compressed(edges, shape)

    def at(self, edges: np.ndarray, axis: int, places: np.ndarray, step: int):
        """Returns the edges at places along an axis with `step - 1` zeros in between.

        Places beyond the border depend on nothing or, if `extended`, on the pixels
        there would be if the image continued.
        """
        count = edges.shape[axis]
        index, between = np.divmod(places, step)
        inside = (index >= 0) & (index < count) & (between == 0)
        taken = edges.take(np.clip(index, 0, count - 1), axis=axis)
        shape = [1] * edges.ndim
        shape[axis] = -1
        if self.extended and count > 1 and step == 1:
            beyond = index - np.clip(index, 0, count - 1)
            ends = [edges.take([i], axis=axis) for i in (0, 1, count - 2, count - 1)]
            low, high = ends[1] - ends[0], ends[3] - ends[2]
            beyond = beyond.reshape(shape).astype(np.int32)
            real = (edges < NOTHING // 2).all()
            if real:
                return taken + np.where(beyond < 0, low, high) * beyond
        return np.where(inside.reshape(shape), taken, NOTHING)

    # Operations that join values.

    def windows(self, edges, axis, size, window, stride, pads, dilation, inner=1):
        """Joins the edges of windows along an axis of `size` elements."""
        lengths = list(edges.shape)
        lengths[axis] = size
        edges = np.broadcast_to(edges, lengths)
        reach = (window - 1) * dilation + 1
        padded = (size - 1) * inner + 1 + sum(pads)
        starts = np.arange((padded - reach) // stride + 1) * stride - pads[0]
        found = None
        for tap in range(window):
            here = self.at(edges, axis, starts + tap * dilation, inner)
            found = here if found is None else np.minimum(found, here)
        return found

    def do_conv_general_dilated(self, step: Any, operands: list, shape: tuple) -> Field:
        field, params = operands[0], step.params
        if not isinstance(field, Field) or isinstance(operands[1], Field):
            return self.anything(operands, shape)
        numbers = params["dimension_numbers"]
        kernel = [step.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:]]
        edges = field.edges.min(axis=numbers.lhs_spec[1] + 1, keepdims=True)
        for i, axis in enumerate(numbers.lhs_spec[2:]):
            edges = self.windows(
                edges,
                axis + 1,
                field.shape[axis],
                kernel[i],
                params["window_strides"][i],
                params["padding"][i],
                params["rhs_dilation"][i],
                params["lhs_dilation"][i],
            )
        order = np.argsort(numbers.out_spec)
        edges = edges.transpose(0, *(1 + numbers.lhs_spec[i] for i in order))
        return _compressed(edges, shape)

    def _pool(self, step: Any, operands: list, shape: tuple) -> Field:
        field, params = operands[0], step.params
        edges, size = field.edges, field.shape
        for axis, window in enumerate(params["window_dimensions"]):
            if window == 1 and params["window_strides"][axis] == 1:
                continue
            edges = self.windows(
                edges,
                axis + 1,
                size[axis],
                window,
                params["window_strides"][axis],
                params["padding"][axis],
                params["window_dilation"][axis],
                params["base_dilation"][axis],
            )
        return _compressed(edges, shape)

    do_reduce_window_max = do_reduce_window_sum = do_reduce_window_min = _pool
    do_reduce_window = _pool

    def _reduce(self, step: Any, operands: list, shape: tuple) -> Field:
        axes = tuple(axis + 1 for axis in step.params["axes"])
        return Field(operands[0].edges.min(axis=axes), shape)

    do_reduce_sum = do_reduce_max = do_reduce_min = do_reduce_prod = _reduce
    do_argmax = do_argmin = do_reduce_and = do_reduce_or = _reduce

    def do_dot_general(self, step: Any, operands: list, shape: tuple) -> Field:
        (left, right), (left_batch, right_batch) = step.params["dimension_numbers"]
        if isinstance(operands[0], Field) and isinstance(operands[1], Field):
            return self.anything(operands, shape)
        first = isinstance(operands[0], Field)
        field, other = operands if first else operands[::-1]
        mine, theirs = (left, right) if first else (right, left)
        batch = left_batch if first else right_batch
        rank = len(step.invars[1 if first else 0].aval.shape)
        free = rank - len(theirs) - len(batch)
        rows = [i for i in range(len(field.shape)) if i not in (*mine, *batch)]
        edges = field.edges
        if other is None or len(mine) != 1 or batch or free != 1 or np.ndim(other) != 2:
            lost = tuple(axis + 1 for axis in mine)
            edges = edges.min(axis=lost, keepdims=True)
            edges = edges.transpose(0, *(a + 1 for a in (*batch, *rows, *mine)))
            sizes = edges.shape[: 1 + len(batch) + len(rows)]
            b, r = sizes[1 : 1 + len(batch)], sizes[1 + len(batch) :]
            ones = [1] * free
            order = (*b, *r, *ones) if first else (*b, *ones, *r)
            return Field(edges.reshape(EDGES, *order), shape)
        # A known matrix, as in resizing: elements with weight zero do not count.
        weights = np.asarray(other)
        weights = weights.T if theirs[0] == 0 else weights  # [results, summed]
        lengths = list(edges.shape)
        lengths[mine[0] + 1] = field.shape[mine[0]]
        edges = np.moveaxis(np.broadcast_to(edges, lengths), mine[0] + 1, -1)
        found = [
            edges[..., np.flatnonzero(row)].min(axis=-1, initial=NOTHING)
            for row in weights
        ]
        edges = np.stack(found, axis=-1 if first else 1)
        return _compressed(edges, shape)

    do_gather = do_dynamic_slice = move

    def do_optimization_barrier(self, step: Any, operands: list, shape: tuple) -> list:
        return operands


# Operations that mix elements although the result has the operand's shape.
_MIXING = ("cum", "sort", "scatter", "dynamic_update", "fft", "while", "cond", "top_k")
_ELEMENTWISE = frozenset(
    "add sub mul div max min pow select_n add_any and or xor rem atan2 nextafter "
    "eq ne lt le gt ge clamp integer_pow".split()
)
