"""Full-resolution residual networks: two streams, one of which is never pooled.

References:
  Pohlen, Hermans, Mathias, Leibe, Full-Resolution Residual Networks for Semantic
  Segmentation in Street Scenes, 2017. Its released code (TobyPDE/FRRN).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.layers import initializer
from zoo.segmentation.frrn_parts import HE_UNIFORM, LINEAR, UNITS, FRRNBackbone
from zoo.segmentation.segmenter import ScoreHead, Segmenter
from zoo.spec import ModelSpec, Preprocess, TorchRule

PAPER = (
    "Pohlen, Hermans, Mathias, Leibe: Full-Resolution Residual Networks for Semantic "
    "Segmentation in Street Scenes, 2017"
)

# Table 1: the way that the pooling stream takes, by a max pool or by bilinear
# enlargement; pixels of the image to one of its map; units; their channels, in units of
# `width`. In front and behind are three residual units at the image's size.
TABLES = {
    "frrn_a": (
        ("down", 2, 3, 2),
        ("down", 4, 4, 4),
        ("down", 8, 2, 8),
        ("down", 16, 2, 8),
        ("up", 8, 2, 4),
        ("up", 4, 2, 4),
        ("up", 2, 2, 2),
    ),
    "frrn_b": (
        ("down", 2, 3, 2),
        ("down", 4, 4, 4),
        ("down", 8, 2, 8),
        ("down", 16, 2, 8),
        ("down", 32, 2, 8),
        ("up", 16, 2, 4),
        ("up", 8, 2, 4),
        ("up", 4, 2, 4),
        ("up", 2, 2, 2),
    ),
}


def frrn(
    *,
    variant: str,
    num_classes: int = 19,
    width: int = 48,
    lanes: int = 32,
    init: str | None = None,
    momentum: float = 0.9,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds FRRN A or B.

    The residual stream has the image's size throughout, and a training step keeps it
    behind each unit; with `remat`, between the rows of the table alone.

    Args:
      variant: A name of `TABLES`.
      num_classes: 0 for no head.
      width: Channels at the image's size; 2 to 8 times as many below.
      lanes: Channels of the residual stream.
      init: Of the convolutions that a ReLU follows, a name of
        `zoo.layers.INITIALIZERS`; None for the released code's.
      momentum: What batch norm's running averages keep at a step.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    if min(width, lanes) < 1:
        raise ValueError(f"width={width} and lanes={lanes} must be at least 1.")
    types = dict(dtype=dtype, param_dtype=param_dtype)
    backbone = FRRNBackbone(
        variant,
        TABLES[variant],
        width=width,
        lanes=lanes,
        kernel_init=initializer(init) if init else HE_UNIFORM,
        momentum=momentum,
        remat=remat,
        **types,
    )
    stride = max(scale for _, scale, _, _ in TABLES[variant])
    return Segmenter(
        backbone,
        ScoreHead(num_classes, kernel_init=LINEAR, **types) if num_classes else None,
        label=variant,
        preprocess=_preprocess(*_INPUT[variant]),
        min_size=stride,
        stride=stride,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """The paths themselves: the released weights are in files of another library."""
    pair = ("conv1", "bn1", "conv2", "bn2")
    names = ["conv1", "bn1", "split_conv", "split_bn"]
    for i in range(1, 2 * UNITS + 1):
        names += [f"ru{i}/{layer}" for layer in pair]
    names.append(f"ru{UNITS + 1}/shortcut")
    for way, scale, count, _ in model.backbone.table:
        for i in range(1, count + 1):
            unit = f"{way}{scale}_frru{i}"
            names += [f"{unit}/{layer}" for layer in (*pair, "residual")]
    rules = [TorchRule(f"backbone/{n}", n.replace("/", ".")) for n in names]
    return (*rules, TorchRule("head/score", "score"))


def _preprocess(height: int, width: int) -> Preprocess:
    colours = dict(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Preprocess(size=height, width=width, fit="keep", **colours)


# Cityscapes' images of 1024 x 2048 pixels, made a quarter and half as large.
_INPUT = {"frrn_a": (256, 512), "frrn_b": (512, 1024)}


def _spec(name: str, params: int, macs: int, published: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="segmentation",
        build=partial(frrn, variant=name),
        paper=f"{PAPER}, table 1, {name[-1].upper()}",
        num_classes=19,
        preprocess=_preprocess(*_INPUT[name]),
        params=params,
        macs=macs,
        torch_rules=_torch_names,
        loss="bootstrapped_cross_entropy:32768",
        init=(
            "He et al. 2015, uniform of variance 2 / (k * k * input channels), 1 / .. "
            "where no ReLU follows; biases 0"
        ),
        published=(published,),
        deviations=(
            "enlargement is bilinear between the pixels' centres; the released code "
            "has each second pixel as it was, and the mean of its neighbours between",
        ),
    )


SPECS = (
    _spec(
        "frrn_a",
        17_746_803,
        123_098_628_096,
        "Cityscapes test mean IoU 63.0 %, not read in the paper itself",
    ),
    _spec(
        "frrn_b",
        24_755_699,
        496_169_385_984,
        "Cityscapes test mean IoU 71.8 % (abstract)",
    ),
)
