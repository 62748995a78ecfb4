"""Measures segmentation networks beside torchvision's and plain PyTorch ones.

# about 20 minutes on two cores
python tests/benchmarks/benchmark_segmentation.py
python tests/benchmarks/benchmark_segmentation.py unet --cells inference_1
# writes the table to the README
python tests/benchmarks/benchmark_segmentation.py --readme

PyTorch's fcn_resnet50 is torchvision's; the other networks are the simple PyTorch
implementations with which the tests compare the zoo (`restate_*.py`). Nothing else
should run.
"""

import sys
from pathlib import Path

from benchmark_pairs import Benchmark
from huge_pages import restart_with_huge_pages

CELLS = ("inference_1", "train_1")
BENCHMARK = Benchmark(
    title=(
        "Segmentation networks in float32: FCN at 520 x 520 pixels, U-Net at 572 x "
        "572, SegNet at 360 x 480, FRRN-A at 256 x 512 and PSPNet at 473 x 473."
    ),
    command="python tests/benchmarks/benchmark_segmentation.py",
    out=Path(__file__).parent / "segmentation.json",
    block="segmentation",
    networks={
        "fcn_resnet50": CELLS,
        "unet": CELLS,
        "segnet": CELLS,
        "frrn_a": CELLS,
        # With one image, batch norm would see a single value in the coarsest bin.
        "pspnet_resnet50": ("inference_1", "train_2"),
    },
    kinds={"inference": "inference", "train": "training step"},
    zoo="benchmark_segmentation_jax",
    torch="benchmark_segmentation_torch",
    quick={"unet_small": ("inference_1", "train_1")},
)

if __name__ == "__main__":
    restart_with_huge_pages()  # The memory of all sides.
    BENCHMARK.main(sys.argv[1:])
