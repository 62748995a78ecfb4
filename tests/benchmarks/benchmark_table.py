"""The benchmark's table, from the numbers in benchmarks.json."""

import statistics
from typing import Any

from benchmark_rounds import where

SIDES = {
    "fit": "`fit`: augmentation, logging and checks included",
    "step": "the bare jitted step in a Python loop",
    "zoo": "jitted",
    "torch_eager": "PyTorch eager",
    "torch_eager_channels_last": "PyTorch eager, channels last",
    "torch_compile": "PyTorch `torch.compile`, channels last",
}


def render(found: dict[str, Any]) -> str:
    """Makes the markdown.

    Args:
      found: What `benchmark.measure` returned.
    """
    machine, plan = found["machine"], found["plan"]
    rounds = plan["rounds"]
    lines = [
        f"ResNet-20 for CIFAR in float32 on {where(machine, ('jax', 'torch'))}. "
        f"Median (best) of {rounds} "
        f"{'round' if rounds == 1 else 'rounds'} in which the sides take turns, each "
        "with all cores; `python tests/benchmarks/benchmark.py` reproduces it.",
        "",
        "| what | images per second | ours / theirs |",
        "| --- | ---: | ---: |",
        *_rows(f"training, batch {plan['batch_size']}: ", found["train"]),
    ]
    for size, group in found["inference"].items():
        lines += _rows(f"inference, batch {size}: ", group)
    lines += ["", "| what | value |", "| --- | ---: |", *_costs(found)]
    absent = [f"{name} ({reason})" for name, reason in found["absent"].items()]
    if absent:
        lines += ["", f"Not measured: {'; '.join(absent)}."]
    return "\n".join(lines)


def _rows(title: str, group: dict[str, Any]) -> list[str]:
    rows = []
    for side, rate in group["images_per_second"].items():
        ratio = group["ratio"].get(side)
        shown = f"{ratio['median']:.2f} ({ratio['best']:.2f})" if ratio else ""
        rates = f"{rate['median']:,.0f} ({rate['best']:,.0f})"
        rows.append(f"| {title}{SIDES[side]} | {rates} | {shown} |")
    return rows


def _costs(found: dict[str, Any]) -> list[str]:
    start = found["start"]
    first = {k: statistics.median(v) for k, v in start["first_step_seconds"].items()}
    values = {
        "new process until the first step, empty compilation cache": (
            f"{first['cold']:.1f} s"
        ),
        "the same, filled compilation cache": f"{first['warm']:.1f} s",
        "tracing and compiling the training step": (
            f"{start['trace_seconds']:.1f} s + {start['compile_seconds']:.1f} s"
        ),
        "memory of the training step: temporary, arguments": (
            f"{start['temporary_megabytes']:,.0f} MiB, "
            f"{start['argument_megabytes']:,.0f} MiB"
        ),
        "peak memory of the training process": (
            f"{start['peak_rss_megabytes']:,.0f} MiB"
        ),
    }
    return [f"| {what} | {value} |" for what, value in values.items()]
