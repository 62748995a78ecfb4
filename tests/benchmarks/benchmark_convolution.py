"""Measures the zoo's convolution beside XLA's own and PyTorch's, on this machine's CPU.

# about 6 minutes on two cores
python tests/benchmarks/benchmark_convolution.py
# shapes whose names contain it
python tests/benchmarks/benchmark_convolution.py 1x1_256_64
# prints what was measured
python tests/benchmarks/benchmark_convolution.py --table

The sides take turns, and the least time of the rounds counts: other programs only add
to it. Beside it stands the least processor time, which they disturb less. Numbers go
to tests/benchmarks/benchmark_convolution.json.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import lax

from zoo.ops.convolution import convolve, convolve_transposed

OUT = Path(__file__).parent / "benchmark_convolution.json"
Calls = dict[str, Callable[[], Any]]


class Shape(NamedTuple):
    """A square convolution; one with `transposed` enlarges the image."""

    batch: int
    size: int
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False


SHAPES = {
    "cifar_3x3_16": Shape(128, 32, 16, 16, 3, 1, 1),
    "cifar_3x3_32": Shape(128, 16, 32, 32, 3, 1, 1),
    "cifar_3x3_64": Shape(128, 8, 64, 64, 3, 1, 1),
    "resnet_7x7_stem": Shape(8, 224, 3, 64, 7, 2, 3),
    "resnet_1x1_64_256": Shape(8, 56, 64, 256, 1),
    "resnet_1x1_256_64": Shape(8, 56, 256, 64, 1),
    "resnet_1x1_512_1024_s2": Shape(8, 28, 512, 1024, 1, 2),
    "resnet_1x1_1024_256": Shape(8, 14, 1024, 256, 1),
    "resnet_1x1_2048_512": Shape(8, 7, 2048, 512, 1),
    "resnet_3x3_64": Shape(8, 56, 64, 64, 3, 1, 1),
    "resnet_3x3_128_s2": Shape(8, 56, 128, 128, 3, 2, 1),
    "resnet_3x3_256": Shape(8, 14, 256, 256, 3, 1, 1),
    "resnet_3x3_512": Shape(8, 7, 512, 512, 3, 1, 1),
    "vgg_3x3_64": Shape(2, 224, 64, 64, 3, 1, 1),
    "vgg_3x3_256": Shape(2, 56, 256, 256, 3, 1, 1),
    "alexnet_11x11_s4": Shape(8, 227, 3, 96, 11, 4),
    "alexnet_5x5_2_groups": Shape(8, 27, 96, 256, 5, 1, 2, 2),
    "googlenet_1x1_480_192": Shape(8, 14, 480, 192, 1),
    "googlenet_5x5_16_48": Shape(8, 14, 16, 48, 5, 1, 2),
    "resnext_3x3_32_groups": Shape(2, 14, 512, 512, 3, 1, 1, 32),
    "depthwise_3x3_96": Shape(4, 56, 96, 96, 3, 1, 1, 96),
    "transposed_2x2_s2": Shape(4, 28, 512, 256, 2, 2, transposed=True),
    "transposed_4x4_s2": Shape(4, 28, 256, 128, 4, 2, 1, transposed=True),
}
PARTS = ("forward", "input", "kernel")


def main() -> None:
    """Measures, or shows what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="parts of the names of what to measure")
    parser.add_argument("--seconds", type=float, default=6, help="for each shape")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.table:
        jax.config.update("jax_platforms", "cpu")
        measure(options.only, options.seconds)
    print(render(json.loads(OUT.read_text())))


def measure(only: list[str], seconds: float) -> None:
    """Measures what is asked for, and keeps the other numbers of the file."""
    torch.set_num_threads(os.cpu_count())
    found = json.loads(OUT.read_text()) if OUT.exists() else {"numbers": {}}
    found["versions"] = {"jax": jax.__version__, "torch": torch.__version__}
    found["cores"] = os.cpu_count()
    jobs = {name: partial(shape_calls, shape) for name, shape in SHAPES.items()}
    jobs["step_cifar_resnet20_b128"] = partial(step_calls, CIFAR, 128, 32)
    jobs["step_resnet50_b8"] = partial(step_calls, IMAGENET, 8, 224)
    for name, make_calls in jobs.items():
        if only and not any(part in name for part in only):
            continue
        budget = seconds * (5 if name.startswith("step") else 1)
        found["numbers"][name] = measure_in_turns(make_calls(), budget)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found["numbers"][name], flush=True)


