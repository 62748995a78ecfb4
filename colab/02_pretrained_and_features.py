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
# # Canon Zoo: pretrained networks and their features
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/02_pretrained_and_features.ipynb)
#
# A network that was trained for one task has learned to see. This notebook creates one
# with its weights, lets it classify pictures, looks at its features layer by layer,
# finds a picture's nearest neighbors by them, and teaches it kinds of things that it
# has never met from a few pictures of each.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"full"` fetches ResNet-50 with the ImageNet weights of torchvision, about 100 MB.
# `"smoke"` needs no network: it trains a ResNet-20 on pictures that it draws, and takes
# these weights, from a file, for all that follows. What is trained goes into the folder
# `runs/` below the current one.

# %%
import shutil
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

import zoo
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.data import array_source
from train.fit import fit
from train.run_dir import new_run_dir

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

COLORS = ("#0072b2", "#d55e00", "#00835f", "#777777")
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## Pictures
#
# Six kinds of things to learn from, and four new ones for later: any color on any
# other, at any place and of any size, turned a little.

# %%
KINDS = ("disc", "ring", "square", "triangle", "star", "cross")
NEW_KINDS = ("moon", "arrow", "house", "bolt")


def polygon(kind):
    """The corners of a thing [N, 2] within -1 .. 1."""
    if kind == "star":
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.45, 1)
        return np.stack([np.sin(angle), -np.cos(angle)], 1) * radius[:, None]
    corners = {
        "square": "-8 -8  8 -8  8 8  -8 8",
        "triangle": "0 -10  9 7  -9 7",
        "cross": "-3 -10  3 -10  3 -3  10 -3  10 3  3 3  3 10  -3 10  -3 3  -10 3 "
        "-10 -3  -3 -3",
        "arrow": "0 -10  7 -2  2.5 -2  2.5 10  -2.5 10  -2.5 -2  -7 -2",
        "house": "0 -10  9 -1  7 -1  7 9  -7 9  -7 -1  -9 -1",
        "bolt": "3 -10  -6 1.5  -0.5 1.5  -3 10  6 -2  0.5 -2",
    }[kind]
    return np.array(corners.split(), float).reshape(-1, 2) / 10


