"""Measures what explains a network beside captum, on torchvision's networks.

    python tests/benchmarks/benchmark_explain.py              # minutes on two cores
    python tests/benchmarks/benchmark_explain.py vgg16 --methods saliency --rounds 1
    python tests/benchmarks/benchmark_explain.py --readme     # writes the table

Both sides take turns with the same weights and image: saliency and guided backprop of
one image, integrated gradients with 32 steps, occlusion with 196 positions. Before they
are timed, their maps are compared. It needs torchvision and captum. Numbers go to
tests/benchmarks/explain.json.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import benchmark_rounds as rounds
import readme

OUT = Path(__file__).parent / "explain.json"
NETWORKS = ("resnet50", "vgg16")
METHODS = ("saliency", "guided_backprop", "integrated_gradients", "occlusion")
STEPS, SQUARE, STRIDE, CHUNK = 32, 42, 14, 14
CLASS = 3


class Side:
    """What both sides measure of their `call`."""

    def first_call(self, method):
        """Seconds of the first call, and its map, or None for occlusion."""
        started = time.perf_counter()
        found = self.call(method)
        seconds = time.perf_counter() - started
        if method == "occlusion":
            return seconds, None
        return seconds, found.detach().numpy() if hasattr(found, "detach") else found

    def measure(self, method, seconds):
        """Seconds of a call."""
        return rounds.seconds_per_call_within(lambda: self.call(method), seconds)


class Ours(Side):
    """The zoo's side."""

    def __init__(self, name):
        import jax
        import jax.numpy as jnp

        import zoo
        from zoo.weights.torch_format import from_torch

        self.explain = zoo.explain
        self.model = zoo.build(name)
        # numpy's arrays would be copied by each call.
        self.variables = jax.device_put(from_torch(name, make_weights(name)))
        self.image = jnp.asarray(make_image())

    def call(self, method):
        args = (self.model, self.variables, self.image)
        if method == "occlusion":
            options = dict(size=SQUARE, stride=STRIDE, chunk=CHUNK)
            found = self.explain.occlusion(*args, "logits", CLASS, **options)
            return found.activation.block_until_ready()
        options = {"steps": STEPS} if method == "integrated_gradients" else {}
        found = getattr(self.explain, method)(*args, "logits", CLASS, **options)
        return found.block_until_ready()


class Theirs(Side):
    """captum's side."""

    def __init__(self, name):
        import contextlib

        import torch

        from zoo.verify.torchvision_live import load_state

        with contextlib.suppress(ImportError):
            # Where torch is a CPU build and torchvision is not.
            import torchvision_on_cpu  # noqa: F401
        import torchvision

        torch.set_num_threads(os.cpu_count())
        self.torch = torch
        self.model = getattr(torchvision.models, name)(weights=None).eval()
        load_state(self.model, make_weights(name))
        for module in self.model.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # captum's hooks cannot take it.
        image = torch.tensor(make_image().transpose(0, 3, 1, 2).copy())
        self.image = image.contiguous(memory_format=torch.channels_last)
        self.model = self.model.to(memory_format=torch.channels_last)

    def call(self, method):
        from captum import attr

        if method == "saliency":
            found = attr.Saliency(self.model).attribute
            return found(self.image, target=CLASS, abs=False)
        if method == "guided_backprop":
            return attr.GuidedBackprop(self.model).attribute(self.image, target=CLASS)
        if method == "integrated_gradients":
            found = attr.IntegratedGradients(self.model).attribute
            options = dict(n_steps=STEPS, method="gausslegendre")
            return found(self.image, target=CLASS, internal_batch_size=8, **options)
        with self.torch.no_grad():
            return attr.Occlusion(self.model).attribute(
                self.image,
                sliding_window_shapes=(3, SQUARE, SQUARE),
                strides=(3, STRIDE, STRIDE),
                target=CLASS,
                perturbations_per_eval=CHUNK,
            )


def make_weights(name):
    from zoo.verify import parity

    return parity.deterministic_state(name)


