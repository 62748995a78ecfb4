"""Compiles networks for a TPU, without one, and stores the compiler's analysis.

# installs the compiler without a driver
pip install -e '.[train,tpu-compiler]'
# all cells that are missing in tests/benchmarks/tpu.json: several hours
python tests/benchmarks/compile_for_tpu.py
# cells by pattern: NETWORK/WORK/TYPE/BATCH, with xN for N chips
python tests/benchmarks/compile_for_tpu.py 'resnet50/*' '*/inference/bfloat16/1'
# prints the cells; prints the table; writes it to README.md
python tests/benchmarks/compile_for_tpu.py --list
python tests/benchmarks/compile_for_tpu.py --table
python tests/benchmarks/compile_for_tpu.py --readme

A network called `plain_NAME` is the plain Flax implementation in `plain_flax.py`. The
lower bound of the time is that of a roofline model with 197 TFLOP/s in bfloat16 and
819 GB/s for each chip.

Reference:
  Google Cloud, TPU v5e, system architecture (peak compute, HBM bandwidth).
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# The compiler needs these where there is no TPU.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from benchmark_rounds import machine, say, side_process
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from measure_networks_one import make_training_step
from plain_flax import PEERS

import zoo
from zoo.summary import abstract_variables

OUT = Path(__file__).parent / "tpu.json"
FLOPS, BYTES = 197e12, 819e9
MEMORY = 16 * 2**30
TOPOLOGIES = {1: "v5e:2x2", 4: "v5e:2x2", 16: "v5e:4x4"}
BATCHES = {"classification": 256, "verification": 128, "detection": 8}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
SMALL_BATCH = 128  # The recipe's, for images of CIFAR and MNIST.
FLOAT32 = (
    "lenet5",
    "alexnet_tv",
    "vgg16",
    "googlenet_tv",
    "resnet18",
    "resnet50",
    "cifar_resnet20",
    "ssd300_vgg16",
    "unet",
    "segnet",
)
FUNCTIONS = (
    "resnet50/classify/bfloat16/64",
    "faster_rcnn_resnet50_fpn/detect/bfloat16/1",
    "ssd300_vgg16/detect/bfloat16/8",
    "yolo_v1/detect/bfloat16/1",
    "segnet/segment/bfloat16/4",
    "pspnet_resnet50/segment/bfloat16/1",
    "deepface/describe/bfloat16/64",
)
# A training step on several chips.
MESHES = ("resnet18/training/bfloat16/32x4", "resnet18/training/bfloat16/128x16")
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}


def list_cells() -> list[str]:
    """Lists all cells, those of networks in the order of the registry."""
    cells = []
    for name in zoo.list_models():
        training = f"training/bfloat16/{recipe_batch(name)}"
        works = ["inference/bfloat16/1", "inference/bfloat16/64", training]
        if name in FLOAT32:
            works += [work.replace("bfloat16", "float32") for work in works]
        cells += [f"{name}/{work}" for work in works]
        if name in PEERS:
            cells += [f"plain_{name}/{work}" for work in works]
    return [*cells, *FUNCTIONS, *MESHES]


def recipe_batch(name: str) -> int:
    """Chooses the batch of a network's training step."""
    spec = zoo.get_spec(name)
    small = spec.preprocess.size <= 96
    return SMALL_BATCH if small else BATCHES.get(spec.task, 8)


def measure(cell: str) -> dict[str, Any]:
    """Compiles one cell.

    Returns:
      `tflop` and `gigabytes` accessed by one chip, `temporary_gib` and `argument_gib`,
      `bound_ms`, `compile_seconds`, `loops` (the compiled text's while loops), and on
      several chips the number and the bytes of `collectives`. `error` where it does not
      compile.
    """
    name, work, dtype, size = cell.split("/")
    batch, chips = (int(n) for n in f"{size}x1".split("x")[:2])
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[chips]
    )
    mesh = Mesh(np.array(topology.devices[:chips]), ("data",))
    function, state, inputs = make_work(name, work, jnp.dtype(dtype), batch)
    replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    arguments = (place(state, replicated), *place(inputs, sharded))
    donated = 0 if work == "training" else None
    jitted = jax.jit(function, donate_argnums=donated)
    began = time.perf_counter()
    try:
        lowered = jitted.trace(*arguments).lower(lowering_platforms=("tpu",))
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0][:200]}
    seconds = time.perf_counter() - began
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    flops, accessed = cost["flops"], cost["bytes accessed"]
    text = compiled.as_text()
    found = {
        "tflop": round(flops / 1e12, 3),
        "gigabytes": round(accessed / 1e9, 3),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 3),
        "argument_gib": round(memory.argument_size_in_bytes / 2**30, 3),
        "bound_ms": round(1e3 * max(flops / FLOPS, accessed / BYTES), 2),
        "compile_seconds": round(seconds),
        "loops": len(re.findall(r" while\(", text)),
    }
    return found | ({"collectives": list_collectives(text)} if chips > 1 else {})


