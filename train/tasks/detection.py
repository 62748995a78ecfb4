"""Boxes with classes."""

import dataclasses

import jax.numpy as jnp

from zoo.detection.contract import Targets


@dataclasses.dataclass(frozen=True)
class Detection:
    """Finds objects. A batch has boxes with classes, and the sizes of its images.

    Attributes:
      difficult: Whether objects that are marked difficult are trained on. Evaluation
        counts them neither as found nor as missed.
    """

    difficult: bool = False
    name = "detection"

    def objective(self, model, variables, images, batch, rngs):
        """Returns the sum of the network's losses, each of them, new statistics."""
        valid = batch["box_valid"]
        if not self.difficult:
            valid &= ~batch["difficult"]
        targets = Targets(batch["boxes"], batch["classes"], valid)
        outputs, updated = model.apply(
            variables,
            images,
            batch["size"].astype(jnp.float32),
            train=True,
            targets=targets,
            mutable=["batch_stats"],
            rngs=rngs,
        )
        losses = model.losses(outputs, targets)
        return sum(losses.values()), losses, updated.get("batch_stats", {})
