"""Linen modules and configs that several families share."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_floating, check_kernel, check_num_classes
from zoo.initialization import compile_quickly
from zoo.ops.convolution import convolve
from zoo.ops.dense import dense, dot_general
from zoo.ops.pooling import global_average_pool

Array = jax.Array

# Unlike jax's `he_normal`, `normal` is not truncated at two standard deviations.
INITIALIZERS: dict[str, Callable] = {
    "he_fan_in": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "he_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "caffe_xavier": nn.initializers.variance_scaling(1.0, "fan_in", "uniform"),
    "glorot": nn.initializers.glorot_uniform(),
    "gaussian_0.01": nn.initializers.normal(0.01),
    "gaussian_0.1": nn.initializers.normal(0.1),
    "truncated_0.01": nn.initializers.truncated_normal(0.01),
    "torch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


# `nn.Dense` with a gradient that is fast on CPUs for few rows, too.
Dense = partial(nn.Dense, dot_general=dot_general)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if type(value) in (list, tuple) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Options that every network has; a family's config adds its own.

    Attributes:
      dtype: The dtype of the computation.
      param_dtype: The dtype of the parameters.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        # Files store tuples as lists, and modules need hashable values.
        for field in dataclasses.fields(self):
            value = _as_tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name in ("dropout", "momentum"):
            value = getattr(self, name, None)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be 0 to below 1, got {value!r}.")
        for name in ("width", "widths", "dense"):
            value = getattr(self, name, None)
            for count in value if isinstance(value, tuple) else (value,):
                if count is not None and not (isinstance(count, int) and count > 0):
                    raise ValueError(f"{name} must be 1 or more, got {value!r}.")

    @property
    def dtypes(self) -> dict[str, Any]:
        """The keyword arguments that give a layer its dtypes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig(NetworkConfig):
    """Options of the networks that end in dense layers, such as AlexNet and VGG.

    Attributes:
      dense: Number of channels of each dense layer but the last.
      init: Initializer of the kernels, a name of `INITIALIZERS`; None for the paper's.
      dropout: Rate of the dropout at the dense layers.
      fully_convolutional: Whether the network takes images of any size that is large
        enough for the dense layers, and averages the logits over all positions at which
        they fit.
      remat: Whether the backward pass recomputes the convolutions' activations, which
        takes time and saves memory.
    """

    dense: int = 4096
    init: str | None = None
    dropout: float = 0.5
    fully_convolutional: bool = False
    remat: bool = False


def initializer(name: str) -> Callable:
    """Returns an initializer by its name.

    Args:
      name: "he_fan_in", "he_fan_out" (He et al. 2015, untruncated normal), "glorot"
        (Glorot and Bengio 2010, uniform), "caffe_xavier" (uniform, by fan-in), "torch"
        (uniform within 1 / sqrt(fan-in)), "gaussian_0.01", "gaussian_0.1" and
        "truncated_0.01" (normal of that standard deviation; the last one truncated at
        two standard deviations).

    Raises:
      ValueError: The name is unknown.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"init={name!r} is unknown; choose from {[*INITIALIZERS]}.")
    return compile_quickly(INITIALIZERS[name])


class Layer(nn.Module, kw_only=True):
    """A module with the dtypes of its computation and of its parameters.

    Attributes:
      dtype: The dtype of the computation.
      param_dtype: The dtype of the parameters.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def dtypes(self) -> dict[str, Any]:
        """The keyword arguments that give a layer within this module its dtypes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


class Conv(Layer):
    """A convolution of [B, H, W, C] with explicit padding.

    Its parameters are those of `flax.linen.Conv`: `kernel` [k, k, C / groups, features]
    and `bias` [features].

    Attributes:
      features: Number of output channels.
      kernel: Height and width of the window.
      stride: Step between windows.
      padding: Number of zeros on each of the four sides.
      dilation: Distance between neighboring taps.
      groups: Number of groups of channels that are convolved independently.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        check_kernel(self, shape)
        init = compile_quickly(self.kernel_init)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=(self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            dilation=(self.dilation, self.dilation),
            groups=self.groups,
        )
        if not self.use_bias:
            return y
        shape = (self.features,)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        return y + per_channel(bias.astype(self.dtype), y)


