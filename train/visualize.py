"""The page of visualizations of a network: filters, patches, saliency, occlusion.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014, figures 2
  and 6.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from markupsafe import Markup
from PIL import Image
from tqdm import tqdm

import zoo
from train.data import Source
from train.figures.maps import (
    blend,
    draw_classes,
    draw_filters,
    draw_grid,
    draw_heat,
    draw_projection,
)
from train.report import Picture, Section, macros, write_page
from zoo import explain
from zoo.figures.pictures import to_pil
from zoo.paths import flatten
from zoo.registry import unknown
from zoo.spec import Card

NINE = 9
# Pixels of a patch, and of a map beside its image.
CELL, SIDE = 44, 132
WHOLE = 2048  # no picture is larger
MOST_FILTERS = 96
MISTAKES, OCCLUDED = 6, 4
BATCH = 32
# Images that are projected at once.
PROJECTED = 36
# Channels whose way through training is shown, found in so many images.
HISTORY_CHANNELS, HISTORY_IMAGES = 6, 256
# Positions of the square along each axis, about.
SQUARES = 12


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


def write_visualization(
    network: Network,
    source: Source,
    path: Path,
    *,
    title: str,
    layers: Sequence[str] = (),
    channels: int = 16,
    limit: int = 1000,
    history: Mapping[int, Mapping[str, Any]] | None = None,
    quiet: bool = False,
) -> Path:
    """Writes one self-contained page of visualizations of a network.

    Args:
      network: The network.
      source: The images, fitted to the network by `train.data.fit_source`.
      path: The path of the page.
      title: The heading of the page.
      layers: The names of endpoints; empty for four feature maps.
      channels: The number of channels to show of each layer.
      limit: The largest number of images in which to search the strongest activations;
        they are evenly spaced in the source.
      history: The variables by training step, in order, to show how features develop;
        None not to show it.
      quiet: Whether to show no progress bar.

    Returns:
      `path`.

    Raises:
      ValueError: A layer is unknown or not a feature map, a number is out of range, or
        the source has no images.
    """
    if channels < 1 or limit < 1:
        raise ValueError(
            f"channels and limit must be 1 or more, got {channels} and {limit}."
        )
    if not len(source):
        raise ValueError(f"{source.name}, split {source.split}, has no images.")
    layers = _choose_layers(network, layers)
    count = min(limit, len(source))
    places = np.linspace(0, len(source) - 1, count).round().astype(int)
    total = len(layers) + 4
    with tqdm(total=total, unit=" parts", disable=quiet) as bar:
        bar.set_description("reading images")
        images = np.stack([source.image(int(i)) for i in places])
        bar.update()
        sections = [Section("Filters of the first layer", _filters(network))]
        for layer in layers:
            bar.set_description(f"{layer}: strongest patches")
            sections.append(_layer_section(network, images, layer, channels))
            bar.update()
        if history:
            bar.set_description("features through training")
            few = images[:: -(-len(images) // HISTORY_IMAGES)]
            sections += [
                _history_section(network, few, layer, history) for layer in layers
            ]
        bar.set_description("explaining predictions")
        sections += _predictions(network, source, places, images, layers[-1])
        bar.update(2)
        bar.set_description("writing")
        facts = {
            "model": network.card.model,
            "images": f"{len(images):,} of {len(source):,}",
            "data set": f"{source.name}, split {source.split}",
            "layers": ", ".join(layers),
        }
        numbers = {name: (value, "") for name, value in facts.items()}
        path = write_page(path, title, network.card.source, numbers, sections)
        bar.update()
    return path


def read_steps(run_dir: Path, most: int = 5) -> dict[int, Mapping[str, Any]]:
    """Reads the variables of a run's checkpoints.

    Args:
      run_dir: The folder of the run.
      most: The largest number of checkpoints; they are evenly spaced, with the first
        and the last.

    Returns:
      The variables by step, in order.
    """
    steps = sorted(
        int(path.name)
        for path in (run_dir / "checkpoints").iterdir()
        if path.name.isdigit()
    )
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return {steps[i]: zoo.weights.read_checkpoint(run_dir, steps[i])[0] for i in places}


def _choose_layers(network: Network, layers: Sequence[str]) -> list[str]:
    endpoints = network.endpoints()
    for layer in layers:
        if layer not in endpoints:
            raise ValueError(f"--layers: {unknown('endpoint', layer, endpoints)}")
    if layers:
        return [*layers]
    classes = {network.card.num_classes, network.card.num_classes + 1}
    maps = [
        name
        for name, shape in endpoints.items()
        if len(shape) == 3 and min(shape[:2]) >= 3 and shape[2] not in classes
        if not name.endswith("mask")
    ]
    # Pooling and normalization show the features of the layer before them.
    kept = [n for n in maps if "pool" not in n and "norm" not in n] or maps
    if not kept:
        raise ValueError(f"--layers: name some of {[*endpoints]}.")
    places = np.linspace(0, len(kept) - 1, min(4, len(kept))).round().astype(int)
    return [kept[i] for i in places]


def _filters(network: Network) -> str:
    params = flatten(network.variables["params"])
    for layer in zoo.list_layers(network.model, network.card.preprocess.shape):
        kernel = params.get(f"{layer.path}/kernel")
        if kernel is not None and kernel.ndim == 4 and kernel.shape[2] in (1, 3):
            pictures = draw_filters(kernel, bgr=network.bgr)[:MOST_FILTERS]
            grid = draw_grid(pictures, CELL, 16)
            note = f"{layer.path}, {kernel.shape[-1]} filters of {kernel.shape[0]} x "
            note += f"{kernel.shape[1]}, each stretched to its own range."
            picture = Picture(grid, f"filters of {layer.path}", note, size=WHOLE)
            return macros.gallery([picture], "wide")
    return macros.paragraph("The first layer is not a convolution of the image.")


def _batches(
    network: Network, images: np.ndarray
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Yields normalized batches of one size, the last one padded, and `valid`."""
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        valid = np.arange(BATCH) < len(part)
        rest = np.repeat(part[:1], BATCH - len(part), axis=0)
        yield network.normalize(np.concatenate([part, rest])), valid


