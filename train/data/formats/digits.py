"""scikit-learn's handwritten digits, alone and on canvases, as TFDS data sets."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from train.data.rng import RandomStream

# Every fifth image of a class, in the order of the file, is a test image.
TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images of digits, 8x8 gray: 1,433 to train and 364 to test.

    The file's values 0 to 16 become 0 to 255. The split is by position, the same on
    every machine: images 0, 5, 10, .. of each class, in the file's order, are test
    images.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI,
    1998 (its test part), as in `sklearn.datasets.load_digits`.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded; without this TFDS looks for a list of checksums, through a
    # package that is not among its dependencies.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits, 8x8.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        images, labels, test = read_digits()
        return {
            "train": self._generate_examples(images, labels, ~test),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(self, images, labels, chosen):
        for i in np.flatnonzero(chosen):
            # A Pillow image: TFDS needs TensorFlow to encode an array.
            yield (
                int(i),
                {"image": Image.fromarray(images[i]), "label": int(labels[i])},
            )


def read_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads scikit-learn's digits.

    Returns:
      Images uint8 [1797, 8, 8], labels int [1797], and bool [1797], whether each is a
      test image.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn: pip install 'canon-zoo[train]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    # The rank of each image within its class.
    rank = np.zeros(len(images), int)
    for label in range(10):
        members = digits.target == label
        rank[members] = np.arange(members.sum())
    return images, digits.target, rank % TEST_EVERY == 0


SIDE = 96  # of a canvas, in pixels
MOST_DIGITS = 4
COUNTS = {"train": 4000, "test": 400}
# Side of a digit's square, before its empty border is cut off, in pixels.
_LEAST, _MOST = 28, 52
# Largest share of a digit's pixels that later digits may hide.
_HIDDEN = 0.15
_ATTEMPTS = 30  # to place a digit before it is left out
_CONTRAST = 90  # least difference between the luma of a digit and its surroundings
_LUMA = np.array([0.299, 0.587, 0.114])


class DigitsCanvas(tfds.core.GeneratorBasedBuilder):
    """4,400 canvases of 96 x 96 with 1 to 4 digits: 4,000 to train and 400 to test.

    The digits are those of `Digits`, enlarged to 28 to 52 pixels, in a color that is
    lighter than the texture below; training and test canvases show different ones. A
    box is tight around its whole digit, of which later digits hide at most 15 %. A mask
    has 0 for the background and digit + 1 for the visible pixels of a digit. A canvas
    depends only on its split and its number, and is the same on every machine.
    """

    VERSION = tfds.core.Version("2.0.0")
    # Nothing is downloaded; see `Digits`.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        names = list("0123456789")
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits on textured canvases.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=names),
                        }
                    ),
                    "mask": tfds.features.Image(shape=(SIDE, SIDE, 1)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        images, labels, test = read_digits()
        return {
            "train": self._generate_examples("train", images[~test], labels[~test]),
            "test": self._generate_examples("test", images[test], labels[test]),
        }

    def _generate_examples(self, split, images, labels):
        for i in range(COUNTS[split]):
            canvas, boxes, classes, mask = draw_canvas(split, i, images, labels)
            shares = boxes / SIDE
            objects = [
                {"bbox": tfds.features.BBox(y1, x1, y2, x2), "label": int(label)}
                for (x1, y1, x2, y2), label in zip(shares, classes, strict=True)
            ]
            yield (
                i,
                {
                    "image": Image.fromarray(canvas),
                    "objects": objects,
                    "mask": Image.fromarray(mask),
                },
            )


def draw_canvas(
    split: str, index: int, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws one canvas.

    Args:
      split: "train" or "test".
      index: The number of the canvas in its split.
      images: uint8 [N, 8, 8], the digits to choose from.
      labels: int [N], 0 to 9.

    Returns:
      The canvas uint8 [96, 96, 3], boxes int [n, 4] as xyxy in pixels, classes int [n]
      and the mask uint8 [96, 96].
    """
    rng = RandomStream((index, list(COUNTS).index(split)))
    canvas, owner = _texture(rng), np.full((SIDE, SIDE), -1)
    boxes, classes, areas = [], [], []
    for _ in range(rng.integer(1, MOST_DIGITS)):
        which = rng.integer(0, len(images) - 1)
        ink = _ink(images[which], rng)
        seen = ink >= 0.5
        for _ in range(_ATTEMPTS):
            top = rng.integer(0, SIDE - ink.shape[0])
            left = rng.integer(0, SIDE - ink.shape[1])
            place = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
            after = owner.copy()
            after[place][seen] = len(boxes)
            counts = np.bincount(after[after >= 0], minlength=len(boxes) + 1)
            if all(counts >= (1 - _HIDDEN) * np.array([*areas, seen.sum()])):
                break
        else:
            continue
        canvas[place] = _blend(canvas[place], ink, rng)
        owner = after
        boxes.append([left, top, left + ink.shape[1], top + ink.shape[0]])
        classes.append(labels[which])
        areas.append(seen.sum())
    mask = np.where(owner < 0, 0, np.array(classes)[owner] + 1).astype(np.uint8)
    return canvas.round().astype(np.uint8), np.array(boxes), np.array(classes), mask


def _texture(rng: RandomStream) -> np.ndarray:
    """Draws a texture of clouds, stripes and grain: float64 [96, 96, 3], 0 to 255."""
    cells = rng.integer(2, 12)
    clouds = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
    clouds = Image.fromarray(clouds).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    rows, columns = np.indices((SIDE, SIDE))
    angle, length = rng.uniform(0, np.pi), rng.uniform(4, 24)
    waves = np.sin(
        2 * np.pi / length * (np.cos(angle) * rows + np.sin(angle) * columns)
    )
    stripes = waves[..., None] * rng.uniform(-25, 25, (3,))
    grain = rng.uniform(-15, 15, (SIDE, SIDE, 3))
    base = rng.uniform(20, 140, (3,))
    return (base + 0.35 * (np.asarray(clouds) - 127.5) + stripes + grain).clip(0, 255)


def _ink(image: np.ndarray, rng: RandomStream) -> np.ndarray:
    """Enlarges a digit, and returns its opacity within its box: float64 [h, w]."""
    # The logarithm of the side is uniform.
    side = int(_LEAST * (_MOST / _LEAST) ** rng.uniform(0, 1))
    size = (side, side)
    large = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    ink = ((np.asarray(large, float) - 90) / 80).clip(0, 1)
    rows, columns = (np.flatnonzero((ink >= 0.5).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _blend(below: np.ndarray, ink: np.ndarray, rng: RandomStream) -> np.ndarray:
    """Paints ink in a random color that is lighter than the canvas below it."""
    luma = (below @ _LUMA).mean()
    color = rng.uniform(0, 255, (3,))
    goal = rng.uniform(min(luma + _CONTRAST, 245), 255)
    color = (color + goal - color @ _LUMA).clip(0, 255)
    return below + ink[..., None] * (color - below)
