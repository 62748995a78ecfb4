"""SegNet: a decoder that unpools with the indices of the encoder's max pools.

The parameters of `backbone` have the same names as those of `vgg16_bn`, and its
convolutions the same as those of `vgg16`, so that the weights of a classifier can be
copied:

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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from zoo.checks import check_num_classes
from zoo.classification.imagenet import IMAGENET
from zoo.layers import BatchNorm, ClassOutputs, Conv, Layer, initializer, remat_stage
from zoo.ops.normalization import local_response_norm
from zoo.ops.resize import resize
from zoo.ops.unpooling import max_pool_with_indices, max_unpool
from zoo.segmentation.segmenter import Segmenter, SegmenterConfig, Size, promote
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Badrinarayanan, Kendall, Cipolla: SegNet: A Deep Convolutional Encoder-Decoder "
    "Architecture for Image Segmentation, 2015"
)


class ConvSpec(NamedTuple):
    """A convolution with batch norm.

    Attributes:
      name: Name of the convolution.
      norm: Name of the batch norm.
      features: Number of channels.
    """

    name: str
    norm: str
    features: int


class SegNetLayers(NamedTuple):
    """The layers of a network.

    Attributes:
      encoder: The convolutions of each stage, which ends with a max pool.
      decoder: The convolutions of each stage, which starts with an unpooling.
      kernel: Height and width of the convolutions' kernels.
      decoder_relu: Whether the convolutions of the decoder are followed by ReLUs.
      classifier: Name and kernel size of the last convolution.
      normalized: Whether the input has local response normalization.
    """

    encoder: tuple[tuple[ConvSpec, ...], ...]
    decoder: tuple[tuple[ConvSpec, ...], ...]
    kernel: int
    decoder_relu: bool
    classifier: tuple[str, int]
    normalized: bool


def _stage(stage: int, *widths: int, decoder: bool = False) -> tuple[ConvSpec, ...]:
    """Returns conv5_1, conv5_2 and so on as in VGG-16, or conv5_3_D, conv5_2_D."""
    layers = []
    for i, width in enumerate(widths):
        place = f"{stage}_{len(widths) - i if decoder else i + 1}" + "_D" * decoder
        layers.append(ConvSpec(f"conv{place}", f"bn{place}", width))
    return tuple(layers)


LAYERS = {
    "segnet": SegNetLayers(
        encoder=(
            _stage(1, 64, 64),
            _stage(2, 128, 128),
            _stage(3, 256, 256, 256),
            _stage(4, 512, 512, 512),
            _stage(5, 512, 512, 512),
        ),
        decoder=(
            _stage(5, 512, 512, 512, decoder=True),
            _stage(4, 512, 512, 256, decoder=True),
            _stage(3, 256, 256, 128, decoder=True),
            _stage(2, 128, 64, decoder=True),
            (ConvSpec("conv1_2_D", "bn1_2_D", 64),),
        ),
        kernel=3,
        decoder_relu=True,
        classifier=("conv1_1_D", 3),
        normalized=False,
    ),
    "segnet_basic": SegNetLayers(
        encoder=tuple((ConvSpec(f"conv{i}", f"bn{i}", 64),) for i in (1, 2, 3, 4)),
        decoder=tuple(
            (ConvSpec(f"conv_decode{i}", f"bn_decode{i}", 64),) for i in (4, 3, 2, 1)
        ),
        kernel=7,
        decoder_relu=False,
        classifier=("conv_classifier", 1),
        normalized=True,
    ),
}


class SegNetEncoder(Layer):
    """Section 3: stages of convolutions, each with a max pool that returns its indices.

    The endpoint "pool1_mask" int32 holds the index row * W + column of each maximum.

    Attributes:
      layers: The layers of the network.
      kernel_init: Initializer of the kernels.
      remat: Whether to recompute each stage's activations in the backward pass.
    """

    layers: SegNetLayers
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        convolve = partial(_conv_norm, self, train=train)

        def stage(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for layer in self.layers.encoder[i - 1]:
                x = out[layer.name] = nn.relu(convolve(layer, x))
            pooled = max_pool_with_indices(x, 2, 2, ceil=True)
            out[f"pool{i}"], out[f"pool{i}_mask"] = pooled
            return out

        out, x = {}, images
        if self.layers.normalized:
            # The constants of the released network, as Caffe defines them.
            x = out["norm"] = local_response_norm(x, alpha=1e-4 / 5, k=1)
        for i in range(1, len(self.layers.encoder) + 1):
            out |= remat_stage(partial(stage, i=i), self.remat)(self, x)
            x = out[f"pool{i}"]
        return out


class SegNetDecoder(Layer):
    """Section 3: stages of an unpooling and convolutions, and the scores.

    Attributes:
      num_classes: Number of classes.
      layers: The layers of the network.
      switches: Whether maps are unpooled with the indices of the encoder's maxima, or
        resized bilinearly.
      kernel_init: Initializer of the kernels.
      remat: Whether to recompute each stage's activations in the backward pass.
    """

    num_classes: int
    layers: SegNetLayers
    switches: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False

    @nn.compact
    def __call__(
        self, features: Mapping[str, Array], size: Size, train: bool = False
    ) -> dict[str, Array]:
        """Computes the endpoints of each stage and "logits"."""
        convolve = partial(_conv_norm, self, train=train)
        activate = nn.relu if self.layers.decoder_relu else lambda x: x
        stages = len(self.layers.encoder)
        # The size of the input of each pool.
        sizes = [size, *(features[f"pool{i}"].shape[1:3] for i in range(1, stages))]

        def stage(self, x: tuple[Array, Array], i: int) -> dict[str, Array]:
            if self.switches:
                x = max_unpool(*x, sizes[i - 1], stride=2)
            else:
                x = resize(x[0], sizes[i - 1], antialias=False)
            out = {f"pool{i}_D": x}
            for layer in self.layers.decoder[stages - i]:
                x = out[layer.name] = activate(convolve(layer, x))
            return out

        out, x = {}, features[f"pool{stages}"]
        for i in range(stages, 0, -1):
            one = remat_stage(partial(stage, i=i), self.remat)
            out |= one(self, (x, features[f"pool{i}_mask"]))
            x = [*out.values()][-1]
        name, kernel = self.layers.classifier
        out["logits"] = promote(_conv(self, kernel, self.num_classes, name)(x))
        return out

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output of the last convolution."""
        classes = np.arange(self.num_classes)
        return {self.layers.classifier[0]: ClassOutputs(classes, self.kernel_init)}


