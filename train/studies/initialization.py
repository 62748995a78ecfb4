"""Does the initialization decide whether a deep network learns?

python -m train study initialization
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from train.config import TrainConfig
from train.studies.drawing import COLORS, draw_errors, format_spread, new_figure
from train.studies.runner import (
    Curve,
    digits,
    long_config,
    short_config,
    train_long,
    train_short,
)
from train.studies.second_moments import Layer, measure_layers
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.layers import initializer

# The convolutions' initializations, by their names in `zoo.layers.INITIALIZERS`.
INITS = {"He": "he_fan_out", "Glorot": "glorot"}
NETWORKS = ("relu22", "relu30")
# The stage whose layers have equal widths, so that the paper's products are powers.
STAGES = {"relu22": "conv4_", "relu30": "conv3_"}
FACTORS = {"He": 1.0, "Glorot": 0.5}
# Channels of fc1 and fc2 in the narrow networks.
NARROW_DENSE = 256


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      draws: Number of draws of the real networks' weights.
      images: Number of noise images passed through each draw.
      side: Height and width of these images, in pixels.
      options: Options of the real networks that replace the paper's.
      depths: Convolutions of each stage of the narrow networks; None for the paper's.
      seeds: Seeds of the training runs.
      steps: Length of a run, in steps.
      depth: Number of layers of the fully connected networks with ReLU.
      tanh_depth: Number of layers of those with tanh.
      dense_steps: Length of their runs, in steps; None for `steps`.
      networks: The paper's networks.
      inits: Keys of `INITS`.
      trainer: Whether the trainer trains the paper's networks on ImageNet, instead of
        narrow ones on digits.
    """

    draws: int
    images: int
    side: int
    options: Mapping[str, Any]
    depths: tuple[int, ...] | None
    seeds: tuple[int, ...]
    steps: int
    depth: int = 30
    tanh_depth: int = 40
    dense_steps: int | None = None
    networks: tuple[str, ...] = NETWORKS
    inits: tuple[str, ...] = ("He", "Glorot")
    trainer: bool = False


def run(job: Job) -> Outcome:
    """Measures signals before training, and trains."""
    sizes = job.sizes
    shape = (sizes.images, sizes.side, sizes.side, 3)
    signals, curves, dense = {}, {}, {}
    train = train_on_imagenet if sizes.trainer else train_narrow
    which = "The paper's" if sizes.trainer else "Narrow versions of the paper's"
    for name, init in itertools.product(sizes.networks, sizes.inits):
        signals[name, init] = measure_layers(
            name, INITS[init], sizes.draws, shape, sizes.options
        )
        curves[name, init] = [train(name, init, s, job) for s in sizes.seeds]
    depths = {"relu": sizes.depth, "tanh": sizes.tanh_depth}
    for (name, depth), init in itertools.product(depths.items(), sizes.inits):
        dense[name, init] = [
            train_dense(name, depth, init, seed, job) for seed in sizes.seeds
        ]
    return Outcome(
        figures=[
            (
                "Second moments of what each convolution puts out at the start "
                "(forward, left) and of the loss's gradient with respect to it "
                "(backward, right), relative to the first layer's forward and the "
                "last layer's backward. Dots are measured in the real networks; "
                "lines follow from the formula, layer by layer.",
                draw_signals(signals),
            ),
            (
                f"{which} networks of 22 and 30 layers (figures 2 and 3): training "
                "error. Mean, lowest and highest over the seeds.",
                draw_curves(curves, 99.9 if sizes.trainer else 90),
            ),
            (
                f"Training error of fully connected layers of 64 units, {sizes.depth} "
                f"with ReLU and {sizes.tanh_depth} with tanh: He's initialization is "
                "for ReLU, Glorot's for tanh.",
                draw_curves(dense),
            ),
        ],
        tables=[
            signal_table(signals),
            curve_table(f"{which} networks", curves),
            curve_table("Fully connected layers", dense),
        ],
        bands=[*signal_bands(signals), *curve_bands(curves, dense, sizes)],
        seeds=sizes.seeds,
        remarks=[
            "With 30 layers of tanh both initializations learn, and their errors "
            "differ by less than a percent; with 40 Glorot's keeps learning, and He's "
            "loses again what it learns in the first 100 steps."
        ],
        values={"signals": signals, "curves": {**curves, **dense}},
    )


