"""Upsampling loses detail; skips bring it back.

python -m train study skips
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import zoo
from train.data import eval_batches
from train.data.formats.digits import draw_canvas, read_digits
from train.experiment import open_split
from train.studies.drawing import COLORS, format_spread, new_figure
from train.studies.runner import keep, long_config, run_trainer
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.cpu import compiler_options, jit_inference
from zoo.initialization import init_variables
from zoo.layers import BatchNorm, Conv, initializer
from zoo.ops.pooling import max_pool
from zoo.ops.unpooling import max_pool_with_indices, max_unpool

# Mean IoU in percent, if a paper reports it.
PUBLISHED = {
    "FCN-32s": "59.4 (VOC 2011 val)",
    "FCN-16s": "62.4",
    "FCN-8s": "62.7",
    "U-Net": "92.0 (PhC-U373)",
    "SegNet": "60.1 (CamVid)",
}
VARIANTS = (
    "FCN-32s",
    "FCN-16s",
    "FCN-8s",
    "U-Net without skips",
    "U-Net",
    "SegNet without switches",
    "SegNet",
)
# The config of each variant on CamVid, and its network.
VGG = "vgg16:imagenet"
CAMVID = {
    **{
        f"FCN-{stride}s": (
            "camvid_fcn8s",
            dict(name=f"fcn{stride}s_vgg16", weights=VGG, layers=("backbone/**",)),
        )
        for stride in (32, 16, 8)
    },
    "U-Net without skips": ("camvid_unet", dict(options=("skips=False",))),
    "U-Net": ("camvid_unet", {}),
    "SegNet without switches": ("camvid_segnet", dict(options=("switches=False",))),
    "SegNet": ("camvid_segnet", {}),
}
BORDER = 2  # pixels on either side of a boundary


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      train: Number of canvases to train on.
      test: Number of canvases to test on.
      widths: Channels of the encoder's levels; each but the first follows a pool. With
        the trainer those of U-Net; empty for the paper's.
      steps: Length of a run, in steps.
      batch: Canvases per step.
      seeds: Seeds of the runs.
      variants: Names of `VARIANTS`.
      trainer: Whether the trainer trains the papers' networks on CamVid, instead of one
        small encoder on canvases.
      things: What the classes are.
    """

    train: int
    test: int
    widths: tuple[int, ...]
    steps: int
    batch: int
    seeds: tuple[int, ...]
    variants: tuple[str, ...] = VARIANTS
    trainer: bool = False
    things: str = "digits"


