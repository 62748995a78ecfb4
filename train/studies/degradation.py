"""A plain network of 56 layers has a higher training error than one of 20.

python -m train study degradation
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import zoo
from train.config import TrainConfig
from train.studies.drawing import COLORS, draw_errors, format_spread, new_figure
from train.studies.runner import (
    Arrays,
    Curve,
    build_resnet,
    digits,
    long_config,
    short_config,
    train_in_memory,
    train_long,
    train_short,
)
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.initialization import init_variables
from zoo.paths import flatten, unflatten

KINDS = ("plain", "resnet")
# CIFAR-10 test error in percent (table 6).
PUBLISHED = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      depths: Numbers of layers of the networks, the shallowest first.
      seeds: Seeds of the runs.
      width: Channels of the first stage.
      side: Height and width of the images, in pixels.
      steps: Length of a run, in steps.
      batch: Images per step.
      constructed: Kinds of networks for which the solution by identities is built.
      trainer: Whether the trainer trains on CIFAR-10, instead of the short loop on
        digits.
    """

    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    width: int
    side: int
    steps: int
    batch: int
    constructed: tuple[str, ...] = KINDS
    trainer: bool = False


EARLY = (
    "In so few epochs at the first rate the deeper residual network is behind the "
    "shallower one, too, though by less than the plain one: in the paper it is ahead "
    "after the rate has dropped."
)


def run(job: Job) -> Outcome:
    """Trains plain and residual networks of several depths."""
    sizes = job.sizes
    runs = {
        (kind, depth): [train(kind, depth, seed, job) for seed in sizes.seeds]
        for kind in KINDS
        for depth in sizes.depths
    }
    built = {kind: construct(kind, job) for kind in sizes.constructed}
    figures = [
        (
            "Training error (solid) and test error (dashed) by step: plain networks "
            "(left) and residual ones (right), as in the paper's figure 6. Mean, "
            "lowest and highest over the seeds.",
            draw(runs, sizes),
        )
    ]
    if built:
        caption = (
            "The constructed solution: a trained network of "
            f"{sizes.depths[0]} layers with identities up to {sizes.depths[-1]}, and "
            "training from there, beside the deeper network from scratch."
        )
        figures.append((caption, draw_built(built, runs, sizes)))
    return Outcome(
        figures=figures,
        tables=[table(runs), *([built_table(built, runs, sizes)] if built else [])],
        bands=make_bands(runs, built, sizes),
        seeds=sizes.seeds,
        remarks=[EARLY] if sizes.trainer and sizes.steps < 10_000 else [],
        values={
            "runs": {f"{kind}{depth}": runs[kind, depth] for kind, depth in runs},
            "constructed": built,
        },
    )


def train(kind: str, depth: int, seed: int, job: Job) -> Curve:
    """Trains one network."""
    sizes, name = job.sizes, f"{kind}{depth}-seed{seed}"
    if sizes.trainer:
        return train_long(paper_config(kind, depth, seed, job), job.folder / name)
    model = build_resnet(f"cifar_{kind}20", depth, sizes.width)
    config = run_config(seed, sizes)
    arrays = digits(sizes.side, 3)
    return train_short(config, arrays, job.folder, name, model=model)


def run_config(seed: int, sizes: Sizes) -> TrainConfig:
    """Returns the config of a short run: the paper's optimizer before a drop."""
    return short_config(
        "cifar_plain20",
        batch_size=sizes.batch,
        steps=sizes.steps,
        seed=seed,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
    )


def paper_config(kind: str, depth: int, seed: int, job: Job) -> TrainConfig:
    """Returns the config of a run on CIFAR-10: the paper's recipe, perhaps reduced."""
    sizes, fields = job.sizes, {}
    if sizes.side != 32:
        # Before the first drop of the paper's schedule.
        fields["optim"] = dict(schedule="constant", warmup_steps=0)
        augment = (f"pad_crop:{sizes.side // 8}", "flip")
        fields["data"] = dict(size=(sizes.side, sizes.side), augment=augment)
    if sizes.width != 16:
        fields["model"] = dict(options=(f"width={sizes.width}",))
    return long_config(f"cifar10_{kind}{depth}", job, seed=seed, **fields)


@dataclasses.dataclass(frozen=True)
class Constructed:
    """A deeper network made of a trained shallower one and identities.

    Attributes:
      difference: Largest difference of their logits, relative to the largest logit.
      shallow: Curve of the shallow network's training.
      curve: Curve of the training from the constructed solution.
    """

    difference: float
    shallow: Curve
    curve: Curve


