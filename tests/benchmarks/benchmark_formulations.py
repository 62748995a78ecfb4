"""Measures the gain of each CPU formulation of a convolution in a whole network.

# about 20 minutes on two cores
python tests/benchmarks/benchmark_formulations.py
# some cells: formulation, network, kind and batch
python tests/benchmarks/benchmark_formulations.py winograd/vgg16/inference_1
# prints what was measured
python tests/benchmarks/benchmark_formulations.py --table
# writes it to the README
python tests/benchmarks/benchmark_formulations.py --readme

A cell is one network, compiled with all formulations of `zoo.cpu` and with all but one,
which is replaced by XLA's own convolution or product. "barriers" are the optimization
barriers around XLA's convolutions, which one of the compiler options keeps; "layouts"
are the layouts of XLA's convolutions in the loop of integrated gradients. Both programs
take turns in one process and are compiled with `zoo.cpu.compiler_options()`. The file
keeps the numbers of several processors. Cells that it already has for this processor
are skipped unless they are named.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import readme
from benchmark_rounds import machine, same_machine, say, seconds_per_call_within, where

import zoo
from zoo import cpu
from zoo.cpu import convolution
from zoo.cpu.compiler import TRAINING
from zoo.cpu.convolution import FORMULATIONS

OUT = Path(__file__).parent / "formulations.json"
CELLS = (
    "product/resnet50/train_8",
    "winograd/vgg16/inference_1",
    "winograd/vgg16/train_4",
    "winograd/vgg11_bn/train_8",
    "groups/alexnet/train_8",
    "few_rows/alexnet_tv/train_8",
    "layouts/resnet50/integrate_16",
    "barriers/resnet18/train_8",
    "barriers/cifar_resnet56/train_128",
)
ROUNDS = 4


def main() -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cells", nargs="*", help="such as winograd/vgg16/inference_1; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="shortest time of a turn"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="numbers")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--readme", action="store_true", help="write it to README.md")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    if not options.table and not options.readme:
        here = machine()
        own = found.setdefault(here["cpu"], {"machine": here, "milliseconds": {}})
        if not same_machine(own["machine"], here):
            say(
                "the numbers of this processor are of other versions, and are replaced."
            )
            own["milliseconds"] = {}
        own["machine"], known = here, own["milliseconds"]
        for cell in options.cells or [c for c in CELLS if c not in known]:
            known[cell] = measure(cell, options.seconds)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            say(f"{cell}: {known[cell]}")
    if options.readme:
        readme.write_block("formulations", render(found))
    else:
        print(render(found))


def measure(cell: str, seconds: float) -> dict[str, list[float]]:
    """Lets both programs take turns; returns the milliseconds of their calls."""
    formulation, name, work = cell.split("/")
    kind, batch = work.split("_")
    calls = {
        "with": compile_call(name, kind, int(batch)),
        "without": without(formulation, compile_call, name, kind, int(batch)),
    }
    took: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(ROUNDS):
        for side, call in calls.items():
            took[side].append(1e3 * seconds_per_call_within(call, seconds))
    return took


def without(formulation: str, function: Callable, *arguments: Any) -> Any:
    """Calls a function while a formulation of `zoo.cpu` is disabled."""
    jax.clear_caches()
    kept, options = dict(FORMULATIONS), dict(TRAINING)
    few_rows, convolve = cpu.multiply_few_rows, convolution.convolve_by_xla
    try:
        if formulation == "few_rows":
            cpu.multiply_few_rows = jnp.matmul
        elif formulation == "layouts":
            convolution.convolve_by_xla = convolution.call_xla
        elif formulation == "barriers":
            del TRAINING["xla_disable_hlo_passes"]
        else:
            del FORMULATIONS[formulation]
        return function(*arguments)
    finally:
        cpu.multiply_few_rows, convolution.convolve_by_xla = few_rows, convolve
        FORMULATIONS.clear()
        FORMULATIONS.update(kept)
        TRAINING.update(options)
        jax.clear_caches()


def compile_call(name: str, kind: str, batch: int) -> Callable[[], Any]:
    """Compiles inference or a training step of a network with random weights."""
    model, random = zoo.build(name), np.random.default_rng(0)
    shape = (batch, *zoo.get_spec(name).preprocess.shape)
    images = jnp.asarray(random.normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: fill(path[-1].key, leaf.shape, random), shapes
    )
    if kind == "inference":
        # A new function each time, so that no earlier trace is reused.
        infer = jax.jit(lambda *arguments: model.apply(*arguments))
        compiled = infer.lower(variables, images).compile(cpu.compiler_options())
        return lambda: jax.block_until_ready(compiled(variables, images))
    if kind == "integrate":
        options = dict(endpoint="logits", channels=0, steps=batch, chunk=8)
        function = partial(zoo.explain.integrated_gradients, model, **options)
        lowered = jax.jit(function).lower(variables, images[:1])
        compiled = lowered.compile(cpu.compiler_options(training=True))
        return lambda: jax.block_until_ready(compiled(variables, images[:1]))

    def step(variables, images, key):
        params = variables["params"]
        rest = {k: v for k, v in variables.items() if k != "params"}

        def objective(params):
            outputs, new = model.apply(
                {"params": params, **rest},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = [jax.nn.log_softmax(y)[..., 0] for y in jax.tree.leaves(outputs)]
            return sum(jnp.mean(loss) for loss in losses), new

        gradients, new = jax.grad(objective, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradients)
        return {"params": params, **new}

    arguments = variables, images, jax.random.key(0)
    options = cpu.compiler_options(training=True)
    compiled = jax.jit(step).lower(*arguments).compile(options)
    return lambda: jax.block_until_ready(compiled(*arguments))


def fill(name: str, shape: tuple[int, ...], random: np.random.Generator) -> jax.Array:
    """Makes a variable with which activations neither vanish nor overflow."""
    if name == "kernel":
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return jnp.asarray(random.normal(0, scale, shape), jnp.float32)
    return jnp.ones(shape) if name in ("scale", "var") else jnp.zeros(shape)


def render(found: dict[str, Any]) -> str:
    """Makes the table, with a row for each cell and processor."""
    places = [where(each["machine"], ("jax",)) for each in found.values()]
    lines = [
        "The gain of each formulation of `zoo.cpu` in a whole network in float32: "
        "medians of rounds in which the programs with and without it take turns, on "
        f"{'; on '.join(places)}. "
        "`python tests/benchmarks/benchmark_formulations.py` reproduces it.",
        "",
        "| formulation | network | what | processor | with, ms | without, ms | gain |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    rows = [
        (*cell.split("/"), processor, sides)
        for processor, each in found.items()
        for cell, sides in each["milliseconds"].items()
    ]
    for formulation, name, work, processor, sides in sorted(
        rows, key=lambda row: row[:4]
    ):
        kind, batch = work.split("_")
        with_, out = (statistics.median(sides[side]) for side in ("with", "without"))
        what = {
            "inference": f"inference, batch {batch}",
            "train": f"training, batch {batch}",
            "integrate": f"integrated gradients, {batch} steps",
        }[kind]
        lines.append(
            f"| {formulation} | `{name}` | {what} | {processor} | "
            f"{with_:,.1f} | {out:,.1f} | {out / with_:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
