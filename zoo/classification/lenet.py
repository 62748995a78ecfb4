"""LeNet-5 as published in 1998, and the form in which it is used today.

Reference:
  LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document
  Recognition, Proceedings of the IEEE 86(11), 1998.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_images, check_kernel, check_num_classes
from zoo.layers import (
    Classifier,
    Conv,
    Layer,
    NetworkConfig,
    initializer,
    make_head,
    per_channel,
)
from zoo.ops.convolution import convolve
from zoo.ops.pooling import max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

PAPER = (
    "LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document "
    "Recognition, 1998"
)

# Table I: the maps of S2 that each of C3's 16 maps reads.
C3_TABLE = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3: the targets of F6, bitmaps 7 wide and 12 high, decoded from a print.
_GLYPHS = """
.......  ..###..  .......  .......  .......  .......  ..###..  .......  .#####.  ..###..
.......  .####..  .......  #######  .......  .......  .##....  #######  ##...##  .##.##.
..###..  ...##..  .#####.  .....##  .##..##  #######  ##.....  .....##  ##...##  ##...##
.##.##.  ...##..  ##...##  ....##.  ##...##  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...##..  .....##  ...##..  ##...##  ##.....  ######.  ....##.  .#####.  ##..###
##...##  ...##..  ....##.  ..####.  ##...##  #####..  ###..##  ...##..  ##...##  .######
##...##  ...##..  ..###..  .....##  ##...##  .#####.  ##...##  ...##..  ##...##  .....##
##...##  ...##..  .##....  .....##  ##..###  ....###  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  .######  ##...##  ###..##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  .....##  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
"""


def rbf_codes(num_classes: int) -> np.ndarray:
    """Returns the fixed target codes (+-1) of the output layer, [84, num_classes].

    The first ten are the paper's digits; further classes have fixed random codes.
    """
    rows = [line.split() for line in _GLYPHS.strip().splitlines()]
    digits = [[c == "#" for row in rows for c in row[digit]] for digit in range(10)]
    others = np.random.RandomState(1998).rand(max(num_classes - 10, 0), 84) < 0.5
    codes = np.concatenate([np.array(digits), others])[:num_classes]
    return np.where(codes.T, 1.0, -1.0).astype(np.float32)


def squash(x: Array) -> Array:
    """Computes the scaled hyperbolic tangent 1.7159 tanh(2/3 x), with f(+-1) = +-1."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def lecun_uniform_98(fan_in: int | np.ndarray) -> Callable:
    """Makes the initializer uniform within +-2.4 / fan-in (the paper's appendix A)."""

    def init(key, shape, dtype=jnp.float32):
        bound = np.broadcast_to(2.4 / fan_in, shape)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Convolution(Layer):
    """5x5 convolution without padding, over all maps or over those of a table."""

    features: int
    table: tuple[tuple[int, ...], ...] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        maps = x.shape[-1]
        table = self.table or (tuple(range(maps)),) * self.features
        # One 5x5 kernel for each link between an input and an output map.
        inputs = np.array([i for links in table for i in links])
        outputs = np.array([o for o, links in enumerate(table) for _ in links])
        fan_in = np.array([25 * len(links) for links in table])

        shape, init = (5, 5, len(inputs)), lecun_uniform_98(fan_in[outputs])
        check_kernel(self, shape)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param(
            "bias", lecun_uniform_98(fan_in), (self.features,), self.param_dtype
        )
        dense = jnp.zeros((5, 5, maps, self.features), kernel.dtype)
        dense = dense.at[:, :, inputs, outputs].set(kernel)
        y = convolve(x.astype(self.dtype), dense.astype(self.dtype))
        return y + per_channel(bias, y).astype(self.dtype)


class Subsampling(Layer):
    """The sum of each 2x2 patch times a trainable coefficient, plus a bias, per map."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, init = (x.shape[-1],), lecun_uniform_98(4)
        coefficient = self.param("coefficient", init, shape, self.param_dtype)
        bias = self.param("bias", init, shape, self.param_dtype)
        total = 4 * nn.avg_pool(x, (2, 2), (2, 2))
        coefficient, bias = (
            per_channel(v, x).astype(self.dtype) for v in (coefficient, bias)
        )
        return total * coefficient + bias


class LeNet5Backbone(nn.Module):
    """Figure 2 from C1 to F6, from gray images of 32x32 pixels to 84 features.

    Attributes:
      config: Options of the network.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, "lenet5", size=32)
        conv = partial(Convolution, **self.config.dtypes)
        subsample = partial(Subsampling, **self.config.dtypes)
        out = {}
        x = out["c1"] = squash(conv(6, name="c1")(images))
        x = out["s2"] = squash(subsample(name="s2")(x))
        x = out["c3"] = squash(conv(16, C3_TABLE, name="c3")(x))
        x = out["s4"] = squash(subsample(name="s4")(x))
        x = out["c5"] = squash(conv(120, name="c5")(x))
        init = dict(kernel_init=lecun_uniform_98(120), bias_init=lecun_uniform_98(120))
        f6 = nn.Dense(84, name="f6", **init, **self.config.dtypes)
        out["f6"] = squash(f6(x.reshape(x.shape[0], -1)))
        return out


