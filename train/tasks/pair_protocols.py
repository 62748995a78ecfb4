"""The comparisons of descriptors that the DeepFace paper learns from pairs.

Each is fitted to the pairs of nine folds and scores those of the tenth, as in LFW's
view 2. A score above 0 means that both faces are of one person.

Reference:
  Taigman, Yang, Ranzato, Wolf, DeepFace, 2014, section 4.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.svm import SVC, LinearSVC

from train.data.rng import RandomStream
from zoo.face.verification import (
    Pairs,
    Siamese,
    chi_squared,
    chi_squared_terms,
)
from zoo.metrics import verification as metrics

Array = jax.Array

# Maps the arrays of training pairs, whether each is of one person, and the arrays of
# other pairs to the scores of the other pairs.
Protocol = Callable[[Any, np.ndarray, Any], np.ndarray]


def evaluate_pairs(protocol: Protocol, values: Any, pairs: Pairs) -> dict[str, float]:
    """Evaluates a comparison by cross-validation over the folds.

    Args:
      protocol: One of the functions below.
      values: A pytree of arrays [N, ...] for all pictures.
      pairs: The pairs, in two or more folds.

    Returns:
      `accuracy`, the mean over the folds, its `standard_error`, and `auc`, computed
      from the scores of all folds.
    """
    accuracies, scores = [], np.zeros(len(pairs.same))
    for fold in np.unique(pairs.fold):
        test = pairs.fold == fold
        train_values, test_values = (
            tuple(
                jax.tree.map(lambda a, at=at: np.asarray(a)[at], values)
                for at in (pairs.first[part], pairs.second[part])
            )
            for part in (~test, test)
        )
        scores[test] = protocol(train_values, pairs.same[~test], test_values)
        accuracies.append(((scores[test] > 0) == pairs.same[test]).mean())
    error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    return {
        "accuracy": float(np.mean(accuracies)),
        "standard_error": float(error),
        "auc": metrics.auc(metrics.roc(scores, pairs.same)),
    }


def weighted_chi_squared(train: Any, same: np.ndarray, pairs: Any) -> np.ndarray:
    """Compares by a chi-squared distance, weighted by a linear SVM on its terms.

    Args:
      train: (first, second), descriptors float32 [P, D] to fit to.
      same: bool [P], whether each pair is of one person.
      pairs: The arrays of the pairs to be scored.

    Returns:
      float [P], the SVM's threshold minus the distances.
    """
    weights, threshold = fit_chi_squared(*train, same)
    return threshold - np.asarray(chi_squared(*pairs, weights))


def fit_chi_squared(
    first: Any, second: Any, same: np.ndarray
) -> tuple[np.ndarray, float]:
    """Fits the weights of the chi-squared distance, float32 [D], and its threshold.

    Args:
      first: float32 [P, D], descriptors of the first faces.
      second: float32 [P, D], descriptors of the second faces.
      same: bool [P], whether each pair is of one person.
    """
    terms = np.asarray(chi_squared_terms(jnp.asarray(first), jnp.asarray(second)))
    scale = mean_norm(terms)
    # A large scale regularizes the intercept less.
    svm = LinearSVC(C=1.0, intercept_scaling=10.0, random_state=0)
    svm.fit(terms / scale, ~np.asarray(same, bool))
    return (svm.coef_[0] / scale).astype(np.float32), -float(svm.intercept_[0])


def mean_norm(terms: np.ndarray) -> float:
    """Returns the root mean square norm of rows [P, D]; C = 1 suits rows of norm 1."""
    return max(float(np.sqrt(np.square(terms).sum(1).mean())), 1e-12)


def siamese(
    train: Any,
    same: np.ndarray,
    pairs: Any,
    *,
    f7: Mapping[str, Any],
    steps: int = 150,
    batch_size: int = 128,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> np.ndarray:
    """Trains F7 and one logistic unit on |f1 - f2|; the layers below stay frozen.

    The unit starts with equal weights, scaled so that the mean logits of the two kinds
    of pairs differ by 4, and learns faster than F7.

    Args:
      train: (first, second), float32 [P, N], flattened maps that F7 reads.
      same: bool [P], whether each pair is of one person; both kinds occur.
      pairs: The arrays of the pairs to be scored.
      f7: The `kernel` and `bias` of the trained F7, from which training starts, and
        `max`, its largest values in training.
      steps: Number of steps.
      batch_size: Number of pairs in a step.
      learning_rate: Rate of Adam for F7; that of the unit is a hundredth of its initial
        weights.
      seed: Seed of the order of the pairs.

    Returns:
      float [P], logits.
    """
    (first, second), same = train, np.asarray(same, bool)
    maximum = jnp.asarray(f7["max"])
    params = {"f7": {k: jnp.asarray(f7[k]) for k in ("kernel", "bias")}}
    model, count = Siamese(len(maximum)), min(batch_size, len(same))

    def score(params, sides):
        parts = range(0, len(sides[0]), count)
        scores = [
            apply_siamese(
                model, params, maximum, *(side[i : i + count] for side in sides)
            )
            for i in parts
        ]
        return np.concatenate(scores)

    unit = {"kernel": jnp.ones((len(maximum), 1)), "bias": jnp.zeros(1)}
    distances = score({**params, "alpha": unit}, train)
    near, far = distances[same].mean(), distances[~same].mean()
    weight = 4 / max(float(far - near), 1e-6)
    unit = {"kernel": -weight * unit["kernel"], "bias": unit["bias"] + weight}
    unit["bias"] *= 0.5 * (near + far)
    params = {**params, "alpha": unit}
    rates = {"f7": learning_rate, "alpha": 0.01 * weight}
    state, rng = optax.scale_by_adam().init(params), RandomStream((seed, 11))
    orders = -(-steps * count // len(same))
    order = np.concatenate([rng.permutation(len(same)) for _ in range(orders)])
    for at in order[: steps * count].reshape(steps, count):
        batch = maximum, first[at], second[at], np.float32(same[at])
        params, state = train_siamese(model, params, state, rates, *batch)
    return score(params, pairs)


@partial(jax.jit, static_argnums=0)
def apply_siamese(
    model: Siamese, params: Any, maximum: Array, first: Array, second: Array
) -> Array:
    """Computes the logits of pairs, see `Siamese`."""
    return model.apply({"params": params}, first, second, maximum)


@partial(jax.jit, static_argnums=0)
def train_siamese(
    model: Siamese,
    params: Any,
    state: optax.OptState,
    rates: Mapping[str, Array],
    maximum: Array,
    first: Array,
    second: Array,
    labels: Array,
) -> tuple[Any, optax.OptState]:
    """Takes a step of Adam, with a rate for each layer; returns parameters and state.

    Args:
      model: The network.
      params: The network's parameters.
      state: The state of `optax.scale_by_adam`.
      rates: The learning rate of each layer.
      maximum: float32 [features], see `Siamese`.
      first: float32 [B, N], maps of the first faces.
      second: float32 [B, N], maps of the second faces.
      labels: float32 [B], 1 for pairs of one person, else 0.
    """

    def loss(params):
        logits = apply_siamese(model, params, maximum, first, second)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    updates, state = optax.scale_by_adam().update(jax.grad(loss)(params), state)
    steps = {
        name: jax.tree.map(lambda u, name=name: -rates[name] * u, layer)
        for name, layer in updates.items()
    }
    return optax.apply_updates(params, steps), state


def ensemble(train: Any, same: np.ndarray, pairs: Any) -> np.ndarray:
    """Combines several networks by an SVM on the sum of their power kernels.

    The kernel of a network is -|x - y|^2, where x and y are the chi-squared terms of
    two pairs, scaled to a mean norm of 1.

    Args:
      train: (first, second), for each network descriptors float32 [P, D].
      same: bool [P], whether each pair is of one person.
      pairs: The arrays of the pairs to be scored.

    Returns:
      float [P], values of the SVM's decision function.
    """
    known, asked = (
        [np.asarray(chi_squared_terms(a, b), float) for a, b in zip(*v, strict=True)]
        for v in (train, pairs)
    )
    scales = [mean_norm(terms) for terms in known]
    known, asked = (
        [terms / scale for terms, scale in zip(all_terms, scales, strict=True)]
        for all_terms in (known, asked)
    )
    svm = SVC(C=1.0, kernel="precomputed")
    svm.fit(power_kernel(known, known), np.asarray(same, bool))
    return svm.decision_function(power_kernel(asked, known))


def power_kernel(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Sums -|x - y|^2 over networks; returns float64 [P, Q].

    Args:
      a: For each network float64 [P, D].
      b: For each network float64 [Q, D].
    """
    total = np.zeros((len(a[0]), len(b[0])))
    for x, y in zip(a, b, strict=True):
        total -= np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return total