class FullyConnected(Layer):
    """The dense layer that follows a convolutional map, such as fc6.

    Attributes:
      features: Number of output channels.
      window: Height and width of the map that it reads, in pixels.
      everywhere: Whether it reads every window of a larger map, with the output
        [B, H', W', features]; else the map has exactly that size, and the output is
        [B, features]. The parameters are the same: `kernel` [window * window * C,
        features], with rows in the order height, width, channel, and `bias` [features].
    """

    features: int
    window: int
    everywhere: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        window, channels = (self.window, self.window), x.shape[-1]
        shape = (self.window**2 * channels, self.features)
        check_kernel(self, shape)
        init = compile_quickly(self.kernel_init)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if not self.everywhere and x.shape[1:3] != window:
            raise ValueError(
                f"{'/'.join(self.path)}: the kernel takes a map of {list(window)}, got "
                f"{list(x.shape[1:3])}; look at the images' size."
            )
        if self.everywhere:
            y = convolve(x, kernel.reshape(*window, channels, self.features))
        else:
            y = dense(x.reshape(x.shape[0], -1), kernel)
        return y + per_channel(bias.astype(self.dtype), y)


def dense_layers(
    x: Array,
    config: DenseConfig,
    *,
    window: int,
    train: bool,
    dropout_first: bool = False,
    **options: Any,
) -> dict[str, Array]:
    """Adds fc6 and fc7, each with a ReLU and dropout, to the module that calls it.

    Args:
      x: [B, H, W, C], the last map.
      config: Options of the network.
      window: Height and width of the map that fc6 reads, in pixels.
      train: Whether dropout is active.
      dropout_first: Whether dropout precedes each layer, as in torchvision's AlexNet,
        instead of following it, as in the papers.
      **options: Initializers and types of both layers.

    Returns:
      The layers' outputs by name.
    """
    drop = partial(nn.Dropout, config.dropout, deterministic=not train)
    layers = {
        6: FullyConnected(
            config.dense, window, config.fully_convolutional, name="fc6", **options
        ),
        7: Dense(config.dense, name="fc7", **options),
    }
    out = {}
    for i, layer in layers.items():
        if dropout_first:
            x = nn.relu(layer(drop(name=f"drop{i}")(x)))
        else:
            x = drop(name=f"drop{i}")(nn.relu(layer(x)))
        out[f"fc{i}"] = x
    return out


