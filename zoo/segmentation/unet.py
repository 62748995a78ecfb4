"""U-Net: the paper's network, and forms of it that keep the image's size.

Reference:
  Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image
  Segmentation, 2015.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.layers import initializer
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.unet_parts import UNetEncoder, UNetHead
from zoo.spec import ModelSpec, Preprocess, TorchRule

PAPER = (
    "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation, 2015"
)


def unet(
    *,
    variant: str,
    num_classes: int = 2,
    widths: tuple[int, ...] | None = None,
    init: str | None = None,
    dropout: float | None = None,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds figure 1's network, or one of its forms.

    Args:
      variant: A name of `SPECS`.
      num_classes: Background included; 0 for no head: then there is no expanding path,
        either.
      widths: Channels of each level, from the image's on; None for the variant's.
      init: Of the 3x3 convolutions, a name of `zoo.layers.INITIALIZERS`; None for the
        paper's.
      dropout: Rate at the end of the two lowest levels; None for the variant's.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    row = _NETWORKS[variant]
    widths = row["widths"] if widths is None else tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"widths must be of two levels or more, got {widths}.")
    check_num_classes(num_classes)
    valid = variant == "unet"
    options = dict(
        padding=0 if valid else 1,
        batch_norm=not valid,
        kernel_init=initializer(init or "he_fan_in"),
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    rate = row["dropout"] if dropout is None else dropout
    levels = len(widths)
    head = UNetHead(
        num_classes,
        reads=tuple(f"down{i}" for i in range(levels, 0, -1)),
        widths=widths[-2::-1],
        **options,
    )
    # Without padding the lowest map is 4 pixels or more, its input 8, and each level's
    # input twice the one below and 4 pixels; the logits are 4 pixels of that.
    stride = 2 ** (levels - 1)
    sizes = dict(min_size=stride)
    if valid:
        smallest = 12 * stride - 4
        margin = (smallest - 4) // 2
        sizes = dict(min_size=smallest, remainder=smallest % stride, margin=margin)
    return Segmenter(
        UNetEncoder(variant, widths, dropout=rate, **options),
        head if num_classes else None,
        label=variant,
        preprocess=row["preprocess"],
        stride=stride,
        **sizes,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """The names of milesial's Pytorch-UNet, of which `unet_same` is the network."""
    levels = len(model.backbone.widths)
    pairs = {"backbone/down1": "inc.double_conv"}
    for i in range(1, levels):
        pairs[f"backbone/down{i + 1}"] = f"down{i}.maxpool_conv.1.double_conv"
        pairs[f"head/up{levels - i}"] = f"up{i}.conv.double_conv"
    layers = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4}
    if not model.backbone.batch_norm:
        layers = {"conv1": 0, "conv2": 2}
    rules = [
        TorchRule(f"{module}/{layer}", f"{key}.{place}")
        for module, key in pairs.items()
        for layer, place in layers.items()
    ]
    for i in range(1, levels):
        name = f"head/upconv{levels - i}"
        rules.append(TorchRule(name, f"up{i}.up", transposed=True))
    return (*rules, TorchRule("head/score", "outc.conv"))


def plain(size: int, channels: int) -> Preprocess:
    """Makes the preprocessing of U-Nets: images as they are, -1 to 1."""
    colours = dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    return Preprocess(size=size, channels=channels, fit="keep", **colours)


_WIDTHS = (64, 128, 256, 512, 1024)
_NETWORKS = {
    "unet": dict(widths=_WIDTHS, dropout=0.5, preprocess=plain(572, 1)),
    "unet_same": dict(widths=_WIDTHS, dropout=0.0, preprocess=plain(512, 3)),
}
INIT = "He et al. 2015, normal of variance 2 / N of N incoming values; biases 0"
_COLOURS = "the paper prints no normalisation of the input: -1 to 1"
SAME = (
    "convolutions are padded by a zero on each side, so that logits have the image's "
    "size and skips are not cropped",
    "batch norm before each ReLU, of which the paper has none, and no dropout",
    "three colours",
    _COLOURS,
)


def _spec(name: str, params: int, macs: int, **facts: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="segmentation",
        build=partial(unet, variant=name),
        preprocess=_NETWORKS[name]["preprocess"],
        params=params,
        macs=macs,
        torch_rules=_torch_names,
        init=INIT,
        **facts,
    )


SPECS = (
    _spec(
        "unet",
        31_030_658,
        150_428_424_448,
        paper=f"{PAPER}, section 2 and figure 1",
        num_classes=2,
        published=(
            "EM segmentation challenge: warping error 0.000353, Rand error 0.0382, "
            "pixel error 0.0611 (table 1)",
            "ISBI cell tracking challenge 2015: IOU 92.03 % on PhC-U373, 77.56 % on "
            "DIC-HeLa (table 2)",
        ),
        deviations=(
            "the paper does not say at how many levels dropout ends the contracting "
            "path, nor its rate: 0.5 at the lowest two, as in the released network",
            "the released network has a ReLU behind each up-convolution, and 128 "
            "channels behind the last: here none and 64, as the paper has it",
            _COLOURS,
        ),
    ),
    _spec(
        "unet_same",
        31_037_698,
        192_686_325_760,
        paper=f"after {PAPER}, figure 1",
        num_classes=2,
        published=("none: the form that most public code has (milesial/Pytorch-UNet)",),
        deviations=SAME,
    ),
)
