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
# # Canon Zoo: faces
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/05_faces.ipynb)
#
# Are two pictures of one person? DeepFace answered in two steps: it brings a face to
# the front, by its landmarks and a face in three dimensions, and then describes it with
# layers whose every position has weights of its own, as each place of an aligned face
# shows the same part. This notebook aligns faces, trains a small DeepFace, and verifies
# and identifies people whom it has never seen.
#
# All faces here are drawn: these people do not exist. What is measured on them says
# nothing of real people, for whom accuracy differs between groups and has to be
# measured for each of them before any use.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"smoke"` draws a few faces and trains for seconds, to see that all of it works; its
# network has learned next to nothing. `"full"` does what `python -m train
# faces_deepface_small` does, in minutes. Everything that is written goes into the
# current folder: data sets into `data/`, runs into `runs/`.

# %%
import os

os.environ.setdefault("TFDS_DATA_DIR", "data")  # Read when TFDS is imported.

import shutil
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

import zoo
from train.configs import get_config
from train.data import load_dataset
from train.descriptors import probability
from train.figures.faces import draw_alignment
from train.fit import fit
from train.run_dir import new_run_dir
from zoo.face.alignment import camera_pose, fit_face
from zoo.metrics import identification

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

NAME = "faces_deepface_small" + ("" if MODE == "full" else "_tiny")
COLORS = ("#0072b2", "#d55e00", "#00835f")
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}

# %% [markdown]
# ## People who do not exist
#
# Each row is a person. Pose, light, expression, blur and background change from picture
# to picture; who it is does not.

# %%
config = get_config(NAME)
people = load_dataset(config.data.dataset, "train", task="verification")
print(f"{len(people):,} pictures of {len(people.class_names)} people to train on")
each = [np.flatnonzero(people.people == person)[:6] for person in range(3)]
columns = max(map(len, each))
_, axes = plt.subplots(3, columns, figsize=(1.5 * columns, 4.6), squeeze=False)
for row, pictures in zip(axes, each, strict=True):
    for axis in row:
        axis.axis("off")
    for axis, i in zip(row, pictures, strict=False):
        axis.imshow(people.image(int(i)))
plt.show()

# %% [markdown]
# ## Alignment
#
# Six points (the eyes, the tip of the nose, the mouth) fix a similarity: position, size
# and tilt are gone. What is left is that faces are turned. An affine camera is fitted
# to 67 landmarks and an average face in three dimensions; it knows where the face
# looks. Each triangle between landmarks is then warped to where it is in front. What
# the camera cannot explain, which is the person's own shape, is kept, and the hidden
# side is filled from the one that is seen.

# %%
for i in (0, 4, 8):
    picture = draw_alignment(people.image(i), people.landmarks(i), 64)
    plt.figure(figsize=(9, 2.6))
    plt.imshow(picture)
    plt.axis("off")
    plt.show()
    yaw, pitch, _ = camera_pose(fit_face(people.landmarks(i), size=64).camera)
    print(f"turned by {yaw:.0f} degrees to the right, {pitch:.0f} down")

# %% [markdown]
# ## Train
#
# The network learns to tell the people of the training set apart. That is not what it
# is for: what counts is the layer before, F7, and how it describes others.

# %%
result = fit(config, new_run_dir(NAME), quiet=MODE == "smoke")
print(result.experiment.task.format_metrics(result.metrics))
found = result.evaluated

# %% [markdown]
# ## Verify
#
# A descriptor is F7 divided by its largest values in training, of length 1; the inner
# product of two says how alike two faces are. These are pairs of people who were not in
# the training set. In each of ten folds the threshold is the best one for the other
# nine.

# %%
pairs, metrics = found.faces.pairs, found.metrics
_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
bins = np.linspace(found.scores.min(), found.scores.max(), 30)
for same, name, color in ((True, "one person", 0), (False, "two people", 1)):
    scores = found.scores[pairs.same == same]
    left.hist(scores, bins, alpha=0.7, label=name, color=COLORS[color])
left.axvline(metrics["threshold"], color="black", linestyle=":")
left.set(xlabel="inner product", ylabel="pairs")
left.legend()
right.plot(found.curve.far, found.curve.tar, color=COLORS[0])
right.set(
    xlabel="false accept rate",
    ylabel="true accept rate",
    title=f"area {metrics['auc']:.1%}, equal error rate {metrics['eer']:.1%}",
)
right.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The pairs that it is most wrong about or, where it is right about all, least sure of,
# as the network sees them:

# %%
source = result.experiment.eval_source
above = found.scores - metrics["threshold"]
worst = np.argsort(np.where(pairs.same, above, -above))[:4]
_, axes = plt.subplots(1, 4, figsize=(9, 1.9))
for axis, i in zip(axes, worst, strict=True):
    both = [source.image(int(side[i])) for side in (pairs.first, pairs.second)]
    axis.imshow(np.concatenate(both, axis=1))
    truth = "one person" if pairs.same[i] else "two people"
    axis.set_title(f"{truth}, {probability(found.scores[i], metrics):.0%}", fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Identify
#
# Who is it, of a gallery of known pictures? The curve says how often the right person
# is among the best.

# %%
faces = found.faces
known = np.isin(faces.people, faces.people[faces.gallery]) & ~faces.gallery
similarity = found.descriptors[known] @ found.descriptors[faces.gallery].T
match = identification.cmc(similarity, faces.people[known], faces.people[faces.gallery])
print(f"rank 1: {match[0]:.1%} of {known.sum()} pictures, {len(match)} people")
_, axis = plt.subplots(figsize=(5, 2.6))
axis.plot(np.arange(1, len(match) + 1)[:10], match[:10], "o-", color=COLORS[0])
axis.set(xlabel="rank", ylabel="identified", ylim=(0, 1.05))
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Groups
#
# One number hides whom it is wrong about. An evaluation prints its measure for each
# group that a data set names; here, how dark the skin is.

# %%
for name, count, accuracy in found.groups:
    print(f"{name:<8} {accuracy:.1%} of {count} pairs")

# %% [markdown]
# ## Photographs of your own
#
# `make_describer` makes one jitted function from photographs and landmarks to
# descriptors. `python -m train landmarks FOLDER` finds landmarks (it needs the extra
# `face`), and `python -m train predict RUN A.jpg B.jpg` compares two photographs.

# %%
model, variables = result.experiment.model, result.state.eval_variables()
describe = zoo.make_describer(model, result.experiment.card.preprocess, align="3d")
images = np.stack([people.image(i) for i in range(4)])
landmarks = np.stack([people.landmarks(i) for i in range(4)])
descriptors = np.asarray(describe(variables, images, landmarks))
print("inner products of four pictures; their people are", people.people[:4])
print((descriptors @ descriptors.T).round(2))
