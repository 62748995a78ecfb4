"""The variables of a new network, without compiling the network.

XLA takes ten minutes over the `init` of a thousand layers, most of them over drawing a
few kinds of arrays a thousand times. So `init` is only traced. Out of the trace are cut
the operations that make a variable from a key of its own; variables whose operations
are equal are of one kind, and a kind is compiled once, for all its keys.
"""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.extend import core

Array = jax.Array


class Kind(NamedTuple):
    """Variables that are made alike.

    Attributes:
      program: Makes one, of its key if it takes any.
      places: Of the variables, among those of the network.
      folds: Of each variable, the number that its key is folded with.
    """

    program: core.Jaxpr
    places: list[int]
    folds: list[int]


class Plan(NamedTuple):
    """How the variables of a network are made.

    Attributes:
      draw: Of a key and images, arrays of each kind, and of the others.
      kinds: Of variables.
      others: The places of those that are of no kind.
      tree: What they are the leaves of.
    """

    draw: Callable
    kinds: list[Kind]
    others: list[int]
    tree: jax.tree_util.PyTreeDef


def draw_variables(model: nn.Module, key: Array, images: Array) -> dict:
    """Returns what `model.init(key, images)` does, sooner.

    Args:
      model: A network.
      key: Of jax.random, with or without a type of its own.
      images: float32 [B, H, W, C].
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    plan = _make_plan(model, key.dtype, images.shape, images.dtype)
    made, rest = plan.draw(key, images)
    leaves = dict(zip(plan.others, rest, strict=True))
    for kind in plan.kinds:
        arrays = made.pop(0)
        if not isinstance(arrays, list):
            # Not sliced in one program, which takes long to compile for many.
            arrays = [_take(arrays, i) for i in range(len(arrays))]
        leaves.update(zip(kind.places, arrays, strict=True))
    return jax.tree.unflatten(plan.tree, [leaves[i] for i in range(len(leaves))])


# Like a jit, of few networks: an equal one is not traced and compiled again.
@lru_cache(maxsize=8)
def _make_plan(model: nn.Module, kind: Any, shape: tuple, dtype: jnp.dtype) -> Plan:
    key, images = jax.ShapeDtypeStruct((), kind), jax.ShapeDtypeStruct(shape, dtype)
    traced, shapes = jax.make_jaxpr(model.init, return_shape=True)(key, images)
    program = traced.jaxpr
    kinds, others = _sort(program)
    rest = program.replace(outvars=[program.outvars[place] for place in others])

    def draw(key: Array, images: Array) -> tuple[list, list[Array]]:
        made = [_draw_kind(kind, key) for kind in kinds]
        return made, _evaluate(rest, traced.consts, key, images) if others else []

    draw = jax.jit(draw, compiler_options=_options())
    return Plan(draw, kinds, others, jax.tree.structure(shapes))


def _options() -> dict | None:
    # It runs once, so that on the CPU most of its time would go into optimising it;
    # not optimised at all, drawing many parameters takes several times as long.
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_backend_optimization_level": 1,
        "xla_llvm_disable_expensive_passes": True,
    }


def _sort(program: core.Jaxpr) -> tuple[list[Kind], list[int]]:
    """Finds the kinds of the results, and the places of those that are of none."""
    root, folds = program.invars[0], {}
    for step in program.eqns:
        if step.primitive.name == "random_fold_in":
            base, number = step.invars
            if base is root and isinstance(number, core.Literal):
                folds[step.outvars[0]] = int(number.val)
    makers = {v: i for i, step in enumerate(program.eqns) for v in step.outvars}
    kinds, others = {}, []
    for place, variable in enumerate(program.outvars):
        part = _cut(program, makers, [variable], folds)
        if len(part.invars) > 1 or not all(v in folds for v in part.invars):
            others.append(place)
            continue
        kind = kinds.setdefault(str(part), Kind(part, [], []))
        kind.places.append(place)
        kind.folds.extend(folds[v] for v in part.invars)
    return [*kinds.values()], others


def _cut(
    program: core.Jaxpr,
    makers: Mapping[core.Var, int],
    results: list,
    given: Collection[core.Var],
) -> core.Jaxpr:
    """Cuts out what makes some results, from what is given and what is an input."""
    inputs, steps, todo = [], set(), [*results]
    while todo:
        variable = todo.pop()
        if isinstance(variable, core.Literal):
            continue
        if variable in given or variable not in makers:
            if variable not in inputs:
                inputs.append(variable)
        elif makers[variable] not in steps:
            steps.add(makers[variable])
            todo += program.eqns[makers[variable]].invars
    own = [program.eqns[i] for i in sorted(steps)]
    return program.replace(constvars=[], invars=inputs, outvars=results, eqns=own)


def _draw_kind(kind: Kind, key: Array) -> list[Array] | Array:
    """Makes the variables of a kind; of several that are drawn, an array [n, ...]."""

    def draw(fold: Array) -> Array:
        return _evaluate(kind.program, [], jax.random.fold_in(key, fold))[0]

    if not kind.folds:
        return [_evaluate(kind.program, [])[0] for _ in kind.places]
    folds = np.array(kind.folds, np.uint32)
    # Not by vmap, under which keys of some types give other numbers.
    return lax.map(draw, folds) if len(folds) > 1 else [draw(folds[0])]


def _evaluate(program: core.Jaxpr, constants: list, *arguments: Array) -> list[Array]:
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, constants))(*arguments)


@jax.jit
def _take(stack: Array, index: int) -> Array:
    return lax.dynamic_index_in_dim(stack, index, keepdims=False)
