"""The plainest statements of four networks in Flax, which the zoo's are compared with.

They have the same layers and no other options than the type of the computation.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class ResNet50(nn.Module):
    """ResNet-50 with the stride in the 3x3 convolution, as in Flax's example."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(64, (7, 7), 2, padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride, width = (2 if stage and not block else 1), 64 * 2**stage
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = conv(width, (3, 3), stride, padding=[(1, 1), (1, 1)])(y)
                y = norm()(conv(4 * width, (1, 1))(nn.relu(norm()(y))))
                if block == 0:
                    x = norm()(conv(4 * width, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(1000, dtype=self.dtype)(x.mean((1, 2))).astype(jnp.float32)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and three dense layers."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(count):
                x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096, dtype=self.dtype)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(1000, dtype=self.dtype)(x).astype(jnp.float32)


INCEPTIONS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class GoogLeNetBN(nn.Module):
    """GoogLeNet with batch norm and without auxiliary classifiers, as torchvision's."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        def unit(x, width, size, stride=1):
            pad = [(size // 2, size // 2)] * 2
            x = nn.Conv(
                width, (size, size), stride, pad, use_bias=False, dtype=self.dtype
            )(x)
            norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-3, dtype=self.dtype)
            return nn.relu(norm(x))

        def pool(x):
            return nn.max_pool(x, (3, 3), (2, 2), padding=((0, 1), (0, 1)))

        x = pool(unit(x, 64, 7, 2))
        x = pool(unit(unit(x, 64, 1), 192, 3))
        for widths in INCEPTIONS:
            if widths is None:
                x = pool(x)
                continue
            one, reduce3, three, reduce5, five, after_pool = widths
            pooled = nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))
            branches = (
                unit(x, one, 1),
                unit(unit(x, reduce3, 1), three, 3),
                unit(unit(x, reduce5, 1), five, 3),
                unit(pooled, after_pool, 1),
            )
            x = jnp.concatenate(branches, -1)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(1000, dtype=self.dtype)(x).astype(jnp.float32)


class UNet(nn.Module):
    """The U-Net of 2015: unpadded convolutions, cropped skips, 572 to 388 pixels."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        conv = partial(nn.Conv, padding="VALID", dtype=self.dtype)

        def two(x, width):
            x = nn.relu(conv(width, (3, 3))(x))
            return nn.relu(conv(width, (3, 3))(x))

        skips = []
        for width in (64, 128, 256, 512):
            x = two(x, width)
            skips.append(x)
            if width == 512:
                x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(two(x, 1024))
        for width in (512, 256, 128, 64):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), dtype=self.dtype)(x)
            skip = skips.pop()
            cut = (skip.shape[1] - x.shape[1]) // 2
            skip = skip[:, cut : cut + x.shape[1], cut : cut + x.shape[2]]
            x = two(jnp.concatenate([skip, x], -1), width)
        return conv(2, (1, 1))(x).astype(jnp.float32)


PEERS = {
    "resnet50": ResNet50,
    "vgg16": VGG16,
    "googlenet_tv": GoogLeNetBN,
    "unet": UNet,
}
