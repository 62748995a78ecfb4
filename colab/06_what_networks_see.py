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
# # Canon Zoo: what networks see
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/06_what_networks_see.ipynb)
#
# Which pixels does a number inside a network depend on, and what in them does it answer
# to? This notebook projects activations back into the image as Zeiler and Fergus did in
# 2013, puts the projections beside the strongest patches of a set, explains single
# answers by gradients, Grad-CAM and occlusion, and checks that the maps depend on what
# the network has learned.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"full"` takes VGG-16 with the ImageNet weights of torchvision, about 550 MB.
# `"smoke"` needs no network: it teaches a ResNet-20 to tell from which photograph a
# small piece is. The photographs are those that scikit-learn and scikit-image ship.
# What is trained goes into the folder `runs/` below the current one.

# %%
import shutil
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

import zoo
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.data import array_source
from train.figures.maps import draw_filters, draw_grid, draw_heat, draw_projection
from train.fit import fit
from train.run_dir import new_run_dir
from zoo import explain

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## Photographs

# %%
china, flower = load_sample_images().images
PHOTOS = {
    "temple": china,
    "flower": flower,
    "cat": skimage.data.chelsea(),
    "coffee": skimage.data.coffee(),
    "astronaut": skimage.data.astronaut(),
    "rocket": skimage.data.rocket(),
}
NAMES = (*PHOTOS,)


