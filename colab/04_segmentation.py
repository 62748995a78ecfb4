# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Canon Zoo: segmentation
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/04_segmentation.ipynb)
#
# To which digit does each pixel belong, or is it background? A small U-Net learns it.
# This notebook looks at its masks and its errors, silences its skip connections to see
# what they are good for, compares them with the switches of SegNet, and uses the
# network on images of any size.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"smoke"` trains for half a minute, to see that all of it works, and tells digits from
# background alone. `"full"` tells them from each other, too: it trains for minutes, as
# `python -m train digits_segmentation_unet` does, and fetches weights of 140 MB for the
# last section. Everything that is written goes into the current folder: data sets into
# `data/`, runs into `runs/`.

# %%
import os

os.environ.setdefault("TFDS_DATA_DIR", "data")  # Read when TFDS is imported.

import dataclasses
import shutil
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

import zoo
from train.configs import get_config
from train.data import Source, eval_batches, load_dataset
from train.fit import fit
from train.history import read_history
from train.run_dir import new_run_dir
from zoo.figures.masks import draw_comparison, draw_overlay, make_palette
from zoo.metrics import segmentation as metrics
from zoo.ops.unpooling import max_pool_with_indices, max_unpool, repeat_pixels

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

STEPS, TEST = (1700, "test") if MODE == "full" else (48, "test[:40]")
COLORS = ("#0072b2", "#d55e00", "#00835f")
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## Digits on canvases, and their masks
#
# A mask has a number for each pixel: 0 for background, 1 for the digit 0, 2 for the
# digit 1 and so on. In other sets 255 marks pixels that do not count. In smoke mode all
# digits are one class: a source of one's own is an object with a few methods.


# %%
class DigitOrNot(Source):
    """A source whose digits are of one class."""

    task, class_names = "segmentation", ("background", "digit")

    def __init__(self, source):
        self.name, self.split, self._source = source.name, source.split, source

    def __len__(self):
        return len(self._source)

    def image(self, index):
        return self._source.image(index)

    def provenance(self, index):
        return self._source.provenance(index)

    def example(self, index):
        example = self._source.example(index)
        return {**example, "mask": np.minimum(example["mask"], 1)}


train_set = load_dataset("digits_canvas", "train", task="segmentation")
test_set = load_dataset("digits_canvas", TEST, task="segmentation")
if MODE == "smoke":
    train_set, test_set = DigitOrNot(train_set), DigitOrNot(test_set)
NAMES = train_set.class_names
PALETTE = make_palette(NAMES)


def show(pictures, columns, height):
    """Shows pictures (title, array or PIL image) in rows."""
    rows = -(-len(pictures) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(9, height * rows), squeeze=False)
    for axis, (title, picture) in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    plt.show()


print(f"{len(train_set):,} canvases to train on, {len(test_set)} to test")
examples = [train_set[i] for i in range(5)]
pictures = [("image", example["image"]) for example in examples]
pictures += [("mask", PALETTE[example["mask"]]) for example in examples]
show(pictures, columns=5, height=2)

# %% [markdown]
# ## Train
#
# The loss is the cross-entropy of each pixel, averaged over all that count. Most pixels
# are background: to call all of them so is the first thing that a network learns, and
# it is right for most pixels and useless. That is why accuracy says little here, and
# why scores of the third level's map have a second loss, of the digits' pixels alone.

# %%
config = get_config("digits_segmentation_unet")
config = dataclasses.replace(config, steps=STEPS)
if MODE == "smoke":
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, warmup_steps=5),
        log_every=2,
    )
result = fit(
    config,
    new_run_dir("digits_segmentation_unet"),
    sources=(train_set, test_set),
    quiet=MODE == "smoke",
)
print(f"{STEPS} steps: {result.experiment.task.format_metrics(result.metrics)}")

rows = [row for row in read_history(result.run_dir) if row["kind"] == "train"]
_, axis = plt.subplots(figsize=(6, 2.6))
axis.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=COLORS[0])
axis.set(xlabel="step", ylabel="loss of a batch", ylim=(0, None))
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Masks and errors
#
# Below are an image, its mask, what the network says, and in orange where the two
# differ. Along the outlines a pixel more or less is no surprise: there the digit's
# color fades into the canvas.