def construct(kind: str, job: Job) -> Constructed:
    """Trains the shallowest network, deepens it by identities, and trains on."""
    sizes = job.sizes
    arrays, config = digits(sizes.side, 3), run_config(job.sizes.seeds[0], sizes)
    shallow, deep = (
        build_resnet(f"cifar_{kind}20", sizes.depths[i], sizes.width) for i in (0, -1)
    )
    curve, variables = train_in_memory(config, arrays, model=shallow)
    deeper = deepen(shallow, deep, variables, arrays, kind)
    images = jnp.asarray(arrays.test_images)
    before = np.asarray(jax.jit(shallow.apply)(variables, images))
    after = np.asarray(jax.jit(deep.apply)(deeper, images))
    going_on, _ = train_in_memory(config, arrays, model=deep, change=lambda _: deeper)
    difference = float(np.abs(after - before).max() / np.abs(before).max())
    return Constructed(difference, curve, going_on)


def deepen(
    shallow: nn.Module,
    deep: nn.Module,
    variables: dict[str, Any],
    arrays: Arrays,
    kind: str,
) -> dict[str, Any]:
    """Fills a deeper network with a shallower one's weights and with identities.

    A residual block is the identity if its last batch norm has a scale of 0: its input
    has passed a ReLU, so that its last ReLU changes nothing. A plain block is the
    identity if each kernel copies its input, and each batch norm scales by the standard
    deviation, and shifts by the mean, of what it normalizes.
    """
    image = arrays.images[:1].shape
    fresh = init_variables(deep, jax.random.key(1), image)
    params = flatten(fresh["params"])
    stats = flatten(fresh["batch_stats"])
    ours = flatten(variables["params"]), flatten(variables["batch_stats"])
    images = jnp.asarray(arrays.images)
    maps = zoo.features(shallow, variables, images, ["stage1", "stage2", "stage3"])
    axes = (0, 1, 2)
    moments = {name: (x.mean(axes), x.var(axes)) for name, x in maps.items()}
    for path, leaf in params.items():
        if path in ours[0]:
            params[path] = ours[0][path]
        elif kind == "resnet":
            params[path] = jnp.zeros_like(leaf) if "bn2/scale" in path else leaf
        elif path.endswith("kernel"):
            delta = jnp.zeros_like(leaf)
            params[path] = delta.at[1, 1].set(jnp.eye(leaf.shape[-1]))
        else:
            mean, var = moments[path.split("/")[1]]
            params[path] = mean if path.endswith("bias") else jnp.sqrt(var + 1e-5)
    for path in stats:
        if path in ours[1]:
            stats[path] = ours[1][path]
        elif kind == "plain":
            mean, var = moments[path.split("/")[1]]
            stats[path] = mean if path.endswith("mean") else var
    return {"params": unflatten(params), "batch_stats": unflatten(stats)}


