"""Shared parts of the transfer studies: images, features, linear SVMs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import zoo
from train.data import fit_source, load_dataset, load_resident
from train.studies.runner import Arrays, short_config, train_in_memory
from zoo.cpu import jit_inference
from zoo.spec import Preprocess

OLD, NEW = tuple("01234"), tuple("56789")  # digits


@dataclasses.dataclass(frozen=True)
class Base:
    """A trained network, and images of classes that it was not trained on.

    Attributes:
      model: Registered name of the network.
      weights: Name of its weights; None to train it on the digits 0 to 4.
      dataset: Data set of other classes; None if `--dataset` must name it.
      steps: Length of the training, in steps.
    """

    model: str
    weights: str | None
    dataset: str | None
    steps: int = 0


UNTRAINED_LENET = Base("lenet5_modern", None, "digits", steps=1)
LENET = Base("lenet5_modern", None, "digits", steps=300)
RESNET20 = Base("cifar_resnet20", "cifar10_20epochs", None)


def load_arrays(
    dataset: str, preprocess: Preprocess, classes: Sequence[str] = ()
) -> Arrays:
    """Reads a data set's splits "train" and "test", preprocessed for a network.

    Args:
      dataset: Name of the data set, as for `--dataset`.
      preprocess: The preprocessing of the network's input.
      classes: Names of the classes to keep; none for all.
    """
    found = []
    for split in ("train", "test"):
        source = load_dataset(
            dataset, split, classes=classes or None, color=preprocess.color
        )
        arrays = load_resident(fit_source(source, preprocess), preprocess)
        images = jax.jit(lambda x: zoo.normalize(x, preprocess))(arrays["image"])
        found += [np.asarray(images), arrays["label"].astype(np.int32)]
    return Arrays(*found)


def train_base(steps: int) -> tuple[nn.Module, dict[str, Any]]:
    """Trains a network on the digits 0 to 4."""
    preprocess = zoo.get_spec("lenet5_modern").preprocess
    config = short_config(
        "lenet5_modern",
        batch_size=32,
        steps=steps,
        seed=0,
        learning_rate=0.01,
        weight_decay=5e-4,
        schedule="cosine",
    )
    arrays = load_arrays("digits", preprocess, OLD)
    _, variables = train_in_memory(config, arrays)
    return zoo.build("lenet5_modern", num_classes=len(OLD)), variables


def load_base(
    base: Base, dataset: str | None = None
) -> tuple[nn.Module, dict[str, Any], Arrays]:
    """Loads or trains a network, and loads images of other classes.

    Args:
      base: The network and the data set.
      dataset: Data set in place of the base's.

    Returns:
      The network, its variables, and the images.

    Raises:
      ValueError: There is no data set.
    """
    dataset = dataset or base.dataset
    if dataset is None:
        raise ValueError(
            f"--dataset: images of classes that {base.model} was not trained on are "
            "needed at this scale, such as imagefolder:DIR with splits train and test."
        )
    if base.weights:
        model, variables, card = zoo.create_with_card(base.model, weights=base.weights)
        preprocess, classes = card.preprocess, ()
    else:
        model, variables = train_base(base.steps)
        preprocess, classes = zoo.get_spec(base.model).preprocess, NEW
    arrays = load_arrays(dataset, preprocess, classes)
    return model, variables, arrays


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Chooses images of each class at random.

    Args:
      labels: int [N].
      per_class: Number of images of each class; all if there are not more.
      seed: Seed of the choice.

    Returns:
      Indices, int [M].
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.permutation(each)[:per_class] for each in members])


def compute_features(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    endpoints: Sequence[str],
    *,
    grid: int = 4,
) -> dict[str, np.ndarray]:
    """Computes the activations of some endpoints as vectors.

    Args:
      model: A network of the zoo.
      variables: Variables of the model.
      images: float32 [N, H, W, C], preprocessed.
      endpoints: Names of the endpoints.
      grid: Maps are averaged over a grid of this height and width.

    Returns:
      float32 [N, F] by endpoint.
    """

    def read(variables, images):
        found = zoo.features(model, variables, images, endpoints)
        return {name: _pool(x, grid) for name, x in found.items()}

    read = jit_inference(read)
    parts, batch_size = [], 256
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)  # Batches of one size compile once.
        padded = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
        found = read(variables, jnp.asarray(padded))
        parts.append({k: np.asarray(v)[: len(batch)] for k, v in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in endpoints}


def _pool(x: jax.Array, grid: int) -> jax.Array:
    if x.ndim == 4 and min(x.shape[1:3]) >= grid:
        edges = [np.linspace(0, n, grid + 1).round().astype(int) for n in x.shape[1:3]]
        cells = [
            x[:, top:bottom, left:right].mean((1, 2))
            for top, bottom in zip(edges[0], edges[0][1:], strict=False)
            for left, right in zip(edges[1], edges[1][1:], strict=False)
        ]
        x = jnp.stack(cells, axis=1)
    return x.reshape(len(x), -1)


def score_svm(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """Returns the accuracy of linear SVMs, one for each class against the rest.

    Features are centered, and scaled to a mean norm of 1 over the training images.

    Args:
      train: float32 [N, F], features of the training images.
      labels: int [N], classes of the training images.
      test: float32 [M, F], features of the test images.
      test_labels: int [M], classes of the test images.
    """
    from sklearn.svm import LinearSVC

    center = train.mean(0)
    scale = np.linalg.norm(train - center, axis=1).mean()
    machine = LinearSVC(tol=1e-2, max_iter=10_000, random_state=0)
    machine.fit((train - center) / scale, labels)
    return float(machine.score((test - center) / scale, test_labels))
