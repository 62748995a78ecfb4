"""The skip is a direct path for the gradient.

python -m train study residual_gradients
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import zoo
from train.checkpoint import list_steps
from train.config import to_json
from train.state import TrainState
from train.studies.drawing import COLORS, draw_spread, new_figure
from train.studies.features import load_arrays
from train.studies.runner import (
    Arrays,
    Curve,
    build_resnet,
    digits,
    keep,
    long_config,
    make_probe,
    read_curve,
    short_config,
    train_in_memory,
    train_long,
)
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.initialization import init_variables
from zoo.paths import flatten, unflatten

# A registered network of each kind; they can be built with any depth.
KINDS = {
    "plain": "cifar_plain20",
    "residual": "cifar_resnet20",
    "pre-activation": "cifar_resnet164_v2",
}
BLOCKS = r"backbone/stage\d+/block\d+"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      depths: Numbers of layers of the networks.
      width: Channels of the first stage.
      side: Height and width of the images, in pixels.
      batch: Images per step, and images of a measurement.
      steps: Length of the training, in steps.
      entries: Number of measurements during the training.
      seeds: Seeds of the runs.
      scales: Factors by which each branch's last scale, or kernel, is multiplied.
      trainer: Whether the trainer trains on CIFAR-10, instead of the short loop on
        digits; gradients are measured in its checkpoints.
    """

    depths: tuple[int, ...]
    width: int
    side: int
    batch: int
    steps: int
    entries: int
    seeds: tuple[int, ...]
    scales: tuple[float, ...]
    trainer: bool = False


@dataclasses.dataclass(frozen=True)
class Norms:
    """Gradients with respect to the blocks' outputs, from the first to the last.

    Attributes:
      step: Steps done, for each measurement.
      norms: Euclidean norms [measurements, blocks], averaged over the images.
      curve: The curves of the run.
    """

    step: list[int]
    norms: list[list[float]]
    curve: Curve

    @property
    def ratios(self) -> np.ndarray:
        """The norm at the first block divided by the last's, by measurement."""
        norms = np.array(self.norms)
        return norms[:, 0] / norms[:, -1]


def run(job: Job) -> Outcome:
    """Measures gradients during training, and how close a block is to the identity."""
    sizes = job.sizes
    if sizes.trainer:
        preprocess = zoo.get_spec(KINDS["residual"]).preprocess
        arrays = load_arrays(job.dataset or "cifar10", preprocess)
    else:
        arrays = digits(sizes.side, 3)
    measure = measure_checkpoints if sizes.trainer else measure_while_training
    found = {
        (kind, depth): [measure(kind, depth, seed, arrays, job) for seed in sizes.seeds]
        for kind in KINDS
        for depth in list_depths(kind, sizes)
    }
    deepest = max(sizes.depths)
    identity = {
        kind: distances(kind, deepest, arrays, sizes)
        for kind in KINDS
        if (kind, deepest) in found
    }
    return Outcome(
        figures=[
            (
                "Norm of the loss's gradient with respect to the output of each block, "
                "relative to the last block's: before the first step and after the "
                "training.",
                draw_norms(found),
            ),
            (
                "Left: norm at the first block divided by that at the last during the "
                "training. Right: distance of a block's output from its input relative "
                "to it, where the branch's last scale is multiplied by a "
                "factor: near zero, a residual block is the identity.",
                draw_course(found, identity, sizes),
            ),
        ],
        tables=[norm_table(found)],
        bands=make_bands(found, identity, sizes),
        seeds=sizes.seeds,
        values={"norms": found, "distances": identity},
    )


def list_depths(kind: str, sizes: Sizes) -> list[int]:
    """Lists the depths of a kind: pre-activation blocks have three layers."""
    if kind != "pre-activation":
        return [*sizes.depths]
    if sizes.trainer:
        return [164]  # the paper's, as registered
    return [depth for depth in sizes.depths if depth % 9 == 2]


def measure_while_training(
    kind: str, depth: int, seed: int, arrays: Arrays, job: Job
) -> Norms:
    """Trains a network and measures its gradients at the start and at each entry."""
    sizes, name = job.sizes, f"{kind}{depth}-seed{seed}"
    config = short_config(
        KINDS[kind],
        batch_size=sizes.batch,
        steps=sizes.steps,
        seed=seed,
        entries=sizes.entries,
        learning_rate=0.1 if depth < 110 else 0.01,
        momentum=0.9,
        weight_decay=1e-4,
    )

    def run() -> dict[str, Any]:
        model = build_resnet(KINDS[kind], depth, sizes.width)
        measure = make_measurement(model, arrays, sizes)
        steps, norms = [], []

        def watch(step: int, state: TrainState) -> None:
            steps.append(step)
            norms.append(measure(state.variables()))

        curve, _ = train_in_memory(config, arrays, model=model, watch=watch)
        return {"step": steps, "norms": norms, "curve": curve}

    plan = {**to_json(config), "depth": depth, "width": sizes.width}
    found = keep(job.folder, name, plan, run)
    return Norms(found["step"], found["norms"], read_curve(found["curve"]))


