"""A network with its variables, as the pages of visualizations show it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import zoo
from zoo import explain
from zoo.spec import Card

BATCH = 32


class Network(NamedTuple):
    """A network with its variables.

    Attributes:
      model: The module.
      variables: The variables.
      card: The facts of the variables, such as their preprocessing.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    card: Card

    @property
    def bgr(self) -> bool:
        """Whether the channels of the input are blue, green and red."""
        return self.card.preprocess.channel_order == "bgr"

    @property
    def names(self) -> Sequence[str]:
        """The names of the classes."""
        return self.card.class_names or [str(i) for i in range(self.card.num_classes)]

    @property
    def has_rectifiers(self) -> bool:
        """Whether deconvnet and guided backpropagation can be used."""
        example = jnp.zeros((1, *self.card.preprocess.shape))
        return explain.count_rectifiers(self.model, self.variables, example) > 0

    def endpoints(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the endpoints for one image."""
        return zoo.list_endpoints(self.model, self.card.preprocess.shape)

    def normalize(self, images: np.ndarray) -> jax.Array:
        """Normalizes images uint8 [B, H, W, C] for the network."""
        return zoo.normalize(jnp.asarray(images), self.card.preprocess)

    def batches(self, images: np.ndarray) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Yields normalized batches of one size, the last one padded, and `valid`."""
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            valid = np.arange(BATCH) < len(part)
            rest = np.repeat(part[:1], BATCH - len(part), axis=0)
            yield self.normalize(np.concatenate([part, rest])), valid
