"""U-Net: the paper's network, forms of it that keep the image's size, and a small one.

Reference:
  Ronneberger, Fischer, Brox, U-Net: Convolutional Networks for Biomedical Image
  Segmentation, 2015.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_num_classes, check_widths
from zoo.layers import BatchNorm, ClassOutputs, Conv, Layer, initializer, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.resize import resize
from zoo.ops.unpooling import crop_or_pad_end, repeat_pixels
from zoo.segmentation.segmenter import (
    ConvTransposed,
    ScoreHead,
    Segmenter,
    SegmenterConfig,
    Size,
    promote,
)
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation, 2015"
)
# The paper's variance 2 / N for up-convolutions: an output is the sum of N = C inputs,
# as the four weights of a 2x2 kernel contribute to four different pixels.
UP_INIT = nn.initializers.variance_scaling(8.0, "fan_in", "normal")
# The small network: number of channels of each level of the contracting path, with
# strides of 2, 4, 8 and 16, and of each step of the expanding path, the lowest first.
SMALL_WIDTHS = (16, 64, 96, 128)
SMALL_UP_WIDTHS = (64, 48, 16)
# The endpoint of the auxiliary head: the lowest that separates small objects.
SMALL_AUX = "down3"


class Convs(nn.Module):
    """3x3 convolutions, each followed by a ReLU.

    Attributes:
      features: Number of channels.
      padding: Zeros on each side: with 0 each convolution shrinks the map by 2 pixels,
        with 1 its size is kept.
      stride: Stride of the first convolution.
      count: Number of convolutions; two in the paper.
      conv: Constructor of convolutions.
      norm: Constructor of the batch norm before each ReLU; None for no batch norm.
    """

    features: int
    padding: int
    stride: int = 1
    count: int = 2
    conv: Callable = Conv
    norm: Callable | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = partial(self.conv, self.features, 3, padding=self.padding)
        for i in range(1, self.count + 1):
            stride = self.stride if i == 1 else 1
            x = conv(stride=stride, use_bias=self.norm is None, name=f"conv{i}")(x)
            if self.norm is not None:
                x = self.norm(name=f"bn{i}")(x, train=train)
            x = nn.relu(x)
        return x


class UNetEncoder(Layer):
    """The contracting path: two convolutions at each level, max pools between levels.

    Attributes:
      label: Name of the network, for error messages.
      widths: Number of channels of each level.
      padding: See `Convs`.
      batch_norm: Whether there is batch norm before each ReLU.
      stride: Stride of the first convolution.
      dropout: Dropout rate at the end of the two lowest levels.
      kernel_init: Initializer of the convolutions.
      remat: Whether to recompute each level's activations in the backward pass.
    """

    label: str
    widths: tuple[int, ...]
    padding: int
    batch_norm: bool
    stride: int = 1
    dropout: float = 0.0
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        conv = partial(Conv, kernel_init=self.kernel_init, **self.dtypes)
        norm = partial(BatchNorm, **self.dtypes) if self.batch_norm else None
        levels = len(self.widths)
        if not self.padding:
            self._check_size(images)

        def level(self, x: Array, i: int) -> dict[str, Array]:
            stride = self.stride if i == 1 else 1
            options = dict(conv=conv, norm=norm, name=f"down{i}")
            x = Convs(self.widths[i - 1], self.padding, stride, **options)(x, train)
            if i >= levels - 1:
                drop = nn.Dropout(self.dropout, name=f"drop{i}")
                x = drop(x, deterministic=not train)
            out = {f"down{i}": x}
            if i < levels:
                out[f"pool{i}"] = max_pool(x, 2, 2)
            return out

        out, x = {}, images
        for i in range(1, levels + 1):
            out |= remat_stage(partial(level, i=i), self.remat)(self, x)
            x = [*out.values()][-1]
        return out

    def _check_size(self, images: Array) -> None:
        stride = 2 ** (len(self.widths) - 1)
        if any((n + 4) % stride for n in images.shape[1:3]):
            raise ValueError(
                f"{self.label} takes images of {stride} n + {-4 % stride} pixels, "
                f"height and width, so that each pool has an even number; got "
                f"{list(images.shape)}. (zoo.make_segmenter brings images to that.)"
            )


class UNetHead(Layer):
    """The expanding path on the endpoints of a backbone, and the scores.

    Each step doubles the size of the map, concatenates the endpoint of the same size (a
    skip connection) and applies convolutions. If the endpoint is larger or smaller by
    one pixel, as after a pool of an odd size, the doubled map is cropped or padded with
    zeros at the bottom and on the right. Without padding, the endpoint is cropped to
    its center.

    Attributes:
      num_classes: Number of classes.
      reads: Names of the endpoints of the backbone, the lowest first. Each has about
        twice the size of the one before.
      widths: Number of channels of each step, the lowest first. If there are as many
        steps as endpoints, the last step doubles the map to the size of the image
        without a skip connection. If the last map is smaller than the image, the scores
        are resized bilinearly.
      padding: See `Convs`.
      batch_norm: Whether there is batch norm before each ReLU.
      upconv: Whether maps are doubled by a transposed 2x2 convolution, which halves the
        channels, or by repeating pixels.
      convs: Number of convolutions of each step.
      window: Height and width of the kernel of the scores.
      skips: Whether the endpoints are concatenated; without, only the lowest is read.
      kernel_init: Initializer of the convolutions.
      remat: Whether to recompute each step's activations in the backward pass.
    """

    num_classes: int
    reads: tuple[str, ...]
    widths: tuple[int, ...]
    padding: int = 1
    batch_norm: bool = True
    upconv: bool = True
    convs: int = 2
    window: int = 1
    skips: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        conv = partial(Conv, kernel_init=self.kernel_init, **self.dtypes)
        norm = partial(BatchNorm, **self.dtypes) if self.batch_norm else None
        lowest, *skips = (features[name] for name in self.reads)

        def step(self, maps: tuple[Array, ...], i: int, width: int) -> dict[str, Array]:
            x, *skip = maps
            if self.upconv:
                layer = partial(ConvTransposed, width, 2, 2, kernel_init=UP_INIT)
                x = layer(name=f"upconv{i}", **self.dtypes)(x)
            else:
                x = repeat_pixels(x, 2)
            if self.padding:
                x = _fit(x, skip[0].shape[1:3] if skip else size, f"up{i}")
            joined = [_crop(s, x.shape[1:3]) for s in skip] if self.skips else []
            x = jnp.concatenate([*joined, x], axis=-1)
            options = dict(count=self.convs, conv=conv, norm=norm, name=f"up{i}")
            return {f"up{i}": Convs(width, self.padding, **options)(x, train)}

        out, x = {}, lowest
        for n, width in enumerate(self.widths):
            i = len(self.widths) - n
            one = remat_stage(partial(step, i=i, width=width), self.remat)
            out |= one(self, (x, *skips[n : n + 1]))
            x = out[f"up{i}"]
        score = conv(
            self.num_classes, self.window, padding=self.window // 2, name="score"
        )
        out["logits"] = promote(score(x))
        if self.padding and x.shape[1:3] != tuple(size):
            out["score"] = out.pop("logits")
            out["logits"] = resize(out["score"], size, antialias=False)
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the scores."""
        return {"score": ClassOutputs(np.arange(self.num_classes), self.kernel_init)}