def measure_checkpoints(
    kind: str, depth: int, seed: int, arrays: Arrays, job: Job
) -> Norms:
    """Trains by the trainer, and measures gradients at the start and in checkpoints."""
    sizes, folder = job.sizes, job.folder / f"{kind}{depth}-seed{seed}"
    name = re.sub(r"\d+", str(depth), KINDS[kind], count=1)
    config = long_config(
        f"cifar10_resnet{110 if depth >= 110 else 20}",
        job,
        seed=seed,
        model=dict(name=name, options=(f"width={sizes.width}",)),
    )
    # An epoch has 390 steps.
    every = max(1, sizes.steps // 390 // sizes.entries)
    config = dataclasses.replace(config, save_every=every, keep=10 * sizes.entries)
    curve = train_long(config, folder)
    steps = list_steps(folder)
    paths = [folder / "checkpoints" / str(step) for step in steps]
    model, _ = zoo.create(name, weights=paths[0])
    start = init_variables(model, jax.random.key(seed), arrays.images[:1].shape)
    measure = make_measurement(model, arrays, sizes)
    norms = [measure(start)]
    norms += [measure(zoo.create(name, weights=path)[1]) for path in paths]
    return Norms([0, *steps], norms, curve)


def make_measurement(
    model: nn.Module, arrays: Arrays, sizes: Sizes
) -> Callable[[Mapping[str, Any]], list[float]]:
    """Makes the function from variables to the gradient's norm at each block."""
    probe = make_probe(model, where=BLOCKS, train=True)
    images, labels = arrays.images[: sizes.batch], arrays.labels[: sizes.batch]

    def measure(variables: Mapping[str, Any]) -> list[float]:
        signals = probe(variables, images, labels)
        return [gradient_norm(s.gradient) for s in signals.values()]

    return measure


def gradient_norm(gradient: jax.Array) -> float:
    """Returns the Euclidean norm of the gradients, averaged over the images."""
    flat = np.asarray(gradient).reshape(len(gradient), -1)
    return float(np.linalg.norm(flat, axis=1).mean())


def distances(
    kind: str, depth: int, arrays: Arrays, sizes: Sizes
) -> dict[float, float]:
    """Returns how far blocks are from the identity, by the factor of their branches.

    The relative distance of output and input is averaged over the blocks that keep the
    shape.
    """
    model = build_resnet(KINDS[kind], depth, sizes.width)
    variables = init_variables(model, jax.random.key(0), arrays.images[:1].shape)
    images, labels = arrays.images[: sizes.batch], arrays.labels[: sizes.batch]
    probe = make_probe(model, where=BLOCKS, train=True)
    last = "conv3/kernel" if kind == "pre-activation" else "bn2/scale"
    found = {}
    for scale in sizes.scales:
        params = {
            path: leaf * scale if path.endswith(last) else leaf
            for path, leaf in flatten(variables["params"]).items()
        }
        scaled: dict[str, Any] = {**variables, "params": unflatten(params)}
        signals = probe(scaled, images, labels)
        same = [s for s in signals.values() if s.input.shape == s.output.shape]
        each = [
            np.linalg.norm(s.output - s.input) / np.linalg.norm(s.input)
            for s in same
            if jnp.any(s.input)  # The output of a plain block of zeros is 0.
        ]
        found[scale] = float(np.mean(each))
    return found


def draw_norms(found):
    """Draws norms by block: a row for each depth, the start and the end."""
    depths = sorted({depth for _, depth in found})
    figure, axes = new_figure(2, len(depths))
    for row, depth in zip(axes, depths, strict=True):
        for axis, i, when in zip(
            row, (0, -1), ("at the start", "at the end"), strict=True
        ):
            for kind, color in zip(KINDS, COLORS, strict=False):
                if (kind, depth) not in found:
                    continue
                norms = [np.array(each.norms[i]) for each in found[kind, depth]]
                share = np.linspace(0, 1, len(norms[0]))
                curves = [n / n[-1] for n in norms]
                draw_spread(axis, share, curves, label=kind, color=color)
            axis.set(yscale="log", title=f"{depth} layers, {when}")
            axis.set(xlabel="depth of the block (0 first, 1 last)")
        row[0].set_ylabel("gradient norm / the last block's")
        row[0].legend(frameon=False)
    return figure


def draw_course(found, identity, sizes: Sizes):
    """Draws ratios by step, and distances from the identity by factor."""
    figure, (axes,) = new_figure(2)
    deepest = max(sizes.depths)
    for kind, color in zip(KINDS, COLORS, strict=False):
        if kind not in identity:
            continue
        runs = found[kind, deepest]
        ratios = [each.ratios for each in runs]
        draw_spread(axes[0], runs[0].step, ratios, label=kind, color=color)
        scales = [scale for scale in identity[kind] if scale]
        values = [identity[kind][scale] for scale in scales]
        axes[1].loglog(scales, values, "o-", color=color, label=kind)
    axes[0].set(yscale="log", xlabel="step", title=f"{deepest} layers")
    axes[0].set_ylabel("gradient norm, first block / last")
    axes[1].set(xlabel="factor of the branch's last scale")
    axes[1].set_ylabel("|output - input| / |input|")
    axes[1].legend(frameon=False)
    return figure


def norm_table(found) -> Table:
    """Lists the ratios and the errors."""
    rows = []
    for (kind, depth), runs in found.items():
        ratios = np.array([each.ratios for each in runs])
        rows.append(
            (
                f"{kind} {depth}",
                f"{ratios[:, 0].mean():.3g}",
                f"{np.median(ratios[:, 1:]):.3g}",
                f"{np.mean([each.curve.train_error[-1] for each in runs]):.1%}",
            )
        )
    header = ("network", "at the start", "median during training", "training error")
    return Table("Gradient norm at the first block divided by the last's", header, rows)


def make_bands(found, identity, sizes: Sizes) -> list[Band]:
    """Returns the claim as expected bands."""
    shallowest, deepest = min(sizes.depths), max(sizes.depths)

    def start(kind: str, depth: int) -> float:
        return float(np.mean([each.ratios[0] for each in found[kind, depth]]))

    bands = [
        Band(
            f"plain {deepest}, start: norm at the first block / last, divided by the "
            f"{kind} network's",
            start("plain", deepest) / start(kind, deepest),
            low=3.0,
            reason="with batch norm a plain network's gradient does not vanish but "
            "grows towards the input; past a skip it grows less",
            published="He et al. 2015, section 4.1: gradients do not vanish",
        )
        for kind in identity
        if kind != "plain"
    ]
    cube = (deepest / shallowest) ** 3
    for kind in identity:
        grown = start(kind, deepest) / start(kind, shallowest)
        plain = kind == "plain"
        bands.append(
            Band(
                f"{kind}, start: its growth from {shallowest} to {deepest} layers",
                grown,
                low=cube if plain else None,
                high=None if plain else cube,
                reason="a factor for each layer: exponential in depth"
                if plain
                else "the k-th block adds a share of 1 / k: a power of the depth, "
                "less than its cube",
            )
        )
    for kind in ("residual", "pre-activation"):
        if kind in identity:
            bands.append(
                Band(
                    f"{kind} {deepest}, branches times {min(sizes.scales):g}: distance "
                    "from the identity",
                    identity[kind][min(sizes.scales)],
                    high=1e-6,
                    reason="a branch of zeros leaves the identity",
                )
            )
    bands.append(
        Band(
            f"plain {deepest}, the same",
            identity["plain"][min(sizes.scales)],
            low=0.5,
            reason="a plain layer of zeros forgets its input",
        )
    )
    return bands


STUDY = Study(
    name="residual_gradients",
    claim=(
        "The skip is a direct path for the gradient: it reaches the first block as it "
        "left the last, and a branch near zero leaves the identity."
    ),
    reference=(
        "He et al., Deep Residual Learning, 2015, sections 3.1 and 4.1; He et al., "
        "Identity Mappings in Deep Residual Networks, 2016, section 2."
    ),
    run=run,
    scales={
        "smoke": Sizes((8,), 2, 8, 4, 1, 1, (0,), (1.0, 0.0)),
        "quick": Sizes((20, 56), 4, 16, 64, 60, 6, (0, 1), (1.0, 0.1, 0.01, 0.0)),
        "full": Sizes(
            depths=(20, 56, 110),
            width=16,
            side=32,
            batch=128,
            steps=64_000,
            entries=20,
            seeds=(0,),
            scales=(1.0, 0.1, 0.01, 0.0),
            trainer=True,
        ),
    },
    changes={
        "quick": "Networks as deep and 4 channels wide in the first stage (16 in the "
        "paper), on embedded digits of 16 x 16 pixels; 60 steps.",
        "full": "The first paper's recipe on CIFAR-10, also for the pre-activation "
        "network, which has 164 layers.",
    },
    data_scales=("full",),
)