class BatchNorm(Layer):
    """Batch normalization over all axes but the last.

    The batch is normalized by its biased variance, and the running average takes the
    unbiased one, as in the paper's algorithm 2 and in PyTorch (Flax's own layer keeps
    the biased one). Statistics are float32 or wider, whatever `dtype` is. Under `jit`
    over a mesh the statistics are those of the whole batch; inside `shard_map` or
    `pmap` give `axis_name`.

    Attributes:
      momentum: Decay rate of the running averages; PyTorch's `1 - momentum`.
      epsilon: Value that is added to the variance.
      axis_name: Name of the mapped axis over which the statistics are averaged.
      frozen: Whether it is a fixed affine map, which training does not change.

    Reference:
      Ioffe and Szegedy, Batch Normalization, 2015, algorithms 1 and 2.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if self.frozen:
            scale, bias = jax.lax.stop_gradient((scale, bias))

        if train and not self.frozen and not self.is_initializing():
            mean, var, count = self._batch_statistics(x, running_mean.value)
            keep = self.momentum
            unbiased = var * (count / (count - 1))
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = (x - per_channel(mean, x)) * per_channel(factor, x) + per_channel(bias, x)
        return y.astype(self.dtype)

    def _batch_statistics(
        self, x: Array, running_mean: Array
    ) -> tuple[Array, Array, int]:
        average, devices = jnp.asarray, 1
        if self.axis_name is not None:
            average = partial(jax.lax.pmean, axis_name=self.axis_name)
            devices = jax.lax.psum(1, self.axis_name)
        count = x.size // x.shape[-1] * devices
        if count < 2:
            raise ValueError(
                f"{'/'.join(self.path)}: batch statistics need more than one value per "
                f"channel, got the input {list(x.shape)}."
            )
        # One pass over the map. The squared values are differences from a value near
        # the mean, so that the result is as exact as that of two passes. In half
        # precision, whose own rounding is coarser, the running mean is near enough, and
        # an accelerator need not read the map again: it adds up what a convolution
        # writes. In float32 it is the mean of one row.
        axes = tuple(range(x.ndim - 1))
        if x.dtype.itemsize < 4:
            origin = running_mean
        else:
            row = x[:, x.shape[1] // 2] if x.ndim > 2 else x
            origin = average(row.mean(axes[: row.ndim - 1]))
        origin = jax.lax.stop_gradient(origin)
        x = x - per_channel(origin, x)
        mean, square = average(jnp.stack([x.mean(axes), jnp.square(x).mean(axes)]))
        return origin + mean, jnp.maximum(square - jnp.square(mean), 0), count


class ClassOutputs(NamedTuple):
    """The class of each output of a head's layer, for `zoo.transfer.replace_head`.

    A head has a method `class_outputs()`, which returns them by the layers' names.

    Attributes:
      classes: int [outputs], 0 to K-1, or -1 for outputs that belong to no class, such
        as background.
      kernel_init: Initializer of the layer's kernel.
      reads_classes: Whether the layer's input channels have these classes, too.
    """

    classes: np.ndarray
    kernel_init: Callable
    reads_classes: bool = False


class LinearHead(Layer):
    """A dense layer from features [B, F] to float32 logits [B, K]."""

    num_classes: int
    layer: str = "fc"
    kernel_init: Callable = INITIALIZERS["gaussian_0.01"]

    @nn.compact
    def __call__(self, features: Array) -> Array:
        logits = Dense(
            self.num_classes,
            kernel_init=compile_quickly(self.kernel_init),
            name=self.layer,
            **self.dtypes,
        )(features)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Returns the class of each output."""
        classes = np.arange(self.num_classes)
        return {self.layer: ClassOutputs(classes, self.kernel_init)}


class Classifier(nn.Module):
    """A backbone and a head, the parts of every classifier of the zoo.

    Attributes:
      backbone: Module from `(images, train=...)` to a dict of named endpoints, of which
        the head reads the last.
      head: Module from features to logits; None for a network without classes, whose
        output is the last endpoint.
    """

    backbone: nn.Module
    head: nn.Module | None

    def __call__(self, images: Array, train: bool = False) -> Array:
        """Computes the logits.

        Args:
          images: float32 [B, H, W, C], preprocessed.
          train: Whether batch norm uses the batch and dropout is active.

        Returns:
          float32 [B, num_classes].
        """
        return [*self.endpoints(images, train).values()][-1]

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation, in the order of the network.

        If the last features are a map [B, H, W, F], as in a fully convolutional
        network, the logits are the mean over the map.
        """
        check_floating(images)
        features = self.backbone(images, train=train)
        if self.head is None:
            return features
        logits = self.head([*features.values()][-1])
        if logits.ndim == 4:
            logits = global_average_pool(logits)
        return {**features, "logits": logits}

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes, by field name."""
        return {"head": self.head} if self.head is not None else {}


def make_head(num_classes: int, **options) -> LinearHead | None:
    """Builds a linear head; None for `num_classes=0`."""
    check_num_classes(num_classes)
    return LinearHead(num_classes, **options) if num_classes else None


def remat_stage(stage: Callable, remat: bool) -> Callable:
    """Makes the backward pass recompute a stage's activations, to save memory.

    On CPUs this saves memory only in programs that are compiled with
    `zoo.cpu.compiler_options(training=True)`.

    Args:
      stage: Function from its module and an array to a dict of endpoints.
      remat: Whether to recompute; False returns `stage`.

    Returns:
      A function like `stage`; unlike with `nn.remat`, its dict is not sorted by name.
    """
    if not remat:
        return stage

    def call(module: nn.Module, x: Array) -> dict[str, Array]:
        names = []

        def values(module: nn.Module, x: Array) -> tuple[Array, ...]:
            out = stage(module, x)
            names[:] = out
            return tuple(out.values())

        return dict(zip(names, nn.remat(values)(module, x), strict=True))

    return call


def per_channel(values: Array, x: Array) -> Array:
    """Shapes values [C] to the rank of `x` [..., C], so that both broadcast."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
