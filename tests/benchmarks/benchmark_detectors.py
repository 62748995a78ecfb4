"""Measures whole detectors, from pixels to boxes, beside torchvision's.

# about 25 minutes on two cores
python tests/benchmarks/benchmark_detectors.py
python tests/benchmarks/benchmark_detectors.py ssd300_vgg16 --cells detect_1
# writes the table to the README
python tests/benchmarks/benchmark_detectors.py --readme

Both sides have the same weights, images and objects; nothing else should run. Where
torchvision's compiled operators are missing, a Python script replaces NMS and RoIAlign,
and the table says so. The cells "network" use neither.
"""

import sys
from pathlib import Path

from benchmark_pairs import Benchmark
from huge_pages import restart_with_huge_pages

CELLS = ("network_1", "detect_1", "detect_8", "train_4")
BENCHMARK = Benchmark(
    title=(
        "Whole detectors in float32: Faster R-CNN on images of 600 x 800 pixels, which "
        "it enlarges to 800 x 1066, SSD on 375 x 500; training with 8 objects an image."
    ),
    command="python tests/benchmarks/benchmark_detectors.py",
    out=Path(__file__).parent / "detectors.json",
    block="detectors",
    networks={"ssd300_vgg16": CELLS, "faster_rcnn_resnet50_fpn": CELLS},
    kinds={
        "network": "maps and heads alone",
        "detect": "pixels to boxes",
        "train": "training step",
    },
    zoo="benchmark_detectors_jax",
    torch="benchmark_detectors_torch",
    quick={"ssd300_vgg16": ("network_1", "detect_1")},
)

if __name__ == "__main__":
    restart_with_huge_pages()  # The memory of all sides.
    BENCHMARK.main(sys.argv[1:])
