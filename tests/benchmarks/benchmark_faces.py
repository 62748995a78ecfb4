"""Measures DeepFace and its locally connected layers beside PyTorch.

# about 3 minutes on two cores; 6 GB of memory
python tests/benchmarks/benchmark_faces.py
# rows whose names contain a word
python tests/benchmarks/benchmark_faces.py l4
# prints what was measured; writes it to the README
python tests/benchmarks/benchmark_faces.py --table
python tests/benchmarks/benchmark_faces.py --readme

PyTorch's side is the simplest correct implementation: `conv2d`, `max_pool2d` with
`ceil_mode`, `unfold` and `einsum` for the locally connected layers, `linear`. Both
sides take turns, and their results are compared; the shortest time counts. Memory is
the temporary memory besides arguments and results: XLA's by its compiler, PyTorch's
peak by its profiler. Numbers go to tests/benchmarks/faces.json.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import readme
from benchmark_rounds import machine, measure_in_turns, say, where

import zoo
from zoo import cpu
from zoo.ops.locally_connected import locally_connected

OUT = Path(__file__).parent / "faces.json"
TITLES = {
    "descriptors_1": "descriptor of a face",
    "descriptors_64": "descriptors of 64 faces",
    "step_8": "training step of `deepface` with 8 faces",
    "l4_1": "layer L4 of one face",
    "l4_8": "layer L4 of 8 faces",
    "l4_8_gradient": "its gradients, 8 faces",
}
Calls = dict[str, Callable[[], Any]]


def main() -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="parts of names of rows; default: all")
    parser.add_argument("--seconds", type=float, default=12, help="time of each row")
    parser.add_argument("--table", action="store_true", help="print the table only")
    parser.add_argument("--readme", action="store_true", help="write it to README.md")
    options = parser.parse_args()
    if not options.table and not options.readme:
        measure(options.only, options.seconds)
    table = render(json.loads(OUT.read_text()))
    if options.readme:
        readme.write_block("faces", table)
    else:
        print(table)


def measure(only: list[str], seconds: float) -> None:
    """Measures rows, and keeps the other numbers of the file."""
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    found = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    found["machine"] = machine() | {"torch": torch.__version__}
    jobs = {
        "descriptors_1": partial(descriptor_calls, 1),
        "descriptors_64": partial(descriptor_calls, 64),
        "step_8": partial(step_calls, 8),
        "l4_1": partial(layer_calls, 1),
        "l4_8": partial(layer_calls, 8),
        "l4_8_gradient": partial(gradient_calls, 8),
    }
    for name, make_calls in jobs.items():
        if only and not any(part in name for part in only):
            continue
        calls, memory = make_calls()
        times = measure_in_turns(calls, seconds)
        found["rows"][name] = {"milliseconds": times, "megabytes": memory}
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        say(f"{name} {found['rows'][name]}")


def render(found: dict[str, Any]) -> str:
    """Makes the table: least milliseconds of wall time, their ratio, and memory."""
    place = where(found["machine"], ("jax", "torch"))
    lines = [
        "DeepFace in float32 beside the simplest correct implementation in PyTorch, on "
        f"{place}; the shortest time of all turns, each with all cores. The last "
        "columns are temporary memory. "
        "`python tests/benchmarks/benchmark_faces.py` reproduces it.",
        "",
        "| what | ms | PyTorch, ms | theirs / ours | MB | PyTorch, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in TITLES:
        if name not in found["rows"]:
            continue
        row = found["rows"][name]
        ours, theirs = (row["milliseconds"][side][0] for side in ("zoo", "torch"))
        mine, other = (row["megabytes"][side] for side in ("zoo", "torch"))
        cells = (
            TITLES[name],
            f"{ours:.1f}",
            f"{theirs:.1f}",
            f"{theirs / ours:.2f}",
            f"{mine:.0f}",
            f"{other:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compile_call(
    function: Callable, *arrays: Any, training: bool = False
) -> tuple[Callable[[], Any], float]:
    """Compiles a function for these arrays: the call, and the megabytes it holds."""
    options = cpu.compiler_options(training=training)
    compiled = jax.jit(function).lower(*arrays).compile(options)
    size = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return lambda: jax.block_until_ready(compiled(*arrays)), size


def torch_megabytes(call: Callable[[], Any]) -> float:
    """The most that PyTorch allocates within a call, in megabytes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [e for e in events if e.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    held = np.cumsum([event["args"]["Bytes"] for event in events])
    return float(held.max(initial=0)) / 1e6


def make_torch(variables: Any) -> Any:
    """DeepFace in PyTorch, with the parameters of `variables`."""
    import torch

    functional = torch.nn.functional
    flat = jax.device_get(variables["params"])
    params = {}
    for part in ("backbone", "head"):
        for name, layer in flat[part].items():
            kernel = np.array(layer["kernel"])
            if kernel.ndim == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            if kernel.ndim == 6:  # [I, kh, kw, L, O] as unfold has the patches.
                kernel = kernel.transpose(4, 2, 3, 0, 1, 5)
                kernel = kernel.reshape(*kernel.shape[:3], -1, kernel.shape[-1])
            if name == "f7":  # Flattened as C, H, W.
                kernel = kernel.reshape(21, 21, 16, -1).transpose(2, 0, 1, 3)
                kernel = kernel.reshape(-1, kernel.shape[-1])
            kernel = kernel.T if kernel.ndim == 2 else kernel
            bias = np.array(layer["bias"])
            params[f"{name}_kernel"] = torch.nn.Parameter(
                torch.from_numpy(np.ascontiguousarray(kernel))
            )
            params[f"{name}_bias"] = torch.nn.Parameter(torch.from_numpy(bias))

    class DeepFace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.params = torch.nn.ParameterDict(params)

        def local(self, x, name, stride):
            p = self.params
            return functional.relu(
                torch_local(x, p[f"{name}_kernel"], p[f"{name}_bias"], stride)
            )

        def features(self, x):
            p = self.params
            x = functional.relu(functional.conv2d(x, p["c1_kernel"], p["c1_bias"]))
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = functional.relu(functional.conv2d(x, p["c3_kernel"], p["c3_bias"]))
            for name, stride in (("l4", 1), ("l5", 2), ("l6", 1)):
                x = self.local(x, name, stride)
            x = functional.linear(x.flatten(1), p["f7_kernel"], p["f7_bias"])
            return functional.relu(x)

        def forward(self, x):
            x = functional.dropout(self.features(x), 0.5, self.training)
            return functional.linear(
                x, self.params["f8_kernel"], self.params["f8_bias"]
            )

    return DeepFace()


def torch_local(x: Any, kernel: Any, bias: Any, stride: int) -> Any:
    """A locally connected layer: [B, I, H, W] to [B, O, H', W'].

    Args:
      x: [B, I, H, W].
      kernel: [I, kh, kw, H' W', O].
      bias: [H', W', O].
      stride: Between windows.
    """
    import torch

    inputs, rows, columns, places, outputs = kernel.shape
    patches = torch.nn.functional.unfold(x, (rows, columns), stride=stride)
    kernel = kernel.reshape(inputs * rows * columns, places, outputs)
    y = torch.einsum("bkl,klo->bol", patches, kernel)
    return y.reshape(len(x), outputs, *bias.shape[:2]) + bias.permute(2, 0, 1)


def descriptor_calls(batch: int) -> tuple[Calls, dict[str, float]]:
    """From uint8 faces to descriptors."""
    import torch

    model, variables = zoo.create("deepface", num_classes=0)
    images = np.random.default_rng(0).integers(0, 256, (batch, 152, 152, 3), np.uint8)
    maximum = np.full(4096, 0.7, np.float32)
    variables["batch_stats"]["backbone"]["f7"]["max"] = jnp.asarray(maximum)
    describe = zoo.make_describer(model, zoo.get_spec("deepface").preprocess)
    ours, size = compile_call(describe, variables, jnp.asarray(images))
    network = make_torch({"params": {**variables["params"], "head": {}}}).eval()

    def theirs() -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            features = network.features(x) / torch.from_numpy(maximum).clamp(min=0.05)
            return torch.nn.functional.normalize(features)

    np.testing.assert_allclose(ours(), theirs().numpy(), atol=1e-4)
    memory = {"zoo": size, "torch": torch_megabytes(theirs)}
    return {"zoo": ours, "torch": theirs}, memory


def step_calls(batch: int) -> tuple[Calls, dict[str, float]]:
    """A step of SGD with momentum on the whole network."""
    import torch

    model, variables = zoo.create("deepface")
    rng = np.random.default_rng(0)
    images = rng.random((batch, 152, 152, 3), np.float32)
    labels = rng.integers(0, 4030, batch)
    network = make_torch(variables).train()
    tx, stats = optax.sgd(0.01, 0.9), variables["batch_stats"]

    def step(params: Any, state: Any, key: Any, images: Any, labels: Any) -> tuple:
        def objective(params: Any) -> Any:
            logits, new = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return loss.mean(), new

        (loss, _), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    params = variables["params"]
    held = [params, tx.init(params)]
    rest = jax.random.key(0), jnp.asarray(images), jnp.asarray(labels)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*held, *rest)
    compiled = lowered.compile(cpu.compiler_options(training=True))
    size = compiled.memory_analysis().temp_size_in_bytes / 1e6

    def ours() -> None:
        *held[:], _ = jax.block_until_ready(compiled(*held, *rest))

    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    target = torch.from_numpy(labels)

    def theirs() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), target).backward()
        optimizer.step()

    theirs()
    return {"zoo": ours, "torch": theirs}, {
        "zoo": size,
        "torch": torch_megabytes(theirs),
    }


