"""Measures formulations of pooling, unpooling and enlargement, beside PyTorch's.

    python tests/benchmarks/benchmark_unpooling.py             # a minute on two cores
    python tests/benchmarks/benchmark_unpooling.py unpool      # what contains it

They take turns, and the least processor time of the rounds counts, which other programs
disturb least. "step" is the value and the gradient. Sizes are those of SegNet's first
and fourth pool, and of FRRN A's residual stream.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from zoo.ops.pooling import max_pool
from zoo.ops.resize import resize
from zoo.ops.unpooling import max_pool_with_indices, max_unpool, repeat_pixels
from zoo.segmentation import frrn

OUT = Path(__file__).parent / "benchmark_unpooling.json"
ROUNDS = 15


def chain(x, scale, longest):
    """Pools by windows of 2 or 4 pixels, one behind the other."""
    while scale > 1:
        step = min(scale, longest)
        x, scale = max_pool(x, step, step), scale // step
    return x


def by_gather(x, factor):
    size = (x.shape[1] * factor, x.shape[2] * factor)
    return resize(x, size, "nearest", antialias=False)


def by_matrix(x):
    return resize(x, (2 * x.shape[1], 2 * x.shape[2]), antialias=False)


def make_cases():
    """Name: (shape of the input, {formulation: function}, torch's function)."""
    cases = {}
    for name, shape in {
        "360x480x64": (1, 360, 480, 64),
        "45x60x512": (1, 45, 60, 512),
    }.items():
        size = shape[1:3]
        cases[f"pool {name}"] = (
            shape,
            {
                "with indices": lambda x: max_pool_with_indices(x, 2, 2, ceil=True)[0],
                "without": lambda x: max_pool(x, 2, 2, ceil=True),
            },
            partial(F.max_pool2d, kernel_size=2, ceil_mode=True),
        )
        both = {"compare": 2, "scatter": None}

        def through(x, stride, size=size):
            y, indices = max_pool_with_indices(x, 2, 2, ceil=True)
            return max_unpool(jnp.sin(y), indices, size, stride=stride)

        def through_torch(x, size=size):
            y, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            return F.max_unpool2d(y.sin(), indices, 2, output_size=size)

        cases[f"pool and unpool {name}"] = (
            shape,
            {way: partial(through, stride=stride) for way, stride in both.items()},
            through_torch,
        )
    for scale in (4, 16):
        cases[f"pool the stream {scale}"] = (
            (1, 256, 512, 32),
            {
                "chain of 2": partial(chain, scale=scale, longest=2),
                "chain of 4": partial(chain, scale=scale, longest=4),
                "one window": lambda x, s=scale: max_pool(x, s, s),
            },
            partial(F.max_pool2d, kernel_size=scale),
        )
        cases[f"repeat {scale}"] = (
            (1, 256 // scale, 512 // scale, 32),
            {
                "broadcast": partial(repeat_pixels, factor=scale),
                "gather": partial(by_gather, factor=scale),
            },
            partial(F.interpolate, scale_factor=scale, mode="nearest"),
        )
    cases["double 128x256x96"] = (
        (1, 128, 256, 96),
        {"matrix": by_matrix, "shifts": frrn.upsample_double},
        partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False),
    )
    return cases


def make_calls(function, x):
    """The function, and the gradient of the sum of what it computes, squared."""

    def loss(x):
        return jnp.square(function(x)).sum()

    forward, step = jax.jit(function), jax.jit(jax.value_and_grad(loss))
    return {
        "forward": lambda: jax.block_until_ready(forward(x)),
        "step": lambda: jax.block_until_ready(step(x)),
    }


def make_torch_calls(function, x):
    x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()

    def forward():
        with torch.no_grad():
            function(x)

    def step():
        leaf.grad = None
        function(leaf).square().sum().backward()

    return {"forward": forward, "step": step}


def measure(calls):
    """The least milliseconds of the processor, by side and kind."""
    least = {}
    for _ in range(ROUNDS):
        for side, kinds in calls.items():
            for kind, call in kinds.items():
                start = time.process_time()
                call()
                spent = 1e3 * (time.process_time() - start)
                key = f"{side}, {kind}"
                least[key] = min(spent, least.get(key, np.inf))
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="")
    wanted = parser.parse_args().name
    found = {}
    for name, (shape, ways, theirs) in make_cases().items():
        if wanted not in name:
            continue
        x = jax.random.normal(jax.random.key(0), shape)
        calls = {way: make_calls(function, x) for way, function in ways.items()}
        calls["torch"] = make_torch_calls(theirs, x)
        found[name] = {k: round(v, 2) for k, v in measure(calls).items()}
        text = "  ".join(f"{k} {v:.2f}" for k, v in found[name].items())
        print(f"{name:<28} {text}", flush=True)
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.write_text(json.dumps({**before, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
