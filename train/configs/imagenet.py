"""The data shared by the ImageNet recipes: its two layouts, and how hosts read it.

    canon-zoo train imagenet_resnet50 --data-dir DIR
    canon-zoo train imagenet_resnet50 --dataset imagefolder:DIR

The first command reads TFDS's `imagenet2012`, prepared in DIR with
`file_format="array_record"`; the second a folder with train/ and val/, each with one
folder per class, or a zip file of it. Images are stored in their own sizes, since each
step takes new crops of them. Gray and CMYK images become RGB.

On several hosts, run the same command on each, with `--distributed` after `train` and a
`--run-dir` that all of them see; each host reads and decodes its share of each batch.
Decoding needs CPU cores: `python tests/benchmarks/benchmark_input.py` measures how many
images per second one core decodes and crops; `--data.workers` sets the number of
processes.
"""

from train.config import DataConfig


def imagenet(crop: str, *augment: str, batch_size: int) -> DataConfig:
    """The 1,281,167 training images, and the 50,000 validation images to evaluate on.

    Args:
      crop: Training crop, see `train.data.parse_crop`; evaluation crops the center.
      *augment: Augmentations after the flip that all recipes have.
      batch_size: Images per step, over all devices.
    """
    return DataConfig(
        "imagenet2012",
        eval_split="validation",
        color="rgb",
        batch_size=batch_size,
        crop=crop,
        augment=("flip", *augment),
        workers=16,
    )
