"""Certificates: the results of a comparison of a network with its source."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
      name: Name of an endpoint, or of a result of a training step.
      shape: Shape of the array; empty for several arrays.
      error: Largest difference, relative to the largest magnitude.
      tolerance: Largest error that passes.
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
    """The results of a comparison.

    Attributes:
      model: Name of the network.
      weights: Origin of the weights.
      sha256: Hash of the weights' file, or of the golden file for deterministic ones.
      reference: Software that computed the expected values.
      checks: Comparisons, at least one for each endpoint.
      notes: Remarks, such as on comparisons that were not possible.
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
        """Formats the certificate as text."""
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
