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

# Copies of torchvision's weights as safetensors, which need no torch to be read: the
# repository, its commit and the file's hash. (timm has more of them, without a public
# record of their hashes.)
_HUB = {
    "resnet18-f37072fd.pth": (
        "timm/resnet18.tv_in1k",
        "bbd144b3e5565108aad885f145491d11bc6ce807",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    ),
    "resnet34-b627a593.pth": (
        "timm/resnet34.tv_in1k",
        "1b7b21cca82ff974d341713f777bf740c2db38c4",
        "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
    ),
    "resnet50-0676ba61.pth": (
        "timm/resnet50.tv_in1k",
        "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    "vgg16-397923af.pth": (
        "timm/vgg16.tv_in1k",
        "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
        "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
}


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 classes in the order of every public set of weights."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def torchvision_weights(
    file: str, top1: float, top5: float, *, name: str = "imagenet", resize: int = 256
) -> Weights:
    """Describes a file of torchvision's weights, or its copy as safetensors.

    Args:
      file: As its publisher names it, with the beginning of its hash at the end.
      top1: Published accuracy in percent, one centre crop.
      top5: Published accuracy in percent, one centre crop.
      name: For `zoo.create`.
      resize: Shorter side, in pixels, of the images that were evaluated.
    """
    published = Weights(
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
    if file not in _HUB:
        return published
    repository, commit, sha256 = _HUB[file]
    return dataclasses.replace(
        published,
        url=f"https://huggingface.co/{repository}/resolve/{commit}/model.safetensors",
        sha256=sha256,
        source="torchvision, copied by timm",
        file=f"{repository.partition('/')[2]}-{sha256[:8]}.safetensors",
        copies=(published.sha256,),
    )
