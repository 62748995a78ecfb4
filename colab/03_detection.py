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
# # Canon Zoo: object detection
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/03_detection.ipynb)
#
# Where is which digit? A small SSD learns it. This notebook draws each step on the way
# from pixels to boxes: the default boxes, which of them shall find an object, what the
# network says of each, and what a threshold and non-maximum suppression leave of that.
# At the end is a detector with published weights, for your own photographs.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"smoke"` trains for half a minute, to see that all of it works: then many digits are
# found, and not all of them are told right. `"full"` trains for minutes, as
# `python -m train digits_detection_ssd` does, and fetches weights of 170 MB for the
# last section. Everything that is written goes into the current folder: data sets into
# `data/`, runs into `runs/`.

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

import zoo
from train.configs import get_config
from train.data import eval_batches, load_dataset
from train.fit import fit
from train.history import read_history
from train.run_dir import new_run_dir
from zoo.figures.boxes import class_color, draw_boxes, draw_detections
from zoo.metrics import detection as metrics
from zoo.ops.matching import match_bipartite
from zoo.ops.nms import nms

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

STEPS, TEST = (1500, "test") if MODE == "full" else (280, "test[:100]")
SURE = 0.5 if MODE == "full" else 0.3  # The score from which a detection is drawn.
COLORS = ("#0072b2", "#d55e00", "#00835f")
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## Digits on canvases
#
# Real handwritten digits, which scikit-learn carries, in many sizes and colors on
# textures. A box is four numbers in pixels: left, top, right, bottom.

# %%
train_set = load_dataset("digits_canvas", "train")
test_set = load_dataset("digits_canvas", TEST)
NAMES = train_set.class_names


def show_row(pictures):
    """Shows pictures side by side."""
    _, axes = plt.subplots(1, len(pictures), figsize=(9, 9 / len(pictures)))
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    plt.show()


def draw_truth(example):
    """Draws the objects of an example."""
    return draw_detections(
        example["image"], example["boxes"], example["classes"], None, NAMES, least=192
    )


print(f"{len(train_set):,} canvases to train on, {len(test_set)} to test")
print(f"boxes of the first one:\n{train_set[0]['boxes']}")
print(f"classes of the first one: {train_set[0]['classes']}")
show_row([draw_truth(train_set[i]) for i in range(4)])

# %% [markdown]
# ## Default boxes
#
# An SSD does not search for boxes. It has a fixed list of them, and asks for each one:
# what is in it, and how must it be moved and stretched to fit? The boxes stand on three
# grids, a fine one for small objects and coarse ones for large objects. Below are the
# four boxes of one cell of each grid: two squares, one upright, one lying.

# %%
model, variables = zoo.create("ssd96_small", num_classes=len(NAMES))
anchors = model.default_boxes()
LEVELS = model.head.levels
# The boxes are listed level by level, row by row, cell by cell.
ends = np.cumsum([level.grid**2 * level.boxes_per_cell for level in LEVELS])
by_level = np.split(np.arange(len(anchors)), ends[:-1])


def show_boxes(axis, image, boxes, colors, alphas=1.0, width=1.5):
    """Draws boxes on an image, and whatever of them is outside."""
    axis.imshow(image)
    for (x1, y1, x2, y2), color, alpha in zip(
        boxes, colors, np.broadcast_to(alphas, len(boxes)), strict=True
    ):
        axis.add_patch(
            plt.Rectangle(
                (x1 - 0.5, y1 - 0.5),
                x2 - x1,
                y2 - y1,
                fill=False,
                color=color,
                alpha=alpha,
                linewidth=width,
            )
        )
    axis.axis("off")


