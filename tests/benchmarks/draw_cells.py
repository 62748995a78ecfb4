"""Draws what a run of `bccd_ssd` finds in photographs, for the README.

python -m train bccd_ssd --dataset voc:DIR --from ssd96_small:digits_canvas
python tests/benchmarks/draw_cells.py RUN

The photographs are the first, the middle and the last one of the split that the run was
evaluated on; BCCD's license, MIT, lets them be shown.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

import zoo
from train.config import load_config
from train.data import load_dataset
from zoo.figures.boxes import class_color, draw_boxes

matplotlib.use("agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parents[2] / "colab" / "cells.jpg"
WORDS = {"RBC": "red cell", "WBC": "white cell", "Platelets": "platelet"}
SHOWN = 3


def main(run: str) -> None:
    """Draws photographs side by side, over a legend of the classes."""
    data = load_config(Path(run) / "config.json").data
    images = load_dataset(data.dataset, data.eval_split)
    predict = zoo.make_predictor(run)
    figure, axes = plt.subplots(1, SHOWN, figsize=(13, 3.6), dpi=110)
    places = np.linspace(0, len(images) - 1, SHOWN).astype(int).tolist()
    for axis, place in zip(axes, places, strict=True):
        found = predict(images.image(place))
        colors = [class_color(c) for c in found.classes]
        captions = [""] * len(found.boxes)
        axis.imshow(draw_boxes(found.image, found.boxes, captions, colors))
        axis.axis("off")
    marks = [
        plt.Line2D([], [], color=np.array(class_color(c)) / 255, linewidth=4)
        for c in range(len(images.class_names))
    ]
    names = [WORDS.get(name, name) for name in images.class_names]
    figure.legend(
        marks, names, loc="lower center", ncols=len(names), frameon=False, fontsize=13
    )
    figure.tight_layout(w_pad=0.6, rect=(0, 0.07, 1, 1))
    figure.savefig(OUT.with_suffix(".png"))
    picture = Image.open(OUT.with_suffix(".png")).convert("RGB")
    picture.save(OUT, quality=80, optimize=True)
    OUT.with_suffix(".png").unlink()
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
