"""Comparison of a network with its source: `canon-zoo verify`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.paths import flatten
from zoo.registry import get_spec, list_options
from zoo.spec import Card, plain_options
from zoo.verify.certificate import Certificate, Check
from zoo.verify.deterministic import make_images
from zoo.verify.parity import (
    compute_endpoints,
    compute_step,
    deterministic_state,
    evaluation_options,
    run_endpoints,
    summarize_endpoints,
    summarize_parameters,
    training_options,
)
from zoo.verify.summaries import Summaries, load_summaries, measure
from zoo.verify.torchvision_live import (
    run_torchvision,
    torchvision_version,
)
from zoo.weights.download import file_sha256
from zoo.weights.loading import FREE_OPTIONS, Loaded, find_source, load, recognize
from zoo.weights.torch_format import from_torch, to_torch
from zoo.weights.trained import find_trained

TOLERANCE = 1e-5
# Tolerance of a training step in float64; golden files have float32 values.
EXACT = 1e-6
# Tolerance of a step in float32, in multiples of the reference's error in float32.
SLACK = 4
# A ReLU or max pool that is closer to a tie than float32 resolves may pass a different
# gradient. A fraction e of them changes the gradients by about sqrt(e), differently on
# every machine: by 1e-3 for e = 1e-6.
TIES = 1e-2
TRAINING_TYPES = ("float32", "float64")
GOLDEN = Path(__file__).with_name("golden")


def verify(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    training: str | None = None,
    jit: Callable = jax.jit,
) -> Certificate:
    """Compares a network with its source, at every endpoint.

    Without weights, both use those of `zoo.verify.deterministic`, and a golden file of
    this package has the source's values and the size and dtype of the images. With
    weights, these are checked as well, and torchvision computes the expected values.

    Args:
      name: Name of the model.
      weights: None, or a source as for `load`.
      training: "float32" or "float64" to compare a training step in this type instead,
        with dropout off: loss, gradients and running statistics. Only without weights.
      jit: Function that compiles the network.

    Raises:
      FileNotFoundError: The network has no golden file.
      ValueError: The model or `training` is unknown, or the weights do not fit.
    """
    get_spec(name)
    if training not in (None, *TRAINING_TYPES):
        raise ValueError(
            f"training must be None or one of {[*TRAINING_TYPES]}, got {training!r}."
        )
    if training and get_spec(name).task == "detection":
        raise ValueError(
            f"training={training!r}: training steps are compared of classifiers and "
            f"segmentation networks alone, not of {name}."
        )
    if weights is None:
        return _verify_golden(name, training, jit)
    if training:
        raise ValueError(
            f"training={training!r} goes with deterministic weights alone, got "
            f"weights={weights!r}."
        )
    return _verify_weights(name, weights, jit)


def golden_path(name: str) -> Path:
    """Returns the path of a network's golden file, whether or not it exists."""
    return GOLDEN / f"{name}.npz"


def _verify_golden(name: str, training: str | None, jit: Callable) -> Certificate:
    path = golden_path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"{name} has no golden file {path}; the scripts "
            "`tests/reference/make_golden*.py` make them."
        )
    expected, facts = load_summaries(path)
    size, dtype, gain = (facts["example"][k] for k in ("size", "dtype", "branch_gain"))
    notes = [f"golden file of {facts['date']}, made by {facts['script']}"]
    if training is not None:
        state = deterministic_state(name, branch_gain=gain, **training_options(name))
        found = compute_step(name, state, training, jit, size=size)
        checks = _check_step(found, expected, facts, training)
        notes.append(
            f"one training step in {training} without dropout; gradients are relative "
            "to their layer's largest"
        )
        if training == "float32":
            notes.append(
                f"tolerances allow for {SLACK} times the error of the reference itself "
                "in float32, those of gradients also for ReLUs and max pools near a tie"
            )
    else:
        state = deterministic_state(name, branch_gain=gain, **evaluation_options(name))
        found = compute_endpoints(name, state, dtype, jit, size=size)
        checks = _check_endpoints(found, expected["endpoints"])
        if dtype == "float64":
            notes.append("in float64: in float32 a pool near a tie takes another pixel")
    return Certificate(
        model=name,
        weights="deterministic, from the parameters' names",
        sha256=f"{file_sha256(path)} (golden file)",
        reference=facts["reference"],
        checks=tuple(checks),
        notes=tuple(notes),
    )