def make_layer(batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The input, kernel and bias of L4."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 63, 63, 16)).astype(np.float32)
    kernel = 0.01 * rng.normal(size=(55, 55, 9, 9, 16, 16)).astype(np.float32)
    return x, kernel, np.full((55, 55, 16), 0.5, np.float32)


def torch_layer(arrays: tuple) -> tuple:
    """The same as tensors."""
    import torch

    x, kernel, bias = arrays
    kernel = kernel.transpose(4, 2, 3, 0, 1, 5).reshape(16, 9, 9, -1, 16)
    parts = x.transpose(0, 3, 1, 2), kernel, bias
    return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in parts)


def layer_calls(batch: int) -> tuple[Calls, dict[str, float]]:
    """The value of L4."""
    arrays = make_layer(batch)
    tensors = torch_layer(arrays)
    ours, size = compile_call(locally_connected, *map(jnp.asarray, arrays))
    theirs = partial(torch_local, *tensors, 1)
    found = np.asarray(ours()).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, theirs().numpy(), atol=1e-4)
    memory = {"zoo": size, "torch": torch_megabytes(theirs)}
    return {"zoo": ours, "torch": theirs}, memory


def gradient_calls(batch: int) -> tuple[Calls, dict[str, float]]:
    """The gradients of L4's input, kernel and bias."""
    arrays = make_layer(batch)
    tensors = [t.requires_grad_() for t in torch_layer(arrays)]

    def loss(x: Any, kernel: Any, bias: Any) -> Any:
        return jnp.square(locally_connected(x, kernel, bias)).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    ours, size = compile_call(gradient, *map(jnp.asarray, arrays), training=True)

    def theirs() -> Any:
        for tensor in tensors:
            tensor.grad = None
        torch_local(*tensors, 1).square().sum().backward()
        return tensors[0].grad

    found = np.asarray(ours()[0]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, theirs().numpy(), atol=1e-2)
    memory = {"zoo": size, "torch": torch_megabytes(theirs)}
    return {"zoo": ours, "torch": theirs}, memory


if __name__ == "__main__":
    main()
