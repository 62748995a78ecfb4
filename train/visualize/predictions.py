"""Why a network predicts what it does: saliency, class activation maps, occlusion."""

import jax
import numpy as np
from markupsafe import Markup
from PIL import Image

from train.figures.maps import (
    blend,
    draw_classes,
    draw_grid,
    draw_heat,
    draw_projection,
)
from train.report import Picture, Section, macros
from train.visualize.network import BATCH, Network
from train.visualize.parts import WHOLE, gallery_section
from zoo import explain
from zoo.figures.pictures import to_pil

SIDE = 132  # pixels of a map beside its image
MISTAKES, OCCLUDED = 6, 4
# Positions of the square along each axis, about.
SQUARES = 12


def prediction_sections(
    network: Network, images: np.ndarray, labels: np.ndarray | None, layer: str
) -> list[Section]:
    """Explains mistakes and occlusion of a classifier, or scores of another network.

    Args:
      network: The network.
      images: uint8 [N, H, W, C], fitted to the network.
      labels: int [N], the classes of the images; None where images have no classes.
      layer: The name of the endpoint that is explained beside the scores.
    """
    if labels is None:
        return [_scores_section(network, images, layer)]
    return _classifier_sections(network, images, labels, layer)


def _classifier_sections(
    network: Network, images: np.ndarray, labels: np.ndarray, layer: str
) -> list[Section]:
    forward = jax.jit(network.model.apply)
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
    sections = [gallery_section("Why the worst mistakes", note, figures)]
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
    return gallery_section("What happens when a part is hidden", note, figures)


def _scores_section(network: Network, images: np.ndarray, layer: str) -> Section:
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
    return gallery_section("Why it is this", note, figures)
