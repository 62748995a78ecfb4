"""Preprocessing, class names and torchvision's weights of the ImageNet networks."""

import dataclasses
import functools
from pathlib import Path

from zoo.spec import Preprocess, Weights

# torchvision's: the colors' mean and standard deviation over the training set.
IMAGENET = Preprocess(
    size=224,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=256,
)
# Caffe's and the papers': values of 0 to 255, minus the mean color.
CAFFE_MEAN = Preprocess(
    size=224,
    channels=3,
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
    std=(1 / 255,) * 3,
    resize=256,
)

# Copies of torchvision's weights as safetensors, which are read without torch: the
# repository, its commit and the file's hash. (The hashes of timm's other copies are not
# published.)
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
    """Returns the names of the 1,000 classes, in the order of the logits."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def torchvision_weights(
    file: str, top1: float, top5: float, *, name: str = "imagenet", resize: int = 256
) -> Weights:
    """Describes a file of torchvision's weights, or its safetensors copy.

    Args:
      file: Name of torchvision's file, which ends with the prefix of its hash.
      top1: Published top-1 accuracy in percent, one center crop.
      top5: Published top-5 accuracy in percent, one center crop.
      name: Name of the weights.
      resize: Length in pixels of the shorter side of the evaluated images.
    """
    published = Weights(
        name=name,
        url=f"https://download.pytorch.org/models/{file}",
        sha256=file.rsplit(".", 1)[0].rsplit("-", 1)[1],
        accuracy=(
            f"{top1:.2f} % (top-5 {top5:.2f} %) of ImageNet's validation images, "
            "center crop"
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


def torchvision_versions(*files: tuple[str, float, float]) -> tuple[Weights, ...]:
    """Describes the one or two sets of torchvision's weights of a network.

    Args:
      *files: File, top-1 and top-5 accuracy, as for `torchvision_weights`, of the first
        weights and of those of the longer recipe, "imagenet_v2".
    """
    versions = ({}, {"name": "imagenet_v2", "resize": 232})
    return tuple(
        torchvision_weights(*facts, **version)
        for facts, version in zip(files, versions, strict=False)
    )
