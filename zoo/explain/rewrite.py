"""Replaces named operations inside a function, without touching the function.

A function is traced to its jaxpr, which is evaluated again; a call of a jitted function
whose name has a rule, such as `jax.nn.relu`, is handed to the rule instead. Nothing is
global: two threads, or two calls, that rewrite one network by different rules do not
affect each other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
from jax.extend import core

Array = jax.Array
# Called with the operation itself and its operands; returns what it should return.
Rule = Callable[..., Any]

_CHECKPOINTS = ("checkpoint", "remat", "remat2")
# Operations that only wrap a program; without replacements it stays wrapped.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call")
_CALLS += ("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin")


def rewrite(function: Callable, rules: Mapping[str, Rule]) -> Callable:
    """Returns `function` with some of its operations replaced.

    Args:
      function: Function of arrays, or trees of arrays.
      rules: Replacements by the name of a jitted function, which is how `jax.nn`'s
        activations appear in a trace.

    Returns:
      A function of the same arguments. It can be transformed like any other, and raises
      NotImplementedError for a replaced operation inside one that cannot be rebuilt.
    """

    def rewritten(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jax.tree.leaves(args)
        outputs = evaluate(program.jaxpr, program.consts, leaves, rules)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def inline(function: Callable, *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """Traces a function, and inlines the programs that are only wrapped in it.

    In the result every intermediate value of a network, even of one that is
    rematerialized, is a variable of a single program.

    Returns:
      The program, and the shapes of the function's results as a tree.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

    def flat(*leaves: Array) -> list[Array]:
        return evaluate(program.jaxpr, program.consts, leaves, {}, dissolve=True)

    return jax.make_jaxpr(flat)(*jax.tree.leaves(args)), shapes


def count_calls(function: Callable, names: Mapping | tuple, *args: Any) -> int:
    """Counts the calls of the jitted functions `names`; in a loop each counts once."""
    program = jax.make_jaxpr(function)(*args).jaxpr

    def count(program: core.Jaxpr) -> int:
        total = 0
        for step in program.eqns:
            named = _name(step) in names
            total += 1 if named else sum(map(count, _programs(step)))
        return total

    return count(program)


def evaluate(
    program: core.Jaxpr,
    constants: list,
    arguments: list | tuple,
    rules: Mapping[str, Rule],
    *,
    dissolve: bool = False,
    added: Mapping[core.Var, Array] | None = None,
) -> list:
    """Evaluates a program with replacement rules.

    Args:
      program: The program to evaluate.
      constants: Its constants.
      arguments: Its arguments.
      rules: See `rewrite`.
      dissolve: Whether to evaluate wrapped programs step by step even if no rule
        applies to them.
      added: Arrays to add to the values of variables of this program.
    """
    values: dict[core.Var, Any] = {}
    added = added or {}

    def read(variable: Any) -> Any:
        literal = isinstance(variable, core.Literal)
        return variable.val if literal else values[variable]

    def write(variable: core.Var, value: Any) -> None:
        values[variable] = value + added[variable] if variable in added else value

    for variable, value in zip(program.constvars, constants, strict=True):
        write(variable, value)
    for variable, value in zip(program.invars, arguments, strict=True):
        write(variable, value)
    for step in program.eqns:
        operands = [read(variable) for variable in step.invars]
        outputs = _step(step, operands, program, rules, dissolve)
        for variable, value in zip(step.outvars, outputs, strict=True):
            write(variable, value)
    return [read(variable) for variable in program.outvars]


def _step(
    step: Any, operands: list, program: core.Jaxpr, rules: Mapping, dissolve: bool
) -> list:
    kind = step.primitive.name
    programs = _programs(step)
    if programs and _name(step) in rules:
        outputs = rules[_name(step)](_callable(step), *operands)
        return outputs if isinstance(outputs, list | tuple) else [outputs]
    replaced = any(_has_call(p, rules) for p in programs)
    wrapped = kind in ("jit", "pjit") or kind in _CHECKPOINTS
    if not replaced and not (dissolve and wrapped):
        return bind(step, operands, program)

    def run(program: Any) -> Callable:
        program, constants = _open(program)

        def call(*args: Any) -> list:
            return evaluate(program, constants, args, rules, dissolve=dissolve)

        return call

    if kind in _CALLS:
        return run(_inner(step))(*operands)
    if kind in _CHECKPOINTS:
        call, params = run(_inner(step)), step.params
        if not dissolve:
            keep = dict(prevent_cse=params["prevent_cse"], policy=params["policy"])
            call = jax.checkpoint(call, **keep)
        return call(*operands)
    if kind == "scan":
        return _scan(step, operands, run(_inner(step)))
    if kind == "cond":
        index, *rest = operands
        branches = [run(branch) for branch in step.params["branches"]]
        return lax.switch(index, branches, *rest)
    raise NotImplementedError(
        f"{sorted(rules)} inside of the operation {kind!r}, which cannot be rebuilt."
    )


def _scan(step: Any, operands: list, body: Callable) -> list:
    params = step.params
    consts, carry = params["num_consts"], params["num_carry"]
    fixed, start = operands[:consts], operands[consts : consts + carry]

    def loop(state: list, x: list) -> tuple[list, list]:
        outputs = body(*fixed, *state, *x)
        return outputs[:carry], outputs[carry:]

    state, stacked = lax.scan(
        loop,
        start,
        operands[consts + carry :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*state, *stacked]


def bind(step: Any, operands: list, program: core.Jaxpr) -> list:
    """Evaluates a step unchanged, as a program of its own."""
    given = {}
    for variable, value in zip(step.invars, operands, strict=True):
        if not isinstance(variable, core.Literal):
            given[variable] = value
    alone = program.replace(
        constvars=[], invars=[*given], outvars=step.outvars, eqns=[step]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*given.values())


def _callable(step: Any) -> Callable:
    """Returns the operation of a step as a function of its operands."""

    def call(*operands: Any) -> Any:
        program, constants = _open(_inner(step))
        closed = core.ClosedJaxpr(program, constants)
        outputs = core.jaxpr_as_fun(closed)(*operands)
        return outputs if len(outputs) > 1 else outputs[0]

    return call


def _name(step: Any) -> str | None:
    name = step.params.get("name")
    return name if isinstance(name, str) else None


def _inner(step: Any) -> Any:
    """Returns the program inside a step."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in step.params:
            return step.params[key]
    raise NotImplementedError(f"the operation {step.primitive.name!r} has no program.")


def _open(program: Any) -> tuple[core.Jaxpr, list]:
    if isinstance(program, core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, []


def _programs(step: Any) -> list[core.Jaxpr]:
    """Returns all programs inside a step, such as the branches of a condition."""
    found = []
    for value in step.params.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, core.ClosedJaxpr | core.Jaxpr):
                found.append(_open(each)[0])
    return found


def _has_call(program: core.Jaxpr, names: Mapping) -> bool:
    return bool(names) and any(
        (_name(step) in names and _programs(step))
        or any(_has_call(inner, names) for inner in _programs(step))
        for step in program.eqns
    )