def _fit(x: Array, size: Size, name: str) -> Array:
    """Crops a doubled map, or pads it with zeros, at the bottom and on the right."""
    if any(abs(n - m) > 1 for n, m in zip(size, x.shape[1:3], strict=True)):
        raise ValueError(
            f"{name} doubles its map to {list(x.shape[1:3])} pixels, and is to join "
            f"{list(size)}: `reads` must name endpoints from the lowest on, each twice "
            "as large, and `widths` lead to the image's size."
        )
    return crop_or_pad_end(x, size)


def _crop(x: Array, size: Size) -> Array:
    """Crops a map to its center."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(SegmenterConfig):
    """Options of U-Net; `init` is the initializer of the 3x3 convolutions.

    Attributes:
      widths: Number of channels of each level, the highest first; None for the
        variant's.
      dropout: Dropout rate at the end of the two lowest levels; None for the variant's.
      skips: Whether the expanding path reads the contracting path's maps of each level.
    """

    widths: tuple[int, ...] | None = None
    dropout: float | None = None
    skips: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallUNetConfig(SegmenterConfig):
    """Options of the small U-Net; `init` is the initializer of the 3x3 convolutions.

    Attributes:
      widths: Number of channels of each level of the contracting path.
      up_widths: Number of channels of each step of the expanding path, the lowest
        first; one fewer than `widths`.
      aux: Whether to add the auxiliary head on the third level, the endpoint "aux", for
        an additional loss.
    """

    widths: tuple[int, ...] = SMALL_WIDTHS
    up_widths: tuple[int, ...] = SMALL_UP_WIDTHS
    aux: bool = False


def unet(*, variant: str, num_classes: int = 2, **options: Any) -> Segmenter:
    """Builds the network of figure 1, or the form with padding and batch norm.

    Args:
      variant: Name of the model, "unet" or "unet_same".
      num_classes: Number of classes including background; 0 for no head, and thus no
        expanding path.
      **options: Fields of `UNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    row, config = _NETWORKS[variant], UNetConfig(**options)
    widths = row["widths"] if config.widths is None else config.widths
    if len(widths) < 2:
        raise ValueError(f"widths must be of two levels or more, got {widths}.")
    check_num_classes(num_classes)
    valid = variant == "unet"
    shared = dict(
        padding=0 if valid else 1,
        batch_norm=not valid,
        kernel_init=initializer(config.init or "he_fan_in"),
        remat=config.remat,
        **config.dtypes,
    )
    dropout = row["dropout"] if config.dropout is None else config.dropout
    levels = len(widths)
    head = UNetHead(
        num_classes,
        reads=tuple(f"down{i}" for i in range(levels, 0, -1)),
        widths=widths[-2::-1],
        skips=config.skips,
        **shared,
    )
    # Without padding the lowest map has at least 4 pixels and its input 8. The input of
    # each level has twice as many as the level below, and 4 more; the logits have 4.
    stride = 2 ** (levels - 1)
    sizes = dict(min_size=stride)
    if valid:
        smallest = 12 * stride - 4
        margin = (smallest - 4) // 2
        sizes = dict(min_size=smallest, remainder=smallest % stride, margin=margin)
    return Segmenter(
        UNetEncoder(variant, widths, dropout=dropout, **shared),
        head if num_classes else None,
        label=variant,
        preprocess=row["preprocess"],
        stride=stride,
        **sizes,
    )


def unet_small(*, num_classes: int = 11, **options: Any) -> Segmenter:
    """Builds a small U-Net that is trained on a CPU in minutes.

    Args:
      num_classes: Number of classes including background; 0 for no heads, and thus no
        expanding path.
      **options: Fields of `SmallUNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    config = SmallUNetConfig(**options)
    lowest = len(config.widths)
    check_widths(config.up_widths, lowest - 1, "up_widths")
    kernel_init = initializer(config.init or "he_fan_in")
    shared = dict(kernel_init=kernel_init, **config.dtypes)
    head = UNetHead(
        num_classes,
        reads=tuple(f"down{i}" for i in range(lowest, 0, -1)),
        widths=config.up_widths,
        upconv=False,
        convs=1,
        remat=config.remat,
        **shared,
    )
    aux_head = ScoreHead(num_classes, SMALL_AUX, **shared) if config.aux else None
    return Segmenter(
        UNetEncoder(
            "unet_small",
            config.widths,
            padding=1,
            batch_norm=True,
            stride=2,
            remat=config.remat,
            **shared,
        ),
        head if num_classes else None,
        aux_head if num_classes else None,
        label="unet_small",
        preprocess=SMALL_PREPROCESS,
        min_size=2**lowest,
        stride=2**lowest,
    )


