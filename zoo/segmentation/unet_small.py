"""A U-Net for small images, which is trained on a CPU in minutes.

Reference:
  Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image
  Segmentation, 2015.
"""

from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.layers import initializer
from zoo.segmentation.segmenter import ScoreHead, Segmenter
from zoo.segmentation.unet import INIT, PAPER, SAME, plain
from zoo.segmentation.unet_parts import UNetEncoder, UNetHead
from zoo.spec import ModelSpec, TorchRule

# Channels of the contracting path, whose maps are a half, a quarter, an eighth and a
# sixteenth of the image, and of the expanding path, from the lowest step on.
WIDTHS = (16, 64, 96, 128)
UP_WIDTHS = (64, 48, 16)
# The level whose scores have a loss of their own: the lowest that parts small objects.
SCORED = "down3"


def unet_small(
    *,
    num_classes: int = 11,
    widths: tuple[int, ...] = WIDTHS,
    up_widths: tuple[int, ...] = UP_WIDTHS,
    aux: bool = False,
    init: str | None = None,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds the small U-Net.

    Args:
      num_classes: Background included; 0 for no heads: then there is no expanding path,
        either.
      widths: Channels of each level of the contracting path.
      up_widths: Channels of the expanding path, one fewer, from the lowest step on.
      aux: Whether to have scores of the third level's map, whose loss training adds:
        the endpoint "aux".
      init: Of the 3x3 convolutions, a name of `zoo.layers.INITIALIZERS`; None for the
        paper's.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    lowest = len(widths)
    types = dict(
        kernel_init=initializer(init or "he_fan_in"),
        dtype=dtype,
        param_dtype=param_dtype,
    )
    head = UNetHead(
        num_classes,
        reads=tuple(f"down{i}" for i in range(lowest, 0, -1)),
        widths=tuple(up_widths),
        upconv=False,
        convs=1,
        remat=remat,
        **types,
    )
    aux_head = ScoreHead(num_classes, SCORED, **types) if aux else None
    return Segmenter(
        UNetEncoder(
            "unet_small",
            tuple(widths),
            padding=1,
            batch_norm=True,
            stride=2,
            remat=remat,
            **types,
        ),
        head if num_classes else None,
        aux_head if num_classes else None,
        label="unet_small",
        preprocess=PREPROCESS,
        min_size=2**lowest,
        stride=2**lowest,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Our own names."""
    rules = [
        TorchRule(f"backbone/down{i}/{kind}{j}", f"down{i}.{kind}{j}")
        for i in range(1, len(model.backbone.widths) + 1)
        for j in (1, 2)
        for kind in ("conv", "bn")
    ]
    for i in range(len(model.backbone.widths) - 1, 0, -1):
        for layer in ("conv1", "bn1"):
            rules.append(TorchRule(f"head/up{i}/{layer}", f"up{i}.{layer}"))
    aux = "aux_head/score" if "aux_head" in model.heads() else None
    return (*rules, TorchRule("head/score", "score"), TorchRule(aux, "aux"))


PREPROCESS = plain(96, 3)
SPECS = (
    ModelSpec(
        name="unet_small",
        task="segmentation",
        build=unet_small,
        paper=f"after {PAPER}, figure 1",
        num_classes=11,
        preprocess=PREPROCESS,
        params=640_299,
        macs=134_111_232,
        torch_rules=_torch_names,
        aux_losses=(("aux", 3.0),),
        init=INIT,
        published=(
            "none: a small network for small images, such as canvases of digits",
        ),
        deviations=(
            "four levels of 16, 64, 96 and 128 channels, the first of half the image's "
            "size: the first convolution has stride 2, and scores are enlarged "
            "bilinearly",
            "the expanding path repeats pixels, without an up-convolution, and has one "
            "convolution a step",
            "in training, scores of the third level's map have a loss of their own",
            *SAME,
        ),
    ),
)
