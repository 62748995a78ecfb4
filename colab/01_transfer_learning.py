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
# # Canon Zoo: transfer learning
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({{colab}}/01_transfer_learning.ipynb)
#
# A network that knows the digits 0 to 4 learns 5 to 9 from a few images of each: with
# a new head on frozen features, with a lower learning rate for the old layers, and with
# layers that are unfrozen one after the other. Then the same by hand, in a loop of
# one's own, because all of it is a dictionary of arrays.

# %%
# {{install}}

# %%
MODE = "smoke"  # or "full"

# %% [markdown]
# `"smoke"` trains briefly, to see that all of it works; `"full"` takes as many steps
# and repetitions as a study takes. Everything that is written goes into the current
# folder: data sets into `data/`, runs into `runs/`.

# %%
import os

os.environ.setdefault("TFDS_DATA_DIR", "data")  # Read when TFDS is imported.

import dataclasses
import itertools
import shutil
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown, display

import zoo
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.data import fit_source, load_dataset, load_resident
from train.experiment import prepare_experiment
from train.fit import fit
from train.run_dir import new_run_dir
from zoo.paths import flatten

print(jax.devices())
if jax.default_backend() == "cpu" and (
    "google.colab" in sys.modules or shutil.which("nvidia-smi")
):
    print("!!! WARNING: jax RUNS ON THE CPU, though this machine should have more.")
    print("!!! On Colab: Runtime > Change runtime type > v5e-1 TPU, then start again.")

METHODS = ("frozen features", "fine-tuned", "from scratch")
EPOCHS, STEPS, SEEDS, POINTS = (
    (20, 100, 3, (1, 5, 10, 50)) if MODE == "full" else (3, 20, 1, (1, 10))
)
RUNS = new_run_dir("transfer")
COLORS = ("#0072b2", "#d55e00", "#00835f")
plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 80,
    "figure.constrained_layout.use": True,
    "font.size": 10,
}


