"""The table of the classifiers' benchmark, from the numbers in classifiers.json."""

from typing import Any

from benchmark_rounds import where

SIDES = {
    "torch_eager": "torch eager",
    "torch_eager_channels_last": "channels last",
    "torch_compile": "`torch.compile`",
}
# Multiply-adds per second that makers state for bfloat16 without sparsity.
STATED = {"NVIDIA H100 80GB HBM3": 494.7e12, "NVIDIA H200": 494.7e12}


def render(found: dict[str, Any]) -> str:
    """Makes the markdown.

    Args:
      found: Content of the file, by platform.
    """
    return "\n\n".join(_platform(numbers) for numbers in found.values())


def _platform(found: dict[str, Any]) -> str:
    machine, networks = found["machine"], found["networks"]
    cells = [cell for n in networks.values() for cell in n["cells"].values()]
    used = {side for cell in cells for side in cell["seconds"]}
    sides = [side for side in SIDES if side in used]
    rounds = sorted({len(cell["seconds"]["zoo"]) for cell in cells})
    names = ("jax", "torch", "torchvision")
    titles = ["network", "what", "images/s", *[SIDES[s] for s in sides]]
    titles.append("% of matmul peak")
    lines = [
        "Images of 224 pixels (32 for CIFAR networks) in "
        f"{found['plan']['dtype']} on {where(machine, names)}. Medians of "
        f"{' or '.join(map(str, rounds))} rounds in which the sides take turns; the "
        "columns of PyTorch give the zoo's speed divided by PyTorch's. The last column "
        "is the network's multiply-adds per second relative to those of a large matrix "
        "product in the same run. "
        "`python tests/benchmarks/benchmark_classifiers.py` reproduces it.",
        "",
        f"| {' | '.join(titles)} |",
        f"| --- | --- |{' ---: |' * (len(titles) - 2)}",
    ]
    for name, network in networks.items():
        for cell, numbers in network["cells"].items():
            lines.append(_row(name, cell, network, numbers, sides, machine["device"]))
    reasons = {f"{s}: {r}" for n in networks.values() for s, r in n["absent"].items()}
    if reasons:
        lines += ["", f"Not measured: {'; '.join(sorted(reasons))}."]
    return "\n".join(lines)


def _row(
    name: str,
    cell: str,
    network: dict[str, Any],
    numbers: dict[str, Any],
    sides: list[str],
    device: str,
) -> str:
    kind, batch = cell.split("_")
    rate = numbers["images_per_second"]["zoo"]["median"]
    ratios = [numbers["ratio"].get(side) for side in sides]
    shown = [f"{r['median']:.2f}" if r else "" for r in ratios]
    # A step multiplies for the output, for the input's gradient and the kernel's.
    macs = network["macs"] * (3 if kind == "train" else 1)
    limit = STATED.get(device, max(numbers["products_per_second"].values()))
    what = {"inference": "inference", "train": "training"}[kind]
    cells = (f"`{name}`", f"{what}, batch {batch}", f"{rate:,.1f}", *shown)
    return f"| {' | '.join(cells)} | {macs * rate / limit:.0%} |"