def draw(runs, sizes: Sizes):
    """Draws an axis for each kind."""
    figure, (axes,) = new_figure(2, height=4.2, sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        for depth, color in zip(sizes.depths, COLORS, strict=False):
            curves, label = runs[kind, depth], f"{kind}-{depth}"
            draw_errors(axis, curves, label=label, color=color)
            options = dict(label="", color=color, style="--")
            draw_errors(axis, curves, "test_error", **options)
        axis.legend(frameon=False)
    axes[0].set_ylabel("error (%)")
    return figure


def draw_built(built: dict[str, Constructed], runs, sizes: Sizes):
    """Draws training losses: shallow, deep, and deep from the constructed solution."""
    figure, (axes,) = new_figure(len(built), height=3.6, sharey=True)
    low, high = sizes.depths[0], sizes.depths[-1]
    for axis, (kind, each) in zip(axes, built.items(), strict=True):
        scratch, deeper = runs[kind, high][0], f"{kind}-{high} from"
        for curve, label, color, style in (
            (each.shallow, f"{kind}-{low}", COLORS[0], "-"),
            (scratch, f"{deeper} scratch", COLORS[1], "-"),
            (each.curve, f"{deeper} {low} layers and identities", COLORS[2], "--"),
        ):
            draw_errors(axis, [curve], label=label, color=color, style=style)
        axis.legend(frameon=False)
    axes[0].set_ylabel("training error (%)")
    return figure


def table(runs) -> Table:
    """Lists the errors at the end."""
    rows = []
    for (kind, depth), curves in runs.items():
        published = f"{PUBLISHED[depth]} %" if depth in PUBLISHED else ""
        if kind == "plain":
            published = "above 60 %" if depth == 110 else "curves only (figure 6)"
        rows.append(
            (
                f"{kind}-{depth}",
                curves[0].step[-1],
                format_spread([curve.train_error[-1] for curve in curves]),
                format_spread([curve.test_error[-1] for curve in curves]),
                published,
            )
        )
    header = ("network", "steps", "training error", "test error")
    return Table("Errors at the end", (*header, "published test error, CIFAR-10"), rows)


def built_table(built: dict[str, Constructed], runs, sizes: Sizes) -> Table:
    """Lists the constructed solutions, and the errors after training from them."""
    high = sizes.depths[-1]
    rows = [
        (
            f"{kind}-{high}",
            f"{each.difference:.1e}",
            f"{each.shallow.train_error[-1]:.1%}",
            f"{runs[kind, high][0].train_error[-1]:.1%}",
            f"{each.curve.train_error[0]:.1%}, {each.curve.train_error[-1]:.1%}",
        )
        for kind, each in built.items()
    ]
    header = ("network", "difference of logits", "shallow", "from scratch")
    return Table(
        "The constructed solution",
        (*header, "from there: first, last"),
        rows,
        "Training errors; the difference is relative to the largest logit.",
    )


def make_bands(runs, built: dict[str, Constructed], sizes: Sizes) -> list[Band]:
    """Returns the claims as expected bands."""
    low, high = sizes.depths[0], sizes.depths[-1]

    def mean_error(kind: str, depth: int) -> float:
        """Averages over the second half of the runs, which is less noisy."""
        curves = runs[kind, depth]
        return float(
            np.mean([np.mean(c.train_error[len(c.step) // 2 :]) for c in curves])
        )

    gap = {kind: mean_error(kind, high) - mean_error(kind, low) for kind in KINDS}
    half = "second half of the training"
    bands = [
        Band(
            f"plain: training error of {high} layers minus that of {low}, {half}",
            gap["plain"],
            low=0.02,
            reason="degradation: the deeper network is harder to optimize",
            published="figure 6, left: 56 layers above 20 throughout",
        ),
        Band(
            f"residual: training error of {high} layers minus that of {low}, {half}",
            gap["resnet"],
            high=0.02,
            reason="with shortcuts depth costs little at first, and wins in the end",
            published="figure 6, middle: 56 layers below 20 at the end",
        ),
        Band(
            "gap of the plain networks minus gap of the residual ones",
            gap["plain"] - gap["resnet"],
            low=0.02,
            reason="degradation is what shortcuts remove",
            published="figure 6",
        ),
        Band(
            f"{high} layers: training error of plain minus residual, {half}",
            mean_error("plain", high) - mean_error("resnet", high),
            low=0.02,
            reason="the same layers, with and without shortcuts",
            published="figure 6",
        ),
    ]
    for kind, each in built.items():
        bands.append(
            Band(
                f"constructed {kind}-{high}: largest difference of the logits to "
                f"{kind}-{low}, relative",
                each.difference,
                high=1e-4,
                reason="identities change nothing but rounding",
                published="section 1: the solution exists by construction",
            )
        )
    if built:
        bands.append(
            Band(
                f"plain-{high}: training error from scratch minus that from the "
                "constructed solution, at the end",
                runs["plain", high][0].train_error[-1]
                - built["plain"].curve.train_error[-1],
                low=0.0,
                reason="a better solution exists, and the optimizer does not find it",
            )
        )
    return bands


STUDY = Study(
    name="degradation",
    claim=(
        "A plain network of 56 layers has a higher training error than one of 20; "
        "residual ones have not."
    ),
    reference="He et al., Deep Residual Learning, 2015, figures 1 and 6, table 6.",
    run=run,
    scales={
        "smoke": Sizes((8, 14), (0,), 2, 8, 2, 16, ("plain",)),
        "quick": Sizes((20, 56), (0, 1), 4, 16, 200, 64),
        "medium": Sizes((20, 56), (0,), 8, 16, 4 * 390, 128, (), trainer=True),
        "full": Sizes(
            (20, 32, 44, 56, 110), (0,), 16, 32, 64_000, 128, (), trainer=True
        ),
    },
    changes={
        "quick": "4 channels in the first stage (16 in the paper), embedded digits of "
        "16 x 16 pixels, batches of 64, 200 steps at a constant rate.",
        "medium": "CIFAR-10 reduced to 16 x 16 pixels, 8 channels in the first stage, "
        "at a constant rate: the paper's rate before its first drop.",
        "full": "The paper's recipe; the mean color is subtracted, not the mean image.",
    },
    data_scales=("medium", "full"),
)