def make_image():
    from zoo import get_spec
    from zoo.verify.deterministic import make_images

    return make_images(get_spec("resnet50").preprocess, 1)


def difference(ours, theirs):
    """The largest difference of two maps, in units of the largest value."""
    import numpy as np

    theirs = np.asarray(theirs)[0].transpose(1, 2, 0)
    return float(np.abs(np.asarray(ours)[0] - theirs).max() / np.abs(theirs).max())


def run(name, methods, count, seconds):
    """Measures a network; yields each method and its row."""
    with (
        rounds.start_side("benchmark_explain:Ours", name) as ours,
        rounds.start_side("benchmark_explain:Theirs", name) as theirs,
    ):
        calls = {"zoo": ours, "captum": theirs}
        for method in methods:
            first = {side: call("first_call", method) for side, call in calls.items()}
            maps = [found for _, found in first.values()]
            row = {"first_call": {side: each[0] for side, each in first.items()}}
            if maps[0] is not None:
                row["difference"] = difference(*maps)
            times = {side: [] for side in calls}
            for _ in range(count):
                for side, call in calls.items():
                    times[side].append(call("measure", method, seconds))
            row |= rounds.summarize(times, 1, "zoo")
            ratio = row["ratio"]["captum"]
            rounds.say(
                f"{name} {method}: {min(times['zoo']):.3f} s, captum "
                f"{min(times['captum']):.3f} s, ratio {ratio['median']:.2f} "
                f"({ratio['best']:.2f}), first calls "
                f"{row['first_call']['zoo']:.1f} s and "
                f"{row['first_call']['captum']:.1f} s, maps differ by "
                f"{row.get('difference', float('nan')):.1e}"
            )
            yield method, row


def render(found):
    """Makes the table."""
    place = rounds.where(found["machine"], ("jax", "torch", "torchvision", "captum"))
    lines = [
        "What explains a network beside captum, on torchvision's networks and one "
        "image of 224 pixels: the gradient, guided backprop, integrated gradients "
        f"with {STEPS} steps, and occlusion with 196 positions of a square of {SQUARE} "
        f"pixels. On {place}; medians (best) of rounds in which the sides take turns, "
        "each with all cores. The last column is the largest difference of the maps, "
        "relative to the largest value. `python tests/benchmarks/benchmark_explain.py` "
        "reproduces it.",
        "",
        "| network | what | ms | theirs / ours | first call, s | captum's, s | maps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, methods in found["rows"].items():
        for method in METHODS:
            if method not in methods:
                continue
            row = methods[method]
            rate, ratio = row["images_per_second"]["zoo"], row["ratio"]["captum"]
            first = row["first_call"]
            cells = (
                f"`{name}`",
                method.replace("_", " "),
                f"{1000 / rate['median']:,.0f} ({1000 / rate['best']:,.0f})",
                f"{ratio['median']:.2f} ({ratio['best']:.2f})",
                f"{first['zoo']:.1f}",
                f"{first['captum']:.1f}",
                f"{row['difference']:.0e}" if "difference" in row else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("networks", nargs="*", default=NETWORKS, help="default: both")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="default: all")
    add("--rounds", type=int, default=3, help="number of turns of each side")
    add("--seconds", type=float, default=2.0, help="shortest time of a turn")
    add("--readme", action="store_true", help="write the table without measuring")
    options = parser.parse_args()
    if options.readme:
        readme.write_block("explain", render(json.loads(OUT.read_text())))
        return
    known = json.loads(OUT.read_text()) if OUT.exists() else {"rows": {}}
    packages = ("torch", "torchvision", "captum")
    facts = rounds.machine() | {name: version(name) for name in packages}
    if "machine" in known and not rounds.same_machine(known["machine"], facts):
        known = {"rows": {}}
    for name in options.networks:
        rows = known["rows"].setdefault(name, {})
        found = run(name, options.methods, options.rounds, options.seconds)
        for method, row in found:
            rows[method], known["machine"] = row, facts
            OUT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
