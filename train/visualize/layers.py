"""Shows what the channels of a layer respond to, now and during training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

import zoo
from train.figures.maps import draw_filters, draw_grid, draw_projection
from train.report import Picture, Section, macros
from train.visualize.parts import CLIP, WHOLE, Network, gallery_section
from zoo import explain
from zoo.figures.pictures import to_pil
from zoo.paths import flatten

NINE = 9
CELL = 44  # pixels of a patch
MOST_FILTERS = 96
HISTORY_CHANNELS = 6
# Number of images in a batch of projections.
PROJECTED = 36


def filters_section(network: Network) -> Section:
    """Shows the filters of the first layer."""
    title = "Filters of the first layer"
    params = flatten(network.variables["params"])
    for layer in zoo.list_layers(network.model, network.card.preprocess.shape):
        kernel = params.get(f"{layer.path}/kernel")
        if kernel is not None and kernel.ndim == 4 and kernel.shape[2] in (1, 3):
            pictures = draw_filters(kernel, bgr=network.bgr)[:MOST_FILTERS]
            grid = draw_grid(pictures, CELL, 16)
            note = f"{layer.path}, {kernel.shape[-1]} filters of {kernel.shape[0]} x "
            note += f"{kernel.shape[1]}, each stretched to its own range."
            picture = Picture(grid, f"filters of {layer.path}", note, size=WHOLE)
            return Section(title, macros.gallery([picture], "wide"))
    none = macros.paragraph("The first layer is not a convolution of the image.")
    return Section(title, none)


def layer_section(
    network: Network, images: np.ndarray, layer: str, channels: int
) -> Section:
    """Shows the patches with the strongest activations beside their projections."""
    model, variables = network.model, network.variables
    batches = network.batches(images)
    top = explain.top_activations(model, variables, batches, layer, NINE)
    alive = np.flatnonzero(top.values[:, 0] > 0)
    chosen = alive
    if len(alive) > channels:
        chosen = alive[np.linspace(0, len(alive) - 1, channels).round().astype(int)]
    projections = _project(network, images, layer, top, chosen)
    method = "deconvnet" if network.has_rectifiers else "gradients, without rectifiers"
    shape = network.card.preprocess.shape
    field = explain.receptive_field(model, layer, image_shape=shape)
    figures = []
    for channel, projected in zip(chosen, projections, strict=True):
        patches, drawn = [], []
        for image, place, values in zip(
            top.images[channel], top.positions[channel], projected, strict=True
        ):
            box = _window(field, place)
            patches.append(to_pil(images[image][box]).convert("RGB"))
            drawn.append(draw_projection(values[box], bgr=network.bgr, clip=CLIP))
        grids = [draw_grid(each, CELL, 3) for each in (drawn, patches)]
        both = draw_grid(grids, max(grids[0].size), 2)
        name = f"channel {channel}"
        largest = f"largest activation {top.values[channel, 0]:.3g}"
        figures.append(Picture(both, name, name, largest, WHOLE))
    size = " x ".join(map(str, np.minimum(field.size, shape[:2])))
    note = (
        f"{len(chosen)} of {len(alive)} active channels ({len(top.values)} in all): "
        f"the projections ({method}) of the nine strongest activations, each in a "
        f"different image, beside the {size} pixels in their receptive fields."
    )
    return gallery_section(f"Layer {layer}", note, figures, 2 * 3 * (CELL + 2) + 12)


def _window(field: explain.ReceptiveField, place: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and columns that a unit sees; all for one without position."""
    left, upper, right, lower = field.boxes[tuple(place) if len(place) else (0, 0)]
    return np.s_[upper:lower, left:right]


def history_section(
    network: Network,
    images: np.ndarray,
    layer: str,
    history: Mapping[int, Mapping[str, Any]],
) -> Section:
    """Shows the strongest projections of channels by step, as in figure 4."""
    channels = network.endpoints()[layer][-1]
    count = min(HISTORY_CHANNELS, channels)
    chosen = np.linspace(0, channels - 1, count).round().astype(int)
    shape = network.card.preprocess.shape
    field = explain.receptive_field(network.model, layer, image_shape=shape)
    rows: list[list[Image.Image]] = [[] for _ in chosen]
    for variables in history.values():
        then = network._replace(variables=variables)
        batches = then.batches(images)
        top = explain.top_activations(network.model, variables, batches, layer, 1)
        projected = _project(then, images, layer, top, chosen)
        for row, channel, values in zip(rows, chosen, projected, strict=True):
            box = _window(field, top.positions[channel, 0])
            row.append(draw_projection(values[0][box], bgr=network.bgr, clip=CLIP))
    cells = [picture for row in rows for picture in row]
    grid = draw_grid(cells, 2 * CELL, len(history))
    caption = (
        f"channels {', '.join(map(str, chosen))}, from above; steps "
        f"{', '.join(map(str, history))}, from the left. Each cell is the projection "
        f"of the strongest activation in {len(images)} images."
    )
    name = f"{layer} through training"
    picture = Picture(grid, name, caption, size=WHOLE)
    return Section(f"Layer {name}", macros.gallery([picture], "wide"))


def _project(
    network: Network,
    images: np.ndarray,
    layer: str,
    top: explain.Strongest,
    chosen: np.ndarray,
) -> np.ndarray:
    """Projects the strongest activations to pixels: [channels, k, H, W, C]."""
    method = explain.deconvnet if network.has_rectifiers else explain.saliency
    k = top.values.shape[1]
    which = top.images[chosen].reshape(-1)
    places = top.positions[chosen].reshape(len(which), -1)
    numbers = np.repeat(chosen, k)
    found = []
    for first in range(0, len(which), PROJECTED):
        # The last batch is padded, so that one size is compiled.
        part = np.arange(first, first + PROJECTED) % len(which)
        found.append(
            method(
                network.model,
                network.variables,
                network.normalize(images[which[part]]),
                layer,
                numbers[part],
                places[part],
            )
        )
    whole = np.concatenate([np.asarray(each) for each in found])[: len(which)]
    return whole.reshape(len(chosen), k, *whole.shape[1:])
