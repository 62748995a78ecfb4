"""The tables of measure_networks.py, from the numbers in networks.json."""

from typing import Any

from benchmark_rounds import where

KINDS = {"plain": "", "remat": ", `remat=True`"}


def render(found: dict[str, Any]) -> str:
    """Makes the markdown.

    Args:
      found: Content of the file.
    """
    machine, networks = found["machine"], found["networks"]
    parts = [
        f"On {where(machine, ('jax',))}. "
        "`python tests/benchmarks/measure_networks.py` reproduces it.",
        *_memory(networks),
        _first_calls(networks),
    ]
    return "\n\n".join(parts)


def _memory(networks: dict[str, Any]) -> list[str]:
    fitted = {k: n["training_mebibytes"] for k, n in networks.items() if _fitted(n)}
    if not fitted:
        return []
    batches = {name: (*memory["plain"],) for name, memory in fitted.items()}
    tables = []
    for together in dict.fromkeys(batches.values()):
        lines = [
            f"| training with batches of | {' | '.join(together)} |",
            f"| --- |{' ---: |' * len(together)}",
        ]
        for name in (n for n, own in batches.items() if own == together):
            for kind, title in KINDS.items():
                cells = [f"{fitted[name][kind][b] / 1024:,.1f} GiB" for b in together]
                lines.append(f"| `{name}`{title} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    said = (
        "Memory of a training step in float32, with parameters, momentum and images; "
        "the state is donated. It is estimated by XLA's compiler for CPUs. With "
        "`remat=True`, that compiler is prevented from merging recomputed values with "
        "the original ones, which would save no memory; compilers for accelerators do "
        "not merge them."
    )
    return [said, *tables]


def _fitted(network: dict[str, Any]) -> bool:
    return "training_mebibytes" in network


def _first_calls(networks: dict[str, Any]) -> str:
    lines = [
        "<details><summary>Seconds until the first logits, and how far bfloat16 is "
        "from float32, per network</summary>",
        "",
        "One image, a new process, no compilation cache; `cifar_resnet1202` with "
        "`scan=True`, without which compilation takes more than ten minutes. The last "
        "column is the largest difference of bfloat16's logits, relative to the "
        "largest logit.",
        "",
        "| network | create | or load | trace, compile | first run | second | "
        "training step | bfloat16 |",
        f"| --- |{' ---: |' * 7}",
    ]
    for name, network in networks.items():
        if "first_call_seconds" not in network:
            continue
        s = network["first_call_seconds"]
        step = network.get("training_step_seconds")
        deviation = network.get("bfloat16_deviation")
        cells = (
            f"`{name}`",
            f"{s['create']:.1f}",
            f"{s['load']:.1f}",
            f"{s['trace']:.1f} + {s['compile']:.1f}",
            f"{s['run']:.2f}",
            f"{s['again']:.3f}",
            f"{step['trace']:.1f} + {step['compile']:.1f}" if step else "",
            "" if deviation is None else f"{deviation:.2%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "</details>"])
