"""Random crops of training images for classification, on the host.

Images of different sizes cannot be cropped on the device, where arrays have one shape.
A crop is a pure function of an image and of random numbers that depend only on the
seed, the step and the image's index, so that it is the same in any worker, with any
number of processes, and after a restart. Crops are resized by Pillow's antialiased
filter, as in evaluation.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from train.data.rng import RandomStream
from zoo.ops.augment import parse_call
from zoo.preprocess import resize_center_crop, shortest_edge_size
from zoo.spec import Preprocess

Crop = Callable[[np.ndarray, np.ndarray, Preprocess], np.ndarray]

ATTEMPTS = 10  # crops that `area` draws until one fits into the image


def draw_numbers(seed: int, step: int, index: int) -> np.ndarray:
    """Draws the random numbers of a crop.

    Args:
      seed: The seed of the training, 0 or more.
      step: The training step, from 0.
      index: The position of the image in its data set.

    Returns:
      float64 [4 * ATTEMPTS], uniform in [0, 1).
    """
    # The order of the images uses the same key, with a counter of 0.
    stream = RandomStream((seed, step), (0, index + 1))
    return stream.uniform(shape=(4 * ATTEMPTS,))


def center(
    numbers: np.ndarray, image: np.ndarray, preprocess: Preprocess
) -> np.ndarray:
    """Crops the center, as in evaluation."""
    del numbers
    return resize_center_crop(image, preprocess)


def square(
    numbers: np.ndarray, image: np.ndarray, preprocess: Preprocess, *, side: int = 256
) -> np.ndarray:
    """Resizes the shorter side, and crops at random from the central square.

    Reference: Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural
    Networks, 2012, sections 2 and 4.1.
    """
    _check_side("square", side, preprocess)
    height, width = shortest_edge_size(*image.shape[:2], side)
    free = side - preprocess.size + 1
    top = round((height - side) / 2) + int(numbers[0] * free)
    left = round((width - side) / 2) + int(numbers[1] * free)
    return _cut(image, (height, width), top, left, preprocess)


def scale_jitter(
    numbers: np.ndarray,
    image: np.ndarray,
    preprocess: Preprocess,
    *,
    least: int,
    most: int,
) -> np.ndarray:
    """Scales the shorter side to a random integer length, and crops at random.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale
    Image Recognition, 2014, section 3.1; least = most is its single-scale training.
    """
    _check_side("scale_jitter", least, preprocess)
    if most < least:
        raise ValueError(f"scale_jitter: most={most} is less than least={least}.")
    side = least + int(numbers[0] * (most - least + 1))
    height, width = shortest_edge_size(*image.shape[:2], side)
    top = int(numbers[1] * (height - preprocess.size + 1))
    left = int(numbers[2] * (width - preprocess.size + 1))
    return _cut(image, (height, width), top, left, preprocess)


def area(
    numbers: np.ndarray,
    image: np.ndarray,
    preprocess: Preprocess,
    *,
    least: float = 0.08,
    most: float = 1.0,
) -> np.ndarray:
    """Crops a random share of the area with an aspect ratio of 3:4 to 4:3.

    The share and the logarithm of the aspect ratio are uniform, so that tall and wide
    crops are equally frequent. If none of `ATTEMPTS` crops fits into the image, the
    largest central crop with an aspect ratio in that range is taken.

    Reference: Szegedy et al., Going Deeper with Convolutions, 2014, section 6.
    """
    if not 0 < least <= most <= 1:
        raise ValueError(f"area: least={least}, most={most}; expected 0 < .. <= 1.")
    height, width = image.shape[:2]
    shares, ratios, down, right = numbers.reshape(4, ATTEMPTS)
    target = height * width * (least + shares * (most - least))
    ratios = (4 / 3) ** (2 * ratios - 1)
    heights = np.rint(np.sqrt(target / ratios)).astype(int).clip(1)
    widths = np.rint(np.sqrt(target * ratios)).astype(int).clip(1)
    fits = (heights <= height) & (widths <= width)
    if fits.any():
        i = fits.argmax()
        h, w = heights[i], widths[i]
        top = int(down[i] * (height - h + 1))
        left = int(right[i] * (width - w + 1))
    else:
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], None, preprocess)


CROPS: dict[str, Callable] = {
    function.__name__: function for function in (center, square, scale_jitter, area)
}


def parse_crop(text: str, preprocess: Preprocess) -> Crop:
    """Parses a crop with its options, such as "scale_jitter:256:480" or "center".

    Args:
      text: A name of `CROPS`, followed by its options in order, each after a colon.
      preprocess: The preprocessing of the network's input.

    Returns:
      A function from the numbers of `draw_numbers`, an image uint8 [height, width, C]
      and the preprocessing to uint8 [size, size, C].

    Raises:
      ValueError: The name is unknown, or an option is invalid for it or the network.
    """
    crop = parse_call("crop", text, CROPS)
    # A crop checks its options when it is called.
    smallest = np.zeros((1, 1, preprocess.channels), np.uint8)
    crop(draw_numbers(0, 0, 0), smallest, preprocess)
    return crop


def _check_side(name: str, side: int, preprocess: Preprocess) -> None:
    if side < preprocess.size:
        raise ValueError(
            f"{name}: a shorter side of {side} pixels is less than the "
            f"{preprocess.size} that the network takes."
        )


def _cut(image, scaled, top, left, preprocess):
    """Crops from the image scaled to (height, width), without scaling all of it."""
    y, x = image.shape[0] / scaled[0], image.shape[1] / scaled[1]
    bottom, right = top + preprocess.size, left + preprocess.size
    return _resize(image, (left * x, top * y, right * x, bottom * y), preprocess)


def _resize(image, box, preprocess):
    size, channels = preprocess.size, preprocess.channels
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    pil = pil.resize(
        (size, size), getattr(Image, preprocess.interpolation.upper()), box
    )
    return np.asarray(pil).reshape(size, size, channels)