class SkipNet(nn.Module):
    """One encoder with the decoders of FCN, U-Net or SegNet, for two classes.

    Attributes:
      variant: A name of `VARIANTS`.
      widths: Channels of the encoder's levels.
    """

    variant: str
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        def block(x: jax.Array, features: int, name: str) -> jax.Array:
            init = initializer("he_fan_in")
            options = dict(padding=1, use_bias=False, kernel_init=init)
            x = Conv(features, 3, name=f"{name}_conv", **options)(x)
            return nn.relu(BatchNorm(name=f"{name}_bn")(x, train=train))

        def score(x: jax.Array, name: str) -> jax.Array:
            return Conv(2, 1, name=name, kernel_init=initializer("glorot"))(x)

        maps, switches, x = [], [], images
        for i, features in enumerate(self.widths):
            if i:
                maps.append(x)
                if self.variant == "SegNet":
                    x, indices = max_pool_with_indices(x, 2, 2)
                    switches.append(indices)
                else:
                    x = max_pool(x, 2, 2)
            x = block(x, features, f"down{i + 1}")
        if self.variant.startswith("FCN"):
            # `left` is the stride of the scores; skips reduce it to the variant's.
            y, left = score(x, "score"), 2 ** (len(self.widths) - 1)
            goal = int(self.variant.removeprefix("FCN-").removesuffix("s"))
            while left > goal:
                left //= 2
                skip = score(maps.pop(), f"score{left}")
                y = upsample(y, 2) + skip
            return upsample(y, left)
        for i in range(len(self.widths) - 2, -1, -1):
            if self.variant == "SegNet":
                # Unpooling needs as many channels as the map that was pooled.
                x = block(x, self.widths[i], f"narrow{i + 1}")
                x = max_unpool(x, switches[i], maps[i].shape[1:3])
            elif self.variant == "SegNet without switches":
                x = upsample(block(x, self.widths[i], f"narrow{i + 1}"), 2)
            else:
                x = upsample(x, 2)
            if self.variant == "U-Net":
                x = jnp.concatenate([maps[i], x], axis=-1)
            x = block(x, self.widths[i], f"up{i + 1}")
        return score(x, "score")


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Enlarges maps [B, H, W, C] bilinearly."""
    shape = (x.shape[0], factor * x.shape[1], factor * x.shape[2], x.shape[3])
    return jax.image.resize(x, shape, "bilinear")


def run(job: Job) -> Outcome:
    """Trains every variant and measures it inside and at boundaries."""
    sizes = job.sizes
    if sizes.trainer:
        train, (image, mask) = partial(train_on_camvid, job=job), read_camvid(job)
    else:
        scenes = {s: draw_scenes(s, getattr(sizes, s)) for s in ("train", "test")}
        train = partial(train_on_canvases, scenes=scenes, sizes=sizes)
        image, mask = (each[0] for each in scenes["test"])
    # What earlier runs measured is read.
    plan = dataclasses.asdict(dataclasses.replace(sizes, seeds=(), variants=()))
    plan["dataset"] = job.dataset
    found, examples = {}, {}
    for variant in sizes.variants:
        results = [
            keep(
                job.folder, run_name(variant, seed), plan, partial(train, variant, seed)
            )
            for seed in sizes.seeds
        ]
        found[variant] = [result["iou"] for result in results]
        examples[variant] = np.array(results[0]["example"])
    return Outcome(
        figures=[
            (
                "A test image, its mask, and what the variants make of it.",
                draw_examples(image, mask, examples),
            ),
            (
                f"IoU of {sizes.things} inside, more than {BORDER} pixels from any "
                "boundary, and at boundaries. Mean over the seeds, lowest and highest.",
                draw_bars(found, sizes.things),
            ),
        ],
        tables=[table(found, sizes.things)],
        bands=make_bands(found) if len(found) == len(VARIANTS) else [],
        remarks=make_remarks(found, sizes.things),
        seeds=sizes.seeds,
        values={"iou": found},
    )


def draw_scenes(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws canvases float32 [N, 96, 96, 3] around 0, and masks bool [N, 96, 96]."""
    images, labels, test = read_digits()
    kept = test if split == "test" else ~test
    scenes = [draw_canvas(split, i, images[kept], labels[kept]) for i in range(count)]
    canvases = np.stack([scene[0] for scene in scenes]).astype(np.float32)
    return canvases / 127.5 - 1, np.stack([scene[3] for scene in scenes]) > 0


def run_name(variant: str, seed: int) -> str:
    """Returns the name of a run in the study."""
    return f"{variant}-seed{seed}".replace(" ", "-")


def train_on_canvases(
    variant: str, seed: int, scenes: Mapping[str, tuple], sizes: Sizes
) -> dict[str, Any]:
    """Trains and measures a small network.

    Returns:
      "iou", the IoU of the digits by zone, and "example", the predicted mask of the
      first test image.
    """
    model = SkipNet(variant, sizes.widths)
    images, masks = (jnp.asarray(each) for each in scenes["train"])
    variables = init_variables(model, jax.random.key(seed), images[:1].shape)
    schedule = optax.cosine_decay_schedule(0.01, sizes.steps)
    tx = optax.adam(schedule)
    state = variables["params"], variables["batch_stats"]
    opt_state = tx.init(state[0])

    def step(state, opt_state, images, masks, chosen):
        def loss(params):
            variables = {"params": params, "batch_stats": state[1]}
            logits, updated = model.apply(
                variables, images[chosen], train=True, mutable=["batch_stats"]
            )
            labels = masks[chosen].astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(state[0])
        updates, opt_state = tx.update(gradients, opt_state, state[0])
        return (optax.apply_updates(state[0], updates), stats), opt_state

    step = jax.jit(step, compiler_options=compiler_options(training=True))
    rng = np.random.default_rng(seed)
    for _ in range(sizes.steps):
        chosen = rng.integers(0, len(images), sizes.batch)
        state, opt_state = step(state, opt_state, images, masks, chosen)
    variables = {"params": state[0], "batch_stats": state[1]}
    predict = jit_inference(lambda v, x: model.apply(v, x).argmax(-1) == 1)
    test_images, test_masks = scenes["test"]
    predicted = np.concatenate(
        [
            np.asarray(predict(variables, test_images[i : i + sizes.batch]))
            for i in range(0, len(test_images), sizes.batch)
        ]
    )
    example = predicted[0].astype(int).tolist()
    iou = score(predicted.astype(int), test_masks.astype(int), [1])
    return {"iou": iou, "example": example}


