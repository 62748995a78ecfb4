"""Draws the picture of the README, from the weights that the package carries.

python tests/benchmarks/draw_overview.py
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

import zoo
from train.data import load_dataset
from train.figures.faces import draw_alignment
from zoo import explain

matplotlib.use("agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parents[2] / "colab" / "overview.png"


def main() -> None:
    """Draws four panels side by side."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    images = load_dataset("digits_canvas", "test[:200]")
    panels = {
        "SSD: from pixels to boxes": draw_boxes(images),
        "U-Net: the class of each pixel": draw_masks(images),
        "DeepFace: aligned in three dimensions": draw_faces(),
        "Deconvnet: strongest patches, and what counts in them": draw_units(images),
    }
    ratios = [picture.width / picture.height for picture in panels.values()]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(13, 2.6), dpi=110, width_ratios=ratios
    )
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout(w_pad=0.8)
    figure.savefig(OUT, bbox_inches="tight")
    Image.open(OUT).convert("RGB").quantize(200).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


def tile(pictures: list, columns: int, side: int, gap: int = 4) -> Image.Image:
    """Tiles pictures, each resized to a square."""
    rows = -(-len(pictures) // columns)
    size = columns * (side + gap) - gap, rows * (side + gap) - gap
    sheet = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        picture = picture if isinstance(picture, Image.Image) else to_image(picture)
        place = (i % columns) * (side + gap), (i // columns) * (side + gap)
        sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), place)
    return sheet


def to_image(array: np.ndarray) -> Image.Image:
    """Scales an array [h, w, 3] to what an image can show."""
    if array.dtype != np.uint8:
        array = 0.5 + 0.5 * array / np.quantile(np.abs(array), 0.99)
        array = np.uint8(255 * array.clip(0, 1))
    return Image.fromarray(array)


def draw_boxes(images) -> Image.Image:
    """Draws what SSD finds in four images."""
    predict, side = zoo.make_predictor("ssd96_small", weights="digits_canvas"), 180
    pictures = []
    for i in range(4):
        found = predict(images.image(i))
        picture = to_image(found.image).resize((side, side), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for box, label in zip(found.boxes, found.labels, strict=True):
            corners = [float(x) * side / found.image.shape[0] for x in box]
            pen.rectangle(corners, outline="white", width=2)
            pen.text((corners[0] + 4, corners[1] + 1), label, fill="white")
        pictures.append(picture)
    return tile(pictures, 2, side)


def draw_masks(images) -> Image.Image:
    """Draws four images and their classes by U-Net."""
    model, variables, card = zoo.create_with_card("unet_small", weights="digits_canvas")
    batch = np.stack([images.image(i) for i in range(4, 8)])
    classes, _ = zoo.make_segmenter(model, card.preprocess)(variables, batch)
    colors = np.uint8(255 * np.array(plt.get_cmap("tab10").colors))
    colors = np.concatenate([np.zeros((1, 3), np.uint8), colors])
    shown = [x for pair in zip(batch, colors[classes], strict=True) for x in pair]
    return tile(shown, 4, 180)


def draw_faces() -> Image.Image:
    """Draws photographs of the synthetic people and their aligned crops."""
    people = load_dataset("faces_synthetic_tiny", "test")
    rows = [
        draw_alignment(people.image(i), people.landmarks(i), 96) for i in (1, 6, 11)
    ]
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def draw_units(images) -> Image.Image:
    """Draws the strongest patches of some units of SSD, and their projections."""
    model, variables, card = zoo.create_with_card(
        "ssd96_small", weights="digits_canvas"
    )
    batch = np.stack([images.image(i) for i in range(200)])
    inputs = zoo.normalize(batch, card.preprocess)
    layer, shown = "stage3", 4
    top = explain.top_activations(model, variables, [inputs], layer, shown)
    field = explain.receptive_field(model, layer)
    rows = []
    for unit in np.argsort(-top.values[:, 0])[:shown]:
        which, places = top.images[unit], top.positions[unit]
        maps = explain.deconvnet(
            model, variables, inputs[which], layer, int(unit), places
        )
        boxes = [field.boxes[tuple(place)] for place in places]
        cuts = [np.s_[y1:y2, x1:x2] for x1, y1, x2, y2 in boxes]
        rows += [batch[i][c] for i, c in zip(which, cuts, strict=True)]
        rows += [np.asarray(m)[c] for m, c in zip(maps, cuts, strict=True)]
    return tile(rows, 2 * shown, 90)


if __name__ == "__main__":
    main()
