"""U-Net's expanding path on the endpoints of any classifier.

The variables of `backbone` are those of the classifier, so that they can be copied:

    _, resnet34 = zoo.create("resnet34", weights="imagenet")
    model, variables = zoo.create("unet_resnet34")
    variables = zoo.transfer.graft(
        variables, resnet34, keep=("head/**",), ignore=("head/**",)
    )
"""

import dataclasses
from typing import Any

from zoo.checks import check_num_classes
from zoo.classification.imagenet import IMAGENET
from zoo.classification.resnet import INIT as RESNET_INIT
from zoo.classification.resnet import PAPER as RESNET_PAPER
from zoo.classification.resnet import BasicBlock, backbone_rules, resnet
from zoo.layers import Classifier, initializer
from zoo.segmentation.segmenter import Segmenter, SegmenterConfig
from zoo.segmentation.unet import INIT, PAPER, SAME, UNetHead
from zoo.spec import ModelSpec, Preprocess, TorchRule

PREPROCESS = dataclasses.replace(IMAGENET, size=224, resize=None, fit="keep")


def unet_on(
    classifier: Classifier,
    *,
    reads: tuple[str, ...],
    num_classes: int,
    label: str,
    preprocess: Preprocess,
    widths: tuple[int, ...] = (256, 128, 64, 32, 16),
    init: str | None = None,
    **options: Any,
) -> Segmenter:
    """Adds an expanding path to the endpoints of a classifier's backbone.

    The variables of `backbone` are those of the classifier. Maps are doubled by
    repeating pixels, and cropped if an endpoint is smaller, so that images may have any
    size that the backbone takes.

    Args:
      classifier: A network of `zoo.classification`; its head is not used.
      reads: Names of the endpoints, the lowest first, each with about twice the size of
        the one before, such as ("stage4", "stage3", "stage2", "stage1", "stem").
      num_classes: Number of classes including background; 0 for no head.
      label: Name of the network, for error messages.
      preprocess: The preprocessing of the backbone.
      widths: Number of channels of each step; as many as endpoints if the highest
        endpoint has half the size of the image, or one fewer.
      init: Initializer of the head's convolutions, a key of `zoo.layers.INITIALIZERS`;
        None for He's.
      **options: The arguments `remat`, `dtype` and `param_dtype` of `UNetHead`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    if len(widths) - len(reads) not in (-1, 0):
        raise ValueError(
            f"reads={reads} have {len(reads) - 1} steps between them, and one more to "
            f"the image's size; got {len(widths)} widths."
        )
    head = UNetHead(
        num_classes,
        reads,
        widths,
        upconv=False,
        window=3,
        kernel_init=initializer(init or "he_fan_in"),
        **options,
    )
    backbone = classifier.backbone
    unpooled = {"pooled": False} if hasattr(backbone, "pooled") else {}
    return Segmenter(
        backbone.clone(parent=None, **unpooled),
        head if num_classes else None,
        label=label,
        preprocess=preprocess,
        stride=2 ** len(widths),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetResNetConfig(SegmenterConfig):
    """Options of U-Net on a residual network.

    `init=None` is ResNet's initializer in the backbone and He's in the head.

    Attributes:
      momentum: Decay rate of the running averages of the backbone's batch norm.
    """

    momentum: float = 0.9


def unet_resnet34(*, num_classes: int = 21, **options: Any) -> Segmenter:
    """Builds an expanding path on the stages of a ResNet-34.

    Args:
      num_classes: Number of classes including background; 0 for no head.
      **options: Fields of `UNetResNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    config = UNetResNetConfig(**options)
    shared = dict(init=config.init, remat=config.remat, **config.dtypes)
    resnet34 = resnet(
        block=BasicBlock,
        blocks=(3, 4, 6, 3),
        num_classes=0,
        momentum=config.momentum,
        **shared,
    )
    return unet_on(
        resnet34,
        reads=("stage4", "stage3", "stage2", "stage1", "stem"),
        num_classes=num_classes,
        label="unet_resnet34",
        preprocess=PREPROCESS,
        **shared,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the classifier's names with "encoder.", and for our own."""
    rules = backbone_rules(model, "encoder.")
    steps = len(model.head.widths) if model.head else 0
    for i in range(steps, 0, -1):
        for layer in ("conv1", "bn1", "conv2", "bn2"):
            rules.append(TorchRule(f"head/up{i}/{layer}", f"up{i}.{layer}"))
    return (*rules, TorchRule("head/score", "score"))


SPECS = (
    ModelSpec(
        name="unet_resnet34",
        task="segmentation",
        params=24_439_269,
        macs=6_127_091_712,
        build=unet_resnet34,
        config=UNetResNetConfig,
        paper=f"after {PAPER}, figure 1, on {RESNET_PAPER}",
        num_classes=21,
        preprocess=PREPROCESS,
        torch_rules=_torch_names,
        init=f"{RESNET_INIT} in the backbone; {INIT} in the head",
        published=("none",),
        deviations=(
            "the contracting path is a classifier's",
            "maps are doubled by repeating their pixels, without an up-convolution",
            "scores of 3x3 windows",
            *SAME[:2],
        ),
    ),
)