example = train_set[24]
image, truth = example["image"], example["boxes"]
_, axes = plt.subplots(1, len(LEVELS), figsize=(9, 3.3))
for axis, level, numbers in zip(axes, LEVELS, by_level, strict=True):
    middle = (level.grid // 2) * (level.grid + 1)
    of_cell = numbers[middle * level.boxes_per_cell :][: level.boxes_per_cell]
    show_boxes(axis, image // 2 + 127, anchors[of_cell], [COLORS[1]] * len(of_cell))
    for place in np.arange(1, level.grid) * level.step - 0.5:
        axis.axhline(place, color="white", linewidth=0.6)
        axis.axvline(place, color="white", linewidth=0.6)
    axis.set_title(f"{level.grid} x {level.grid} cells, {len(numbers)} boxes")
plt.show()

# %% [markdown]
# ## Which box shall find which object
#
# Each object gets the default box that it overlaps most, and all others with which it
# shares at least half of their union. The rest shall say "background". The picture has
# the matched boxes in the colors of their objects, level by level; objects are white.

# %%
matches = match_bipartite(anchors, truth, np.ones(len(truth), bool), positive=0.5)
matches = np.asarray(matches)
_, axes = plt.subplots(1, len(LEVELS), figsize=(9, 3.3))
for axis, numbers in zip(axes, by_level, strict=True):
    matched = numbers[matches[numbers] >= 0]
    show_boxes(axis, image // 2, truth, ["white"] * len(truth), width=3)
    colors = [f"C{object_number}" for object_number in matches[matched]]
    show_boxes(axis, image // 2, anchors[matched], colors)
    axis.set_title(f"{len(matched)} of {len(numbers)} are matched")
plt.show()
for i, (box, kind) in enumerate(zip(truth, example["classes"], strict=True)):
    width, height = box[2:] - box[:2]
    count = (matches == i).sum()
    print(f"the {NAMES[kind]} of {width:.0f} x {height:.0f} pixels: {count} boxes")

# %% [markdown]
# ## Train
#
# The loss has two parts. `classification` is the cross-entropy of the matched boxes and
# of the worst of the background, three for each matched one: all of the background
# would drown the objects. `box` is how far the matched boxes are from their objects
# (smooth L1).

# %%
config = get_config("digits_detection_ssd")
config = dataclasses.replace(
    config, steps=STEPS, data=dataclasses.replace(config.data, eval_split=TEST)
)
if MODE == "smoke":
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=8),
        optim=dataclasses.replace(
            config.optim, learning_rate=4e-3, warmup_steps=STEPS // 10
        ),
        log_every=7,
    )
result = fit(config, new_run_dir("digits_detection_ssd"), quiet=MODE == "smoke")
print(f"{STEPS} steps: {result.experiment.task.format_metrics(result.metrics)}")

rows = [row for row in read_history(result.run_dir) if row["kind"] == "train"]
_, axis = plt.subplots(figsize=(6, 3))
for name, color in zip(("loss", "classification", "box"), COLORS, strict=True):
    axis.plot(
        [row["step"] for row in rows],
        [row[name] for row in rows],
        color=color,
        label=name if name != "loss" else "sum",
    )
axis.set(xlabel="step", ylabel="loss of a batch", ylim=(0, None))
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %% [markdown]
# ## From outputs to detections, step by step
#
# For each default box the network gives probabilities of the classes and of background,
# and four numbers that move and stretch the box. `decode` applies these.

# %%
model = result.experiment.model
variables = result.state.eval_variables()


@jax.jit
def find_candidates(variables, images):
    """Computes what the network says of uint8 images [B, 96, 96, 3]."""
    fitted = zoo.resize_and_pad(images, model.preprocess)
    return model.decode(model.apply(variables, fitted.images))


example = test_set[49]
image = example["image"]
candidates = find_candidates(variables, image[None])
boxes, scores = np.asarray(candidates.boxes[0]), np.asarray(candidates.scores[0])
print(f"boxes {boxes.shape}, scores {scores.shape}")
print("five candidates, the best, and which class they are most like:")
for row in np.argsort(-scores.max(1))[:5]:
    kind = scores[row].argmax()
    corners = " ".join(f"{value:5.1f}" for value in boxes[row])
    print(f"  box {row:>3}:  {corners}   {NAMES[kind]} {scores[row, kind]:.0%}")

# %% [markdown]
# First all candidates, the more opaque the higher their best score; then those whose
# score is above a threshold. Around each object there are several, because several
# default boxes were taught to find it. Non-maximum suppression goes through them from
# the best on, and drops what overlaps a better one of its class too much.

# %%
rows, kinds = np.nonzero(scores > SURE)
kept = nms(
    jnp.asarray(boxes[rows]),
    jnp.asarray(scores[rows, kinds]),
    iou_threshold=model.postprocess.iou_threshold,
    max_outputs=100,
    classes=jnp.asarray(kinds),
)
kept = np.asarray(kept.indices)[np.asarray(kept.valid)]


def tint(numbers):
    """The colors of classes, as matplotlib wants them."""
    return [np.array(class_color(int(number))) / 255 for number in numbers]


best = scores.max(1)
stages = (
    (f"all {len(boxes)} candidates", boxes, scores.argmax(1), best**0.5),
    (f"{len(rows)} with a score above {SURE}", boxes[rows], kinds, 1.0),
    (f"{len(kept)} after suppression", boxes[rows[kept]], kinds[kept], 1.0),
    (f"{len(example['boxes'])} in truth", example["boxes"], example["classes"], 1.0),
)
_, axes = plt.subplots(1, len(stages), figsize=(11, 3.1))
for axis, (title, drawn, classes, alphas) in zip(axes, stages, strict=True):
    show_boxes(axis, image // 2 + 127, drawn, tint(classes), alphas)
    axis.set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# ## All of it in one function
#
# `make_detector` makes of it one jitted function: fitting the images to the network,
# scaling, network, decoding, suppression, and the way back to the images' own pixels.
# A result has a fixed number of places; `valid` says which of them are filled.
# In the pictures objects are white, and detections have the colors of their classes.

# %%
detect = zoo.make_detector(model, score_threshold=SURE)
found = jax.device_get(detect(variables, image[None]))
for box, score, kind in zip(
    found.boxes[0], found.scores[0], found.classes[0], strict=True
):
    if score > 0:
        print(f"{NAMES[kind]} {score:.0%}  at  {' '.join(f'{v:5.1f}' for v in box)}")
same = np.allclose(found.boxes[0][found.valid[0]], boxes[rows[kept]], atol=1e-3)
print(f"the same boxes as step by step: {same}")


def draw_found(example):
    """Draws what is detected in an example, and in white what there is to detect."""
    image, truth = example["image"], example["boxes"]
    found = jax.device_get(detect(variables, image[None]))
    boxes, scores, classes = (values[0][found.valid[0]] for values in found[:3])
    captions = [f"{NAMES[c]} {s:.0%}" for c, s in zip(classes, scores, strict=True)]
    colors = [class_color(int(c)) for c in classes]
    return draw_boxes(
        image,
        np.concatenate([boxes, truth]),
        [*captions, *[""] * len(truth)],
        [*colors, *[(255, 255, 255)] * len(truth)],
        least=192,
    )


show_row([draw_found(test_set[i]) for i in (10, 5, 20, 36)])

# %% [markdown]
# ## Precision and recall
#
# A detection is right if its IoU with an object of its class, the area they share over
# that of their union, is more than one half, and no better one has found that object.
# From the most confident detection down, recall is the part of the objects that were
# found, precision the part of the detections that are right. The area under the curve
# is a class's average precision, and the mean over the classes is called AP50.

# %%
detect_all = zoo.make_detector(model)  # Its own threshold is low: all shall count.
state = metrics.empty(len(NAMES))
for batch in eval_batches(test_set, model.preprocess, batch_size=20, max_boxes=8):
    found = detect_all(variables, batch["image"])
    objects = metrics.Objects(
        batch["boxes"], batch["classes"], batch["box_valid"], batch["difficult"]
    )
    state = metrics.update(state, found, objects, batch["valid"])
measured = metrics.compute(state)
print(f"AP50 {measured['ap50']:.1%} over {measured['objects']} objects")

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for number, (recall, precision) in enumerate(measured["curves"]):
    left.plot(recall, precision, color=tint([number])[0], label=NAMES[number])
left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
left.legend(ncols=2, fontsize=8, loc="lower left")
left.grid(alpha=0.3)
bars = right.bar(NAMES, measured["by_class"], color=tint(range(len(NAMES))))
right.bar_label(bars, [f"{v:.0%}" for v in measured["by_class"]], fontsize=8)
right.set(xlabel="digit", ylabel="average precision", ylim=(0, 1.05))
plt.show()

# %% [markdown]
# ## Your own photographs
#
# Faster R-CNN with a feature pyramid knows 80 kinds of things, from person to
# toothbrush, with weights that were trained on COCO. It is used in the same way: only
# with `MODE = "full"`, because the weights have to be fetched. Put the path of a
# photograph of yours into `PHOTO`.

# %%
PHOTO = ""  # Such as "street.jpg"; a cup of coffee of scikit-image's if empty.

if MODE == "full":
    import skimage.data
    from PIL import Image

    photo = skimage.data.coffee()
    if PHOTO:
        photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    rcnn, rcnn_variables, card = zoo.create_with_card(
        "faster_rcnn_resnet50_fpn", weights="coco"
    )
    detect_things = zoo.make_detector(rcnn, card.preprocess, score_threshold=0.5)
    found = jax.device_get(detect_things(rcnn_variables, photo[None]))
    valid = found.valid[0]
    picture = draw_detections(
        photo,
        found.boxes[0][valid],
        found.classes[0][valid],
        found.scores[0][valid],
        card.class_names,
    )
    plt.figure(figsize=(9, 6))
    plt.imshow(picture)
    plt.axis("off")
    plt.show()