def _check_endpoints(
    found: Mapping[str, np.ndarray], expected: Summaries
) -> list[Check]:
    # In the reference's order, as jax sorts a dict by name.
    known = [n for n in expected.names if n in found]
    arrays = {n: found[n] for n in [*known, *sorted({*found} - {*known})]}
    errors = measure(summarize_endpoints(arrays), expected)
    return [Check(n, arrays[n].shape, error, TOLERANCE) for n, error in errors.items()]


def _check_step(
    found: Mapping[str, Mapping[str, np.ndarray]],
    expected: Mapping[str, Summaries],
    facts: Mapping[str, Any],
    dtype: str,
) -> list[Check]:
    checks = []
    for section in ("loss", "gradients", "statistics"):
        summaries = summarize_parameters(found[section])
        errors = measure(summaries, expected[section], by_layer=section == "gradients")
        tolerance = EXACT
        if dtype == "float32":
            least = TIES if section == "gradients" else TOLERANCE
            tolerance = max(least, SLACK * facts["float32_errors"][section])
        wrong = [Check(k, (), e, tolerance) for k, e in errors.items() if e > tolerance]
        worst = max(errors.values(), default=0.0)
        checks.append(Check(section, (), worst, tolerance))
        checks += sorted(wrong, key=lambda check: -check.error)[:10]
    return checks


def _verify_weights(
    name: str, weights: str | os.PathLike, jit: Callable
) -> Certificate:
    path = find_source(name, weights)
    loaded = load(name, weights)
    card = loaded.card
    options = {"num_classes": card.num_classes, **card.overrides}
    state = to_torch(name, loaded.variables, **options)
    digest = file_sha256(path) if path.is_file() else "none: a folder"
    if known := recognize(name, digest):
        notes = [f"published as {known.name} by {known.source}"]
    elif path == find_trained(name, str(weights)):
        notes = ["part of the package"]
    else:
        notes = ["not a file that was published"]
    broken = [key for key, array in state.items() if not np.isfinite(array).all()]
    if broken:
        notes.append(f"not finite ({len(broken)}): {', '.join(broken[:10])}")
    back = flatten(from_torch(name, state, **options))
    same = all(
        np.array_equal(back[key], leaf, equal_nan=True)
        for key, leaf in flatten(loaded.variables).items()
    )
    checks = [
        Check("finite weights", (), float(bool(broken)), 0.0),
        Check("to torch and back", (), float(not same), 0.0),
    ]
    reference, obstacle = "none", _find_obstacle(name, card)
    if obstacle:
        notes.append(f"endpoints were not compared: {obstacle}")
    else:
        reference = torchvision_version()
        checks += _check_live(name, loaded, state, jit)
    return Certificate(
        model=name,
        weights=f"{card.source}: {path}",
        sha256=digest,
        reference=reference,
        checks=tuple(checks),
        notes=tuple(notes),
    )


def _find_obstacle(name: str, card: Card) -> str:
    """Returns the reason why torchvision cannot compute the network; else ""."""
    usual = plain_options(list_options(name))
    changed = {
        option: value
        for option, value in card.overrides.items()
        if option not in FREE_OPTIONS and value != usual[option]
    }
    if get_spec(name).torchvision is None:
        return f"torchvision has no {name}"
    if changed or not card.num_classes:
        return f"torchvision has no {name} with {card.num_classes} classes, {changed}"
    try:
        torchvision_version()
    except ImportError as error:
        return str(error)
    return ""


def _check_live(
    name: str, loaded: Loaded, state: Mapping[str, np.ndarray], jit: Callable
) -> list[Check]:
    card = loaded.card
    images = make_images(card.preprocess)
    expected = run_torchvision(name, state, images, num_classes=card.num_classes)
    options = {"num_classes": card.num_classes}
    found = run_endpoints(name, loaded.variables, images, options, jit)
    return [
        Check(endpoint, array.shape, _relative(found[endpoint], array), TOLERANCE)
        for endpoint, array in expected.items()
    ]


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(found.astype(np.float64) - expected).max()
    return float(difference / np.abs(expected).max())