def measure_in_turns(calls: Calls, seconds: float) -> dict[str, list[float]]:
    """Returns the least [wall, processor] milliseconds of every call."""
    best = {name: [np.inf, np.inf] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    for rounds in range(30):
        if rounds >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [
                min(a, round(1e3 * b, 2)) for a, b in zip(best[name], took, strict=True)
            ]
    return best


def render(found: dict[str, Any]) -> str:
    """Makes the table: milliseconds of wall time."""
    lines = [f"{found['versions']}, {found['cores']} cores; XLA's | zoo's | PyTorch's"]
    for name, numbers in found["numbers"].items():
        cells = []
        for part in PARTS if not name.startswith("step") else ("step",):
            sides = [numbers[f"{side} {part}"][0] for side in ("xla", "zoo", "torch")]
            cells.append(f"{part} " + " | ".join(f"{ms:.1f}" for ms in sides))
        lines.append(f"{name:26} " + "    ".join(cells))
    return "\n".join(lines)


# One convolution: its value, and the gradients of its input and of its kernel.


def shape_calls(shape: Shape) -> Calls:
    """Makes the calls for one shape, on the same random numbers."""
    b, n, inputs, outputs, k, stride, padding, groups, transposed = shape
    random = np.random.default_rng(0)
    x = random.normal(size=(b, n, n, inputs)).astype(np.float32)
    kernel = random.normal(size=(k, k, inputs // groups, outputs)).astype(np.float32)
    strides, pads = (stride, stride), ((padding, padding),) * 2
    if transposed:
        ours = partial(convolve_transposed, strides=strides, crop=pads)
        theirs = partial(xla_transposed, stride=stride, padding=padding)
    else:
        ours = partial(convolve, strides=strides, padding=pads, groups=groups)
        theirs = partial(xla_convolve, strides=strides, padding=pads, groups=groups)
    y = jax.eval_shape(ours, x, kernel)
    ct = random.normal(size=y.shape).astype(np.float32)
    calls = dict(jax_calls("xla", theirs, x, kernel, ct))
    calls.update(jax_calls("zoo", ours, x, kernel, ct))
    return {**calls, **torch_calls(shape, x, kernel, ct)}


def xla_convolve(x, kernel, *, strides, padding, groups=1):
    """What `convolve` is on accelerators."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=layout,
        feature_group_count=groups,
    )


def xla_transposed(x, kernel, *, stride, padding):
    """What `convolve_transposed` is on accelerators."""
    edge = kernel.shape[0] - 1 - padding
    return lax.conv_transpose(
        x, kernel[::-1, ::-1], (stride, stride), ((edge, edge),) * 2
    )


def jax_calls(side, f, x, kernel, ct) -> Iterator[tuple[str, Callable]]:
    """Yields the compiled value and gradients of a bilinear function."""
    parts = {
        "forward": lambda x, kernel, ct: f(x, kernel),
        "input": lambda x, kernel, ct: jax.vjp(lambda x: f(x, kernel), x)[1](ct),
        "kernel": lambda x, kernel, ct: jax.vjp(lambda k: f(x, k), kernel)[1](ct),
    }
    arrays = [jnp.asarray(a) for a in (x, kernel, ct)]
    for name, part in parts.items():
        compiled = jax.jit(part).lower(*arrays).compile()
        call = partial(lambda c: jax.block_until_ready(c(*arrays)), compiled)
        yield f"{side} {name}", call


def torch_calls(shape: Shape, x, kernel, ct) -> Calls:
    """The same in PyTorch, in its faster memory format."""
    axes = (2, 3, 0, 1) if shape.transposed else (3, 2, 0, 1)
    options = [shape.stride] * 2, [shape.padding] * 2, [1, 1]
    options = (*options, shape.transposed, [0, 0], shape.groups)
    x, ct = (channels_last(a.transpose(0, 3, 1, 2)) for a in (x, ct))
    kernel = channels_last(kernel.transpose(axes))
    forward = partial(torch.ops.aten.convolution, x, kernel, None, *options)
    backward = partial(
        torch.ops.aten.convolution_backward, ct, x, kernel, None, *options
    )
    return {
        "torch forward": forward,
        "torch input": partial(backward, [True, False, False]),
        "torch kernel": partial(backward, [False, True, False]),
    }


def channels_last(array: np.ndarray) -> torch.Tensor:
    """Copies NCHW-shaped numbers into PyTorch's NHWC memory format."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.contiguous(memory_format=torch.channels_last)


# Whole training steps of residual networks, one description for both libraries.


class Net(NamedTuple):
    """A residual network: (kernel, stride) of the stem, blocks and width of stages."""

    stem: tuple[int, int, int]
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool


CIFAR = Net((3, 1, 16), (3, 3, 3), (16, 32, 64), False)
IMAGENET = Net((7, 2, 64), (3, 4, 6, 3), (64, 128, 256, 512), True)


def run_net(net: Net, x, unit: Callable, relu: Callable, pool: Callable):
    """Runs the network up to its last features; `unit` is convolution and norm."""
    kernel, stride, width = net.stem
    x = relu(unit("stem", x, kernel, stride, width))
    if net.bottleneck:
        x = pool(x)
    inputs = width
    for i, (blocks, width) in enumerate(zip(net.blocks, net.widths, strict=True)):
        for j in range(blocks):
            name, stride = f"{i}{j}", 2 if i and not j else 1
            if net.bottleneck:
                layers = [(1, 1, width), (3, stride, width), (1, 1, 4 * width)]
            else:
                layers = [(3, stride, width), (3, 1, width)]
            y = x
            for at, layer in enumerate(layers):
                y = unit(f"{name}{at}", y if at == 0 else relu(y), *layer)
            outputs = layers[-1][2]
            if outputs != inputs:
                x = unit(f"{name}s", x, 1, stride, outputs)
            x, inputs = relu(x + y), outputs
    return x


def step_calls(net: Net, batch: int, size: int) -> Calls:
    """Makes one training step for each side: batch norm, cross-entropy, plain SGD."""
    random = np.random.default_rng(0)
    images = random.normal(size=(batch, size, size, 3)).astype(np.float32)
    labels = random.integers(0, 10, batch)
    kernels = {}

    def create(name, x, kernel, stride, outputs):
        scale = np.sqrt(2 / (kernel * kernel * x.shape[-1]))
        shape = (kernel, kernel, x.shape[-1], outputs)
        kernels[name] = (scale * random.normal(size=shape)).astype(np.float32)
        return np.zeros((1, 1, 1, outputs), np.float32)

    run_net(net, images[:1, :1, :1], create, lambda x: x, lambda x: x)
    calls = {
        f"{side} step": jax_step(net, f, kernels, images, labels)
        for side, f in (("xla", xla_convolve), ("zoo", convolve))
    }
    return {**calls, "torch step": torch_step(net, kernels, images, labels)}


def jax_step(net: Net, conv: Callable, kernels, images, labels) -> Callable:
    """Makes the step of a network built from `conv`."""

    def pool(x):
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)

    def loss(params, images, labels):
        def unit(name, x, kernel, stride, outputs):
            pads = ((kernel // 2,) * 2,) * 2
            weights, scale, bias = params[name]
            y = conv(x, weights, strides=(stride, stride), padding=pads)
            mean = y.mean((0, 1, 2))
            factor = lax.rsqrt(jnp.square(y - mean).mean((0, 1, 2)) + 1e-5) * scale
            return (y - mean) * factor + bias

        logits = run_net(net, images, unit, jax.nn.relu, pool).mean((1, 2))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -chosen.mean()

    def step(params, images, labels):
        gradients = jax.grad(loss)(params, images, labels)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)

    params = {
        name: (jnp.asarray(k), jnp.ones(k.shape[-1]), jnp.zeros(k.shape[-1]))
        for name, k in kernels.items()
    }
    arrays = params, jnp.asarray(images), jnp.asarray(labels)
    compiled = jax.jit(step).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def torch_step(net: Net, kernels, images, labels) -> Callable:
    """Makes the same step in PyTorch, channels last."""
    params = {}
    for name, kernel in kernels.items():
        weights = channels_last(kernel.transpose(3, 2, 0, 1)).requires_grad_()
        ones = torch.ones(kernel.shape[-1], requires_grad=True)
        params[name] = weights, ones, torch.zeros_like(ones, requires_grad=True)
    images, labels = channels_last(images.transpose(0, 3, 1, 2)), torch.tensor(labels)
    leaves = [leaf for group in params.values() for leaf in group]
    optimizer = torch.optim.SGD(leaves, lr=0.01)

    def unit(name, x, kernel, stride, outputs):
        weights, scale, bias = params[name]
        y = F.conv2d(x, weights, None, stride, kernel // 2)
        return F.batch_norm(y, None, None, scale, bias, training=True)

    def step():
        optimizer.zero_grad()
        pool = partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)
        logits = run_net(net, images, unit, F.relu, pool).mean((2, 3))
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
