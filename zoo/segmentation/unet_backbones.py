"""U-Net's expanding path behind the endpoints of any classifier.

The variables of `backbone` are the classifier's, so that trained ones go straight in:

    _, resnet34 = zoo.create("resnet34", weights="imagenet")
    model, variables = zoo.create("unet_resnet34")
    variables = zoo.transfer.graft(
        variables, resnet34, keep=("head/**",), ignore=("head/**",)
    )
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.classification.imagenet import IMAGENET
from zoo.classification.resnet import INIT as RESNET_INIT
from zoo.classification.resnet import PAPER as RESNET_PAPER
from zoo.classification.resnet import BasicBlock, resnet, torch_rules
from zoo.layers import Classifier, initializer
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.unet import INIT, PAPER, SAME
from zoo.segmentation.unet_parts import UNetHead
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
    """Puts an expanding path behind the endpoints of a classifier's backbone.

    The variables of `backbone` are the classifier's. Maps are doubled by repeating
    their pixels, and cut where an endpoint is smaller: images may have any size that
    the backbone takes.

    Args:
      classifier: A network of `zoo.classification`; its head is left out.
      reads: Names of the endpoints, from the lowest to the highest, each with about
        twice the size of the one before, such as ("stage4", "stage3", "stage2",
        "stage1", "stem").
      num_classes: Background included; 0 for no head.
      label: The network's name, for errors.
      preprocess: The backbone's.
      widths: Channels of each step; one more than there are steps between endpoints
        where the highest endpoint is half the image's size.
      init: Of the head's convolutions, a name of `zoo.layers.INITIALIZERS`; None for
        He's.
      **options: Of `UNetHead`: `remat`, `dtype`, `param_dtype`.

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
    bare = {"pooled": False} if hasattr(backbone, "pooled") else {}
    return Segmenter(
        backbone.clone(parent=None, **bare),
        head if num_classes else None,
        label=label,
        preprocess=preprocess,
        stride=2 ** len(widths),
    )


def unet_resnet34(
    *,
    num_classes: int = 21,
    init: str | None = None,
    momentum: float = 0.9,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds an expanding path behind the stages of a ResNet-34.

    Args:
      num_classes: Background included; 0 for no head.
      init: Of the convolutions, a name of `zoo.layers.INITIALIZERS`; None for ResNet's
        in the backbone and He's in the head.
      momentum: What the backbone's running averages keep at a step.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    options = dict(init=init, remat=remat, dtype=dtype, param_dtype=param_dtype)
    resnet34 = resnet(
        block=BasicBlock,
        blocks=(3, 4, 6, 3),
        num_classes=0,
        momentum=momentum,
        **options,
    )
    return unet_on(
        resnet34,
        reads=("stage4", "stage3", "stage2", "stage1", "stem"),
        num_classes=num_classes,
        label="unet_resnet34",
        preprocess=PREPROCESS,
        **options,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """The classifier's names behind "encoder.", and the path's own."""
    rules = [
        dataclasses.replace(rule, key=f"encoder.{rule.key}")
        for rule in torch_rules(model)
        if not rule.module.startswith("head/")
    ]
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
        paper=f"after {PAPER}, figure 1, behind {RESNET_PAPER}",
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