# %%
model = result.experiment.model
variables = result.state.eval_variables()


@jax.jit
def compute_logits(variables, images):
    """Computes float32 [B, 96, 96, K] of uint8 images [B, 96, 96, 3]."""
    return model.apply(variables, zoo.normalize(images, model.preprocess))


images = np.stack([test_set[i]["image"] for i in (0, 1, 2)])
masks = np.stack([test_set[i]["mask"] for i in (0, 1, 2)])
predicted = np.asarray(compute_logits(variables, images).argmax(-1))
for image, mask, said in zip(images, masks, predicted, strict=True):
    plt.figure(figsize=(9, 2.5))
    plt.imshow(draw_comparison(image, mask, said, PALETTE))
    plt.axis("off")
    plt.show()

# %% [markdown]
# ## Confusion and intersection over union
#
# Over all pixels of the test images: of each true class (a row), how much was called
# what (a column)? A class's IoU is the pixels that are right, over all that are of the
# class in truth or in the prediction. The mean over the classes is what papers report.


# %%
def evaluate(variables):
    """Sums the confusion of all pixels of the test images."""
    state = metrics.empty(len(NAMES))
    for batch in eval_batches(test_set, model.preprocess, batch_size=20):
        said = compute_logits(variables, batch["image"]).argmax(-1)
        state = metrics.update(state, said, batch["mask"], valid=batch["valid"])
    return state


state = evaluate(variables)
measured = metrics.compute(state)
for name in ("pixel_accuracy", "class_accuracy", "mean_iou", "frequency_weighted_iou"):
    print(f"{name:<24}{measured[name]:.1%}")

confusion = metrics.confusion_matrix(state)
share = confusion / confusion.sum(axis=1, keepdims=True)
short = ["none", *NAMES[1:]]
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
left.imshow(share, cmap="Blues", vmin=0, vmax=1)
for row, column in np.argwhere(share >= 0.005):
    left.text(
        column,
        row,
        f"{100 * share[row, column]:.0f}",
        ha="center",
        va="center",
        fontsize=8,
        color="white" if share[row, column] > 0.5 else "black",
    )
left.set(
    xticks=range(len(NAMES)),
    yticks=range(len(NAMES)),
    xlabel="predicted",
    ylabel="true",
    title="% of the true class",
)
left.set_xticklabels(short, fontsize=8)
left.set_yticklabels(short, fontsize=8)
left.spines[:].set_visible(True)
bars = right.bar(short, measured["iou"], color=COLORS[0])
right.bar_label(bars, [f"{v:.0%}" for v in measured["iou"]], fontsize=8)
right.axhline(measured["mean_iou"], color=COLORS[1], linestyle=":")
right.set(ylabel="IoU", ylim=(0, 1.05), title=f"mean {measured['mean_iou']:.1%}")
plt.show()

# %% [markdown]
# ## What skips add
#
# On its way down this U-Net halves its maps three times, of which the first has half
# the image's size already, and on its way up it joins to each map the one of the same
# size from the way down: a skip. The variables are a dictionary of arrays, so a skip
# can be silenced in a copy: the convolution behind it reads the skip's channels first,
# and those rows of its kernel become zero.
# The pictures are bright where the network prefers a digit to background.


# %%
def silence(variables, steps):
    """Returns variables with which some steps of the way up read no skip."""
    params = variables["params"]
    head = dict(params["head"])
    for step in steps:
        layers, skip = head[step], params["backbone"][step.replace("up", "down")]
        kernel = layers["conv1"]["kernel"]
        kernel = kernel.at[:, :, : skip["bn2"]["scale"].shape[0]].set(0)
        head[step] = {**layers, "conv1": {**layers["conv1"], "kernel": kernel}}
    return {**variables, "params": {**params, "head": head}}


pictures = [("truth", PALETTE[masks[0]])]
for title, steps in {
    "all skips": (),
    "without the highest": ("up1",),
    "without any": ("up1", "up2", "up3"),
}.items():
    silenced = silence(variables, steps)
    iou = metrics.compute(evaluate(silenced))["mean_iou"]
    print(f"{title:<20} mean IoU {iou:.1%}")
    logits = compute_logits(silenced, images[:1])[0]
    pictures.append((title, logits[..., 1:].max(-1) - logits[..., 0]))
