"""SegNet: a decoder that puts values back to where the encoder's pools took theirs.

The parameters of `backbone` have the names of `vgg16_bn`'s, and its convolutions those
of `vgg16`'s, so that a classifier's go straight in:

    _, vgg16 = zoo.create("vgg16_bn", weights="imagenet")
    model, variables = zoo.create("segnet")
    dense = ("backbone/fc6/*", "backbone/fc7/*", "head/fc8/*")
    variables = zoo.transfer.graft(variables, vgg16, keep=("head/**",), ignore=dense)

References:
  Badrinarayanan, Kendall, Cipolla, SegNet: A Deep Convolutional Encoder-Decoder
  Architecture for Image Segmentation, 2015. The networks released with it
  (alexgkendall/SegNet-Tutorial).
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp

from zoo.checks import check_num_classes
from zoo.classification.imagenet import IMAGENET
from zoo.layers import initializer
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.segnet_parts import Layer, SegNetDecoder, SegNetEncoder, Table
from zoo.spec import ModelSpec, Preprocess, TorchRule

PAPER = (
    "Badrinarayanan, Kendall, Cipolla: SegNet: A Deep Convolutional Encoder-Decoder "
    "Architecture for Image Segmentation, 2015"
)


def _layers(stage: int, *widths: int, decoder: bool = False) -> tuple[Layer, ...]:
    """The layers conv5_1, conv5_2, .. of VGG-16, or conv5_3_D, conv5_2_D, .. back."""
    layers = []
    for i, width in enumerate(widths):
        place = f"{stage}_{len(widths) - i if decoder else i + 1}" + "_D" * decoder
        layers.append(Layer(f"conv{place}", f"bn{place}", width))
    return tuple(layers)


TABLES = {
    "segnet": Table(
        encoder=(
            _layers(1, 64, 64),
            _layers(2, 128, 128),
            _layers(3, 256, 256, 256),
            _layers(4, 512, 512, 512),
            _layers(5, 512, 512, 512),
        ),
        decoder=(
            _layers(5, 512, 512, 512, decoder=True),
            _layers(4, 512, 512, 256, decoder=True),
            _layers(3, 256, 256, 128, decoder=True),
            _layers(2, 128, 64, decoder=True),
            (Layer("conv1_2_D", "bn1_2_D", 64),),
        ),
        window=3,
        decoder_relu=True,
        classifier=("conv1_1_D", 3),
        normalized=False,
    ),
    "segnet_basic": Table(
        encoder=tuple((Layer(f"conv{i}", f"bn{i}", 64),) for i in (1, 2, 3, 4)),
        decoder=tuple(
            (Layer(f"conv_decode{i}", f"bn_decode{i}", 64),) for i in (4, 3, 2, 1)
        ),
        window=7,
        decoder_relu=False,
        classifier=("conv_classifier", 1),
        normalized=True,
    ),
}


def segnet(
    *,
    variant: str,
    num_classes: int = 11,
    init: str | None = None,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> Segmenter:
    """Builds SegNet or SegNet-Basic; images may have any size.

    Args:
      variant: A name of `TABLES`.
      num_classes: 0 for no head: then there is no decoder, either.
      init: Of the convolutions, a name of `zoo.layers.INITIALIZERS`; None for the
        paper's.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    options = dict(
        table=TABLES[variant],
        kernel_init=initializer(init or "he_fan_in"),
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return Segmenter(
        SegNetEncoder(**options),
        SegNetDecoder(num_classes, **options) if num_classes else None,
        label=variant,
        preprocess=PREPROCESS[variant],
    )


def _caffe_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """The released networks' names; "conv1_1_bn" for the batch norm of conv1_1."""
    table = model.backbone.table
    rules = []
    for part, stages in (("backbone", table.encoder), ("head", table.decoder)):
        for layer in sum(stages, ()):
            rules.append(TorchRule(f"{part}/{layer.name}", layer.name))
            rules.append(TorchRule(f"{part}/{layer.norm}", f"{layer.name}_bn"))
    name, _ = table.classifier
    return (*rules, TorchRule(f"head/{name}", name))


_CAMVID = dict(size=360, width=480, fit="keep", resize=None)
PREPROCESS = {
    "segnet": dataclasses.replace(IMAGENET, **_CAMVID),
    # As released: 0 to 255, and the normalisation is the network's own.
    "segnet_basic": Preprocess(
        channels=3, mean=(0.0,) * 3, std=(1 / 255,) * 3, **_CAMVID
    ),
}
_INIT = "He et al. 2015, normal of variance 2 / (k * k * input channels); biases 0"
_DROPOUT = (
    "the paper's comparisons with other networks have dropout at the end of deeper "
    "layers: here none, as in the released networks"
)

SPECS = (
    ModelSpec(
        name="segnet",
        task="segmentation",
        build=partial(segnet, variant="segnet"),
        paper=f"{PAPER}, section 3 and figure 2",
        num_classes=11,
        preprocess=PREPROCESS["segnet"],
        params=29_449_355,
        macs=106_712_432_640,
        torch_rules=_caffe_names,
        loss="median_frequency",
        init=f"{_INIT}; the encoder's may be those of a trained VGG-16",
        published=(
            "CamVid test, 11 classes, trained on 3,500 images of several sets: global "
            "accuracy 90.40 %, class average 71.20 %, mean IoU 60.10 %, boundary F1 "
            "46.84 % (table 3)",
            "SUN RGB-D test, 37 classes: global accuracy 72.63 %, class average "
            "44.76 %, mean IoU 31.84 % (table 4)",
        ),
        deviations=(
            "the paper normalises the input's local contrast: here colours are scaled "
            "as the public weights of VGG-16 expect them",
            _DROPOUT,
        ),
    ),
    ModelSpec(
        name="segnet_basic",
        task="segmentation",
        build=partial(segnet, variant="segnet_basic"),
        paper=f"{PAPER}, section 3.1",
        num_classes=11,
        preprocess=PREPROCESS["segnet_basic"],
        params=1_416_587,
        macs=59_188_838_400,
        torch_rules=_caffe_names,
        loss="median_frequency",
        init=_INIT,
        published=("CamVid: comparisons of its variants alone (table 1)",),
        deviations=(
            "the paper normalises the input's local contrast: here the local response, "
            "as in the released network",
            "the released network takes blue first: here red",
        ),
    ),
)
