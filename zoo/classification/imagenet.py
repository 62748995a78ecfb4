"""What networks for ImageNet share: preprocessing, classes, PyTorch's weights."""

import dataclasses
import functools
from pathlib import Path

from zoo.spec import Preprocess, Weights

# torchvision's: the colours' mean and standard deviation over the training set.
IMAGENET = Preprocess(
    size=224,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=256,
)
# Caffe's and the papers': 0 to 255, the mean colour subtracted.
MEAN_COLOUR = Preprocess(
    size=224,
    channels=3,
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
    std=(1 / 255,) * 3,
    resize=256,
)


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 classes in the order of every public set of weights."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def torchvision_weights(
    file: str, top1: float, top5: float, *, name: str = "imagenet", resize: int = 256
) -> Weights:
    """Describes a file of torchvision's weights.

    Args:
      file: As its publisher names it, with the beginning of its hash at the end.
      top1: Published accuracy in percent, one centre crop.
      top5: Published accuracy in percent, one centre crop.
      name: For `zoo.create`.
      resize: Shorter side, in pixels, of the images that were evaluated.
    """
    return Weights(
        name=name,
        url=f"https://download.pytorch.org/models/{file}",
        sha256=file.rsplit(".", 1)[0].rsplit("-", 1)[1],
        accuracy=(
            f"{top1:.2f} % (top-5 {top5:.2f} %) of ImageNet's validation images, "
            "centre crop"
        ),
        source="torchvision",
        licence="BSD-3-Clause",
        preprocess=dataclasses.replace(IMAGENET, resize=resize),
        class_names=class_names(),
    )