class RBFHead(nn.Module):
    """Minus the squared distance of the features to each class's fixed code."""

    num_classes: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        codes = jnp.asarray(rbf_codes(self.num_classes))
        difference = features.astype(jnp.float32)[:, :, None] - codes[None]
        return -jnp.square(difference).sum(axis=1)

    def macs(self) -> int:
        """Multiply-adds for one image: one for each element of the codes."""
        return 84 * self.num_classes


def lenet5(*, num_classes: int = 10, **options: Any) -> Classifier:
    """Builds LeNet-5 as published: gray images of 32x32 pixels, RBF outputs.

    Args:
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `NetworkConfig`; the head computes in float32.
    """
    check_num_classes(num_classes)
    head = RBFHead(num_classes) if num_classes else None
    return Classifier(LeNet5Backbone(NetworkConfig(**options)), head)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernConfig(NetworkConfig):
    """Options of the modern form.

    Attributes:
      init: Initializer of the kernels, a name of `zoo.layers.INITIALIZERS`.
    """

    init: str = "caffe_xavier"


class LeNet5ModernBackbone(nn.Module):
    """Two convolutions with max pooling and a dense layer, for images of 28x28 pixels.

    Attributes:
      config: Options of the network.
    """

    config: ModernConfig

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, "lenet5_modern", size=28)
        options = dict(kernel_init=initializer(self.config.init), **self.config.dtypes)
        out = {}
        x = out["conv1"] = Conv(20, 5, name="conv1", **options)(images)
        x = out["pool1"] = max_pool(x, 2, 2)
        x = out["conv2"] = Conv(50, 5, name="conv2", **options)(x)
        x = out["pool2"] = max_pool(x, 2, 2)
        x = nn.Dense(500, name="ip1", **options)(x.reshape(x.shape[0], -1))
        out["ip1"] = nn.relu(x)
        return out


def lenet5_modern(*, num_classes: int = 10, **options: Any) -> Classifier:
    """Builds the LeNet of Caffe's MNIST example: gray images of 28x28 pixels, softmax.

    Args:
      num_classes: Number of classes; 0 for no head.
      **options: Fields of `ModernConfig`.

    Raises:
      ValueError: An option is out of range.
    """
    config = ModernConfig(**options)
    kernel_init = initializer(config.init)
    head = make_head(num_classes, layer="ip2", kernel_init=kernel_init, **config.dtypes)
    return Classifier(LeNet5ModernBackbone(config), head)


def _torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    layers = "c1 s2 c3 s4 c5 f6".split()
    return tuple(TorchRule(f"backbone/{name}", name) for name in layers)


def _modern_torch_rules(model: Classifier) -> tuple[TorchRule, ...]:
    return (
        TorchRule("backbone/conv1", "conv1"),
        TorchRule("backbone/conv2", "conv2"),
        TorchRule("backbone/ip1", "ip1", flatten=(50, 4, 4)),
        TorchRule("head/ip2", "ip2"),
    )


SPECS = (
    ModelSpec(
        name="lenet5",
        task="classification",
        build=lenet5,
        config=NetworkConfig,
        paper=PAPER,
        num_classes=10,
        # Background -0.1, foreground 1.175 (section II.B).
        preprocess=Preprocess(
            size=32, channels=1, mean=(0.1 / 1.275,), std=(1 / 1.275,)
        ),
        params=60_000,
        macs=326_520,
        torch_rules=_torch_rules,
        loss="lenet_map",
        init="uniform within +-2.4 / fan-in",
        published=(
            "MNIST test error 0.95 %, without distortions",
            "MNIST test error 0.8 %, trained with distortions",
        ),
        deviations=(
            "the digit codes of the output layer are decoded from the printed figure",
            "the paper prints no value for the constant j of its loss: 10",
            "trained by SGD with momentum instead of stochastic diagonal "
            "Levenberg-Marquardt",
        ),
    ),
    ModelSpec(
        name="lenet5_modern",
        task="classification",
        build=lenet5_modern,
        config=ModernConfig,
        paper="Caffe's MNIST example, after " + PAPER,
        num_classes=10,
        preprocess=Preprocess(size=28, channels=1, mean=(0.0,), std=(256 / 255,)),
        params=431_080,
        macs=2_293_000,
        torch_rules=_modern_torch_rules,
        init="Caffe's xavier: uniform of variance 1 / fan-in",
        published=("MNIST test accuracy about 99.1 %",),
        deviations=(
            "20 and 50 maps, max pooling, ReLU and softmax in place of the paper's "
            "layers, as in Caffe",
        ),
    ),
)
