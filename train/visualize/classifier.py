"""Explains a classifier's predictions: its worst mistakes, and occlusion maps."""

from collections.abc import Sequence

import jax
import numpy as np
from markupsafe import Markup

from train.figures.maps import draw_classes, draw_grid, draw_heat
from train.report import Picture, Section
from train.visualize.parts import (
    BATCH,
    SIDE,
    WHOLE,
    Network,
    describe_maps,
    draw_maps,
    gallery_section,
)
from zoo import explain
from zoo.cpu import jit_inference
from zoo.figures.pictures import to_pil

MISTAKES, OCCLUDED = 6, 4
SURE = 0.9  # approximate probability of the images that are occluded
# Approximate number of positions of the square along each axis.
SQUARES = 12


def classifier_sections(
    network: Network, images: np.ndarray, labels: np.ndarray, layers: Sequence[str]
) -> list[Section]:
    """Explains the worst mistakes of a classifier, and the effect of hiding parts.

    Args:
      network: A classifier.
      images: uint8 [N, H, W, C], fitted to the network.
      labels: int [N], the classes of the images.
      layers: The names of endpoints; the last one is used for the occlusion maps.
    """
    forward = jit_inference(network.model.apply)
    shares = np.concatenate(
        [
            np.asarray(jax.nn.softmax(forward(network.variables, batch)))[valid]
            for batch, valid in network.batches(images)
        ]
    )
    predicted = shares.argmax(-1)
    surest = shares.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][:MISTAKES]
    right = np.flatnonzero(predicted == labels)
    # One image of each class, not so certain that hiding a part changes nothing.
    right = right[np.argsort(np.abs(surest[right] - SURE), kind="stable")]
    _, first = np.unique(labels[right], return_index=True)
    right = right[np.sort(first)][:OCCLUDED]
    names = network.names
    figures = []
    if len(wrong):
        some = images[wrong], "logits", predicted[wrong], None
        for i, maps in zip(wrong, draw_maps(network, *some, layers), strict=True):
            said, true = names[predicted[i]], names[labels[i]]
            caption = Markup("<b>{}</b> {:.1%}<br>truth: {}")
            caption = caption.format(said, float(surest[i]), true)
            alt = f"{true} taken for {said}"
            grid = draw_grid([to_pil(images[i]), *maps], SIDE, 1 + len(maps))
            figures.append(Picture(grid, alt, caption, size=WHOLE))
    note = f"The image; {describe_maps(network)} of the class that was said."
    sections = [gallery_section("Why the worst mistakes", note, figures)]
    if len(right):
        sections.append(_occlusion(network, images[right], labels[right], layers[-1]))
    return sections


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
    return gallery_section("What happens when a part is hidden", note, figures)
