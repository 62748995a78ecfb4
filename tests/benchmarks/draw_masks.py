"""Draws the masks that a run on CamVid predicts beside the true ones, for the README.

python -m train my_masks --dataset masks:DIR --data.ignored 11 --classes \\
    sky building pole road pavement tree sign fence car pedestrian bicyclist
python tests/benchmarks/draw_masks.py RUN

The images are the first, the middle and the last one of the split that the run was
evaluated on. The photographs have no license that lets them be shown.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

import zoo
from train.config import load_config
from train.experiment import open_split
from zoo.figures.masks import make_palette

matplotlib.use("agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parents[2] / "colab" / "masks.png"
SHOWN = 3


def main(run: str) -> None:
    """Draws true masks above predicted ones, over a legend of the classes."""
    data = load_config(Path(run) / "config.json").data
    source = open_split(data, data.eval_split, "segmentation")
    predict, names = zoo.make_predictor(run), source.class_names
    palette = make_palette(names)
    figure, axes = plt.subplots(2, SHOWN, figsize=(9.2, 5.3), dpi=100)
    places = np.linspace(0, len(source) - 1, SHOWN).astype(int).tolist()
    for column, place in zip(axes.T, places, strict=True):
        example = source[place]
        found = predict(example["image"])
        shown = np.where(example["mask"] == 255, 255, found.mask)
        for axis, mask in zip(column, (example["mask"], shown), strict=True):
            axis.imshow(palette[mask])
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[:, 0], ("true", "predicted"), strict=True):
        axis.set_ylabel(title, fontsize=13)
    marks = [
        plt.Line2D([], [], color=color / 255, linewidth=5)
        for color in palette[: len(names)]
    ]
    options = dict(ncols=6, frameon=False, fontsize=11)
    figure.legend(marks, names, loc="lower center", **options)
    figure.tight_layout(w_pad=0.5, h_pad=0.5, rect=(0, 0.1, 1, 1))
    figure.savefig(OUT)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
