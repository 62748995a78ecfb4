"""The comparisons of descriptors that the DeepFace paper learns from pairs.

Each is fitted on pairs of nine folds and scores those of the tenth, as LFW's view 2
has it; a larger score is always one of more alike faces.

Reference:
  Taigman, Yang, Ranzato, Wolf, DeepFace, 2014, section 4.
"""

from collections.abc import Callable, Mapping, Sequence
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
    inner_product,
)
from zoo.metrics import verification as metrics

# From the arrays of training pairs and whether each is of one person, and the arrays
# of other pairs, to the scores of these.
Protocol = Callable[[Any, np.ndarray, Any], np.ndarray]


def evaluate_pairs(protocol: Protocol, values: Any, pairs: Pairs) -> dict[str, float]:
    """Evaluates a comparison in folds: fitted on the others, tested on each.

    The threshold, too, is chosen on the folds that it is fitted on.

    Args:
      protocol: One of the functions below.
      values: Arrays [N, ...] of all pictures, in any tree.
      pairs: The pairs, of two folds or more.

    Returns:
      `accuracy`, the mean over the folds, its `standard_error`, and `auc`, that of all
      tested scores, each fold's less its threshold.
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
        both = jax.tree.map(
            lambda *parts: np.concatenate(parts), test_values, train_values
        )
        found = np.asarray(protocol(train_values, pairs.same[~test], both), np.float64)
        found, own = np.split(found, [test.sum()])
        threshold = metrics.best_threshold(own, pairs.same[~test])
        scores[test] = found - threshold
        accuracies.append(((scores[test] > 0) == pairs.same[test]).mean())
    error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    return {
        "accuracy": float(np.mean(accuracies)),
        "standard_error": float(error),
        "auc": metrics.auc(metrics.roc(scores, pairs.same)),
    }


def unsupervised(train: Any, same: np.ndarray, pairs: Any) -> np.ndarray:
    """Compares by the inner product, which has nothing to fit.

    Args:
      train: Not used.
      same: Not used.
      pairs: (first, second), descriptors float32 [P, D].

    Returns:
      float [P].
    """
    return np.asarray(inner_product(*pairs))


def weighted_chi_squared(train: Any, same: np.ndarray, pairs: Any) -> np.ndarray:
    """Compares by chi-squared, with weights of a linear SVM on its terms.

    Args:
      train: (first, second), descriptors float32 [P, D] to fit to.
      same: bool [P].
      pairs: The arrays of the pairs to be scored.

    Returns:
      float [P], minus the distances.
    """
    weights = fit_chi_squared(*train, same)
    return -np.asarray(chi_squared(*pairs, weights))


def fit_chi_squared(first: Any, second: Any, same: np.ndarray) -> np.ndarray:
    """Fits the weights of the chi-squared distance: float32 [D].

    Args:
      first: float32 [P, D], descriptors.
      second: float32 [P, D].
      same: bool [P].
    """
    terms = np.asarray(chi_squared_terms(jnp.asarray(first), jnp.asarray(second)))
    scale = max(float(terms.std()), 1e-12)
    svm = LinearSVC(C=1.0, random_state=0).fit(terms / scale, ~np.asarray(same, bool))
    return (svm.coef_[0] / scale).astype(np.float32)


def siamese(
    train: Any,
    same: np.ndarray,
    pairs: Any,
    *,
    f7: Mapping[str, Any],
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """Trains F7 and one logistic unit on |f1 - f2|; the layers below stay frozen.

    Args:
      train: (first, second), float32 [P, N], flattened maps that F7 reads.
      same: bool [P].
      pairs: The arrays of the pairs to be scored.
      f7: The trained F7's `kernel` and `bias`, from which it starts.
      steps: Number of steps.
      batch_size: Number of pairs in a step.
      learning_rate: Rate of Adam.
      seed: Seed of the logistic unit and of the order of the pairs.

    Returns:
      float [P], logits.
    """
    first, second = train
    model = Siamese(f7["bias"].shape[0])
    start = model.init(jax.random.key(seed), first[:1], second[:1])["params"]
    params = {**start, "f7": {k: jnp.asarray(f7[k]) for k in ("kernel", "bias")}}
    tx = optax.adam(learning_rate)

    def loss(params, first, second, labels):
        logits = model.apply({"params": params}, first, second)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    @jax.jit
    def step(params, state, *batch):
        updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    state, rng = tx.init(params), RandomStream((seed, 11))
    count = min(batch_size, len(same))
    orders = -(-steps * count // len(same))
    order = np.concatenate([rng.permutation(len(same)) for _ in range(orders)])
    for at in order[: steps * count].reshape(steps, count):
        batch = first[at], second[at], np.float32(same[at])
        params, state = step(params, state, *batch)
    apply = jax.jit(model.apply)
    parts = [slice(i, i + count) for i in range(0, len(pairs[0]), count)]
    scores = [apply({"params": params}, *(side[at] for side in pairs)) for at in parts]
    return np.concatenate(scores)


def ensemble(train: Any, same: np.ndarray, pairs: Any) -> np.ndarray:
    """Joins several networks by an SVM on the sum of their power kernels.

    The kernel of a network is -|x - y|^2 of the chi-squared terms x and y of two pairs.

    Args:
      train: (first, second), for each network descriptors float32 [P, D].
      same: bool [P].
      pairs: The arrays of the pairs to be scored.

    Returns:
      float [P], distances from the SVM's plane.
    """
    known, asked = (
        [np.asarray(chi_squared_terms(a, b), float) for a, b in zip(*v, strict=True)]
        for v in (train, pairs)
    )
    scales = [max(float(terms.std()), 1e-12) for terms in known]
    known, asked = (
        [terms / scale for terms, scale in zip(all_terms, scales, strict=True)]
        for all_terms in (known, asked)
    )
    svm = SVC(C=1.0, kernel="precomputed")
    svm.fit(power_kernel(known, known), np.asarray(same, bool))
    return svm.decision_function(power_kernel(asked, known))


def power_kernel(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Sums -|x - y|^2 over networks: float64 [P, Q].

    Args:
      a: For each network float64 [P, D].
      b: For each network float64 [Q, D].
    """
    total = np.zeros((len(a[0]), len(b[0])))
    for x, y in zip(a, b, strict=True):
        total -= np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return total