def stage_factor(layers: dict[str, Layer], name: str) -> float:
    """Returns the factor of the second moment from layer to layer in the last stage."""
    values = [v.output for path, v in layers.items() if path.startswith(STAGES[name])]
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1)))


def draw_signals(signals):
    """Draws second moments by layer: a row for each network."""
    names = [*dict.fromkeys(name for name, _ in signals)]
    figure, axes = new_figure(2, len(names))
    for row, name in zip(axes, names, strict=True):
        for init, color in zip(INITS, COLORS, strict=False):
            if (name, init) not in signals:
                continue
            layers = [*signals[name, init].values()]
            index = np.arange(1, len(layers) + 1)
            forward = np.array([layer.output for layer in layers])
            backward = np.array([layer.gradient for layer in layers])
            row[0].semilogy(index, forward / forward[0], "o", ms=4, color=color)
            row[1].semilogy(index, backward / backward[-1], "o", ms=4, color=color)
            up = np.cumprod([1, *(layer.forward for layer in layers[1:])])
            down = np.cumprod([1, *(layer.backward for layer in layers[:0:-1])])[::-1]
            row[0].semilogy(index, up, color=color, lw=1, label=init)
            row[1].semilogy(index, down, color=color, lw=1, label=init)
        row[0].set(title=f"{name}, forward", xlabel="convolution")
        row[1].set(title=f"{name}, backward", xlabel="convolution")
        row[0].legend(frameon=False)
    return figure