def read_camvid(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first test image, float32 [H, W, 3] in [0, 1], and its mask [H, W]."""
    data = long_config("camvid_segnet", job).data
    example = open_split(data, data.eval_split, "segmentation")[0]
    return example["image"] / 255, example["mask"]


def train_on_camvid(variant: str, seed: int, job: Job) -> dict[str, Any]:
    """Trains a network of a paper by the trainer, and measures it as above."""
    recipe, model = CAMVID[variant]
    if job.sizes.widths and recipe == "camvid_unet":
        widths = f"widths={job.sizes.widths}"
        model = {**model, "options": (*model.get("options", ()), widths)}
    config = long_config(recipe, job, seed=seed, model=model)
    folder, data = job.folder / run_name(variant, seed), config.data
    run_trainer(config, folder)
    model, variables, card = zoo.create_with_card(config.model.name, weights=folder)
    source = open_split(data, data.eval_split, "segmentation", seed)
    segment, pairs = zoo.make_segmenter(model, card.preprocess, bucket=1), []
    for batch in eval_batches(source, card.preprocess, batch_size=1):
        height, width = batch["size"][0]  # without padding
        classes = segment(variables, batch["image"]).classes
        pairs.append([each[:, :height, :width] for each in (classes, batch["mask"])])
    predicted, masks = (np.concatenate(each) for each in zip(*pairs, strict=True))
    example = predicted[0].astype(int).tolist()
    iou = score(predicted, masks, range(len(source.class_names)))
    return {"iou": iou, "example": example}


def score(
    predicted: np.ndarray, masks: np.ndarray, classes: Iterable[int]
) -> dict[str, float]:
    """Returns the mean IoU of some classes everywhere, inside and at boundaries.

    Args:
      predicted: Integers [N, H, W], the predicted classes.
      masks: Integers [N, H, W], the true classes, 255 where a pixel is ignored.
      classes: The classes over which the IoU is averaged.
    """
    size = 2 * BORDER + 1
    borders = ((0, 0), (BORDER, BORDER), (BORDER, BORDER))
    padded = np.pad(masks, borders, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    boundary = windows.min((-2, -1)) != windows.max((-2, -1))
    known = masks != 255
    zones = {
        "everywhere": known,
        "inside": known & ~boundary,
        "at boundaries": known & boundary,
    }
    found = {}
    for name, zone in zones.items():
        theirs, ours = masks[zone], predicted[zone]
        both = [((theirs == c) & (ours == c)).sum() for c in classes]
        either = [((theirs == c) | (ours == c)).sum() for c in classes]
        pairs = zip(both, either, strict=True)
        shares = [a / b for a, b in pairs if b]
        found[name] = float(np.mean(shares)) if shares else math.nan
    return found


def draw_examples(image: np.ndarray, mask: np.ndarray, examples: dict[str, np.ndarray]):
    """Draws a test image and the masks."""
    masks = {"mask": mask, **examples}
    figure, axes = new_figure(4, -(-(1 + len(masks)) // 4), height=2.9)
    axes.flat[0].imshow((image - image.min()) / (image.max() - image.min()))
    axes.flat[0].set_title("image")
    known = mask != 255
    colors = {"cmap": "gray"} if mask[known].max() <= 1 else {"cmap": "tab20"}
    for axis, (name, classes) in zip(axes.flat[1:], masks.items(), strict=False):
        shown = np.where(known, classes, np.nan)
        axis.imshow(shown, vmin=0, vmax=max(1, mask[known].max()), **colors)
        axis.set_title(name)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def draw_bars(found, things: str):
    """Draws IoU inside and at boundaries."""
    figure, axes = new_figure(1, height=4)
    axis, width = axes[0, 0], 0.38
    figure.set_size_inches(9, 4)
    for i, zone in enumerate(("inside", "at boundaries")):
        values = np.array([[100 * r[zone] for r in runs] for runs in found.values()])
        means = values.mean(1)
        spread = [means - values.min(1), values.max(1) - means]
        x = np.arange(len(found)) + (i - 0.5) * width
        bars = axis.bar(x, means, width, yerr=spread, color=COLORS[i], label=zone)
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(
        range(len(found)), [n.replace(" without", "\nwithout") for n in found]
    )
    axis.set_ylabel(f"IoU of {things} (%)")
    axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def table(found, things: str) -> Table:
    """Lists the IoUs."""
    zones = ("everywhere", "inside", "at boundaries")
    rows = [
        (
            variant,
            *(format_spread([each[zone] for each in runs]) for zone in zones),
            PUBLISHED.get(variant, ""),
        )
        for variant, runs in found.items()
    ]
    return Table(
        f"IoU of {things}",
        ("network", *zones, "published mean IoU, %"),
        rows,
        "The published ones are of other sets, and of whole networks: FCN's three are "
        "to be compared with each other.",
    )


def make_bands(found) -> list[Band]:
    """Returns the claims as expected bands."""

    def gain(better: str, worse: str, zone: str) -> float:
        means = [np.mean([r[zone] for r in found[name]]) for name in (better, worse)]
        return float(means[0] - means[1])

    pairs = (
        ("FCN-16s", "FCN-32s", 0.02, "62.4 - 59.4 % mean IoU"),
        ("FCN-8s", "FCN-16s", 0.02, "62.7 - 62.4 % mean IoU"),
        ("U-Net", "U-Net without skips", 0.02, ""),
        ("SegNet", "SegNet without switches", 0.0, "SegNet, table 1: small"),
    )
    return [
        Band(
            f"{better} minus {worse}: IoU at boundaries",
            gain(better, worse, "at boundaries"),
            low=low,
            reason="higher resolution from lower layers places the boundary",
            published=published,
        )
        for better, worse, low, published in pairs
    ]


def make_remarks(found, things: str) -> list[str]:
    """Names the networks that miss the insides, too."""
    slow = [
        name
        for name, runs in found.items()
        if np.mean([r["inside"] for r in runs]) < 0.6
    ]
    if not slow:
        return []
    return [
        f"After these steps {', '.join(slow)} miss much of the insides of {things}, "
        "too: a part of their distance to the others is slower learning, and not lost "
        "detail."
    ]


STUDY = Study(
    name="skips",
    claim=(
        "Upsampling loses detail, and skips bring it back: FCN's sums, U-Net's "
        "concatenations, SegNet's switches."
    ),
    reference=(
        "Long et al., Fully Convolutional Networks, 2015, tables 2 and 3; Ronneberger "
        "et al., U-Net, 2015; Badrinarayanan et al., SegNet, 2015."
    ),
    run=run,
    scales={
        "smoke": Sizes(2, 2, (2, 2, 2), 1, 2, (0,), ("U-Net", "SegNet")),
        "quick": Sizes(400, 100, (8, 16, 32, 32, 32, 32), 120, 8, (0,)),
        "full": Sizes(
            0, 0, (), 40_000, 4, (0,), trainer=True, things="CamVid's 11 classes"
        ),
    },
    changes={
        "quick": "One small encoder with each paper's way up, trained from scratch on "
        "embedded canvases of 96 x 96 pixels; two classes, digit or not, so that "
        "detail decides and not recognition.",
        "full": "All of them on CamVid (--dataset masks:DIR), on which only SegNet's "
        "paper measures: 40,000 steps of 4 images of 480 x 360 pixels; the FCNs start "
        "from a VGG-16, and each is trained at once, with one rate.",
    },
    data_scales=("full",),
)
