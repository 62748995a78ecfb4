"""SSD on VGG-16, for images of 300 x 300 and of 512 x 512 pixels.

Reference:
  Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector,
  2016, section 3 and figure 2; the authors' Caffe, examples/ssd.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images, check_widths
from zoo.classification.vgg import CONFIGS, WIDTHS
from zoo.detection.coco import CLASS_NAMES
from zoo.detection.ssd import SSD, Level, MultiBoxHead
from zoo.detection.types import DetectorConfig
from zoo.layers import Conv, initializer, per_channel, remat_stage
from zoo.ops.pooling import max_pool
from zoo.spec import Card, ModelSpec, Preprocess, TorchRule, Weights

Array = jax.Array

PAPER = (
    "Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg: SSD: Single Shot MultiBox "
    "Detector, 2016, section 3"
)
BLOCKS = CONFIGS["D"]
DENSE = 1024  # Number of channels of fc6 and fc7, which are convolutions here.
MEAN = (0.48235, 0.45882, 0.40784)  # The mean color, in units of the full range.

# The layers after fc7 in figure 2 and the authors' code: pairs of a 1x1 convolution and
# a larger one, as (channels, channels, kernel, stride, padding).
EXTRAS = {
    300: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 1, 0),
        (128, 256, 3, 1, 0),
    ),
    512: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 4, 1, 1),
    ),
}
# Grid, step, and whether the aspect ratios include 3 and 1/3, for each level.
GRIDS = {
    300: (
        (38, 8, False),
        (19, 16, True),
        (10, 32, True),
        (5, 64, True),
        (3, 100, False),
        (1, 300, False),
    ),
    512: (
        (64, 8, False),
        (32, 16, True),
        (16, 32, True),
        (8, 64, True),
        (4, 128, True),
        (2, 256, False),
        (1, 512, False),
    ),
}
# Side lengths of the square default boxes in pixels, and the `last_size`.
SIZES = {
    (300, "voc"): (30, 60, 111, 162, 213, 264, 315),
    (300, "coco"): (21, 45, 99, 153, 207, 261, 315),
    (512, "voc"): (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    (512, "coco"): (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
}
# torchvision's boxes are those for COCO, limited to the size of the image.
BOXES = ("voc", "coco", "torchvision")


class L2Norm(nn.Module):
    """L2 normalization over channels with a learned scale, section 3.1.

    The parameter is `scale_weight` [C], as in torchvision.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(20.0)
        scale = self.param("scale_weight", init, x.shape[-1:], self.param_dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.square(wide).sum(axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        return (y * per_channel(scale, y)).astype(x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSDConfig(DetectorConfig):
    """Options of SSD on VGG-16.

    The layers that are not VGG-16's convolutions are initialized as in the paper.

    Attributes:
      widths: Number of channels of each of VGG-16's five blocks.
      dense: Number of channels of fc6 and fc7.
      boxes: The default boxes: "voc" or "coco" for the authors' boxes for these data
        sets, "torchvision" for those for COCO, limited to the size of the image. None
        for "torchvision" in SSD300, as its public weights require, and "voc" in SSD512.
    """

    widths: tuple[int, ...] = WIDTHS
    dense: int = DENSE
    boxes: str | None = None


class SSDVGGBackbone(nn.Module):
    """VGG-16 with convolutional fc6 and fc7 and additional layers, figure 2.

    The convolutions of VGG-16 have the same paths as in the classifier.

    Attributes:
      label: Name of the network, for error messages.
      size: Height and width of the images, a key of `EXTRAS`.
      config: The options of the network.
    """

    label: str
    size: int
    config: SSDConfig = SSDConfig()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.label, size=self.size)
        config, dtypes = self.config, self.config.dtypes
        vgg_conv = partial(
            Conv, kernel=3, padding=1, kernel_init=config.kernel_init, **dtypes
        )
        conv = partial(Conv, kernel_init=initializer("glorot"), **dtypes)

        def block(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for j in range(1, len(BLOCKS[i - 1]) + 1):
                layer = vgg_conv(config.widths[i - 1], name=f"conv{i}_{j}")
                x = out[f"conv{i}_{j}"] = nn.relu(layer(x))
            if i < 5:
                out[f"pool{i}"] = max_pool(x, 2, 2, ceil=i == 3)
            else:
                out["pool5"] = max_pool(x, 3, 1, padding=1)
            return out

        out, x = {}, images
        for i in range(1, 6):
            out |= remat_stage(partial(block, i=i), config.remat)(self, x)
            x = out[f"pool{i}"]
            if i == 4:
                norm = L2Norm(config.param_dtype, name="conv4_3_norm")
                out["conv4_3_norm"] = norm(out["conv4_3"])
        fc6 = conv(config.dense, kernel=3, padding=6, dilation=6, name="fc6")
        x = out["fc6"] = nn.relu(fc6(x))
        x = out["fc7"] = nn.relu(conv(config.dense, kernel=1, name="fc7")(x))
        for i, (few, many, window, stride, padding) in enumerate(EXTRAS[self.size], 8):
            first = conv(few, kernel=1, name=f"conv{i}_1")
            x = out[f"conv{i}_1"] = nn.relu(first(x))
            second = conv(many, window, stride, padding, name=f"conv{i}_2")
            x = out[f"conv{i}_2"] = nn.relu(second(x))
        return out


def ssd_vgg16(*, size: int, variant: str, num_classes: int, **options: Any) -> SSD:
    """Builds SSD300 or SSD512.

    Args:
      size: Height and width of the images, 300 or 512.
      variant: Name of the model, for error messages.
      num_classes: Number of classes, without background.
      **options: Fields of `SSDConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes(variant, num_classes)
    config = SSDConfig(**options)
    check_widths(config.widths, len(WIDTHS))
    boxes = config.boxes or ("torchvision" if size == 300 else "voc")
    if boxes not in BOXES:
        raise ValueError(f"{variant}: boxes={boxes!r} must be one of {BOXES}.")
    *sizes, last = SIZES[size, "voc" if boxes == "voc" else "coco"]
    extras = (f"conv{i}_2" for i in range(8, 8 + len(EXTRAS[size])))
    levels = tuple(
        Level(source, grid, step, side, (2, 3) if many else (2,))
        for source, (grid, step, many), side in zip(
            ("conv4_3_norm", "fc7", *extras), GRIDS[size], sizes, strict=True
        )
    )
    return SSD(
        backbone=SSDVGGBackbone(variant, size, config),
        head=MultiBoxHead(num_classes, levels, **config.dtypes),
        last_size=last,
        max_side=size if boxes == "torchvision" else None,
        preprocess=_preprocess(size),
    )


def from_classifier(
    variables: Mapping[str, Any], card: Card
) -> tuple[Mapping[str, Any], Preprocess]:
    """Converts the variables of a classifier if it is VGG-16.

    Args:
      variables: {"params": ...} of the classifier.
      card: The card of the variables.

    Returns:
      The variables, and the preprocessing that they expect.
    """
    if card.model != "vgg16":
        return variables, card.preprocess
    return reduce_vgg16(variables, card.preprocess), _preprocess(300)


def reduce_vgg16(
    variables: Mapping[str, Any], preprocess: Preprocess, *, dense: int = DENSE
) -> dict[str, Any]:
    """Converts the variables of a VGG-16 classifier to those of SSD's backbone.

    fc6 keeps every third row and column of its 7 x 7 kernel, and fc6 and fc7 keep every
    fourth channel, or as many as `dense` requires. The first convolution is adapted to
    the preprocessing of SSD; only the zero padding differs. `zoo.transfer.graft` copies
    the result into a detector:

        _, vgg, card = zoo.create_with_card("vgg16", weights="imagenet")
        keep = ["head/**", "backbone/conv4_3_norm/**", "backbone/conv{8,9,10,11}_*/**"]
        source = reduce_vgg16(vgg, card.preprocess)
        variables = zoo.transfer.graft(variables, source, keep=keep)

    Args:
      variables: {"params": ...} of `vgg16`, with or without a head.
      preprocess: The preprocessing of the classifier, for RGB images.
      dense: Number of channels of the detector's fc6 and fc7.

    Returns:
      {"params": {"backbone": ...}}, without a head.

    Raises:
      ValueError: The variables are not those of `vgg16`, or the images are not RGB.

    Reference:
      Section 3; the authors start from VGG_ILSVRC_16_layers_fc_reduced.
    """
    backbone = dict(variables["params"].get("backbone", {}))
    conv5_3, fc6, fc7 = (
        jnp.shape(backbone.get(name, {}).get("kernel"))
        for name in ("conv5_3", "fc6", "fc7")
    )
    channels, wide = (shape[-1] if shape else 0 for shape in (conv5_3, fc7))
    if (fc6, fc7) != ((49 * channels, wide), (wide, wide)) or wide % dense:
        raise ValueError(
            "reduce_vgg16 takes the variables of vgg16, with a multiple of "
            f"dense={dense} channels in fc6 and fc7, got {[fc6, fc7]}."
        )
    step = wide // dense
    if (preprocess.channels, preprocess.channel_order) != (3, "rgb"):
        raise ValueError(
            f"reduce_vgg16: the classifier must take RGB, got {preprocess.channels} "
            f"channels, {preprocess.channel_order!r}."
        )
    first, fc6, fc7 = backbone["conv1_1"], backbone["fc6"], backbone["fc7"]
    std = jnp.array(preprocess.std, jnp.float32)
    shift = (jnp.array(MEAN) - jnp.array(preprocess.mean)) / std
    scale = 1 / 255 / std
    backbone["conv1_1"] = {
        "kernel": first["kernel"] * scale[None, None, :, None],
        "bias": first["bias"] + jnp.einsum("hwio,i->o", first["kernel"], shift),
    }
    window = jnp.reshape(fc6["kernel"], (7, 7, channels, wide))
    backbone["fc6"] = {
        "kernel": window[::3, ::3, :, ::step],
        "bias": fc6["bias"][::step],
    }
    backbone["fc7"] = {
        "kernel": fc7["kernel"][None, None, ::step, ::step],
        "bias": fc7["bias"][::step],
    }
    return {"params": {"backbone": backbone}}


def _preprocess(size: int) -> Preprocess:
    return Preprocess(
        size=size,
        channels=3,
        mean=MEAN,
        std=(1 / 255,) * 3,
        fit="stretch",
        antialias=False,
    )


def _torch_rules(model: SSD) -> tuple[TorchRule, ...]:
    """Returns the rules for torchvision's names; for SSD512 those it would have."""
    rules, index = [], 0
    for i, block in enumerate(BLOCKS, start=1):
        for j in range(1, len(block) + 1):
            # After pool4 another list of layers starts, with this pool.
            where = "extra.0" if i == 5 else "features"
            key = f"backbone.{where}.{index}"
            rules.append(TorchRule(f"backbone/conv{i}_{j}", key))
            index += 2  # the ReLU
        index = 1 if i == 4 else index + 1  # the pool
    rules += [
        TorchRule("backbone/conv4_3_norm", "backbone"),
        TorchRule("backbone/fc6", "backbone.extra.0.7.1"),
        TorchRule("backbone/fc7", "backbone.extra.0.7.3"),
    ]
    for i in range(1, len(EXTRAS[model.backbone.size]) + 1):
        for j in (1, 2):
            key = f"backbone.extra.{i}.{2 * (j - 1)}"
            rules.append(TorchRule(f"backbone/conv{i + 7}_{j}", key))
    for i, level in enumerate(model.head.levels):
        count, path = level.boxes_per_cell, f"head/{level.source}"
        loc = f"head.regression_head.module_list.{i}"
        conf = f"head.classification_head.module_list.{i}"
        rules.append(TorchRule(f"{path}_loc", loc))
        rules.append(TorchRule(f"{path}_conf", conf, outputs=(count, count)))
    return tuple(rules)


_PUBLISHED = {
    300: (
        "PASCAL VOC 2007 test mAP 74.3 %, trained on 07+12; 77.2 % with zoom-out",
        "PASCAL VOC 2007 test mAP 81.2 %, trained on 07+12+COCO with zoom-out",
        "PASCAL VOC 2012 test mAP 72.4 %, trained on 07++12; 75.8 % with zoom-out",
        "COCO test-dev AP 23.2 %, AP50 41.2 %; 25.1 % and 43.1 % with zoom-out",
    ),
    512: (
        "PASCAL VOC 2007 test mAP 76.8 %, trained on 07+12; 79.8 % with zoom-out",
        "PASCAL VOC 2007 test mAP 83.2 %, trained on 07+12+COCO with zoom-out",
        "PASCAL VOC 2012 test mAP 74.9 %, trained on 07++12; 78.5 % with zoom-out",
        "COCO test-dev AP 26.8 %, AP50 46.5 %; 28.8 % and 48.5 % with zoom-out",
    ),
}
_DEVIATIONS = (
    "the order of the channels is red, green, blue; the authors' weights take blue "
    "first",
    "the authors start from a VGG-16 that was trained on ImageNet: `reduce_vgg16` "
    "makes such a start, without it all layers are initialized at random",
)


def _spec(size: int, num_classes: int, params: int, macs: int, **facts) -> ModelSpec:
    name = f"ssd{size}_vgg16"
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(ssd_vgg16, size=size, variant=name),
        config=SSDConfig,
        paper=PAPER,
        num_classes=num_classes,
        preprocess=_preprocess(size),
        params=params,
        macs=macs,
        torch_rules=_torch_rules,
        from_classifier=from_classifier,
        loss="multibox: softmax cross-entropy with hard negatives, smooth L1",
        init=(
            "VGG-16's convolutions He et al. 2015, normal of variance 2 / (k * k * "
            "output channels); other layers Glorot's, uniform; biases 0; scale of "
            "conv4_3 20"
        ),
        published=_PUBLISHED[size],
        **facts,
    )


SPECS = (
    _spec(
        300,
        90,
        35_641_826,
        34_858_153_472,
        weights=(
            Weights(
                name="coco",
                url="https://download.pytorch.org/models/ssd300_vgg16_coco-b556d3b4.pth",
                sha256="b556d3b4",
                accuracy="box AP 25.1 % of COCO's 2017 validation images",
                source="torchvision",
                licence="BSD-3-Clause",
                class_names=CLASS_NAMES,
            ),
        ),
        deviations=(
            *_DEVIATIONS,
            "no default box is longer than the image, as in torchvision (boxes='voc' "
            "and 'coco' are the authors')",
        ),
    ),
    _spec(512, 20, 27_188_676, 90_207_908_864, deviations=_DEVIATIONS),
)
