"""VGG-16 as the backbone of SSD.

Reference:
  Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg, SSD: Single Shot MultiBox Detector,
  2016, section 3 and figure 2; the authors' Caffe, examples/ssd.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_images
from zoo.classification import vgg
from zoo.layers import Conv, initializer, per_channel, remat_stage
from zoo.ops.pooling import max_pool
from zoo.spec import Preprocess

Array = jax.Array

BLOCKS = vgg.CONFIGS["D"]
# Channels of fc6 and fc7, which are convolutions here.
DENSE = 1024
# The mean colour that images lack, of the full range; the values are 0 to 255.
MEAN = (0.48235, 0.45882, 0.40784)

# Figure 2 and its code: behind fc7, pairs of a 1x1 convolution and a second one, of
# which here are (channels, channels, window, stride, padding).
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


class L2Norm(nn.Module):
    """Section 3.1: each position's channels get the length 1, then a learnt scale.

    Its parameter is `scale_weight` [C], as torchvision calls it.
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


class SSDVGGBackbone(nn.Module):
    """Figure 2: VGG-16 with convolutions for fc6 and fc7, and smaller maps behind it.

    The convolutions of VGG-16 have the paths that they have in the classifier.

    Attributes:
      network: Its name, for messages.
      size: Height and width of the images, a key of `EXTRAS`.
      widths: Channels of each of VGG-16's five blocks.
      dense: Channels of fc6 and fc7.
      conv_init: Initialiser of VGG-16's own convolutions.
      remat: Recompute each block's activations in the backward pass.
    """

    network: str
    size: int
    widths: tuple[int, ...] = vgg.WIDTHS
    dense: int = DENSE
    conv_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.network, size=self.size)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        new = partial(Conv, kernel_init=initializer("glorot"), **types)

        def block(self, x: Array, i: int) -> dict[str, Array]:
            conv = partial(Conv, kernel=3, padding=1, kernel_init=self.conv_init)
            out = {}
            for j in range(1, len(BLOCKS[i - 1]) + 1):
                layer = conv(self.widths[i - 1], name=f"conv{i}_{j}", **types)
                x = out[f"conv{i}_{j}"] = nn.relu(layer(x))
            if i < 5:
                out[f"pool{i}"] = max_pool(x, 2, 2, ceil=i == 3)
            else:
                out["pool5"] = max_pool(x, 3, 1, padding=1)
            return out

        out, x = {}, images
        for i in range(1, 6):
            out |= remat_stage(partial(block, i=i), self.remat)(self, x)
            x = out[f"pool{i}"]
            if i == 4:
                norm = L2Norm(self.param_dtype, name="conv4_3_norm")
                out["conv4_3_norm"] = norm(out["conv4_3"])
        fc6 = new(self.dense, kernel=3, padding=6, dilation=6, name="fc6")
        x = out["fc6"] = nn.relu(fc6(x))
        x = out["fc7"] = nn.relu(new(self.dense, kernel=1, name="fc7")(x))
        for i, (few, many, window, stride, padding) in enumerate(EXTRAS[self.size], 8):
            first = new(few, kernel=1, name=f"conv{i}_1")
            x = out[f"conv{i}_1"] = nn.relu(first(x))
            second = new(many, window, stride, padding, name=f"conv{i}_2")
            x = out[f"conv{i}_2"] = nn.relu(second(x))
        return out


def reduce_vgg16(
    variables: Mapping[str, Any], preprocess: Preprocess, *, dense: int = DENSE
) -> dict[str, Any]:
    """Makes of a VGG-16 classifier's variables those with which SSD's backbone begins.

    Of fc6's window of 7 x 7 every third row and column is taken, and of the channels of
    fc6 and fc7 every fourth, or whatever leaves `dense` of them. The first convolution
    is adapted to SSD's images, exactly but for the zeros around them.
    `zoo.transfer.graft` fills a detector with them:

        _, vgg, card = zoo.create_with_card("vgg16", weights="imagenet")
        keep = ["head/**", "backbone/conv4_3_norm/**", "backbone/conv{8,9,10,11}_*/**"]
        source = reduce_vgg16(vgg, card.preprocess)
        variables = zoo.transfer.graft(variables, source, keep=keep)

    Args:
      variables: {"params": ...} of `vgg16`, with or without a head.
      preprocess: Of the images that the classifier takes, RGB.
      dense: Channels of the detector's fc6 and fc7.

    Returns:
      {"params": {"backbone": ...}}, without a head.

    Raises:
      ValueError: The variables are not those of `vgg16`, or the images are not RGB.

    Reference:
      Section 3; the authors' starting point is VGG_ILSVRC_16_layers_fc_reduced.
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