def show(pictures, titles=None, columns=6, height=1.6):
    """Shows pictures in rows."""
    rows = -(-len(pictures) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(8.5, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, picture) in enumerate(zip(axes.flat, pictures, strict=False)):
        axis.imshow(picture)
        if titles:
            axis.set_title(titles[i], fontsize=9)
    plt.show()


def cut(photo, rng, count, side, half):
    """Pieces of the upper or the lower part of a photograph, 32 x 32 pixels."""
    height, width, _ = photo.shape
    low, high = (
        (0, int(0.7 * height)) if half == "train" else (int(0.7 * height), height)
    )
    side = min(side, high - low)
    pieces = []
    for _ in range(count):
        top = rng.integers(low, high - side + 1)
        left = rng.integers(0, width - side + 1)
        piece = Image.fromarray(photo[top : top + side, left : left + side])
        pieces.append(np.asarray(piece.resize((32, 32), Image.Resampling.BOX)))
    return np.stack(pieces)


def cut_all(half, count, seed):
    rng = np.random.default_rng(seed)
    images = [cut(photo, rng, count, 96, half) for photo in PHOTOS.values()]
    return np.concatenate(images), np.repeat(np.arange(len(NAMES)), count)


show([*PHOTOS.values()], NAMES, columns=6)

# %% [markdown]
# ## A network

# %%
if MODE == "full":
    NAME = "vgg16"
    model, variables, card = zoo.create_with_card(NAME, weights="imagenet")
    pieces = np.stack(
        [zoo.resize_center_crop(p, card.preprocess) for p in PHOTOS.values()]
    )
    labels = None
    LAYERS = ("conv1_2", "conv3_3", "conv5_3")
else:
    NAME = "cifar_resnet20"
    train_set = array_source(*cut_all("train", 300, seed=1), NAMES, name="pieces")
    pieces, labels = cut_all("test", 40, seed=2)
    test_set = array_source(pieces, labels, NAMES, name="pieces")
    config = TrainConfig(
        model=ModelConfig(NAME),
        data=DataConfig("pieces", batch_size=32, augment=("flip",)),
        optim=OptimConfig(
            name="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=10
        ),
        steps=168,
        eval_every=3,
        save_every=3,
    )
    result = fit(
        config, new_run_dir("pieces"), sources=(train_set, test_set), quiet=True
    )
    print(f"{result.metrics['accuracy']:.0%} of {len(test_set)} new pieces right")
    model, card = result.experiment.model, result.experiment.card
    variables = jax.device_get(result.state.eval_variables())
    LAYERS = ("stem", "stage1", "stage3")

images = zoo.normalize(jnp.asarray(pieces), card.preprocess)

# %% [markdown]
# ## How much each unit sees
#
# The receptive field follows from the network's shapes alone: nothing is computed.

# %%
for name, shape in zoo.list_endpoints(model, card.preprocess.shape).items():
    if len(shape) == 3:
        field = explain.receptive_field(model, name, image_shape=card.preprocess.shape)
        print(f"{name:<9} {field.size[0]:>4} pixels, every {field.stride[0]}")

# %% [markdown]
# ## Strongest patches and what in them counts
#
# For some channels of a layer: the nine pieces of the set that excite them most, and
# beside them what a deconvnet projects back. Max pools put values where they took them,
# rectifiers pass what is positive, and convolutions go backwards by their transpose.

# %%
BGR = card.preprocess.channel_order == "bgr"


def figure_2(layer, channels=4, k=9):
    """The paper's figure 2 for some channels of a layer."""
    top = explain.top_activations(model, variables, [images], layer, k)
    field = explain.receptive_field(model, layer, image_shape=card.preprocess.shape)
    chosen = np.argsort(-top.values[:, 0])[:channels]
    grids = []
    for channel in chosen:
        which, places = top.images[channel], top.positions[channel]
        maps = explain.deconvnet(
            model, variables, images[which], layer, int(channel), places
        )
        boxes = [field.boxes[tuple(place)] for place in places]
        cuts = [np.s_[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]
        patches = [
            Image.fromarray(pieces[i][box]) for i, box in zip(which, cuts, strict=True)
        ]
        drawn = [
            draw_projection(np.asarray(m)[box], bgr=BGR)
            for m, box in zip(maps, cuts, strict=True)
        ]
        grids += [draw_grid(drawn, 48, 3), draw_grid(patches, 48, 3)]
    titles = [t for c in chosen for t in (f"{layer}, {c}", "patches")]
    show(grids, titles, columns=4, height=2.2)


kernels = [
    leaf
    for leaf in jax.tree.leaves(variables["params"])
    if leaf.ndim == 4 and leaf.shape[2] == 3
]
show([draw_grid(draw_filters(kernels[0], bgr=BGR), 32, 16)], ["first layer"], columns=1)
for layer in LAYERS:
    figure_2(layer)

# %% [markdown]
# ## Why this answer?
#
# The gradient says which pixels the score is most sensitive to, guided backprop keeps
# of it what is positive on all ways, integrated gradients sum up to the score itself,
# and Grad-CAM weighs the maps of a layer.

# %%
logits = jax.jit(model.apply)(variables, images)
predicted = np.asarray(logits.argmax(-1))
some = np.arange(6) if labels is None else np.arange(6) * 40
args = (model, variables, images[some], "logits", predicted[some])
gradient = np.abs(explain.saliency(*args)).max(-1)
guided = np.asarray(explain.guided_backprop(*args))
integrated = explain.integrated_gradients(*args, steps=32)
error = explain.completeness_error(
    model, variables, images[some], "logits", integrated, predicted[some]
)
cam = explain.grad_cam(model, variables, images[some], LAYERS[-1], predicted[some])[
    ..., 0
]
side = pieces.shape[1:3]
rows = [
    [Image.fromarray(pieces[i]) for i in some],
    [draw_heat(m, side, low=0) for m in gradient],
    [draw_projection(m, bgr=BGR) for m in guided],
    [draw_heat(np.abs(m).max(-1), side, low=0) for m in integrated],
    [draw_heat(m, side, low=0) for m in cam],
]
names = [card.class_names[c] for c in predicted[some]]
kinds = ("says {}", "gradient", "guided", "integrated", "Grad-CAM")
titles = [kind.format(name) for kind in kinds for name in names]
show([picture for row in rows for picture in row], titles, columns=6)
print(f"integrated gradients miss the change of the score by {error.max():.1%} at most")

# %% [markdown]
# ## What if a part is hidden?

# %%
square = side[0] // 4
hidden = explain.occlusion(
    model,
    variables,
    images[some[:3]],
    LAYERS[-1],
    size=square,
    stride=max(1, square // 4),
)
pictures, titles = [], []
for i in range(3):
    pictures += [
        Image.fromarray(pieces[some[i]]),
        draw_heat(hidden.activation[i], side),
        draw_heat(hidden.probability[i], side, low=0, high=1),
    ]
    titles += [names[i], f"channel {hidden.channels[i]}", "probability"]
show(pictures, titles, columns=3, height=1.8)

# %% [markdown]
# ## Do the maps depend on what was learned?
#
# The layers are shuffled one after another, from the last one on. A map that stays as
# it was would show the image, and not the network (Adebayo et al. 2018).

# %%
methods = {
    "gradient": explain.saliency,
    "guided backprop": explain.guided_backprop,
    "deconvnet": explain.deconvnet,
}
first = {name: method(*args) for name, method in methods.items()}
steps = [*explain.randomize_layers(model, variables, images[:1], key=jax.random.key(0))]
shown = np.linspace(0, len(steps) - 1, 6).round().astype(int)
_, axis = plt.subplots(figsize=(6, 2.6))
for name, method in methods.items():
    values = [1.0]
    for i in shown:
        maps = method(model, steps[i][1], *args[2:])
        values.append(float(explain.similarity(first[name], maps).mean()))
    axis.plot([0, *(shown + 1)], values, marker="o", label=name)
axis.set(xlabel="layers shuffled", ylabel="rank correlation", ylim=(-0.2, 1.05))
axis.legend(frameon=False)
plt.show()
