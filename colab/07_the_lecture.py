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
# # Canon Zoo: the lecture
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/07_the_lecture.ipynb)
#
# Lectures on convolutional networks make claims: a good initialization decides whether
# a deep network learns, batch normalization allows higher learning rates, plain
# networks get worse with depth and residual ones do not. In this notebook each claim is
# an experiment, in the order in which a lecture tells them. A study has its networks
# and training runs, the published numbers, and for each measured number the interval in
# which the claim expects it. On the command line, `python -m train study NAME` runs the
# same study and writes a page, and `python -m train study --list` names all of them.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"full"` runs each study at its quick scale, which takes up to six minutes a study on
# two CPU cores. `"smoke"` does that for three studies that take seconds, `depth`,
# `which_layer` and `generic_features`, and reduces four others to fewer seeds, steps or
# networks; the expected intervals are those of the whole quick scale. The three studies
# of very deep networks only test their code in smoke mode, with tiny networks, and show
# their figures in full mode. Results are kept in the folder `runs/` below the current
# one, and what has been measured is not measured again.

# %%
import dataclasses
import shutil
import sys
from pathlib import Path

import jax
from IPython.display import Image, Markdown, display

from train.studies import get_study, run_study

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

SCALE = "quick" if MODE == "full" else "smoke"
RUNS = Path("runs") / f"lecture-{MODE}"


def reduce(study, **sizes):
    """Returns a study whose quick scale is smaller in smoke mode."""
    if MODE == "full":
        return study
    smaller = dataclasses.replace(study.scales["quick"], **sizes)
    reduced = ", ".join(f"`{name}={value}`" for name, value in sizes.items())
    return dataclasses.replace(
        study,
        scales={"quick": smaller},
        changes={"quick": f"{study.changes['quick']} In smoke mode {reduced}."},
    )


def show(report):
    """Shows a study's claim and figures, and the measured and expected numbers."""
    study, outcome = report.study, report.outcome
    display(Markdown(f"**{study.claim}**\n\nReference: {study.reference}"))
    if report.job.scale == "smoke":
        text = "The code works. Its tiny networks say nothing about the claim; set "
        display(Markdown(text + '`MODE = "full"` for the figures.'))
        return
    display(Markdown(f"Changed to fit: {study.changes['quick']}"))
    for i, (caption, _) in enumerate(outcome.figures, start=1):
        file = report.job.folder / f"figure-{i}.png"
        display(Image(filename=str(file)), Markdown(f"*{caption}*"))
    if outcome.bands:
        lines = ["| what | measured | expected | published |", "|---|---|---|---|"]
        for band in outcome.bands:
            cells = (band.what, f"{band.value:.3g}", band.bounds(), band.published)
            lines.append(f"| {' | '.join(cells)} |")
        display(Markdown("\n".join(lines)))
    for remark in outcome.remarks:
        display(Markdown(remark))


# %% [markdown]
# ## Initialization
#
# A layer with n inputs and weights of variance Var[w] multiplies the second moment of
# the signal by n Var[w], and ReLU halves it. He's initialization, Var[w] = 2 / n, makes
# up for both factors. Glorot's, 1 / n where a layer has as many outputs as inputs, was
# derived for tanh, whose slope at 0 is 1: with ReLU each layer halves the second
# moment, and from the first to the last of 22 equal layers 2<sup>-21</sup> of it is
# left. He et al. found that their network of 22 layers converges with both, earlier
# with He's, and that Glorot's stalls at 30 layers.
#
# The first figure compares the signals in the paper's real networks with these
# formulas, the second has the training curves of narrow networks of the same depth, and
# the third compares ReLU with tanh.

# %%
show(run_study(get_study("initialization"), RUNS / "initialization", scale=SCALE))

# %% [markdown]
# ## Batch normalization
#
# Batch normalization keeps the signals of all layers at the same scale during the whole
# training, not only at its start. The gradient with respect to the weights then gets
# smaller as the weights grow, so that a rate that is too high corrects itself. In the
# figure, look at the runs at 30 times the rate: with batch normalization the error
# falls, and without it the network does not learn. With sigmoids in place of ReLU the
# network learns with batch normalization only.

# %%
show(
    run_study(
        reduce(
            get_study("batch_norm"),
            factors=(1, 30),
            steps=150,
            seeds=(0,),
        ),
        RUNS / "batch_norm",
    )
)

# %% [markdown]
# ## Degradation
#
# With good initialization and batch normalization, networks of 56 layers train. But a
# plain network of 56 layers has a higher *training* error than one of 20, so this is
# not overfitting. A better solution exists by construction: take the 20 trained layers
# and let the others be identities. Gradient descent does not find it. In a residual
# network each block adds to its input, so that the identity needs only weights near
# zero, and in the end the deeper network is better.
#
# The study trains plain and residual networks of 20 and 56 layers. It also constructs
# the deeper solution from the shallower one, checks that both have the same outputs,
# and trains from there.

# %%
show(run_study(get_study("degradation"), RUNS / "degradation", scale=SCALE))

# %% [markdown]
# ## The direct path
#
# Why do shortcuts help? The derivative of x + F(x) contains the identity: whatever F
# is, the gradient at a block's output reaches its input. In a plain network the
# gradient passes every layer, and its norm changes by a factor at each of them, which
# is exponential in the depth. The study measures the norm of the gradient at each
# block, before the training and during it.

