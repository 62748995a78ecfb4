"""Shared parts of the page's sections: the network, maps of a score, and galleries."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

import zoo
from train.figures.maps import blend, draw_heat, draw_projection
from train.report import Picture, Section, macros
from zoo import explain
from zoo.spec import Card

BATCH = 32
WHOLE = 2048  # largest size of a picture, in pixels
SIDE = 132  # pixels of a map beside its image
# The share of a map's values that are not clipped: a few extreme values would make
# all others dark.
CLIP = 0.99


class Network(NamedTuple):
    """A network with its variables.

    Attributes:
      model: The module.
      variables: The variables.
      card: The card of the variables, with their preprocessing.
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


def gallery_section(
    title: str, note: str, pictures: Sequence[Picture], width: int = 480
) -> Section:
    """Makes a section of pictures in columns of about `width` pixels."""
    body = macros.paragraph(note) + macros.gallery(pictures, "wide", width)
    return Section(title, body)


def draw_maps(
    network: Network,
    images: np.ndarray,
    scores: str,
    classes: np.ndarray,
    positions: np.ndarray | None,
    layers: Sequence[str],
) -> list[list[Image.Image]]:
    """Draws maps of the pixels that one score of each image depends on.

    Args:
      network: The network.
      images: uint8 [N, H, W, C], fitted to the network.
      scores: The name of the endpoint with the scores.
      classes: int [N], the channels of `scores`.
      positions: int [N, P], see `zoo.explain.deconvnet`.
      layers: The names of endpoints; the class activation map is that of the last one
        that the score depends on.

    Returns:
      For each image its saliency, guided backpropagation if there are rectifiers, and a
      class activation map if a layer is a feature map.
    """
    size = images.shape[1:3]
    args = (network.model, network.variables, network.normalize(images))
    gradient = explain.saliency(*args, scores, classes, positions)
    magnitude = np.abs(np.asarray(gradient)).max(-1)
    bright = np.quantile(magnitude, CLIP, axis=(1, 2))
    rows = [
        [draw_heat(values, size, low=0, high=float(high))]
        for values, high in zip(magnitude, bright, strict=True)
    ]
    if network.has_rectifiers:
        guided = explain.guided_backprop(*args, scores, classes, positions)
        for row, values in zip(rows, np.asarray(guided), strict=True):
            row.append(draw_projection(values, bgr=network.bgr, clip=CLIP))
    cam = _last_cam(network, args, layers, scores, classes, positions)
    if cam is not None:
        for row, image, values in zip(rows, images, cam, strict=True):
            row.append(blend(image, draw_heat(values, size, low=0)))
    return rows


def describe_maps(network: Network) -> str:
    """Returns the names of the maps that `draw_maps` draws."""
    guided = ", guided backprop" if network.has_rectifiers else ""
    return f"saliency{guided} and Grad-CAM (of the last layer above that matters)"


def _last_cam(
    network: Network,
    args: tuple,
    layers: Sequence[str],
    scores: str,
    classes: np.ndarray,
    positions: np.ndarray | None,
) -> np.ndarray | None:
    """Returns, for each image, the map of the last layer that is not 0: [N, H, W]."""
    shapes, cam = network.endpoints(), None
    for layer in reversed([name for name in layers if len(shapes[name]) == 3]):
        try:
            found = explain.grad_cam(*args, layer, classes, positions, scores=scores)
        except explain.IndependentError:
            continue
        found = np.asarray(found)[..., 0]
        empty = True if cam is None else ~cam.any(axis=(1, 2), keepdims=True)
        cam = np.where(empty, found, 0.0 if cam is None else cam)
        if cam.any(axis=(1, 2)).all():
            break
    return cam
