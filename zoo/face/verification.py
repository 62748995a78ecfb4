"""Face verification: descriptors, and the functions that compare them.

Reference:
  Taigman, Yang, Ranzato, Wolf, DeepFace, 2014, sections 3 and 4.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.layers import Classifier, per_channel

Array = jax.Array

EPSILON = 0.05
UNKNOWN = -1  # The label of people who are not in the training set.


class Pairs(NamedTuple):
    """The pairs of faces to compare.

    Attributes:
      first: int32 [P], position of a picture in its set, or the number of a template.
      second: int32 [P], the same for the other picture or template.
      same: bool [P], whether both show one person.
      fold: int32 [P], 0 to the number of folds - 1.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


class FaceSet(NamedTuple):
    """The annotations of the pictures that an evaluation needs.

    Attributes:
      people: int32 [N], who is shown.
      labels: int32 [N], the class in training, or -1.
      gallery: bool [N], whether a picture is in the gallery of identification; the
        others are probes.
      pairs: The pairs to verify.
      templates: int32 [N], the template that a picture belongs to, such as a video,
        whose descriptor is the mean over its pictures; None if each picture is its own.
      groups: int32 [N], the group of the person, or None.
      group_names: Names of the groups, in order.
    """

    people: np.ndarray
    labels: np.ndarray
    gallery: np.ndarray
    pairs: Pairs
    templates: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()


def normalize_features(features: Array, maximum: Array, epsilon: float = EPSILON):
    """Computes descriptors from the output of F7.

    Args:
      features: float [..., D], not negative.
      maximum: float [D], the largest value of each feature in the training set.
      epsilon: Lower bound of the values that features are divided by.

    Returns:
      float32 [..., D] of unit length; zeros if all features are zero.
    """
    largest = per_channel(jnp.maximum(maximum, epsilon), features)
    scaled = features.astype(jnp.float32) / largest
    length = jnp.sqrt(jnp.square(scaled).sum(-1, keepdims=True))
    return scaled / jnp.maximum(length, 1e-12)


def feature_maximum(variables: Mapping[str, Any]) -> Array:
    """Returns the maximum of each feature that was tracked in training, float32 [D].

    Raises:
      ValueError: The variables are not those of a network with descriptors.
    """
    try:
        return variables["batch_stats"]["backbone"]["f7"]["max"]
    except KeyError as error:
        raise ValueError(
            "the variables have no batch_stats/backbone/f7/max: they are not those of "
            "a DeepFace network."
        ) from error


def measure_maximum(
    model: Classifier, variables: Mapping[str, Any], batches: Iterable[Array]
) -> dict[str, Any]:
    """Measures the largest value of each feature over a training set.

    Args:
      model: A DeepFace network.
      variables: Variables of the model; they are not changed.
      batches: float32 [B, H, W, C] each, preprocessed.

    Returns:
      Variables with this maximum, in place of the decaying one from training.
    """

    @jax.jit
    def largest(variables, images):
        return model.apply(variables, images, method="endpoints")["f7"].max(0)

    maximum = jnp.zeros_like(feature_maximum(variables))
    for images in batches:
        maximum = jnp.maximum(maximum, largest(variables, images))
    stats = variables["batch_stats"]
    backbone = {**stats["backbone"], "f7": {"max": maximum}}
    return {**variables, "batch_stats": {**stats, "backbone": backbone}}


def inner_product(a: Array, b: Array) -> Array:
    """Compares descriptors [..., D] by their inner product, [...]."""
    return (a * b).sum(-1)


def chi_squared_terms(a: Array, b: Array) -> Array:
    """Returns (a - b)^2 / (a + b) of descriptors [..., D]; 0 where both are 0."""
    total = a + b
    safe = jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.square(a - b) / safe, 0)


def chi_squared(a: Array, b: Array, weights: Array) -> Array:
    """Compares descriptors by the weighted chi-squared distance.

    Args:
      a: float [..., D], not negative.
      b: float [..., D].
      weights: float [D], those of a linear SVM on `chi_squared_terms`.

    Returns:
      float [...], larger for pairs that differ more.
    """
    return chi_squared_terms(a, b) @ weights


class Siamese(nn.Module):
    """Two faces, one network: |f1 - f2| of descriptors and one logistic unit.

    It reads the map below F7 of the frozen network, so that only F7 and the unit are
    trained: "the top two layers".

    Attributes:
      features: Length of F7.
    """

    features: int

    @nn.compact
    def __call__(self, a: Array, b: Array, maximum: Array) -> Array:
        """Computes logits.

        Args:
          a: float32 [B, N], the flattened map that F7 reads, of the first faces.
          b: float32 [B, N], of the second ones.
          maximum: float32 [features], see `normalize_features`.

        Returns:
          float32 [B], above 0 if both faces more probably show one person.
        """
        f7 = nn.Dense(self.features, name="f7")
        f1, f2 = (normalize_features(nn.relu(f7(x)), maximum) for x in (a, b))
        return nn.Dense(1, name="alpha")(jnp.abs(f1 - f2))[..., 0]