# %%
show(
    run_study(get_study("residual_gradients"), RUNS / "residual_gradients", scale=SCALE)
)

# %% [markdown]
# ## Depth
#
# With these means, networks went from 8 layers in 2012 to 152 in 2015, and the top-5
# error on ImageNet's test images from 16.4 % (five AlexNets) to 3.57 % (six ResNets).
# Nothing is trained here: depth, parameters and multiply-adds are counted in the
# networks of the zoo, and the errors are the published ones, as each network's
# specification lists them.

# %%
show(run_study(get_study("depth"), RUNS / "depth"))

# %% [markdown]
# Depth alone is not enough: a plain network of 34 layers is worse than one of 18, and
# the 30 layers of He et al. are worse than their 14. And a deeper network need not be
# more expensive: ResNet-152 has little more than half of VGG-19's multiply-adds.
#
# ## Few images
#
# Most tasks do not have a million images. Zeiler and Fergus kept the features that a
# network had learned on ImageNet and trained only a new classifier on Caltech-256: with
# 15 images of each class 65.7 % were right, and 9.0 % when the same network was trained
# from scratch. The study compares four methods by the number of images: a linear SVM on
# frozen features, fine-tuning of the upper layers, fine-tuning of all layers, and
# training from scratch. At the quick scale, a LeNet that knows the digits 0 to 4 learns
# the digits 5 to 9.

# %%
show(
    run_study(
        reduce(
            get_study("few_images"),
            per_class=(1, 5, 50),
            seeds=(0, 1, 2),
            tuned_seeds=(0,),
            steps=100,
        ),
        RUNS / "few_images",
    )
)

# %% [markdown]
# ## Which layer
#
# Which layer's features are best for new classes? Lower layers are too general: they
# see edges, which all images have. On Caltech-101 a linear SVM on the first layer's
# features of Zeiler and Fergus's network had 44.8 % right, and one on the fifth layer's
# 86.2 %. The right part of the figure has all of the paper's numbers.

# %%
show(run_study(get_study("which_layer"), RUNS / "which_layer"))

# %% [markdown]
# ## Features off the shelf
#
# Razavian et al. went further: the features of a network for ImageNet, with a linear
# SVM, were as good as or better than the methods that had been made for birds, flowers,
# scenes or the retrieval of buildings. The study classifies images of new classes and
# retrieves similar ones, by features and by pixels.

# %%
show(run_study(get_study("generic_features"), RUNS / "generic_features"))

# %% [markdown]
# ## From classes to maps
#
# A dense layer is a convolution whose window is its whole input. So a classifier of
# small windows can be applied to a large image at once: its output is a map, with the
# same scores that the classifier has for each window, and what overlapping windows
# share is computed once. The study trains a LeNet on windows of 28 pixels, slides it
# over a canvas of digits, and checks that the scores are the same to rounding. The
# second figure compares CPU times, which say something only where jax runs on the CPU.

# %%
show(
    run_study(
        reduce(
            get_study("sliding_window"),
            windows=3000,
            steps=300,
            canvases=1,
            lenet_sides=(28, 56, 112),
            alexnet_sides=(),
        ),
        RUNS / "sliding_window",
    )
)

# %% [markdown]
# ## Skips
#
# Such maps are coarse: the deepest layers know what there is in the image, but no
# longer exactly where. Segmentation networks bring the detail back from earlier layers.
# FCN-16s and FCN-8s add scores of higher resolution, U-Net concatenates feature maps,
# and SegNet puts each maximum back to the place from which it was pooled. The study
# measures the overlap (IoU) with the true masks inside of objects and at their
# boundaries, where the detail counts. All networks are trained for the same 120 steps.
# That is enough for U-Net, but in smoke mode its version without skips still answers
# "background" everywhere, and FCN-32s has hardly begun to learn. So the difference to
# them is one of how fast a network learns, too, and not of detail alone.

# %%
show(
    run_study(
        reduce(
            get_study("skips"),
            train=200,
            test=40,
            variants=("FCN-32s", "FCN-8s", "U-Net without skips", "U-Net"),
        ),
        RUNS / "skips",
    )
)

# %% [markdown]
# ## Where the claims do not show yet
#
# Digits are easy: pixels alone tell them apart, and a few images are enough. So
# `few_images`, `which_layer` and `generic_features` do not show their claims on digits:
# with the fewest images the methods lie within the spread, no layer is clearly better
# than the pixels, and for retrieval the pixels are better than the features. Their
# scale `medium` takes a ResNet-20 trained on CIFAR-10 to the classes of CIFAR-100, and
# `degradation` at that scale trains on CIFAR-10; `full` has the papers' data and sizes:
#
# ```sh
# python -m train study which_layer --scale medium --dataset imagefolder:DIR
# python -m train study degradation --scale full
# ```
#
# Numbers of all studies, with the machine that measured them, are in
# [tests/benchmarks/README.md]({{pages}}/tests/benchmarks/README.md#studies).
# The last part of the story, from R-CNN to one-stage detectors, is in the notebook
# about [detection]({{colab}}/03_detection.ipynb).