def draw(kind, rng, size=64):
    """Draws one thing: uint8 [size, size, 3]."""
    scale = 4  # Drawn larger and made smaller, so that edges are smooth.
    paper = rng.integers(0, 256, 3)
    ink = (paper + rng.integers(70, 187, 3)) % 256
    image = Image.new("RGB", (scale * size, scale * size), tuple(map(int, paper)))
    pen = ImageDraw.Draw(image)
    reach = rng.uniform(0.25, 0.42) * scale * size
    center = scale * size / 2 + rng.uniform(-0.1, 0.1, 2) * scale * size

    def disc(center, radius, color):
        corners = [*(center - radius), *(center + radius)]
        pen.ellipse(corners, fill=tuple(map(int, color)))

    angle = rng.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if kind in ("disc", "ring", "moon"):
        disc(center, reach, ink)
        if kind != "disc":
            aside = (0.45, 0) if kind == "moon" else (0, 0)
            disc(center + turn @ aside * reach, 0.7 * reach, paper)
    else:
        corners = center + polygon(kind) @ turn.T * reach
        pen.polygon([tuple(c) for c in corners], fill=tuple(map(int, ink)))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def draw_set(kinds, count, seed):
    """Draws `count` things of each kind: images [N, 64, 64, 3] and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(kinds)), count)
    return np.stack([draw(kinds[label], rng) for label in labels]), labels


def show_pictures(pictures, titles, columns, height=1.1):
    """Shows uint8 images in rows."""
    rows = -(-len(pictures) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(8.5, height * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9)
    plt.show()


examples = [draw_set((kind,), 1, seed)[0][0] for seed in (1, 2) for kind in KINDS]
show_pictures(examples, KINDS * 2, columns=6, height=1.5)

# %% [markdown]
# ## A network with weights
#
# `zoo.create(name, weights=...)` takes the name of published weights, which are fetched
# once, checked against their hash and kept; or a file. What the weights expect of an
# image, and the names of their classes, are on the card that comes with them.

# %%
if MODE == "full":
    NAME, WEIGHTS = "resnet50", "imagenet"
else:
    NAME = "cifar_resnet20"
    train_set = array_source(*draw_set(KINDS, 200, seed=3), KINDS, name="drawn")
    test_set = array_source(*draw_set(KINDS, 40, seed=4), KINDS, name="drawn")
    config = TrainConfig(
        model=ModelConfig(NAME),
        data=DataConfig("drawn", batch_size=32, augment=("flip",)),
        optim=OptimConfig(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="cosine",
            warmup_steps=10,
        ),
        steps=222,
        eval_every=6,
        save_every=6,
    )
    result = fit(
        config, new_run_dir("drawn"), sources=(train_set, test_set), quiet=True
    )
    print(f"{result.metrics['accuracy']:.1%} of {len(test_set)} test pictures right")
    WEIGHTS = str(result.run_dir / "drawn.safetensors")
    variables = jax.device_get(result.state.eval_variables())
    zoo.weights.save_safetensors(WEIGHTS, variables, result.experiment.card)

model, variables, card = zoo.create_with_card(NAME, weights=WEIGHTS)
pre = card.preprocess
print(
    f"{NAME}: {sum(v.size for v in jax.tree.leaves(variables['params'])):,} parameters"
)
print(f"takes {pre.size} x {pre.size} x {pre.channels}, mean {pre.mean}, std {pre.std}")
print(f"knows {card.num_classes} classes, among them {', '.join(card.class_names[:4])}")

# %% [markdown]
# ## Classify
#
# `make_classifier` makes one jitted function from uint8 images of any size to classes
# and probabilities: resizing, scaling, network and softmax are compiled together.

# %%
classify = zoo.make_classifier(model, card.preprocess, top=3)
if MODE == "full":
    from skimage import data  # Photographs that scikit-image ships.

    pictures = [data.chelsea(), data.coffee(), data.rocket(), data.astronaut()]
else:
    pictures = [*draw_set(KINDS, 1, seed=5)[0]]

titles = []
for picture in pictures:
    found = jax.device_get(classify(variables, picture[None]))
    titles.append(
        "\n".join(
            f"{card.class_names[c]} {s:.0%}"
            for c, s in zip(found.classes[0], found.scores[0], strict=True)
        )
    )
show_pictures(pictures, titles, columns=max(len(pictures), 3), height=2.4)

# %% [markdown]
# ## Features at each endpoint
#
# Every network names its activations, and `zoo.features` returns those that are asked
# for. `list_endpoints` finds their shapes without computing anything.

# %%
shapes = zoo.list_endpoints(model, (pre.size, pre.size, pre.channels))
for name, shape in shapes.items():
    print(f"{name:<10}{' x '.join(map(str, shape))}")

MAPS = [name for name, shape in shapes.items() if len(shape) == 3][-4:]


@jax.jit
def compute_features(variables, images):
    """The maps and the last features, from uint8 images [B, h, w, C]."""
    images = zoo.normalize(zoo.resize_center_crop_batch(images, pre), pre)
    return zoo.features(model, variables, images, [*MAPS, "pool"])


picture = draw("star", np.random.default_rng(11))
found = jax.device_get(compute_features(variables, picture[None]))
_, axes = plt.subplots(len(MAPS), 8, figsize=(8.5, 1.1 * len(MAPS)))
for row, name in zip(axes, MAPS, strict=True):
    values = found[name][0]
    # The maps that say most: those that vary most over the picture.
    best = np.argsort(-values.std(axis=(0, 1)))[:7]
    row[0].imshow(picture)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, channel in zip(row[1:], best, strict=True):
        axis.imshow(values[..., channel], cmap="viridis")
    for axis in row:
        axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# Each row is an endpoint, each column one of the maps that vary most over the picture:
# from edges and surfaces to a few coarse cells that answer to the thing as a whole.
#
# ## Nearest neighbors
#
# Four kinds of things that the network has never seen. For each picture, which others
# are nearest to it? By their pixels, those of like colors; by the network's features,
# those of like form.

# %%
new_images, new_labels = draw_set(NEW_KINDS, 40, seed=6)


def describe_images(variables, images, batch=80):
    """Features of many images by endpoint, each [N, F]: maps are averaged."""
    parts = []
    for i in range(0, len(images), batch):
        found = jax.device_get(compute_features(variables, images[i : i + batch]))
        parts.append(
            {k: v.mean((1, 2)) if v.ndim == 4 else v for k, v in found.items()}
        )
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def unit(values):
    """Scales each dimension to variance 1, then each row to length 1."""
    values = (values - values.mean(0)) / (values.std(0) + 1e-6)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


views = {"pixels": new_images[:, ::4, ::4].reshape(len(new_images), -1).astype(float)}
features = describe_images(variables, new_images)
# In the order of the network; the last map's average is the pool's.
views |= {name: features[name] for name in (*MAPS[:-1], "pool")}


def neighbors(values, count):
    """The places of the nearest other images, by cosine, [N, count]."""
    near = unit(values) @ unit(values).T
    np.fill_diagonal(near, -1)
    return np.argsort(-near, axis=1, kind="stable")[:, :count]


queries = [0, 40, 80, 120]
for view in ("pixels", "pool"):
    shown, titles = [], []
    places = neighbors(views[view], 7)
    for query in queries:
        shown += [new_images[query], *new_images[places[query]]]
        titles += [f"by {view}:", *(NEW_KINDS[k] for k in new_labels[places[query]])]
    show_pictures(shown, titles, columns=8)

# %%
share = {
    view: (new_labels[neighbors(values, 5)] == new_labels[:, None]).mean()
    for view, values in views.items()
}
_, axis = plt.subplots(figsize=(6, 2.4))
bars = axis.barh([*share], [*share.values()], color=COLORS[0])
axis.bar_label(bars, [f"{v:.0%}" for v in share.values()], padding=4)
axis.axvline(1 / len(NEW_KINDS), color=COLORS[3], linestyle=":")
axis.set(xlim=(0, 1.1), xlabel="of the five nearest, how many are of the same kind")
axis.invert_yaxis()
plt.show()

# %% [markdown]
# The dotted line is chance. Which endpoint is best depends on how far the new task is
# from the one that was learned: the last layers know that one best.
#
# ## Learn new kinds from a few pictures
#
# A linear classifier on frozen features, from 1, 2, 5, 10 and 20 pictures of each new
# kind; on the pixels themselves; and on the features of the same network without
# training. Each point is the mean of five draws.

# %%
_, untrained = zoo.create(NAME, num_classes=card.num_classes, key=jax.random.key(7))
test_images, test_labels = draw_set(NEW_KINDS, 60, seed=8)
COUNTS = (1, 2, 5, 10, 20)


def last_features(variables, images):
    """The features [N, F] that the linear classifier is given."""
    return describe_images(variables, images)["pool"]


def pixels(images):
    """Every fourth pixel [N, P]."""
    return images[:, ::4, ::4].reshape(len(images), -1) / 255


inputs = {
    "trained features": (
        last_features(variables, new_images),
        last_features(variables, test_images),
    ),
    "untrained features": (
        last_features(untrained, new_images),
        last_features(untrained, test_images),
    ),
    "pixels": (pixels(new_images), pixels(test_images)),
}
_, axis = plt.subplots(figsize=(6, 3.4))
for (name, (seen, unseen)), color in zip(inputs.items(), COLORS, strict=False):
    center, spread = seen.mean(0), seen.std(0) + 1e-6
    accuracy = np.zeros((len(COUNTS), 5))
    for i, draw_number in np.ndindex(*accuracy.shape):
        rng = np.random.default_rng(draw_number)
        chosen = np.concatenate(
            [
                rng.choice(np.flatnonzero(new_labels == k), COUNTS[i], replace=False)
                for k in range(len(NEW_KINDS))
            ]
        )
        classifier = LogisticRegression(C=0.1, max_iter=1000)
        classifier.fit((seen[chosen] - center) / spread, new_labels[chosen])
        said = classifier.predict((unseen - center) / spread)
        accuracy[i, draw_number] = (said == test_labels).mean()
    axis.errorbar(
        COUNTS,
        accuracy.mean(1),
        accuracy.std(1),
        label=name,
        color=color,
        marker="o",
        capsize=3,
    )
    print(f"{name:<20}" + "".join(f"{v:>8.1%}" for v in accuracy.mean(1)))
axis.axhline(1 / len(NEW_KINDS), color=COLORS[3], linestyle=":")
axis.set(
    xscale="log", xlabel="pictures of each new kind", ylabel="accuracy", ylim=(0, 1)
)
axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
axis.minorticks_off()
axis.legend(loc="lower right")
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The distance between the first curve and the other two is what training on other
# things was worth. To train the network itself further, with parts of it frozen, see
# the notebook on [transfer learning]({{colab}}/01_transfer_learning.ipynb).
