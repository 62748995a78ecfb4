"""Draws the boxes or masks that a run predicts in three images, for README.md.

python -m train bccd_ssd --dataset voc:DIR --from ssd96_small:digits_canvas
python tests/benchmarks/draw_results.py RUN    # writes colab/cells.jpg

python -m train my_masks --dataset masks:DIR --data.ignored 11 --classes \\
    sky building pole road pavement tree sign fence car pedestrian bicyclist
python tests/benchmarks/draw_results.py RUN    # writes colab/masks.png

The images are the first, the middle and the last one of the run's evaluation split. The
photographs of BCCD are shown: their license, MIT, allows it. Those of CamVid have no
license that does, so true and predicted masks are shown without them.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import zoo
from train.config import load_config
from train.experiment import open_split
from zoo.figures.boxes import class_color, draw_boxes
from zoo.figures.masks import make_palette

matplotlib.use("agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[2] / "colab"
WORDS = {"RBC": "red cell", "WBC": "white cell", "Platelets": "platelet"}


def main() -> None:
    """Draws the predictions of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    run = parser.parse_args().run
    try:
        config = load_config(run / "config.json")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    task = zoo.get_spec(config.model.name).task
    if task not in ("detection", "segmentation"):
        parser.error(f"{run} is a run of {task}, not of detection or segmentation.")
    source = open_split(config.data, config.data.eval_split, task)
    places = np.linspace(0, len(source) - 1, 3).astype(int).tolist()
    examples, predict = [source[i] for i in places], zoo.make_predictor(run)
    draw = draw_cells if task == "detection" else draw_masks
    out = draw(examples, predict, source.class_names)
    print(f"{out}: {out.stat().st_size:,} bytes")


def draw_cells(examples: list[dict], predict, names: tuple[str, ...]) -> Path:
    """Draws photographs with boxes side by side, above a legend of the classes."""
    figure, axes = plt.subplots(1, len(examples), figsize=(13, 3.6), dpi=110)
    for axis, example in zip(axes, examples, strict=True):
        found = predict(example["image"])
        colors = [class_color(c) for c in found.classes]
        captions = [""] * len(found.boxes)
        axis.imshow(draw_boxes(found.image, found.boxes, captions, colors))
        axis.axis("off")
    colors = [np.array(class_color(c)) / 255 for c in range(len(names))]
    add_legend(figure, [WORDS.get(name, name) for name in names], colors, fontsize=13)
    figure.tight_layout(w_pad=0.6, rect=(0, 0.07, 1, 1))
    out = FOLDER / "cells.jpg"
    figure.savefig(out, pil_kwargs={"quality": 80, "optimize": True})
    return out


def draw_masks(examples: list[dict], predict, names: tuple[str, ...]) -> Path:
    """Draws true masks above predicted ones, above a legend of the classes."""
    palette = make_palette(names)
    figure, axes = plt.subplots(2, len(examples), figsize=(9.2, 5.3), dpi=100)
    for column, example in zip(axes.T, examples, strict=True):
        found = predict(example["image"])
        shown = np.where(example["mask"] == 255, 255, found.mask)
        for axis, mask in zip(column, (example["mask"], shown), strict=True):
            axis.imshow(palette[mask])
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[:, 0], ("true", "predicted"), strict=True):
        axis.set_ylabel(title, fontsize=13)
    add_legend(figure, names, palette[: len(names)] / 255, fontsize=11)
    figure.tight_layout(w_pad=0.5, h_pad=0.5, rect=(0, 0.1, 1, 1))
    out = FOLDER / "masks.png"
    figure.savefig(out)
    return out


def add_legend(figure, names, colors, fontsize: int) -> None:
    """Adds the names of the classes in their colors at the bottom of the figure."""
    marks = [plt.Line2D([], [], color=color, linewidth=5) for color in colors]
    options = dict(loc="lower center", ncols=6, frameon=False, fontsize=fontsize)
    figure.legend(marks, names, **options)


if __name__ == "__main__":
    main()