def _layer_section(
    network: Network, images: np.ndarray, layer: str, channels: int
) -> Section:
    model, variables = network.model, network.variables
    batches = _batches(network, images)
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
            left, upper, right, lower = field.boxes[
                tuple(place) if len(place) else (0, 0)
            ]
            box = np.s_[upper:lower, left:right]
            patches.append(to_pil(images[image][box]).convert("RGB"))
            drawn.append(draw_projection(values[box], bgr=network.bgr))
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
    return _gallery(f"Layer {layer}", note, figures, 2 * 3 * (CELL + 2) + 12)


def _history_section(
    network: Network,
    images: np.ndarray,
    layer: str,
    history: Mapping[int, Mapping[str, Any]],
) -> Section:
    """Makes the paper's figure 4: the strongest projections of channels by step."""
    channels = network.endpoints()[layer][-1]
    count = min(HISTORY_CHANNELS, channels)
    chosen = np.linspace(0, channels - 1, count).round().astype(int)
    rows: list[list[Image.Image]] = [[] for _ in chosen]
    for variables in history.values():
        then = network._replace(variables=variables)
        batches = _batches(then, images)
        top = explain.top_activations(network.model, variables, batches, layer, 1)
        projected = _project(then, images, layer, top, chosen)
        for row, values in zip(rows, projected, strict=True):
            row.append(draw_projection(values[0], bgr=network.bgr))
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
    """Projects the strongest activations into images: [channels, k, H, W, C]."""
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


def _predictions(
    network: Network, source: Source, places: np.ndarray, images: np.ndarray, layer: str
) -> list[Section]:
    """Makes the sections that explain predictions."""
    if len(network.endpoints().get("logits", ())) == 1:
        labels = np.asarray(source.labels)[places]
        return _classifier(network, labels, images, layer)
    return [_other(network, images, layer)]


def _classifier(
    network: Network, labels: np.ndarray, images: np.ndarray, layer: str
) -> list[Section]:
    forward = jax.jit(network.model.apply)
    shares = np.concatenate(
        [
            np.asarray(jax.nn.softmax(forward(network.variables, batch)))[valid]
            for batch, valid in _batches(network, images)
        ]
    )
    predicted = shares.argmax(-1)
    surest = shares.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][:MISTAKES]
    right = np.flatnonzero(predicted == labels)
    # The most confident image of each of some classes.
    right = right[np.argsort(-surest[right], kind="stable")]
    _, first = np.unique(labels[right], return_index=True)
    right = right[np.sort(first)][:OCCLUDED]
    names = network.names
    figures = []
    if len(wrong):
        maps = _explain(network, images[wrong], layer, predicted[wrong])
        for i, row in zip(wrong, maps, strict=True):
            said, true = names[predicted[i]], names[labels[i]]
            caption = Markup("<b>{}</b> {:.1%}<br>truth: {}")
            caption = caption.format(said, float(surest[i]), true)
            alt = f"{true} taken for {said}"
            figures.append(Picture(row, alt, caption, size=WHOLE))
    note = (
        "Image, saliency, guided backprop and Grad-CAM of the class that was said, at "
        f"{layer}."
    )
    sections = [_gallery("Why the worst mistakes", note, figures)]
    if len(right):
        sections.append(_occlusion(network, images[right], labels[right], layer))
    return sections