def _torch_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of milesial/Pytorch-UNet, as in `unet_same`."""
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


def _small_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of this zoo; no public weights exist."""
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


def plain(size: int, channels: int) -> Preprocess:
    """Returns the preprocessing of U-Nets: images that are not resized, -1 to 1."""
    colors = dict(mean=(0.5,) * channels, std=(0.5,) * channels)
    return Preprocess(size=size, channels=channels, fit="keep", **colors)


_WIDTHS = (64, 128, 256, 512, 1024)
_NETWORKS = {
    "unet": dict(widths=_WIDTHS, dropout=0.5, preprocess=plain(572, 1)),
    "unet_same": dict(widths=_WIDTHS, dropout=0.0, preprocess=plain(512, 3)),
}
SMALL_PREPROCESS = plain(96, 3)
INIT = "He et al. 2015, normal of variance 2 / N of N incoming values; biases 0"
_COLORS = "the paper prints no normalization of the input: -1 to 1"
SAME = (
    "convolutions are padded by a zero on each side, so that logits have the image's "
    "size and skips are not cropped",
    "batch norm before each ReLU, of which the paper has none, and no dropout",
    "three color channels",
    _COLORS,
)


def _spec(name: str, params: int, macs: int, **facts: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="segmentation",
        build=partial(unet, variant=name),
        config=UNetConfig,
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
            "the released network has a ReLU after each up-convolution, and 128 "
            "channels after the last: here none and 64, as the paper has it",
            _COLORS,
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
    ModelSpec(
        name="unet_small",
        task="segmentation",
        build=unet_small,
        config=SmallUNetConfig,
        paper=f"after {PAPER}, figure 1",
        num_classes=11,
        preprocess=SMALL_PREPROCESS,
        params=640_299,
        macs=134_111_232,
        torch_rules=_small_names,
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