def signal_table(signals) -> Table:
    """Lists measured and expected second moments of some layers."""
    rows = []
    for (name, init), layers in signals.items():
        paths = [*layers]
        for path in (*paths[:: max(1, len(paths) // 6)], paths[-1]):
            layer = layers[path]
            rows.append(
                (
                    f"{name}, {init}",
                    path,
                    f"{layer.output:.3g}",
                    f"{layer.output / layer.expected_output:.3f}",
                    f"{layer.gradient:.3g}",
                    f"{layer.gradient / layer.expected_gradient:.3f}",
                    f"{layer.forward:.3f}, {layer.backward:.3f}",
                )
            )
    header = ("network", "layer", "output", "to formula", "gradient", "to formula")
    return Table(
        "Second moments at the start",
        (*header, "paper's factors"),
        rows,
        "To formula: the measured moment divided by the formula's, given what comes "
        "into the layer; the weights are drawn, so that it is 1 in expectation. nan: a "
        "pool is above the layer. The paper's factors, forward and backward, leave out "
        "borders.",
    )


def narrow_config(name: str, init: str, seed: int, sizes: Sizes) -> TrainConfig:
    """Returns the config of a narrow version of a network of the paper."""
    widths = {"relu22": (16, 24, 32, 32), "relu30": (16, 24, 32)}[name]
    options = (f"widths={widths}", f"dense={NARROW_DENSE}", f"init={INITS[init]}")
    options += (f"depths={sizes.depths}",) if sizes.depths else ()
    return short_config(
        name,
        options=(*options, "dropout=0.0"),
        batch_size=64,
        steps=sizes.steps,
        seed=seed,
        learning_rate=0.01,
        momentum=0.9,
    )


def train_narrow(name: str, init: str, seed: int, job: Job) -> Curve:
    """Trains a narrow network on digits of 32 x 32 pixels."""

    def scale_dense(variables: dict) -> dict:
        """Scales the dense layers so that they preserve the signal's size."""
        params = jax.tree.map(lambda x: x, variables["params"])
        backbone, head = params["backbone"], params["head"]
        layers = ((backbone["fc1"], 2), (backbone["fc2"], 2), (head["fc3"], 1))
        for layer, gain in layers:
            kernel = layer["kernel"]
            layer["kernel"] = kernel * (gain / len(kernel)) ** 0.5 / kernel.std()
        return {**variables, "params": params}

    config = narrow_config(name, init, seed, job.sizes)
    run_name = f"{name}-{init}-seed{seed}"
    arrays = digits(32, 3)
    return train_short(config, arrays, job.folder, run_name, change=scale_dense)


def train_on_imagenet(name: str, init: str, seed: int, job: Job) -> Curve:
    """Trains a network of the paper by the trainer, at the first rate of its recipe."""
    chosen = {**job.sizes.options, "init": INITS[init]}
    options = tuple(f"{option}={value}" for option, value in chosen.items())
    config = long_config(
        "imagenet_msra_a",
        job,
        seed=seed,
        model=dict(name=name, options=options),
        optim=dict(schedule="constant"),
    )
    return train_long(config, job.folder / f"{name}-{init}-seed{seed}")


class Stack(nn.Module):
    """Fully connected layers of equal width and a linear classifier."""

    depth: int
    activation: str
    start: str
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(len(images), -1)
        activate = {"relu": nn.relu, "tanh": nn.tanh}[self.activation]
        for _ in range(self.depth - 1):
            x = activate(nn.Dense(self.width, kernel_init=initializer(self.start))(x))
        return nn.Dense(10, kernel_init=initializer("glorot"))(x)


def train_dense(activation: str, depth: int, init: str, seed: int, job: Job) -> Curve:
    """Trains fully connected layers on digits of 8 x 8 pixels."""
    model = Stack(depth, activation, INITS[init])
    config = short_config(
        "lenet5_modern",
        batch_size=64,
        steps=job.sizes.dense_steps or job.sizes.steps,
        seed=seed,
        learning_rate=0.01,
        momentum=0.9,
    )
    run_name = f"{activation}{depth}-{init}-seed{seed}"
    return train_short(config, digits(8), job.folder, run_name, model=model)


def draw_curves(runs: dict[tuple[str, str], list[Curve]], chance: float = 90):
    """Draws training errors, with chance in percent: an axis for each network."""
    names = [*dict.fromkeys(name for name, _ in runs)]
    figure, (axes,) = new_figure(len(names), sharey=True)
    for axis, name in zip(axes, names, strict=True):
        for init, color in zip(INITS, COLORS, strict=False):
            curves = runs.get((name, init))
            if not curves:
                continue
            draw_errors(axis, curves, label=init, color=color)
        axis.axhline(chance, color="black", lw=0.8, ls=":")
        axis.set_title(f"{name}, training error")
        axis.legend(frameon=False)
    axes[0].set_ylabel("error (%)")
    return figure


def curve_table(title: str, runs: dict[tuple[str, str], list[Curve]]) -> Table:
    """Lists the errors at the end of the runs."""
    rows = []
    for (name, init), curves in runs.items():
        reached = [curve.steps_to(0.5) for curve in curves]
        rows.append(
            (
                name,
                init,
                ", ".join(str(step) for step in reached),
                format_spread([curve.train_error[-1] for curve in curves]),
                format_spread([curve.test_error[-1] for curve in curves]),
            )
        )
    header = ("network", "init", "steps until half is right, by seed", "training error")
    return Table(title, (*header, "test error"), rows)


def signal_bands(signals) -> list[Band]:
    """Returns bands for the ratio of the measured signals to the formulas."""
    layers = [layer for found in signals.values() for layer in found.values()]
    forward = [layer.output / layer.expected_output for layer in layers]
    backward = [layer.gradient / layer.expected_gradient for layer in layers]
    drawn = "the formula is exact in expectation over weights; these are draws"
    bands = [
        Band(
            f"outputs' second moments to the formula, mean of {len(forward)} layers",
            float(np.mean(forward)),
            0.97,
            1.03,
            drawn,
            "equations 7 and 10: Var[y] = n Var[w] E[x^2]",
        ),
        Band(
            "gradients' second moments to the formula, mean of the layers",
            float(np.nanmean(backward)),
            0.95,
            1.05,
            drawn,
            "equations 13 and 14",
        ),
    ]
    for (name, init), found in signals.items():
        factor = FACTORS[init]
        bands.append(
            Band(
                f"{name}, {init}: factor from layer to layer in the last stage",
                stage_factor(found, name),
                0.8 * factor,
                1.1 * factor,
                "n Var[w] / 2 of equal widths, less what the border of zeros takes",
                f"{factor:g}",
            )
        )
    return bands


def curve_bands(runs, dense, sizes: Sizes) -> list[Band]:
    """Returns bands for the convergence, if both initializations were trained."""
    if {*sizes.inits} != {*INITS} or {*sizes.networks} != {*NETWORKS}:
        return []
    error = {
        key: float(np.mean([curve.train_error[-1] for curve in curves]))
        for key, curves in {**runs, **dense}.items()
    }
    course = {
        init: float(np.mean([curve.train_error for curve in runs["relu22", init]]))
        for init in INITS
    }
    return [
        Band(
            "22 layers: training error, mean of the whole course, Glorot minus He",
            course["Glorot"] - course["He"],
            low=0.05,
            reason="He's starts reducing the error earlier",
            published="figure 2: both converge, He's earlier",
        ),
        Band(
            "30 layers, He: training error at the end",
            error["relu30", "He"],
            high=0.9 if sizes.trainer else 0.6,
            reason="learns, from some seeds late (--steps 1200 for longer runs)",
            published="figure 3: converges",
        ),
        Band(
            "30 layers, Glorot: training error at the end",
            error["relu30", "Glorot"],
            low=0.995 if sizes.trainer else 0.85,
            reason="2^-21 of the gradient's second moment arrives below 22 layers: "
            "it stays at chance",
            published="figure 3: completely stalls",
        ),
        Band(
            "fully connected, ReLU: Glorot's error minus He's",
            error["relu", "Glorot"] - error["relu", "He"],
            low=0.2,
            reason="ReLU halves the second moment, and He's factor 2 makes up for it",
        ),
        Band(
            "fully connected, tanh: He's error minus Glorot's",
            error["tanh", "He"] - error["tanh", "Glorot"],
            low=0.2,
            reason="tanh has slope 1 at 0: He's factor 2 drives it into saturation",
            published="Glorot and Bengio, table 1: 5 layers of tanh on MNIST, 1.64 % "
            "with their initialization and 1.76 % with 1 / (3 n)",
        ),
    ]


STUDY = Study(
    name="initialization",
    claim=(
        "A good initialization converges faster at 22 layers and decides at 30; "
        "Glorot's is for tanh, He's for ReLU."
    ),
    reference=(
        "He et al., Delving Deep into Rectifiers, 2015, section 2.2, figures 2 and 3; "
        "Glorot and Bengio, Understanding the difficulty of training deep feedforward "
        "neural networks, 2010."
    ),
    run=run,
    scales={
        "smoke": Sizes(
            draws=1,
            images=1,
            side=32,
            options={"dense": 8, "widths": (8, 8, 8, 8), "depths": (1, 1, 2)},
            depths=(1, 1, 2),
            seeds=(0,),
            steps=2,
            depth=3,
            tanh_depth=3,
            networks=("relu22",),
            inits=("He",),
        ),
        "quick": Sizes(
            draws=2,
            images=2,
            side=224,
            options={},
            depths=None,
            seeds=(0, 1, 2),
            steps=400,
        ),
        "full": Sizes(
            draws=10,
            images=8,
            side=224,
            options={},
            depths=None,
            seeds=(0,),
            steps=90_000,
            dense_steps=400,
            trainer=True,
        ),
    },
    changes={
        "quick": (
            "The signals are those of the real networks, on noise. The curves are of "
            "networks as deep and 16 to 32 channels wide, on the embedded digits, with "
            "constant rate. Their dense layers pass the signal on at its size; in the "
            "paper's they have fixed small deviations, which thousands of steps make "
            "up for. The paper trains on ImageNet."
        ),
        "full": (
            "Nine epochs of ImageNet at the first rate. The fully connected layers are "
            "those of quick: the paper has none."
        ),
    },
    data_scales=("full",),
)
