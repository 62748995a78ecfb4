"""Draws the picture of the lecture's claims, from the figures of studies.

python tests/benchmarks/benchmark_studies.py initialization batch_norm
python tests/benchmarks/benchmark_studies.py --scale medium degradation
python tests/benchmarks/benchmark_studies.py --scale medium which_layer few_images \\
    --dataset imagefolder:cifar100-few
python tests/benchmarks/benchmark_studies.py --scale medium detectors --dataset voc:BCCD
python tests/benchmarks/draw_lecture.py

Run all commands in the same folder; the studies go to its folder `runs`. If a study is
missing, nothing is drawn.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

OUT = Path(__file__).parents[2] / "colab" / "lecture.png"
# The study, its scale and figure, and the claim in a few words.
PANELS = (
    ("initialization", "quick", 2, "Initialization decides whether 30 layers learn"),
    (
        "batch_norm",
        "quick",
        1,
        "Batch norm learns faster, at rates that diverge without",
    ),
    (
        "degradation",
        "medium",
        1,
        "Plain networks get worse with depth, residual ones less",
    ),
    ("which_layer", "medium", 1, "Higher layers transfer better, the highest less"),
    ("few_images", "medium", 1, "Features of a large set help where images are few"),
    ("detectors", "medium", 1, "One pass is faster; here, and as published"),
)


def main() -> None:
    """Tiles the figures, each below its claim."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="studies")
    parser.add_argument("--out", type=Path, default=OUT, help="picture")
    options = parser.parse_args()
    paths = [
        options.runs / f"study-{name}-{scale}" / f"figure-{number}.png"
        for name, scale, number, _ in PANELS
    ]
    if missing := [str(path) for path in paths if not path.exists()]:
        parser.error(
            f"--runs {options.runs} lacks {', '.join(missing)}; "
            "benchmark_studies.py makes them."
        )
    figure = Figure(figsize=(13, 8.4), dpi=110, layout="constrained")
    axes = figure.subplots(3, 2)
    for axis, path, (_, _, _, claim) in zip(axes.flat, paths, PANELS, strict=True):
        axis.imshow(Image.open(path))
        axis.set_title(claim, fontsize=10)
        axis.axis("off")
    figure.savefig(options.out)
    Image.open(options.out).convert("RGB").quantize(256).save(
        options.out, optimize=True
    )
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
