"""Linen modules of the face networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_kernel
from zoo.initialization import compile_quickly
from zoo.layers import Layer, per_channel
from zoo.ops.dense import dense
from zoo.ops.locally_connected import locally_connected, output_size

Array = jax.Array


class LocallyConnected(Layer):
    """A convolution without padding that has a separate kernel at every position.

    Its parameters are `kernel` [H', W', k, k, C, features] and `bias` [H', W',
    features]. The initializer draws each position's kernel separately, so that its
    fan-in is that of one position.

    Attributes:
      features: Number of output channels.
      kernel: Height and width of the window.
      stride: Step between windows.

    Reference:
      Taigman et al., DeepFace, 2014, section 3.
    """

    features: int
    kernel: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        window = (self.kernel, self.kernel)
        places = output_size(x.shape[1:3], window, self.stride)
        one = (*window, x.shape[-1], self.features)
        check_kernel(self, (*places, *one))

        def draw(key, shape, dtype):
            keys = jax.random.split(key, shape[:2])
            return jax.vmap(jax.vmap(lambda key: self.kernel_init(key, one, dtype)))(
                keys
            )

        kernel = self.param("kernel", draw, (*places, *one), self.param_dtype)
        y = locally_connected(
            x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride
        )
        if not self.use_bias:
            return y
        shape = (*places, self.features)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        return y + bias.astype(self.dtype)[None]

    def macs(self) -> int:
        """Counts the multiply-adds for one image: each weight is used once."""
        return self.get_variable("params", "kernel").size


class DescriptorLayer(Layer):
    """A dense layer with a ReLU that keeps each output's largest value in training.

    A face's descriptor is divided by it, see `zoo.make_describer`. The maximum is a
    batch statistic, `max` [features], of the output before dropout. It decays, as the
    weights change in training.

    Attributes:
      features: Number of outputs.
      keep: Decay rate of the maximum.

    Reference:
      Taigman et al., DeepFace, 2014, section 3, "Normalization".
    """

    features: int
    keep: float = 0.999
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        shape = (x.shape[-1], self.features)
        check_kernel(self, shape)
        init = compile_quickly(self.kernel_init)
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        largest = self.variable("batch_stats", "max", jnp.zeros, shape[1:])
        y = dense(x.astype(self.dtype), kernel.astype(self.dtype))
        y = nn.relu(y + per_channel(bias.astype(self.dtype), y))
        if train and not self.is_initializing():
            seen = jax.lax.stop_gradient(y).max(0).astype(largest.value.dtype)
            largest.value = jnp.maximum(self.keep * largest.value, seen)
        return y