def _explain(
    network: Network,
    images: np.ndarray,
    layer: str,
    classes: np.ndarray,
    positions: np.ndarray | None = None,
    scores: str = "logits",
) -> list[Image.Image]:
    """Draws a row for each image: the image and up to three maps."""
    batch, size = network.normalize(images), images.shape[1:3]
    args = (network.model, network.variables, batch)
    gradient = explain.saliency(*args, scores, classes, positions)
    magnitude = np.abs(np.asarray(gradient)).max(-1)
    guided = None
    if network.has_rectifiers:
        guided = np.asarray(explain.guided_backprop(*args, scores, classes, positions))
    cam = None
    if len(network.endpoints()[layer]) == 3:
        cam = explain.grad_cam(*args, layer, classes, positions, scores=scores)
        cam = np.asarray(cam)[..., 0]
    rows = []
    for i, image in enumerate(images):
        # Clipped, or a few extreme gradients would make all others dark.
        bright = float(np.quantile(magnitude[i], 0.995))
        row = [to_pil(image), draw_heat(magnitude[i], size, low=0, high=bright)]
        if guided is not None:
            row.append(draw_projection(guided[i], bgr=network.bgr))
        if cam is not None:
            row.append(blend(image, draw_heat(cam[i], size, low=0)))
        rows.append(draw_grid(row, SIDE, len(row)))
    return rows


def _occlusion(
    network: Network, images: np.ndarray, labels: np.ndarray, layer: str
) -> Section:
    height, width = images.shape[1:3]
    side = max(2, min(height, width) // 4)
    stride = max(1, (min(height, width) - side) // SQUARES)
    found = explain.occlusion(
        network.model,
        network.variables,
        network.normalize(images),
        layer,
        size=side,
        stride=stride,
        labels=labels,
        chunk=BATCH,
    )
    figures = []
    for i, image in enumerate(images):
        size = (SIDE, SIDE)
        classes, colors = draw_classes(np.asarray(found.predicted[i]), size)
        row = [
            to_pil(image),
            draw_heat(found.activation[i], size),
            draw_heat(found.probability[i], size, low=0, high=1),
            classes,
        ]
        legend = Markup(", ").join(
            Markup('<span style="color:{}">■</span> {}').format(
                color, network.names[number]
            )
            for number, color in [*colors.items()][:6]
        )
        low, high = (float(f(found.probability[i])) for f in (np.min, np.max))
        caption = Markup("<b>{}</b>, channel {}").format(
            network.names[labels[i]], int(found.channels[i])
        )
        shares = Markup("probability {:.2f} to {:.2f}; says {}")
        shares = shares.format(low, high, legend)
        grid = draw_grid(row, SIDE, 4)
        figures.append(Picture(grid, "occlusion maps", caption, shares, WHOLE))
    note = (
        f"A square of {side} x {side} pixels of the mean color is moved by {stride}. "
        f"Image; sum of the strongest channel of {layer}; probability of the true "
        "class, dark for 0; most probable class. Each pixel of a map is a position of "
        "the square."
    )
    return _gallery("What happens when a part is hidden", note, figures)


def _other(network: Network, images: np.ndarray, layer: str) -> Section:
    """Explains the most confident box or pixel of a detector or segmenter."""
    some = images[np.linspace(0, len(images) - 1, MISTAKES).round().astype(int)]
    some = some[: len(images)]
    batch = network.normalize(some)
    outputs = network.model.apply(network.variables, batch, method="endpoints")
    called = network.model.apply(network.variables, batch)
    known = dict(outputs) | (called if isinstance(called, dict) else {})
    kinds = ("logits", "class_logits", "classes", "margins")
    scores = next((name for name in kinds if name in known), None)
    if scores is None:
        note = macros.paragraph(f"There are no scores among {[*known]}.")
        return Section("Why", note)
    values = np.asarray(known[scores], np.float32)
    # The first score of a box can be that of the background.
    first = values.shape[-1] - network.card.num_classes
    flat = values[..., first:].reshape(len(some), -1)
    best = np.unravel_index(
        flat.argmax(-1), (*values.shape[1:-1], values.shape[-1] - first)
    )
    positions, classes = np.stack(best[:-1], -1), best[-1]
    maps = _explain(network, some, layer, classes + first, positions, scores)
    figures = [
        Picture(
            row,
            f"why {network.names[c]}",
            Markup("<b>{}</b>").format(network.names[c]),
            f"{scores} at {place.tolist()}",
            WHOLE,
        )
        for row, c, place in zip(maps, classes, positions, strict=True)
    ]
    note = (
        "Image, saliency, guided backprop and Grad-CAM of the one box or pixel with "
        f"the highest score of a class, at {layer}."
    )
    return _gallery("Why it is this", note, figures)


def _gallery(
    title: str, note: str, pictures: Sequence[Picture], width: int = 480
) -> Section:
    """Makes a section of pictures in columns of about `width` pixels."""
    body = macros.paragraph(note) + macros.gallery(pictures, "wide", width)
    return Section(title, body)
