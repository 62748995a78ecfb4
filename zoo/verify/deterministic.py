"""Deterministic weights and images, which are derived from names.

A network and its reference get the same numbers without a file. Only random bits and
exact arithmetic are used, so that the numbers do not depend on the version of numpy or
on the machine.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from zoo.spec import Preprocess

# Factor of the scales of the last norms of residual branches. Without it the signal
# doubles at every block, and 333 blocks exceed the range of float32.
BRANCH_GAIN = 0.3


def random_bytes(name: str, count: int) -> np.ndarray:
    """Returns uint8 [count] that depends on the name only."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def fill(key: str, shape: tuple[int, ...], *, branch_gain: float = 1.0) -> np.ndarray:
    """Makes an array of a state dict.

    A kernel is uniform with the variance 2 / fan-in, which keeps the size of a signal
    through ReLUs (He et al. 2015). A norm's scale and variance are within 0.5 and 1.5,
    a slope of a PReLU within 0 and 0.5, biases and means within -0.1 and 0.1.

    Args:
      key: PyTorch's name, such as "layer1.0.conv1.weight".
      shape: PyTorch's shape, with a kernel's output channels first.
      branch_gain: Factor of the scales of "bn2" and "bn3", the last norms of residual
        branches; see `BRANCH_GAIN`.

    Returns:
      float32 of that shape.
    """
    *owner, kind = key.split(".")
    unit = _uniform(key, math.prod(shape)).reshape(shape)
    if kind == "running_var":
        return 1 + unit / 2
    if kind != "weight":
        return unit * np.float32(0.1)
    if len(shape) > 1:
        unit *= np.float32(math.sqrt(6 / math.prod(shape[1:])))
        return unit
    if owner[-1].endswith("prelu"):
        return (1 + unit) / 4
    ends_branch = owner[-1] in ("bn2", "bn3")
    return (1 + unit / 2) * np.float32(branch_gain if ends_branch else 1)


def _uniform(name: str, count: int) -> np.ndarray:
    """Returns float32 [count] in -1 to 1, with 17 bits, so that nothing is rounded."""
    unit = random_bytes(name, 2 * count).view("<u2").astype(np.float32)
    # In place, as kernels have up to 10^8 values.
    unit += 0.5
    unit /= 2**15
    unit -= 1
    return unit


def fill_all(
    shapes: Mapping[str, tuple[int, ...]], *, branch_gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Makes a state dict of given shapes; see `fill`."""
    return {
        key: fill(key, shape, branch_gain=branch_gain) for key, shape in shapes.items()
    }


def make_images(preprocess: Preprocess, count: int = 2) -> np.ndarray:
    """Makes preprocessed images of gradients, noise and borders.

    The four borders differ, so that padding or cropping on the wrong side is detected.

    Args:
      preprocess: Size, channels and normalization of the images.
      count: Number of images.

    Returns:
      float32 [count, H, W, channels].
    """
    height, width, channels = preprocess.shape
    b, y, x, c = np.ogrid[:count, :height, :width, :channels]
    waves = np.abs((90 * b + 3 * y + 2 * x + 40 * c) % 510 - 255)
    noise = random_bytes("images", waves.size).reshape(waves.shape)
    noise = noise.astype(np.int64)
    pixels = (waves + noise) // 2
    sides = np.s_[:, :2], np.s_[:, -2:], np.s_[:, :, :2], np.s_[:, :, -2:]
    for side, value in zip(sides, (255, 0, 128, 64), strict=True):
        # With noise: among equal values, the argmax of a pool is arbitrary.
        pixels[side] = (3 * value + noise[side]) // 4
    normal = (pixels / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    return normal.astype(np.float32)


def make_labels(num_classes: int, count: int = 2) -> np.ndarray:
    """Makes the images' labels, int32 [count]."""
    return ((np.arange(count) * 37 + 11) % num_classes).astype(np.int32)


def make_masks(num_classes: int, height: int, width: int, count: int = 2) -> np.ndarray:
    """Makes the images' masks, int32 [count, height, width], of tilted rectangles."""
    b, y, x = np.ogrid[:count, :height, :width]
    return ((b * 7 + (y + x // 4) // 11 * 5 + x // 9) % num_classes).astype(np.int32)
