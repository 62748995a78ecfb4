"""Rectifier networks of 14 to 30 layers, from studies of initialization.

References:
  He, Zhang, Ren, Sun, Delving Deep into Rectifiers: Surpassing Human-Level Performance
  on ImageNet Classification, 2015. The small network is from He, Sun, Convolutional
  Neural Networks at Constrained Time Cost, 2014.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images, check_widths
from zoo.classification.imagenet import CAFFE_MEAN
from zoo.layers import (
    Classifier,
    Conv,
    DenseConfig,
    Layer,
    initializer,
    make_head,
    per_channel,
    remat_stage,
)
from zoo.ops.pooling import max_pool, spatial_pyramid_pool
from zoo.spec import ModelSpec, TorchRule

Array = jax.Array

PAPER = (
    "He, Zhang, Ren, Sun: Delving Deep into Rectifiers: Surpassing Human-Level "
    "Performance on ImageNet Classification, 2015"
)

# Initial value of every slope of a PReLU.
SLOPE = 0.25
# Equation 15: a rectifier passes (1 + slope^2) / 2 of the backward signal's variance.
RELU_INIT = nn.initializers.variance_scaling(2, "fan_out", "normal")
PRELU_INIT = nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_out", "normal")


class PReLU(Layer):
    """Multiplies negative values by a learned slope.

    Its parameter is `slope` [C], or [1] if all channels share one.

    Reference:
      The paper's section 2.1.
    """

    shared: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (1 if self.shared else x.shape[-1],)
        start = nn.initializers.constant(SLOPE)
        slope = self.param("slope", start, shape, self.param_dtype)
        x, slope = x.astype(self.dtype), slope.astype(self.dtype)
        return prelu(x, per_channel(slope, x))


# `zoo.explain` looks for calls of this name in a traced network.
@jax.jit
def prelu(x: Array, slope: Array) -> Array:
    """Multiplies the negative values of `x` by slopes that broadcast with it."""
    return jnp.where(x > 0, x, slope * x)


class Layout(NamedTuple):
    """The convolutions and the pyramid of a network, from tables 1 and 3.

    Attributes:
      padding: Padding of the first convolution, 7x7 with stride 2.
      pool: Window and stride of the pool that follows it.
      window: Window of all other convolutions.
      levels: Number of bins in each direction of each grid of the pyramid.
      map_size: Height and width of the pyramid's input for an image of 224 pixels.
      min_size: Height and width of the smallest image that makes a map of one pixel.
      dense_size: Height and width of the smallest image that makes a map of `map_size`.
      widths: Number of channels of the first convolution and of those of each stage.
      depths: Number of convolutions of each stage; all stages but the last end with a
        2x2 pool.
    """

    padding: int
    pool: int
    window: int
    levels: tuple[int, ...]
    map_size: int
    min_size: int
    dense_size: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]


_large = partial(Layout, 3, 2, 3, (7, 3, 2, 1), 14, 15, 223)
_small = partial(Layout, 0, 3, 2, (6, 3, 2, 1), 18, 17, 221)
LAYOUTS = {
    "A": _large(widths=(96, 256, 512, 512), depths=(5, 5, 5)),
    "B": _large(widths=(96, 256, 512, 512), depths=(6, 6, 6)),
    "C": _large(widths=(96, 384, 768, 896), depths=(6, 6, 6)),
    "14": _small(widths=(64, 128, 256), depths=(4, 6)),
    "30": _small(widths=(64, 128, 256), depths=(4, 22)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeInitConfig(DenseConfig):
    """Options of a network of the paper.

    `init` is the initializer of the convolutions alone, such as "glorot", the paper's
    baseline. With `fully_convolutional` the pyramid is applied to every window of the
    last map that has the size for an image of 224 pixels, as in the paper's dense
    tests, and the logits are averaged; without, it covers the whole map once.

    Attributes:
      activation: "prelu" (a slope for each channel), "prelu_shared" (one for each
        layer) or "relu".
      widths: Number of channels of the first convolution and of those of each stage;
        None for the table's.
      depths: Number of convolutions of each stage; None for the table's.
    """

    activation: str = "prelu"
    widths: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        choices = ("relu", "prelu", "prelu_shared")
        if self.activation not in choices:
            raise ValueError(
                f"activation={self.activation!r}; choose from {[*choices]}."
            )
        _ = self.kernel_init  # Raises for an unknown name.

    @property
    def kernel_init(self) -> Callable:
        """The initializer of the convolutions; equation 15 if `init` is None."""
        if self.init:
            return initializer(self.init)
        return RELU_INIT if self.activation == "relu" else PRELU_INIT


class HeInitBackbone(nn.Module):
    """Convolutions, a spatial pyramid and two dense layers; images of any size.

    Attributes:
      label: Name of the network in error messages.
      layout: Convolutions and pyramid of the network.
      config: Options of the network.
    """

    label: str
    layout: Layout
    config: HeInitConfig

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        layout, config = self.layout, self.config
        everywhere = config.fully_convolutional
        smallest = layout.dense_size if everywhere else layout.min_size
        check_images(images, self.label, min_size=smallest)
        conv = partial(Conv, kernel_init=config.kernel_init, **config.dtypes)

        def activate(x: Array, layer: str) -> Array:
            if config.activation == "relu":
                return nn.relu(x)
            shared = config.activation == "prelu_shared"
            return PReLU(shared, name=f"{layer}_prelu", **config.dtypes)(x)

        def stem(self, x: Array) -> dict[str, Array]:
            steps = dict(stride=2, padding=layout.padding)
            x = activate(conv(layout.widths[0], 7, name="conv1", **steps)(x), "conv1")
            return {"conv1": x, "pool1": max_pool(x, layout.pool, layout.pool)}

        def stage(self, x: Array, i: int) -> dict[str, Array]:
            out, features = {}, layout.widths[i - 1]
            for j in range(1, layout.depths[i - 2] + 1):
                # The 2x2 convolutions have one pixel of padding and none in turn, so
                # that two of them keep the size.
                padding = 1 if layout.window == 3 else j % 2
                name = f"conv{i}_{j}"
                x = conv(features, layout.window, padding=padding, name=name)(x)
                x = out[name] = activate(x, name)
            if i <= len(layout.depths):
                out[f"pool{i}"] = max_pool(x, 2, 2)
            return out

        out = remat_stage(stem, config.remat)(self, images)
        for i in range(2, len(layout.depths) + 2):
            x = [*out.values()][-1]
            out |= remat_stage(partial(stage, i=i), config.remat)(self, x)
        x = out["spp"] = spatial_pyramid_pool(
            [*out.values()][-1],
            layout.levels,
            window=layout.map_size if everywhere else None,
        )
        x = x.reshape(*x.shape[:-2], -1)
        dense = partial(
            nn.Dense,
            config.dense,
            kernel_init=initializer("gaussian_0.01"),
            **config.dtypes,
        )
        drop = partial(nn.Dropout, config.dropout, deterministic=not train)
        for layer in ("fc1", "fc2"):
            x = activate(dense(name=layer)(x), layer)
            x = out[layer] = drop(name=f"{layer}_drop")(x)
        return out


def he_init(*, variant: str, num_classes: int = 1000, **options: Any) -> Classifier:
    """Builds a network of the paper.

    Args:
      variant: Name of one of `SPECS`.
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `HeInitConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    layout, config = LAYOUTS[_NETWORKS[variant].layout], HeInitConfig(**options)
    check_widths(config.widths or layout.widths, len(layout.widths))
    layout = layout._replace(
        widths=config.widths or layout.widths, depths=config.depths or layout.depths
    )
    head_init = nn.initializers.normal(0.001)
    head = make_head(num_classes, layer="fc3", kernel_init=head_init, **config.dtypes)
    return Classifier(HeInitBackbone(variant, layout, config), head)


def _torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    """Lists the paper's names; the bins of a channel are contiguous."""
    net = model.backbone
    stages = enumerate(net.layout.depths, start=2)
    layers = [f"conv{i}_{j + 1}" for i, depth in stages for j in range(depth)]
    layers = ["conv1", *layers, "fc1", "fc2"]
    channels = net.layout.widths[-1]
    bins = (channels, sum(n * n for n in net.layout.levels), 1)
    rules = [
        TorchRule(f"backbone/{name}", name, flatten=bins if name == "fc1" else None)
        for name in layers
    ]
    if net.config.activation != "relu":
        names = [f"{name}_prelu" for name in layers]
        rules += [TorchRule(f"backbone/{name}", name) for name in names]
    return (*rules, TorchRule("head/fc3", "fc3"))


class _Network(NamedTuple):
    """A row of the table of networks; the counts include the slopes of PReLUs."""

    layout: str
    activation: str
    params: int
    macs: int


_NETWORKS = {
    "msra_small14": _Network("14", "prelu", 75_004_200, 980_914_880),
    "msra_a": _Network("A", "prelu", 178_032_072, 19_058_106_368),
    "msra_b": _Network("B", "prelu", 183_343_048, 23_219_904_512),
    "msra_c": _Network("C", "prelu", 330_623_944, 53_463_130_112),
    "relu22": _Network("B", "relu", 183_327_080, 23_219_904_512),
    "relu30": _Network("30", "relu", 79_192_296, 2_417_464_000),
}
_ERROR = "ILSVRC-2012 validation error"
_PUBLISHED = {
    "msra_small14": (
        f"{_ERROR} 32.64 % (top-5 12.75 %), ten views",
        f"{_ERROR} 32.71 % (top-5 12.87 %) with shared slopes, 33.82 % (13.34 %) with "
        "ReLU, 33.90 % (13.44 %) with ReLU and Glorot's initialization",
    ),
    "msra_a": (
        f"{_ERROR} 25.59 % (top-5 8.23 %), ten views at scale 256; 26.48 % (8.59 %) "
        "with ReLU",
    ),
    "msra_b": (f"{_ERROR} 25.53 % (top-5 8.13 %), ten views at scale 256",),
    "msra_c": (
        f"{_ERROR} 24.27 % (top-5 7.38 %), ten views at scale 256",
        f"{_ERROR} 21.59 % (top-5 5.71 %), dense at several scales",
    ),
    "relu22": (
        "curves only (section 2.2): both initializations converge, the paper's earlier "
        "than Glorot's",
    ),
    "relu30": (
        f"{_ERROR} 38.56 % (top-5 16.59 %); with Glorot's initialization it does not "
        "learn (section 2.2)",
    ),
}


def _spec(name: str, row: _Network) -> ModelSpec:
    small = row.layout in ("14", "30")
    table = "table 1" if small else f"table 3, {row.layout}"
    init = "normal of variance 2 / (k * k * output channels)"
    if row.activation == "prelu":
        init = f"{init} / (1 + 0.25^2), slopes {SLOPE}"
    # The activation of a network that is named after its ReLUs is not an option.
    fixed = {"activation": "relu"} if row.activation == "relu" else {}
    deviations = ["mean color instead of mean image is subtracted from the input"]
    if small:
        deviations.append(
            "the paper does not print paddings: none in conv1, and in the 2x2 "
            "convolutions one pixel and none in turn, which give the maps of 36 and 18 "
            "pixels of the paper that the network is from"
        )
    if row.layout == "30":
        deviations.append(
            "the paper does not say where it adds its sixteen convolutions of 256 "
            "channels: after the six of the 14-layer network"
        )
    return ModelSpec(
        name=name,
        task="classification",
        build=partial(he_init, variant=name, **fixed),
        config=HeInitConfig,
        paper=f"{PAPER}, {table}",
        num_classes=1000,
        preprocess=CAFFE_MEAN,
        params=row.params,
        macs=row.macs,
        torch_rules=_torch_rules,
        init=f"convolutions {init}; fc1 and fc2 std 0.01, fc3 std 0.001; biases 0",
        published=_PUBLISHED[name],
        deviations=tuple(deviations),
    )


SPECS = tuple(_spec(name, row) for name, row in _NETWORKS.items())
