"""Whether a network computes what its source does: `python -m zoo verify`."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.paths import flatten
from zoo.registry import get_spec
from zoo.weights.deterministic import make_images
from zoo.weights.download import fetch, file_sha256
from zoo.weights.loading import load
from zoo.weights.parity import (
    compute_endpoints,
    compute_step,
    deterministic_state,
    run_endpoints,
    summarise_endpoints,
    summarise_parameters,
    training_options,
)
from zoo.weights.summaries import Summaries, load_summaries, measure
from zoo.weights.torch_format import from_torch, to_torch
from zoo.weights.torchvision_live import (
    has_counterpart,
    run_torchvision,
    torchvision_version,
)

TOLERANCE = 1e-5
# In training: this many times the error of the reference's own network in float32.
SLACK = 4
# Where a ReLU or a max pool is nearer to a tie than float32 can tell, it passes another
# gradient. A part e of them changes the gradients by about the root of e, on every
# machine in another way: 1e-3 for e = 1e-6.
TIES = 1e-2
GOLDEN = Path(__file__).with_name("golden")


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      name: Of an endpoint, or of what a training step computes.
      shape: Of the array; empty where it is several.
      error: Largest difference, relative to the largest magnitude.
      tolerance: What the error may be.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was compared with what, and how near it is.

    Attributes:
      model: Name of the network.
      weights: Where they come from.
      sha256: Of the file of the weights or, for deterministic ones, of the golden file.
      reference: What computed the expected values.
      checks: One for each endpoint, and more.
      notes: What could not be checked, and what else must be known.
    """

    model: str
    weights: str
    sha256: str
    reference: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Writes the certificate for a person."""
        lines = [
            f"model      {self.model}",
            f"weights    {self.weights}",
            f"sha256     {self.sha256}",
            f"reference  {self.reference}",
            *(f"note       {note}" for note in self.notes),
            "",
            f"{'endpoint':<20}{'shape':<20}{'error':>10}{'tolerance':>12}",
        ]
        for check in self.checks:
            shape = "x".join(map(str, check.shape)) or "-"
            lines.append(
                f"{check.name:<20}{shape:<20}{check.error:>10.1e}"
                f"{check.tolerance:>12.1e}{'' if check.passed else '  FAILED'}"
            )
        failed = [check.name for check in self.checks if not check.passed]
        verdict = f"FAILED: {', '.join(failed)}" if failed else "passed"
        return "\n".join([*lines, "", verdict])


def verify(
    name: str,
    weights: str | os.PathLike | None = None,
    *,
    training: bool = False,
    jit: Callable = jax.jit,
) -> Certificate:
    """Compares a network with its source, at every endpoint.

    Without weights, both sides have those of `zoo.weights.deterministic`, and the
    source's values are those of the golden file that lies in this package. With
    weights, they are checked themselves, and torchvision computes its values now.

    Args:
      name: Of the model.
      weights: None, or a source as for `load`.
      training: Compare a step of gradient descent instead, with dropout off: loss,
        gradients and running statistics. Not with weights.
      jit: Compiles the network.

    Raises:
      FileNotFoundError: The network has no golden file.
      ValueError: The model is unknown, or the weights do not fit.
    """
    get_spec(name)
    if weights is None:
        return _verify_golden(name, training, jit)
    if training:
        raise ValueError("training=True goes with deterministic weights alone.")
    return _verify_weights(name, weights, jit)


def golden_path(name: str) -> Path:
    """Where a network's golden file is, whether or not there is one."""
    return GOLDEN / f"{name}.npz"


def _verify_golden(name: str, training: bool, jit: Callable) -> Certificate:
    path = golden_path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"{name} has no golden file {path}; `tests/make_golden.py` makes them."
        )
    expected, facts = load_summaries(path)
    notes = [f"golden file of {facts['date']}, made by {facts['script']}"]
    if training:
        state = deterministic_state(name, **training_options(name))
        checks = _check_step(compute_step(name, state, jit), expected, facts)
        notes.append(
            "one training step without dropout; gradients are relative to their "
            f"layer's largest; tolerances allow for {SLACK} times the error of the "
            "reference itself in float32, those of gradients also for ReLUs and max "
            "pools near a tie"
        )
    else:
        found = compute_endpoints(name, deterministic_state(name), jit)
        checks = _check_endpoints(found, expected["endpoints"])
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
    # In the reference's order: what jax returns is sorted by name.
    known = [n for n in expected.names if n in found]
    arrays = {n: found[n] for n in [*known, *sorted({*found} - {*known})]}
    errors = measure(summarise_endpoints(arrays), expected)
    return [Check(n, arrays[n].shape, error, TOLERANCE) for n, error in errors.items()]


def _check_step(
    found: Mapping[str, Mapping[str, np.ndarray]],
    expected: Mapping[str, Summaries],
    facts: Mapping[str, Any],
) -> list[Check]:
    checks = []
    for section in ("loss", "gradients", "statistics"):
        summaries = summarise_parameters(found[section])
        errors = measure(summaries, expected[section], by_layer=section == "gradients")
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
    published = {w.name: w for w in get_spec(name).weights}
    path = Path(fetch(published[weights]) if weights in published else weights)
    loaded = load(name, weights)
    options = {"num_classes": loaded.card.num_classes, **loaded.card.overrides}
    state = to_torch(name, loaded.variables, **options)
    digest = file_sha256(path) if path.is_file() else "none: a folder"
    known = [w for w in published.values() if digest.startswith(w.sha256)]
    notes = [
        f"the file that {known[0].source} published as {known[0].name}"
        if known
        else "not a file that was published"
    ]
    broken = [key for key, array in state.items() if not np.isfinite(array).all()]
    if broken:
        notes.append(f"not finite ({len(broken)}): {', '.join(broken[:10])}")
    back = flatten(from_torch(name, state, **options))
    same = all(
        np.array_equal(back[path], leaf, equal_nan=True)
        for path, leaf in flatten(loaded.variables).items()
    )
    checks = [
        Check("finite weights", (), float(bool(broken)), 0.0),
        Check("to torch and back", (), float(not same), 0.0),
    ]
    reference = "none"
    if not has_counterpart(name):
        notes.append(f"torchvision has no {name}: endpoints were not compared")
    else:
        images = make_images(loaded.card.preprocess)
        try:
            reference = torchvision_version()
            expected = run_torchvision(name, state, images)
        except ImportError as error:
            notes.append(f"endpoints were not compared: {error}")
        else:
            found = run_endpoints(name, loaded.variables, images, options, jit)
            checks += [
                Check(n, a.shape, _relative(found[n], a), TOLERANCE)
                for n, a in expected.items()
            ]
    return Certificate(
        model=name,
        weights=f"{loaded.card.source}: {path}",
        sha256=digest,
        reference=reference,
        checks=tuple(checks),
        notes=tuple(notes),
    )


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    difference = np.abs(found.astype(np.float64) - expected).max()
    return float(difference / np.abs(expected).max())
