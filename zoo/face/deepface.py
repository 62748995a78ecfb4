"""DeepFace: locally connected layers over faces that were aligned in three dimensions.

Reference:
  Taigman, Yang, Ranzato, Wolf, DeepFace: Closing the Gap to Human-Level Performance in
  Face Verification, CVPR 2014, section 3 and figure 2.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from zoo.checks import check_images
from zoo.face.layers import DescriptorLayer, LocallyConnected
from zoo.layers import (
    Classifier,
    Conv,
    NetworkConfig,
    initializer,
    make_head,
    remat_stage,
)
from zoo.ops.pooling import max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "Taigman, Yang, Ranzato, Wolf: DeepFace: Closing the Gap to Human-Level "
    "Performance in Face Verification, CVPR 2014"
)


class DeepFaceSizes(NamedTuple):
    """Sizes of a network of this family.

    Attributes:
      size: Height and width of the images, in pixels.
      c1: (features, kernel) of the first convolution.
      c3: (features, kernel) of the second one; None for no second one.
      local: (name, features, kernel, stride) of the locally connected layers.
      f7: Length of the face's descriptor.
    """

    size: int
    c1: tuple[int, int]
    c3: tuple[int, int] | None
    local: tuple[tuple[str, int, int, int], ...]
    f7: int


DEEPFACE = DeepFaceSizes(
    size=152,
    c1=(32, 11),
    c3=(16, 9),
    local=(("l4", 16, 9, 1), ("l5", 16, 7, 2), ("l6", 16, 5, 1)),
    f7=4096,
)
# Section 5.2: without C3, without L4 and L5, and without all three.
SUB1 = DEEPFACE._replace(c3=None)
SUB2 = DEEPFACE._replace(local=DEEPFACE.local[2:])
SUB3 = SUB2._replace(c3=None)
SMALL = DeepFaceSizes(
    size=64,
    c1=(8, 5),
    c3=(16, 5),
    local=(("l4", 16, 3, 1), ("l5", 16, 5, 2), ("l6", 16, 3, 1)),
    f7=256,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFaceConfig(NetworkConfig):
    """Options of a network of this family.

    Attributes:
      init: Initializer of the kernels, a name of `zoo.layers.INITIALIZERS`; None for
        the paper's.
      bias: Initial value of the biases of all layers but the last.
      dropout: Rate after F7.
      remat: Whether the backward pass recomputes the maps' activations, which takes
        time and saves memory.
    """

    init: str | None = None
    bias: float = 0.5
    dropout: float = 0.5
    remat: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallDeepFaceConfig(DeepFaceConfig):
    """Options of `deepface_small`, whose initializer is "he_fan_in"."""

    bias: float = 0.0


class DeepFaceBackbone(nn.Module):
    """Figure 2: C1 M2 C3 L4 L5 L6 F7, each but the pooling followed by a ReLU.

    Attributes:
      label: Name of the network in error messages.
      sizes: Sizes of the layers.
      config: Options of the network.
      kernel_init: Initializer of the kernels.
    """

    label: str
    sizes: DeepFaceSizes
    config: DeepFaceConfig
    kernel_init: Callable

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        sizes, config = self.sizes, self.config
        check_images(images, self.label, size=sizes.size)
        options = dict(
            kernel_init=self.kernel_init,
            bias_init=nn.initializers.constant(config.bias),
            **config.dtypes,
        )

        def maps(self, x: Array) -> dict[str, Array]:
            out = {}
            x = out["c1"] = nn.relu(Conv(*sizes.c1, name="c1", **options)(x))
            # 71 pixels of 142 need a last window over the border.
            x = out["m2"] = max_pool(x, 3, 2, ceil=True)
            if sizes.c3:
                x = out["c3"] = nn.relu(Conv(*sizes.c3, name="c3", **options)(x))
            for name, *shape in sizes.local:
                layer = LocallyConnected(*shape, name=name, **options)
                x = out[name] = nn.relu(layer(x))
            return out

        out = remat_stage(maps, config.remat)(self, images)
        x = [*out.values()][-1].reshape(images.shape[0], -1)
        x = DescriptorLayer(sizes.f7, name="f7", **options)(x, train=train)
        drop = nn.Dropout(config.dropout, deterministic=not train, name="drop7")
        out["f7"] = drop(x)
        return out


def deepface(
    *,
    label: str = "deepface",
    sizes: DeepFaceSizes = DEEPFACE,
    num_classes: int = 4030,
    **options: Any,
) -> Classifier:
    """Builds the network of figure 2.

    Args:
      label: Name of the network in error messages.
      sizes: Sizes of the layers.
      num_classes: Number of people to tell apart in training; 0 for no head, whose
        output is F7.
      **options: Fields of `DeepFaceConfig`.
    """
    config = DeepFaceConfig(**options)
    return _build(label, sizes, config, num_classes, config.init or "gaussian_0.01")


def deepface_small(*, num_classes: int = 128, **options: Any) -> Classifier:
    """Builds a small network of the same layers, for faces of 64 x 64 pixels.

    Args:
      num_classes: Number of people to tell apart in training; 0 for no head, whose
        output is F7.
      **options: Fields of `SmallDeepFaceConfig`.
    """
    config = SmallDeepFaceConfig(**options)
    init = config.init or "he_fan_in"
    return _build("deepface_small", SMALL, config, num_classes, init)


def _build(
    label: str,
    sizes: DeepFaceSizes,
    config: DeepFaceConfig,
    num_classes: int,
    init: str,
) -> Classifier:
    shared = dict(kernel_init=initializer(init))
    head = make_head(num_classes, layer="f8", **shared, **config.dtypes)
    return Classifier(DeepFaceBackbone(label, sizes, config, **shared), head)


def _names(model: Classifier) -> tuple[TorchRule, ...]:
    """Returns the rules for our own names; the authors published no weights."""
    sizes = model.backbone.sizes
    side = -(-(sizes.size - sizes.c1[1] - 2) // 2) + 1  # of M2
    side -= sizes.c3[1] - 1 if sizes.c3 else 0
    for *_, kernel, stride in sizes.local:
        side = (side - kernel) // stride + 1
    channels = sizes.local[-1][1]
    layers = ["c1", *(["c3"] if sizes.c3 else []), *(row[0] for row in sizes.local)]
    return (
        *(TorchRule(f"backbone/{name}", name) for name in layers),
        TorchRule("backbone/f7", "f7", flatten=(channels, side, side)),
        TorchRule("head/f8", "f8"),
    )


# The paper does not say how pixels are scaled: to 0 .. 1.
FACES = Preprocess(size=152, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
UNSAID = (
    "the paper does not say how pixels are scaled: from 0 to 1",
    "the last layer's biases start at 0, of which the softmax makes the same as of 0.5",
    "the largest value of each output of F7 is a maximum over training steps that "
    "fades by a thousandth at each, and not one over the training set; "
    "`zoo.face.verification.measure_maximum` computes that",
)
INIT = "normal, std 0.01; biases 0.5"


def _spec(name: str, sizes: DeepFaceSizes, params: int, macs: int, **facts: Any):
    return ModelSpec(
        name=name,
        task="verification",
        build=partial(deepface, label=name, sizes=sizes),
        config=DeepFaceConfig,
        num_classes=4030,
        preprocess=FACES,
        params=params,
        macs=macs,
        torch_rules=_names,
        init=INIT,
        **facts,
    )


def _ablation(
    name: str,
    sizes: DeepFaceSizes,
    params: int,
    macs: int,
    *,
    without: str,
    error: float,
) -> ModelSpec:
    return _spec(
        name,
        sizes,
        params,
        macs,
        paper=f"{PAPER}, section 5.2 and table 1",
        published=(f"SFC classification error {error} %",),
        deviations=(
            f"DeepFace without {without}; the paper gives no sizes: what is left keeps "
            "its kernels, strides and numbers of maps",
            *UNSAID,
        ),
    )


SPECS = (
    _spec(
        "deepface",
        DEEPFACE,
        118_923_774,
        517_624_448,
        paper=f"{PAPER}, figure 2",
        published=(
            "LFW accuracy 95.92 % +- 0.29, inner product of descriptors",
            "LFW accuracy 97.00 % +- 0.28, weighted chi-squared (restricted)",
            "LFW accuracy 96.17 %, siamese",
            "LFW accuracy 97.35 % +- 0.25, ensemble (unrestricted)",
            "LFW accuracy 94.30 % with 2D alignment alone, 87.9 % without alignment",
            "YTF accuracy 91.4 % +- 1.1",
            "SFC classification error 8.74 %, 4,030 people",
        ),
        deviations=(
            "the max pooling's last window reaches over the border, which gives the "
            "paper's 71 x 71",
            *UNSAID,
        ),
    ),
    _ablation(
        "deepface_sub1", SUB1, 236_725_486, 470_843_776, without="C3", error=11.2
    ),
    _ablation(
        "deepface_sub2", SUB2, 267_033_054, 665_743_488, without="L4 and L5", error=12.6
    ),
    _ablation(
        "deepface_sub3",
        SUB3,
        368_248_782,
        602_382_208,
        without="C3, L4 and L5",
        error=13.5,
    ),
    ModelSpec(
        name="deepface_small",
        task="verification",
        build=deepface_small,
        config=SmallDeepFaceConfig,
        paper=f"after {PAPER}, figure 2",
        num_classes=128,
        preprocess=Preprocess(size=64, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3),
        params=2_425_520,
        macs=6_732_672,
        torch_rules=_names,
        init="normal, variance 2 / fan-in; biases 0",
        published=("none: a small network for small faces, trained in minutes",),
        deviations=(
            "64 x 64 pixels, of 8 and 16 maps, with smaller kernels, and a "
            "descriptor of 256 values",
            "He's initialization and biases of 0, with which it learns from few faces",
            *UNSAID[2:],
        ),
    ),
)
