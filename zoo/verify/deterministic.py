"""Weights and images that anybody can make again, from their names alone.

A network here and its counterpart elsewhere are filled with the same numbers
without a file that carries them. Only raw bits and exact arithmetic are used, so that
no version of numpy and no machine makes other numbers.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from zoo.spec import Preprocess

# Factor of the scales of the last norms of residual branches: without it the signal
# doubles at every block, and 333 of them leave float32's range.
BRANCH_GAIN = 0.3


def random_bytes(name: str, count: int) -> np.ndarray:
    """Returns uint8 [count], always the same for a name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def fill(key: str, shape: tuple[int, ...], *, branch_gain: float = 1.0) -> np.ndarray:
    """Makes the array that a state dict has under a name.

    A kernel is uniform with the variance 2 / fan-in, which keeps the size of a signal
    through ReLUs (He et al. 2015). A norm's scale and variance are within 0.5 and 1.5,
    a slope of a PReLU within 0 and 0.5, biases and means within -0.1 and 0.1.

    Args:
      key: PyTorch's name, such as "layer1.0.conv1.weight".
      shape: PyTorch's, so that a kernel has its output channels first.
      branch_gain: Factor of the scales of "bn2" and "bn3", which end branches that are
        added to their input; see `BRANCH_GAIN`.

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
    """Returns float32 [count] within -1 and 1, of 17 bits: nothing is rounded."""
    unit = random_bytes(name, 2 * count).view("<u2").astype(np.float32)
    # In place: there are kernels of a hundred million values.
    unit += 0.5
    unit /= 2**15
    unit -= 1
    return unit


def fill_all(
    shapes: Mapping[str, tuple[int, ...]], *, branch_gain: float = 1.0
) -> dict[str, np.ndarray]:
    """Makes a whole state dict, of the shapes by name; see `fill`."""
    return {
        key: fill(key, shape, branch_gain=branch_gain) for key, shape in shapes.items()
    }


def make_images(preprocess: Preprocess, count: int = 2) -> np.ndarray:
    """Makes preprocessed images, with a gradient, noise and a border of their own.

    The four sides differ, so that a padding or a crop on the wrong side is seen.

    Args:
      preprocess: Gives the size, the channels, and what they are normalised with.
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
        # With noise: where all values are equal, it is chance which one a pool takes.
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