def show_table(header, rows):
    """Shows rows of text as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


# %% [markdown]
# ## Learn the digits 0 to 4


# %%
def base_config(epochs=20):
    """The network that knows the digits 0 to 4."""
    return TrainConfig(
        model=ModelConfig("lenet5_modern"),
        data=DataConfig(
            "digits",
            classes=("0", "1", "2", "3", "4"),
            batch_size=32,
            augment=("affine",),
        ),
        optim=OptimConfig(learning_rate=0.01, weight_decay=5e-4, schedule="cosine"),
        epochs=epochs,
        eval_every=epochs,
        save_every=epochs,
    )


def transfer_config(method, per_class, seed, weights, steps):
    """Learns the digits 5 to 9 from a few images of each."""
    base = base_config()
    start = None if method == "from scratch" else str(weights)
    frozen = ("backbone/**",) if method == "frozen features" else ()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, weights=start),
        data=dataclasses.replace(
            base.data,
            classes=("5", "6", "7", "8", "9"),
            per_class=per_class,
            batch_size=min(32, 5 * per_class),
        ),
        optim=dataclasses.replace(base.optim, freeze=frozen),
        steps=steps,
        seed=seed,
        # One evaluation and one checkpoint, at the end.
        eval_every=steps,
        save_every=steps,
    )


base = fit(base_config(EPOCHS), RUNS / "base", quiet=True)
print(f"{base.metrics['accuracy']:.1%} of {base.metrics['count']} test images right")

# %% [markdown]
# ## Few images of 5 to 9
#
# A source can be asked for some classes and for a few images of each; the seed chooses
# which.

# %%
few = load_dataset("digits", "train", classes=tuple("56789"), per_class=10, seed=0)
_, axes = plt.subplots(5, 10, figsize=(7, 3.6))
for row, label in zip(axes, range(5), strict=True):
    for axis, i in zip(row, np.flatnonzero(few.labels == label), strict=True):
        axis.imshow(few.image(int(i)).squeeze(), cmap="gray")
        axis.axis("off")
plt.show()

# %% [markdown]
# These fifty images, ten of each class, are all that the next runs learn from.
#
# ## Four ways to start from old layers
#
# The head's five outputs are the digits 0 to 4, the new five are others: so the head is
# exchanged first, and the result saved as weights to start from.

# %%
model, variables, card = zoo.create_with_card(
    "lenet5_modern", weights=str(base.run_dir)
)
model, variables = zoo.transfer.replace_head(model, variables, 5, key=jax.random.key(1))
start = RUNS / "start.safetensors"
card = dataclasses.replace(card, class_names=few.class_names)
zoo.weights.save_safetensors(start, variables, card)

for path, leaf in flatten(variables["params"]).items():
    print(f"{path:<24}{leaf.shape}")

# %% [markdown]
# Which of these paths are trained, and how fast, is said with patterns. An epoch of
# fifty images is one step, so that `unfreeze` counts steps here.

# %%
WAYS = {
    "new head, rest frozen": dict(freeze=("backbone/**",)),
    "unfrozen from the top": dict(
        freeze=("backbone/**",),
        unfreeze=(
            f"{STEPS // 3}:backbone/ip1/**",
            f"{2 * STEPS // 3}:backbone/conv2/**",
        ),
    ),
    "backbone at a tenth": dict(rates=("backbone/**=0.1",)),
    "all at full rate": dict(),
}


def way_config(options):
    """Makes the config of fine-tuning on the fifty images."""
    config = transfer_config("fine-tuned", 10, 0, start, STEPS)
    return dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, **options)
    )


results = {
    way: fit(way_config(options), RUNS / f"way-{i}", quiet=True)
    for i, (way, options) in enumerate(WAYS.items())
}
show_table(
    ("way", "test images of 5 to 9 right"),
    [(way, f"{r.metrics['accuracy']:.1%}") for way, r in results.items()],
)

# %% [markdown]
# ## What moved
#
# Frozen means frozen to the bit, not almost.

# %%
before = {p: np.asarray(v) for p, v in flatten(variables["params"]).items()}
kernels = [path for path in before if path.endswith("kernel")]
moved = np.zeros((len(results), len(kernels)))
for i, (way, found) in enumerate(results.items()):
    after = {p: np.asarray(v) for p, v in flatten(found.state.params).items()}
    same = [p for p in before if before[p].tobytes() == after[p].tobytes()]
    print(f"{way:<24}{len(same)} of {len(before)} arrays identical to the bit")
    for j, path in enumerate(kernels):
        change = np.linalg.norm(after[path] - before[path])
        moved[i, j] = change / np.linalg.norm(before[path])

_, axis = plt.subplots(figsize=(7.5, 2.6))
axis.imshow(moved, cmap="Blues", vmin=0, vmax=1.5 * moved.max(), aspect="auto")
for i, j in np.ndindex(*moved.shape):
    text = f"{moved[i, j]:.1%}" if moved[i, j] else "frozen"
    axis.text(j, i, text, ha="center", va="center")
axis.set(xticks=range(len(kernels)), yticks=range(len(results)))
axis.set_xticklabels([path.removesuffix("/kernel") for path in kernels])
axis.set_yticklabels(results)
axis.set_title("how far each kernel went, relative to its norm")
plt.show()

# %% [markdown]
# Each row is a way, each column a layer. The first row has moved in the head alone, the
# second also in what was unfrozen, the third in all layers but less in the old ones
# than the last row.
#
# ## What freezing saves
#
# The step differentiates with respect to the trained parameters alone, so that XLA
# drops the backward pass below the lowest of them. The compiler itself counts: no
# estimate.


# %%
def cost(options):
    """Returns the compiled step's FLOPs and the optimizer's number of values."""
    experiment = prepare_experiment(way_config(options))
    state = jax.eval_shape(experiment.create_state)
    size, pre = experiment.config.data.batch_size, experiment.card.preprocess
    batch = {
        "image": jax.ShapeDtypeStruct((size, pre.size, pre.size, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    step = jax.jit(experiment.make_step(0)).lower(state, batch).compile()
    slots = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    return step.cost_analysis()["flops"], slots


costs = {
    "all": cost({}),
    "ip1 and head": cost(dict(freeze=("backbone/conv*/**",))),
    "head": cost(dict(freeze=("backbone/**",))),
}
_, axes = plt.subplots(1, 2, figsize=(8, 1.8), sharey=True)
titles = ("million FLOPs of a step", "values the optimizer keeps")
for axis, values, title in zip(
    axes, np.transpose([*costs.values()]) / [[1e6], [1]], titles, strict=True
):
    bars = axis.barh([*costs], values, color=COLORS[0])
    axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
    axis.set(title=title, xticks=[], xlim=(0, 1.25 * max(values)))
    axis.spines["bottom"].set_visible(False)
axes[0].set_ylabel("trained")
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# The fewer layers are trained, the shorter the bars: left the arithmetic of one step
# (distortion of the images and forward pass included), right the momentum that is
# stored.
#
# ## How many images does a new class need?
#
# Frozen features, fine-tuning as a whole, and a network from scratch, by the number of
# images of each class. All train for the same number of steps.

# %%
accuracy = {method: np.zeros((len(POINTS), SEEDS)) for method in METHODS}
for method, (i, count), seed in itertools.product(
    METHODS, enumerate(POINTS), range(SEEDS)
):
    run_dir = RUNS / "study" / f"{method}-{count}-{seed}".replace(" ", "-")
    config = transfer_config(method, count, seed, start, STEPS)
    accuracy[method][i, seed] = fit(config, run_dir, quiet=True).metrics["accuracy"]

show_table(
    ("images of a class", *METHODS),
    [
        (str(count), *(f"{accuracy[m][i].mean():.1%}" for m in METHODS))
        for i, count in enumerate(POINTS)
    ],
)
_, axis = plt.subplots(figsize=(5.5, 3.4))
for (method, values), color in zip(accuracy.items(), COLORS, strict=True):
    mean, spread = values.mean(axis=1), values.std(axis=1)
    axis.errorbar(
        POINTS, mean, spread, label=method, color=color, marker="o", capsize=3
    )
axis.set(xscale="log", xticks=POINTS, ylim=(0.4, 1))
axis.set_xticks(POINTS, [str(count) for count in POINTS])
axis.minorticks_off()
axis.set(xlabel="training images of each class", ylabel="accuracy on 5 to 9")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# Look at the distance between the curves: frozen features are cheap but stop earlier
# than what is trained as a whole. And look at `from scratch`: on digits as small as
# these it keeps up with fine-tuning, so that five old digits spare computation rather
# than images. One seed and few steps (`"smoke"`) say little; take `"full"` before
# drawing conclusions.
#
# ## The same by hand
#
# Nothing above is needed for research: a model is a Linen module, its variables are a
# dictionary. `replace_head` gives the network that knows 0 to 4 ten outputs and keeps
# the weights of the shared classes, new number to old number.

# %%
five, five_variables = zoo.create("lenet5_modern", weights=str(base.run_dir))
ten, ten_variables = zoo.transfer.replace_head(
    five,
    five_variables,
    10,
    key=jax.random.key(2),
    shared={digit: digit for digit in range(5)},
)
print(f"{five_variables['params']['head']['ip2']['kernel'].shape} before")
print(f"{ten_variables['params']['head']['ip2']['kernel'].shape} after")

# %% [markdown]
# `graft` copies one tree into another by path. It fills everything or says what does
# not fit; what shall stay must be named.

# %%
_, fresh = zoo.create("lenet5_modern", num_classes=10)
try:
    zoo.transfer.graft(fresh, five_variables)
except ValueError as error:
    print(error)

grafted = zoo.transfer.graft(fresh, five_variables, keep=("head/**",))

# %% [markdown]
# `change_input_channels` makes a network for gray images one for RGB images. A gray
# image with three equal channels gives what it gave.

# %%
colored = zoo.transfer.change_input_channels(five_variables, "backbone/conv1", 3)
gray = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))
difference = five.apply(colored, jnp.repeat(gray, 3, axis=-1)) - five.apply(
    five_variables, gray
)
print(f"kernel {colored['params']['backbone']['conv1']['kernel'].shape}")
print(f"logits equal to 1e-4: {bool(jnp.abs(difference).max() < 1e-4)}")

# %% [markdown]
# Now a plain optax loop: all ten digits from ten images of each, with both convolutions
# frozen. `split` and `merge` are the whole of freezing.

# %%
preprocess = zoo.get_spec("lenet5_modern").preprocess


def load(split, per_class=None):
    """Returns normalized images and labels of all ten digits, on the device."""
    source = load_dataset("digits", split, per_class=per_class)
    arrays = load_resident(fit_source(source, preprocess), preprocess)
    images = zoo.normalize(jnp.asarray(arrays["image"]), preprocess)
    return images, jnp.asarray(arrays["label"])


images, labels = load("train", per_class=10)
test_images, test_labels = load("test")

trained, frozen = zoo.transfer.split(ten_variables["params"], ["backbone/conv*/**"])
optimizer = optax.adam(1e-3)
opt_state = optimizer.init(trained)


def accuracies(logits, labels):
    """Returns the shares of old and of new digits that are right."""
    hits, old = logits.argmax(-1) == labels, labels < 5
    return jnp.mean(hits, where=old), jnp.mean(hits, where=~old)


@jax.jit
def train_step(trained, frozen, opt_state, images, labels):
    def loss(trained):
        params = zoo.transfer.merge(frozen, trained)
        logits = ten.apply({"params": params}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.grad(loss)(trained)
    updates, opt_state = optimizer.update(gradients, opt_state, trained)
    return optax.apply_updates(trained, updates), opt_state


apply = jax.jit(ten.apply)
seen = []
for step in range(STEPS + 1):
    params = zoo.transfer.merge(frozen, trained)
    seen.append(accuracies(apply({"params": params}, test_images), test_labels))
    if step < STEPS:
        trained, opt_state = train_step(trained, frozen, opt_state, images, labels)

_, axis = plt.subplots(figsize=(5.5, 3))
for values, label, color in zip(
    np.asarray(seen).T, ("digits 0 to 4", "digits 5 to 9"), COLORS[:2], strict=True
):
    axis.plot(values, label=label, color=color)
axis.set(xlabel="step", ylabel="accuracy on test images", ylim=(0, 1))
axis.xaxis.get_major_locator().set_params(integer=True)
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# At step 0 the network knows the old digits, because their rows of the head were kept,
# and none of the new ones. Within a few steps the new digits rise. The old ones pay for
# it at first and come back, because their images are among those that are learned from.
