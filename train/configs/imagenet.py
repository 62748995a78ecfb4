"""What the recipes for ImageNet share: its two layouts, and how hosts read it.

    canon-zoo train imagenet_resnet50 --data-dir DIR
    canon-zoo train imagenet_resnet50 --dataset imagefolder:DIR

The first reads TFDS's `imagenet2012` as it was prepared in DIR with
`file_format="array_record"`; the second a folder with train/ and val/, in which each
class has a folder, or a zip file of that. Images keep their own sizes there, for every
step cuts its parts out of them anew. Gray and CMYK images become RGB.

On several hosts the same command runs on each, after `--distributed` and with a
`--run-dir` that all of them see; each reads and decodes its own share of each batch.
Reading takes cores: `python tests/benchmarks/benchmark_input.py` measures how many
images a second one core decodes and crops; `--data.workers` sets the processes.
"""

from train.config import DataConfig


def imagenet(crop: str, *augment: str, batch_size: int) -> DataConfig:
    """The 1,281,167 images to train on, and the 50,000 of validation to evaluate.

    Args:
      crop: Part of each image, see `train.data.parse_crop`; evaluation cuts the center.
      *augment: What follows the mirroring that all recipes have.
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