show(pictures, columns=4, height=2.6)

# %% [markdown]
# The lowest map has 6 x 6 cells of 16 pixels. It knows roughly what is where, and not
# where it ends: outlines come through the skips. (This network was trained with them;
# one that is trained without makes more of its lowest map.)
#
# ## What switches add
#
# SegNet joins nothing. Its pools note which pixel was the largest of its window, the
# switches, and the way up puts each value back to just that pixel. Here is a map of the
# U-Net's first level, pooled twice, and brought back without and with switches.

# %%
maps = zoo.features(
    model, variables, zoo.normalize(images[:1], model.preprocess), ["down1"]
)["down1"]
channel = int(maps[0].std((0, 1)).argmax())
whole = maps[..., channel : channel + 1]
half, switches = max_pool_with_indices(whole, 2, 2)
quarter, more_switches = max_pool_with_indices(half, 2, 2)
nearest = repeat_pixels(quarter, 4)
unpooled = max_unpool(quarter, more_switches, half.shape[1:3], stride=2)
unpooled = max_unpool(unpooled, switches, whole.shape[1:3], stride=2)

_, axes = plt.subplots(1, 4, figsize=(9, 2.6))
for axis, (title, values) in zip(
    axes,
    (
        ("the map, 48 x 48", whole),
        ("pooled, 12 x 12", quarter),
        ("back by repeating", nearest),
        ("back by switches", unpooled),
    ),
    strict=True,
):
    axis.imshow(values[0, ..., 0], cmap="magma", vmin=0, vmax=float(whole.max()))
    axis.set_title(title, fontsize=10)
    axis.axis("off")
plt.show()

for title, values in (("repeating", nearest), ("switches", unpooled)):
    wrong = np.asarray((values != 0) & (values != whole)).mean()
    print(f"{title:<10} puts a value to a pixel that had another: {wrong:.0%} of all")

# %% [markdown]
# Repeating makes squares: what was at one pixel is now at sixteen. With switches each
# value is at its own pixel, and the others are empty until the convolutions that follow
# fill them. That costs one number for each pooled value, where a skip carries the whole
# map: switches need less memory, skips know more.
#
# ## Images of another size
#
# `make_segmenter` makes one function for images of any size. They are extended to the
# next multiple of 64 pixels inside, so that a folder of many sizes is compiled a few
# times, and not once for each image.

# %%
segment = zoo.make_segmenter(model)
four = np.stack([test_set[i]["image"] for i in (0, 1, 5, 10)])
wall = np.concatenate([np.concatenate(four[:2], 1), np.concatenate(four[2:], 1)])
wall = wall[:150, 10:]
found = segment(variables, wall[None])
print(f"image {wall.shape}, classes {found.classes.shape}, scores {found.scores.shape}")
print(f"the mean score, which is a probability: {found.scores.mean():.0%}")
plt.figure(figsize=(9, 4.8))
plt.imshow(draw_overlay(wall, found.classes[0], NAMES, PALETTE))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Your own photographs
#
# `fcn_resnet50` knows the 20 kinds of things of PASCAL VOC, with published weights. It
# is used in the same way: only with `MODE = "full"`, because the weights have to be
# fetched. Put the path of a photograph of yours, with people, animals, vehicles or
# furniture in it, into `PHOTO`.

# %%
PHOTO = ""  # Such as "street.jpg"; the cat of scikit-image if empty.

if MODE == "full":
    import skimage.data
    from PIL import Image

    photo = skimage.data.chelsea()
    if PHOTO:
        photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    fcn, fcn_variables, card = zoo.create_with_card("fcn_resnet50", weights="coco_voc")
    found = zoo.make_segmenter(fcn, card.preprocess)(fcn_variables, photo[None])
    palette = make_palette(card.class_names)
    plt.figure(figsize=(9, 5))
    plt.imshow(draw_overlay(photo, found.classes[0], card.class_names, palette))
    plt.axis("off")
    plt.show()
