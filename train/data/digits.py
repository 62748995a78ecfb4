"""scikit-learn's handwritten digits as a TFDS data set."""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# Every fifth image of a class, in the order of the file, is a test image.
TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images of digits, 8x8 grey: 1,433 to train and 364 to test.

    The file's values 0 to 16 become 0 to 255. The split is by position, the same on
    every machine: of each class, images 0, 5, 10, .. in the file's order are for
    testing.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI,
    1998 (its test part), as in `sklearn.datasets.load_digits`.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded; without this TFDS looks for a list of hashes, by way of a
    # package that it does not depend on.
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
      Images uint8 [1797, 8, 8], labels int [1797], and which are for testing: bool
      [1797].

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
    # The how-manieth of its class each image is.
    rank = np.zeros(len(images), int)
    for label in range(10):
        members = digits.target == label
        rank[members] = np.arange(members.sum())
    return images, digits.target, rank % TEST_EVERY == 0
