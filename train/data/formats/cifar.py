"""CIFAR-10 and CIFAR-100 from their publisher's archives, without TensorFlow.

TFDS's own builders need TensorFlow to read a file and to encode an image. These read
the same binary archives (never the pickled ones) and check the same hashes.
"""

import tarfile
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_PIXELS = 32 * 32 * 3
_HOME = "https://www.cs.toronto.edu/~kriz"


class Cifar10Binary(tfds.core.GeneratorBasedBuilder):
    """60,000 photographs of 10 classes, 32x32: 50,000 to train and 10,000 to test.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    VERSION = tfds.core.Version("1.0.0")
    ARCHIVE = "cifar-10-binary.tar.gz"
    URL = f"{_HOME}/{ARCHIVE}"
    url_infos: ClassVar = {
        URL: tfds.download.checksums.UrlInfo(
            size=170052171,
            checksum="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            filename=ARCHIVE,
        )
    }
    FILES: ClassVar = {
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
    }
    NAMES = "batches.meta.txt"
    CLASSES = 10
    LABELS = 1  # bytes before the pixels, of which the last is the class

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="32x32 photographs, from the publisher's binary archive.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=f"{_HOME}/cifar.html",
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download(self.URL)
        wanted = {self.NAMES, *(f for files in self.FILES.values() for f in files)}
        contents = _read_archive(path, wanted)
        names = contents[self.NAMES].decode().split()
        if len(names) != self.CLASSES:
            raise ValueError(
                f"{path}: {self.NAMES} has {len(names)} class names, expected "
                f"{self.CLASSES}."
            )
        self.info.features["label"].names = names
        return {
            split: self._generate_examples(
                [(f"{path}: {file}", contents[file]) for file in files]
            )
            for split, files in self.FILES.items()
        }

    def _generate_examples(self, files):
        count = 0
        for where, content in files:
            images, labels = read_records(content, self.LABELS, self.CLASSES, where)
            for image, label in zip(images, labels, strict=True):
                yield (
                    count,
                    {"image": Image.fromarray(image), "label": int(label)},
                )
                count += 1


class Cifar100Binary(Cifar10Binary):
    """60,000 photographs of 100 classes, 32x32: 50,000 to train and 10,000 to test.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    ARCHIVE = "cifar-100-binary.tar.gz"
    URL = f"{_HOME}/{ARCHIVE}"
    url_infos: ClassVar = {
        URL: tfds.download.checksums.UrlInfo(
            size=168513733,
            checksum="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            filename=ARCHIVE,
        )
    }
    FILES: ClassVar = {"train": ["train.bin"], "test": ["test.bin"]}
    NAMES = "fine_label_names.txt"
    CLASSES = 100
    LABELS = 2  # the superclass, then the class


def _read_archive(path, wanted: set[str]) -> dict[str, bytes]:
    """Reads files of a tar.gz archive by the last part of their names."""
    contents = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if member.isfile() and name in wanted:
                contents[name] = archive.extractfile(member).read()
    missing = sorted(wanted - contents.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    return contents


def read_records(
    content: bytes, num_labels: int, num_classes: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the binary format: each image's labels, then its red, green, blue planes.

    Args:
      content: The contents of the file.
      num_labels: The number of bytes before the pixels; the last is the class.
      num_classes: The number of classes.
      where: The name of the file in errors.

    Returns:
      Images uint8 [N, 32, 32, 3] and labels uint8 [N].

    Raises:
      ValueError: The size is not that of whole records, or a label is out of range.
    """
    record = num_labels + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{where} has {len(content)} bytes, expected a multiple of {record}."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = rows[:, num_labels - 1]
    if labels.max() >= num_classes:
        first = int(np.argmax(labels >= num_classes))
        raise ValueError(
            f"{where}: record {first} has label {labels[first]}, expected 0 .. "
            f"{num_classes - 1}."
        )
    planes = rows[:, num_labels:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), labels
