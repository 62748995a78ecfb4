"""What a comparison of a network with its source found."""

import dataclasses


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
