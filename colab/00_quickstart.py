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
# # Canon Zoo: a quick start
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/00_quickstart.ipynb)
#
# The networks that made computer vision, as plain Flax Linen modules. This notebook
# looks into the zoo, runs a network under `jit`, looks at its feature maps, trains
# LeNet-5 on handwritten digits, and saves and restores what was learned. The next one
# is about [transfer learning]({{colab}}/01_transfer_learning.ipynb).

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"smoke"` trains for two epochs, to see that all of it works. `"full"` trains as the
# experiments say, and also a ResNet-20 on CIFAR-10. Everything that is written goes
# into the current folder: data sets into `data/`, runs into `runs/`.

# %%
import os

os.environ.setdefault("TFDS_DATA_DIR", "data")  # Read when TFDS is imported.

import dataclasses
import shutil
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import skimage.data

import zoo
from train.configs import get_config
from train.data import load_dataset
from train.fit import fit
from train.history import read_history
from train.report import write_run_report
from train.run_dir import new_run_dir

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

BLUE, ORANGE = "#0072b2", "#d55e00"
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## What is in the zoo
#
# `list_models` takes a shell pattern, and `describe` tells what is known of a network:
# its paper, its cost, the names of its features, how it deviates from the paper, and
# each layer. Nothing is computed for it.

# %%
for model_name in zoo.list_models():
    spec = zoo.get_spec(model_name)
    print(f"{model_name:<18}{spec.params:>12,} parameters  {spec.macs:>15,} MACs")

# %%
print(zoo.describe("lenet5"))

# %% [markdown]
# ## Create, jit, apply
#
# A network is a pure function of its variables, which are the plain dictionary of
# Linen. Images are uint8 until `resize_center_crop` (resize and crop, on the host) and
# `normalize` (scale, on the device) have made them what the network takes.

# %%
digits = load_dataset("digits", "test")
lenet, lenet_variables = zoo.create("lenet5", key=jax.random.key(0))
preprocess = zoo.get_spec("lenet5").preprocess

fitted = np.stack(
    [zoo.resize_center_crop(digits.image(i), preprocess) for i in range(4)]
)
images = zoo.normalize(jnp.asarray(fitted), preprocess)
logits = jax.jit(lenet.apply)(lenet_variables, images)
print(
    f"images {images.shape} {images.dtype}, logits {logits.shape} {logits.dtype}, "
    f"variables: {[*lenet_variables]}"
)

# %% [markdown]
# ## What the layers see
#
# Every network names its features. `zoo.features` returns those that are asked for,
# and under `jit` nothing beyond them is computed.


# %%
def show_maps(title, image, maps, columns=6):
    """Shows an image beside the first feature maps of some layers, one row a layer."""
    fig = plt.figure(figsize=(9, 1.2 * len(maps)))
    grid = fig.add_gridspec(len(maps), columns + 2)
    axis = fig.add_subplot(grid[:, :2])
    axis.imshow(image.squeeze(), cmap="gray")
    axis.axis("off")
    for row, (name, values) in enumerate(maps.items()):
        values = np.asarray(values[0])
        for i in range(columns):
            axis = fig.add_subplot(grid[row, i + 2], xticks=[], yticks=[])
            limit = max(np.abs(values[..., i]).max(), 1e-6)
            axis.imshow(values[..., i], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.spines[:].set_visible(True)
            if i == 0:
                size = "x".join(map(str, values.shape))
                axis.set_ylabel(f"{name}\n{size}", rotation=0, ha="right", va="center")
    fig.suptitle(title)
    plt.show()


def first_maps(name, model, variables, image, endpoints):
    """Computes the features of one uint8 image [h, w, C]."""
    preprocess = zoo.get_spec(name).preprocess
    fitted = zoo.resize_center_crop(image, preprocess)
    images = zoo.normalize(jnp.asarray(fitted)[None], preprocess)
    compute = jax.jit(lambda v, x: zoo.features(model, v, x, endpoints))
    maps = compute(variables, images)
    # What jit returns is sorted by name; the order of the network is wanted.
    return fitted, {name: maps[name] for name in endpoints}


digit = digits.image(int(np.flatnonzero(digits.labels == 3)[0]))
fitted, maps = first_maps(
    "lenet5", lenet, lenet_variables, digit, ["c1", "s2", "c3", "s4"]
)
show_maps("LeNet-5 before training", fitted, maps)

# %% [markdown]
# Left is the digit, right are the first six maps of each layer, each with its own
# scale: red is positive, blue negative. Six random kernels already make six different
# pictures of the digit, and each subsampling halves the resolution, until S4 has 5x5
# values left.

# %%
cat = skimage.data.chelsea()  # A photograph that scikit-image ships.
resnet, resnet_variables = zoo.create("cifar_resnet20", weights="cifar10_20epochs")
fitted, maps = first_maps(
    "cifar_resnet20",
    resnet,
    resnet_variables,
    cat,
    ["stem", "stage1", "stage2", "stage3"],
)
show_maps("CIFAR ResNet-20, trained on CIFAR-10", fitted, maps)
print(zoo.predict("cifar_resnet20", cat, weights="cifar10_20epochs"))

# %% [markdown]
# A residual network, with weights that the package carries, sees a photograph of a cat
# at 32 x 32 pixels. Every map follows a ReLU, so none is negative, and a white map is
# silent. The deeper the stage, the coarser and sparser the maps. `zoo.predict` goes
# from an image or a file to named classes in one call.

# %% [markdown]
# ## Train LeNet-5
#
# An experiment is a frozen dataclass. `dataclasses.replace` changes it, `fit` trains
# in a new run folder, and `report` writes a page with the curves into it.

# %%
config = get_config("digits_lenet5_modern")
if MODE == "smoke":
    config = dataclasses.replace(
        config, epochs=2, eval_every=1, save_every=1, log_every=2
    )
result = fit(config, new_run_dir("digits_lenet5_modern"), quiet=MODE == "smoke")
write_run_report(result)
print(
    f"{result.metrics['accuracy']:.1%} of {result.metrics['count']} test images right "
    f"after {int(result.state.step)} steps"
)


# %%
def show_training(result):
    """Shows the loss and the accuracy by epoch."""
    history = read_history(result.run_dir)
    _, axes = plt.subplots(1, 2, figsize=(8.5, 3))
    for axis, key in zip(axes, ("loss", "accuracy"), strict=True):
        for kind, color, marker in (("train", BLUE, ""), ("eval", ORANGE, "o")):
            rows = [row for row in history if row["kind"] == kind]
            label = {"train": "training batches", "eval": "test images"}[kind]
            axis.plot(
                [row["epoch"] for row in rows],
                [row[key] for row in rows],
                color=color,
                marker=marker,
                label=label,
            )
        axis.set(xlabel="epoch", ylabel=key, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[1].set_ylim(0, 1)
    axes[1].legend(loc="lower right")
    plt.show()


def show_confusion(result):
    """Shows which class was taken for which."""
    names, confusion = result.experiment.card.class_names, result.evaluated.confusion
    share = confusion / confusion.sum(axis=1, keepdims=True)
    _, axis = plt.subplots(figsize=(4.6, 4.4))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.argwhere(confusion):
        axis.text(
            predicted,
            true,
            confusion[true, predicted],
            ha="center",
            va="center",
            color="white" if share[true, predicted] > 0.5 else "black",
        )
    axis.set(
        xticks=range(len(names)),
        yticks=range(len(names)),
        xlabel="predicted",
        ylabel="true",
    )
    axis.set_xticklabels(names, rotation=90 if max(map(len, names)) > 2 else 0)
    axis.set_yticklabels(names)
    axis.spines[:].set_visible(True)
    plt.show()


show_training(result)
show_confusion(result)

# %% [markdown]
# Above, the loss falls and the accuracy rises. Test images can do better than training
# batches, because only the latter are distorted at random. Below, what lies off the
# diagonal was mistaken: the row is the true digit, the column what the network said.

# %%
variables = jax.device_get(result.state.eval_variables())
fitted, maps = first_maps(
    "lenet5_modern",
    result.experiment.model,
    variables,
    digit,
    ["conv1", "pool1", "conv2", "pool2"],
)
show_maps("LeNet (modern form) after training", fitted, maps)

# %% [markdown]
# After training, maps of `conv1` tell strokes from their edges, `pool1` and `pool2`
# keep the strongest response of each 2x2 patch, and maps of `conv2` answer to one part
# of the digit and are suppressed by another.

# %% [markdown]
# ## Predictions with probabilities
#
# The upper row has images that the network is most sure of, the lower row the ones
# that it is most sure and wrong about. Bars are the probabilities of the ten digits,
# orange the true one.


# %%
def show_predictions(source, positions, probabilities, columns=5):
    """Shows images with the probabilities of all classes beneath them."""
    rows = len(positions) // columns
    _, axes = plt.subplots(2 * rows, columns, figsize=(8.5, 3.3 * rows))
    for i, position in enumerate(positions):
        above, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        label, share = source.labels[position], probabilities[position]
        above.imshow(source.image(int(position)).squeeze(), cmap="gray")
        said = source.class_names[share.argmax()]
        above.set_title(f"{said}: {share.max():.0%}", fontsize=10)
        above.axis("off")
        colors = [ORANGE if k == label else BLUE for k in range(len(share))]
        below.bar(range(len(share)), share, color=colors)
        below.set(ylim=(0, 1), yticks=[], xticks=range(len(share)))
        below.set_xticklabels(source.class_names, fontsize=8)
    plt.show()


source = result.experiment.eval_source
preprocess = result.experiment.card.preprocess
test_images = np.stack([source.image(i) for i in range(len(source))])
apply = jax.jit(result.experiment.model.apply)
logits = apply(variables, zoo.normalize(jnp.asarray(test_images), preprocess))
probabilities = np.asarray(jax.nn.softmax(logits))

right = probabilities.argmax(-1) == source.labels
order = np.argsort(-probabilities.max(-1), kind="stable")
# Where fewer than five are wrong, the least sure of the right ones follow.
doubtful = [*order[~right[order]], *order[right[order]][::-1]]
show_predictions(source, [*order[right[order]][:5], *doubtful[:5]], probabilities)

# %% [markdown]
# ## Save and load
#
# A safetensors file holds the variables and a card: which network it is, what it takes,
# and the names of its classes. `layout="torch"` would write the names and axes of a
# PyTorch state dict.

# %%
file = result.run_dir / "lenet.safetensors"
zoo.weights.save_safetensors(file, variables, result.experiment.card)

model, loaded, card = zoo.create_with_card("lenet5_modern", weights=str(file))
same = jax.tree.map(np.array_equal, variables, loaded)
print(f"{file.stat().st_size / 1e6:.1f} MB, {card.source}")
print(f"classes {card.class_names}")
print(f"all arrays equal to the bit: {all(jax.tree.leaves(same))}")

# %% [markdown]
# A run folder is weights too: `zoo.create` reads its best checkpoint.

# %%
model, restored = zoo.create("lenet5_modern", weights=str(result.run_dir))
again = jax.jit(model.apply)(
    restored, zoo.normalize(jnp.asarray(test_images), preprocess)
)
print(f"{(np.argmax(again, -1) == source.labels).mean():.1%} of the test images right")

# %% [markdown]
# ## The report
#
# What the run did is in its folder: `config.json`, `metrics.jsonl`, `events/` for
# TensorBoard, `checkpoints/`, and `report.html`, one page without references to
# anything outside. `python -m train resume RUN` goes on with an interrupted run.

# %%
print(*sorted(path.name for path in result.run_dir.iterdir()), sep="\n")

# %% tags=["clear-output"]
import html

from IPython.display import HTML

page = html.escape((result.run_dir / "report.html").read_text())
frame = f'<iframe srcdoc="{page}" width="100%" height="600"></iframe>'
HTML(f"<b>report.html</b><br>{frame}")

# %% [markdown]
# ## ResNet-20 on CIFAR-10
#
# Only with `MODE = "full"`: three epochs, a taste. `get_config("cifar10_resnet20")` is
# the paper's own schedule of 64,000 steps, for a test error of 8.75 %.

# %%
if MODE == "full":
    cifar = fit(get_config("cifar10_resnet20_short"), new_run_dir("cifar10_resnet20"))
    write_run_report(cifar)
    show_training(cifar)
    show_confusion(cifar)
