"""Batch normalization converges faster, at rates that diverge without it.

python -m train study batch_norm
"""

import dataclasses
import math

import jax
import numpy as np
from flax import linen as nn

from train.studies.drawing import COLORS, draw_errors, format_spread, new_figure
from train.studies.runner import (
    Curve,
    digits,
    long_config,
    short_config,
    train_long,
    train_short,
)
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.layers import BatchNorm, Conv, initializer
from zoo.ops.pooling import global_average_pool, max_pool

FACTORS = (1, 5, 30)
# Millions of steps to an accuracy of 72.2 %, from the paper's figure 3.
PUBLISHED = {
    ("relu", False, 1): "31.0 (Inception)",
    ("relu", True, 1): "13.3 (BN-Baseline)",
    ("relu", True, 5): "2.1 (BN-x5)",
    ("relu", True, 30): "2.7 (BN-x30)",
    ("sigmoid", True, 5): "never; 69.8 % at most (BN-x5-Sigmoid)",
    ("sigmoid", False, 1): "never; chance",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      depth: Number of convolutions, in three stages, of the small networks.
      width: Channels of their first stage.
      side: Height and width of the digits, in pixels.
      rate: Learning rate at factor 1.
      steps: Length of a run, in steps.
      seeds: Seeds of the runs.
      activations: Activations: "relu", "sigmoid".
      factors: Factors of the learning rate.
      goal: Training error, or with the trainer test error, to reach.
      trainer: Whether the trainer trains GoogLeNet on ImageNet, instead of small
        networks on digits.
    """

    depth: int
    width: int
    side: int
    rate: float
    steps: int
    seeds: tuple[int, ...]
    activations: tuple[str, ...] = ("relu", "sigmoid")
    factors: tuple[int, ...] = FACTORS
    goal: float = 0.1
    trainer: bool = False


class ConvNet(nn.Module):
    """Three stages of 3x3 convolutions with pooling in between, and a classifier."""

    depth: int
    width: int
    activation: str
    norm: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        activate = {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation]
        x = images
        for i in range(self.depth):
            stage, first = divmod(i, self.depth // 3)
            if stage and not first:
                x = max_pool(x, 2, 2)
            features = self.width * 2**stage
            init = initializer("he_fan_in" if self.activation == "relu" else "glorot")
            options = dict(padding=1, use_bias=not self.norm, kernel_init=init)
            x = Conv(features, 3, name=f"conv{i + 1}", **options)(x)
            if self.norm:
                x = BatchNorm(name=f"bn{i + 1}")(x, train=train)
            x = activate(x)
        return nn.Dense(10, name="fc", kernel_init=initializer("glorot"))(
            global_average_pool(x)
        )


def run(job: Job) -> Outcome:
    """Trains with and without batch normalization, at several rates."""
    runs = {
        (activation, norm, factor): [
            train(activation, norm, factor, seed, job) for seed in job.sizes.seeds
        ]
        for activation in job.sizes.activations
        for norm in (False, True)
        for factor in job.sizes.factors
    }
    sizes = job.sizes
    return Outcome(
        figures=[
            (
                "Training error with (solid) and without (dashed) batch normalization, "
                "at 1, 5 and 30 times the rate. Mean, lowest and highest over the "
                "seeds; a run ends where its loss is infinite.",
                draw(runs),
            )
        ],
        tables=[table(runs, sizes)],
        bands=make_bands(runs, sizes),
        seeds=sizes.seeds,
        values=runs,
    )


def train(activation: str, norm: bool, factor: int, seed: int, job: Job) -> Curve:
    """Trains one network."""
    sizes = job.sizes
    name = f"{activation}-{'bn' if norm else 'plain'}-x{factor}-seed{seed}"
    if sizes.trainer:
        options = f"activation={activation}", f"batch_norm={norm}", "dropout=0.0"
        config = long_config(
            "imagenet_googlenet",
            job,
            seed=seed,
            model=dict(name="googlenet_tv", options=options),
            optim=dict(learning_rate=sizes.rate * factor, ema_decay=None),
        )
        return train_long(config, job.folder / name)
    config = short_config(
        "lenet5_modern",
        batch_size=32,
        steps=sizes.steps,
        seed=seed,
        entries=40,
        learning_rate=sizes.rate * factor,
        momentum=0.9,
    )
    model = ConvNet(sizes.depth, sizes.width, activation, norm)
    return train_short(config, digits(sizes.side), job.folder, name, model=model)


def failed(curve: Curve, classes: int) -> bool:
    """Returns whether a run diverged, or its error is near chance at the end.

    Args:
      curve: The curve of the run.
      classes: Number of classes of the data set.
    """
    return curve.diverged or curve.train_error[-1] > 0.9 * (1 - 1 / classes)


def draw(runs):
    """Draws an axis for each activation."""
    figure, (axes,) = new_figure(2, height=4, sharey=True)
    for (activation, norm, factor), curves in runs.items():
        axis = axes[("relu", "sigmoid").index(activation)]
        label = f"{'batch norm' if norm else 'without'}, {factor}x"
        color = COLORS[FACTORS.index(factor)]
        style = "-" if norm else "--"
        draw_errors(axis, curves, label=label, color=color, style=style)
        if any(curve.diverged for curve in curves):
            last = min(len(curve.step) for curve in curves) - 1
            error = 100 * curves[0].train_error[last]
            axis.plot(curves[0].step[last], error, "x", color=color, ms=9, mew=2)
        axis.set_title(activation)
    axes[0].set_ylabel("training error (%)")
    # A smoke run draws only on the first axis; otherwise both have the same labels.
    lines = axes[0].get_legend_handles_labels()
    axes[1].legend(*lines, frameon=False, fontsize=8, loc="center right")
    return figure


def count_steps(curve: Curve, sizes: Sizes) -> float:
    """Returns the number of steps until the error of the study is reached, or inf."""
    return curve.steps_to(sizes.goal, test=sizes.trainer)


def table(runs, sizes: Sizes) -> Table:
    """Lists the steps to the goal, beside the published ones."""
    rows = []
    for key, curves in runs.items():
        activation, norm, factor = key
        reached = [count_steps(curve, sizes) for curve in curves]
        ends = [curve.train_error[-1] for curve in curves]
        rows.append(
            (
                activation,
                "yes" if norm else "no",
                f"{factor}x",
                ", ".join("never" if math.isinf(r) else str(r) for r in reached),
                "diverged" if any(c.diverged for c in curves) else format_spread(ends),
                PUBLISHED.get(key, ""),
            )
        )
    header = ("activation", "batch norm", "rate", f"steps to {sizes.goal:.3g}, by seed")
    header = (*header, "training error at the end")
    return Table("Convergence", (*header, "published, million steps to 72.2 %"), rows)


def make_bands(runs, sizes: Sizes) -> list[Band]:
    """Returns the claims as expected bands, if all runs were made."""
    if len(runs) < 4 * len(FACTORS):
        return []

    def steps(*key) -> float:
        return float(np.median([count_steps(curve, sizes) for curve in runs[key]]))

    def share(*key) -> float:
        classes = 1000 if sizes.trainer else 10
        return float(np.mean([failed(curve, classes) for curve in runs[key]]))

    # At least as many as the run has, if it never arrives.
    without = min(steps("relu", False, 1), sizes.steps)
    best = min(steps("relu", True, factor) for factor in FACTORS)
    return [
        Band(
            "ReLU: steps without batch norm divided by those with, rate 1x",
            without / steps("relu", True, 1),
            low=1.0,
            reason="the same rate already converges faster",
            published="31.0 / 13.3 = 2.3",
        ),
        Band(
            "ReLU: steps without, rate 1x, divided by the fewest with batch norm",
            without / best,
            low=2.0,
            reason="batch norm allows higher rates",
            published="31.0 / 2.1 = 14.8",
        ),
        Band(
            "ReLU without batch norm, rate 30x: share of runs that fail",
            share("relu", False, 30),
            low=1.0,
            reason="30 times a working rate is too much",
            published="section 4.2.1: raising the rate made the model diverge",
        ),
        Band(
            "ReLU with batch norm, rate 30x: share of runs that fail",
            share("relu", True, 30),
            high=0.0,
            reason="the gradient does not depend on the scale of the weights",
            published="converges, to the highest accuracy (74.8 %)",
        ),
        Band(
            "sigmoid without batch norm: share of runs at chance, all rates",
            float(np.mean([share("sigmoid", False, factor) for factor in FACTORS])),
            low=1.0,
            reason="saturated units pass no gradient",
            published="remains at chance",
        ),
        Band(
            "sigmoid with batch norm, best rate: training error at the end",
            min(
                float(np.mean([c.train_error[-1] for c in runs["sigmoid", True, f]]))
                for f in FACTORS
            ),
            high=0.5 if sizes.trainer else 0.3,
            reason="normalized inputs keep the units from saturating",
            published="69.8 % right where chance is 0.1 %",
        ),
    ]


STUDY = Study(
    name="batch_norm",
    claim=(
        "Batch normalization converges much faster, at rates that diverge without it, "
        "and even with sigmoids."
    ),
    reference=(
        "Ioffe and Szegedy, Batch Normalization, 2015, section 4.2, figures 2 and 3."
    ),
    run=run,
    scales={
        "smoke": Sizes(3, 2, 8, 0.01, 2, (0,), ("relu",), (1,)),
        "quick": Sizes(9, 8, 16, 0.01, 300, (0, 1, 2)),
        "full": Sizes(
            depth=0,
            width=0,
            side=0,
            rate=0.0015,
            steps=3_000_000,
            seeds=(0,),
            goal=1 - 0.722,
            trainer=True,
        ),
    },
    changes={
        "quick": "Nine convolutions of 8 to 32 channels in place of Inception, on "
        "embedded digits of 16 x 16 pixels, batches of 32; momentum 0.9 and a constant "
        "rate. The goal is a training error of 10 %.",
        "full": "torchvision's GoogLeNet, with batch norm or with the paper's local "
        "response normalization, in place of a variant of Inception; no dropout; three "
        "million steps of 32 images. The goal is 72.2 % of the validation images.",
    },
    data_scales=("full",),
)