def _conv(module: nn.Module, kernel: int, features: int, name: str) -> Conv:
    return Conv(
        features,
        kernel,
        padding=kernel // 2,
        kernel_init=module.kernel_init,
        name=name,
        **module.dtypes,
    )


def _conv_norm(module: nn.Module, layer: ConvSpec, x: Array, train: bool) -> Array:
    x = _conv(module, module.layers.kernel, layer.features, layer.name)(x)
    return BatchNorm(name=layer.norm, **module.dtypes)(x, train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegNetConfig(SegmenterConfig):
    """Options of SegNet; `init` is the initializer of the convolutions.

    Attributes:
      switches: Whether the decoder unpools with the indices of the encoder's maxima, or
        resizes bilinearly, as the paper's baselines do.
    """

    switches: bool = True


def segnet(*, variant: str, num_classes: int = 11, **options: Any) -> Segmenter:
    """Builds SegNet or SegNet-Basic; images may have any size.

    Args:
      variant: Name of the model, a key of `LAYERS`.
      num_classes: Number of classes; 0 for no head, and thus no decoder.
      **options: Fields of `SegNetConfig`.

    Raises:
      ValueError: An option is unknown or out of range.
    """
    check_num_classes(num_classes)
    config = SegNetConfig(**options)
    shared = dict(
        layers=LAYERS[variant],
        kernel_init=initializer(config.init or "he_fan_in"),
        remat=config.remat,
        **config.dtypes,
    )
    decoder = None
    if num_classes:
        decoder = SegNetDecoder(num_classes, switches=config.switches, **shared)
    return Segmenter(
        SegNetEncoder(**shared),
        decoder,
        label=variant,
        preprocess=PREPROCESS[variant],
    )


def _caffe_names(model: Segmenter) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of the released networks."""
    layers = model.backbone.layers
    rules = []
    for part, stages in (("backbone", layers.encoder), ("head", layers.decoder)):
        for layer in sum(stages, ()):
            rules.append(TorchRule(f"{part}/{layer.name}", layer.name))
            rules.append(TorchRule(f"{part}/{layer.norm}", f"{layer.name}_bn"))
    name, _ = layers.classifier
    return (*rules, TorchRule(f"head/{name}", name))


_CAMVID = dict(size=360, width=480, fit="keep", resize=None)
PREPROCESS = {
    "segnet": dataclasses.replace(IMAGENET, **_CAMVID),
    # As released: 0 to 255, followed by the network's own normalization.
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
        config=SegNetConfig,
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
            "the paper normalizes the input's local contrast: here colors are scaled "
            "as the public weights of VGG-16 expect them",
            _DROPOUT,
        ),
    ),
    ModelSpec(
        name="segnet_basic",
        task="segmentation",
        build=partial(segnet, variant="segnet_basic"),
        config=SegNetConfig,
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
            "the paper normalizes the input's local contrast: here the local response, "
            "as in the released network",
            "the released network takes blue first: here red",
        ),
    ),
)