def make_work(
    name: str, work: str, dtype: Any, batch: int
) -> tuple[Callable, Any, tuple]:
    """Makes a function, the shapes of its state or variables, and of its inputs."""
    if name.startswith("plain_"):
        name = name.removeprefix("plain_")
        model = PEERS[name](dtype=dtype)
    else:
        model = zoo.build(name, dtype=dtype)
    spec = zoo.get_spec(name)
    shape = spec.preprocess.shape
    if work == "training" and spec.task == "detection":
        step, state, arrays = make_training_step(name, batch, model)
        return step, state, (arrays,)
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    if work == "training":
        state = variables, jax.eval_shape(OPTIMIZER.init, variables["params"])
        logits = jax.eval_shape(model.apply, variables, images)
        labels = jax.ShapeDtypeStruct(logits.shape[:-1], jnp.int32)
        return make_step(model), state, (images, labels)
    if work == "inference":
        return model.apply, variables, (images,)
    makers = {
        "classify": lambda: zoo.make_classifier(model, spec.preprocess),
        "detect": lambda: zoo.make_detector(model),
        "segment": lambda: zoo.make_segmenter(model),
        "describe": lambda: zoo.make_describer(model, spec.preprocess),
    }
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    return makers[work](), variables, (images,)


def make_step(model: Any) -> Callable:
    """Makes a training step in the few lines that a user would write."""

    def step(state, images, labels):
        variables, momentum = state

        def objective(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates

        differentiate = jax.value_and_grad(objective, has_aux=True)
        (loss, updates), grads = differentiate(variables["params"])
        changes, momentum = OPTIMIZER.update(grads, momentum)
        params = optax.apply_updates(variables["params"], changes)
        return ({"params": params, **updates}, momentum), loss

    return step


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Gives shapes a sharding."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )


def list_collectives(text: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of a compiled program, and the bytes of their results."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", text):
        sizes = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        total = sum(
            WIDTHS.get(kind, 4) * int(np.prod([int(n) for n in dims.split(",") if n]))
            for kind, dims in sizes
        )
        row = found.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += total
    return found


def render(found: dict[str, Any]) -> str:
    """Makes the markdown."""
    facts, cells = found["machine"], found["cells"]
    lines = [
        f"Analysis by the compiler (libtpu {facts['libtpu']}, jax {facts['jax']}) for "
        "one TPU v5e chip, or for N chips where the batch says xN: floating point "
        "operations and accessed bytes of one chip in one call, and the lower bound of "
        "the time at 197 TFLOP/s and 819 GB/s. The ratios are to the implementation "
        "in `plain_flax.py`. `python tests/benchmarks/compile_for_tpu.py` reproduces "
        "it.",
        "",
        "| network | work | batch | TFLOP | GB | ratio to plain Flax | temporary GiB | "
        "ratio to plain Flax | bound, ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    broken = []
    for cell, row in cells.items():
        name, work, dtype, batch = cell.split("/")
        if name.startswith("plain_"):
            continue
        if "error" in row:
            broken.append(f"- `{cell}`: {row['error']}")
            continue
        peer = cells.get(f"plain_{cell}", {})
        ratios = [
            f"{row[key] / peer[key]:.2f}" if peer.get(key) else ""
            for key in ("gigabytes", "temporary_gib")
        ]
        lines.append(
            f"| `{name}` | {work}, {dtype} | {batch} | {row['tflop']:.3g} | "
            f"{row['gigabytes']:.3g} | {ratios[0]} | {row['temporary_gib']:.2f} | "
            f"{ratios[1]} | {row['bound_ms']:.3g} |"
        )
    if broken:
        lines += ["", "Not compiled, or larger than the 16 GiB of a chip:", "", *broken]
    return "\n".join(lines)


def main() -> None:
    """Compiles what is missing, or shows what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cells", nargs="*", help="shell patterns; default: all missing ones"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="JSON", help="numbers")
    parser.add_argument("--list", action="store_true", help="print the cells")
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--readme", action="store_true", help="write it to README.md")
    options = parser.parse_args()
    cells = list_cells()
    if options.cells:
        cells = [c for c in cells if any(fnmatch(c, p) for p in options.cells)] or [
            *options.cells
        ]
    if options.list:
        print("\n".join(cells))
        return
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.table or options.readme:
        text = render(found)
        readme.write_block("tpu", text) if options.readme else print(text)
        return
    import importlib.metadata as metadata

    here = machine()
    facts = {k: here[k] for k in ("date", "jax", "flax")}
    found["machine"] = {**facts, "libtpu": metadata.version("libtpu")}
    known = found.setdefault("cells", {})
    todo = [c for c in cells if options.cells or c not in known]
    for i, cell in enumerate(todo, start=1):
        with side_process("compile_for_tpu") as process:
            known[cell] = process("measure", cell)
        say(f"{i}/{len(todo)} {cell}: {known[cell]}")
        order = {c: i for i, c in enumerate(list_cells())}
        ordered = sorted(known, key=lambda c: order.get(c, len(order)))
        found["cells"] = known = {c: known[c] for c in ordered}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
