"""Sources whose images fit a network, read one by one or all at once."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from train.data.decode import BadImage
from train.data.source import Example, Source, Subset
from zoo.preprocess import fit_image
from zoo.spec import Preprocess

T = TypeVar("T")
# From an image of any size and what the network takes to an image of its size.
Fit = Callable[[np.ndarray, Preprocess], np.ndarray]

# Threads that read and decode; Pillow and zlib release Python's lock.
THREADS = 8
_WORTH_A_BAR = 5000

logger = logging.getLogger(__name__)


class FittedSource(Source):
    """A source whose images have the size that a network takes; see `fit_source`."""

    def __init__(self, source: Source, preprocess: Preprocess):
        self.name, self.split = source.name, source.split
        self.class_names = source.class_names
        self.preprocess = preprocess
        self.source = source

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, fit_image)

    def read(self, index: int, fit: Fit) -> Example:
        """Returns one example whose image another function than `fit_image` fits."""
        example = self.source[index]
        return example | {"image": self._fit(example["image"], index, fit)}

    def image(self, index: int) -> np.ndarray:
        return self._fit(self.source.image(index), index, fit_image)

    def provenance(self, index: int) -> str:
        return self.source.provenance(index)

    def _fit(self, image: np.ndarray, index: int, fit: Fit) -> np.ndarray:
        found, wanted = image.shape[-1], self.preprocess.channels
        if found != wanted:
            color = {1: "grey", 3: "rgb"}[wanted]
            raise ValueError(
                f"{self.provenance(index)}: the image has {found} channel(s) and the "
                f"network takes {wanted}; open the data set with color={color!r}."
            )
        return fit(image, self.preprocess)


def fit_source(
    source: Source, preprocess: Preprocess, on_bad_image: str = "stop"
) -> FittedSource:
    """Resizes and crops the images of a source for a network.

    Args:
      source: The images.
      preprocess: What the network takes.
      on_bad_image: "stop" raises `BadImage` when a bad image is met; "skip" looks for
        bad images now and leaves them out, see `skip_bad_images`.

    Returns:
      A source whose images are uint8 [size, size, channels]. One that was made for the
      same `preprocess` is returned as it is.

    Raises:
      ValueError: `on_bad_image` is unknown, or `source` fits another network.
    """
    if on_bad_image not in ("stop", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r}: expected 'stop' or 'skip'.")
    if isinstance(source, FittedSource):
        if source.preprocess != preprocess:
            raise ValueError(
                f"{source.name} {source.split} was fitted for {source.preprocess}, "
                f"not for {preprocess}."
            )
        source = source.source
    if on_bad_image == "skip":
        source = skip_bad_images(source)
    return FittedSource(source, preprocess)


def skip_bad_images(source: Source) -> Source:
    """Leaves out the images that cannot be read, after reading every one of them.

    Knowing them beforehand keeps the number of steps in an epoch exact and counts
    every good image once in an evaluation. Their number and files are logged.

    Args:
      source: The images.

    Returns:
      The readable examples; `source` itself if that is all of them.

    Raises:
      ValueError: No image can be read.
    """

    def reason(index: int) -> str | None:
        try:
            source[index]
        except BadImage as error:
            return str(error)
        return None

    reasons = list(_in_threads(reason, len(source), f"checking {source.name}"))
    bad = [r for r in reasons if r is not None]
    if not bad:
        return source
    if len(bad) == len(source):
        raise ValueError(
            f"{source.name} {source.split}: none of its {len(source)} images can be "
            f"read; the first: {bad[0]}"
        )
    logger.warning(
        "%s %s: %d of %d images are left out:\n%s",
        source.name,
        source.split,
        len(bad),
        len(source),
        "\n".join(bad),
    )
    return Subset(source, np.flatnonzero([r is None for r in reasons]))


def load_resident(source: Source, preprocess: Preprocess) -> dict[str, np.ndarray]:
    """Reads a whole source into memory.

    Args:
      source: The examples.
      preprocess: What the network takes.

    Returns:
      `image` uint8 [N, size, size, channels] and `label` int32 [N].
    """
    source = fit_source(source, preprocess)
    n, size, channels = len(source), preprocess.size, preprocess.channels
    images = np.empty((n, size, size, channels), np.uint8)
    labels = np.empty(n, np.int32)

    def read(index: int) -> None:
        example = source[index]
        images[index], labels[index] = example["image"], example["label"]

    for _ in _in_threads(read, n, f"reading {source.name}"):
        pass
    return {"image": images, "label": labels}


def resident_bytes(source: Source, preprocess: Preprocess) -> int:
    """Returns how many bytes `load_resident` takes, without reading an image."""
    return len(source) * (preprocess.size**2 * preprocess.channels + 4)


def _in_threads(function: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """Yields `function(0)`, `function(1)`, ..; stops at the first exception."""
    quiet = count < _WORTH_A_BAR
    with (
        ThreadPoolExecutor(THREADS) as threads,
        tqdm(desc=what, total=count, unit=" images", disable=quiet) as bar,
    ):
        # Block by block, for every call that waits its turn takes memory.
        for first in range(0, count, 64 * THREADS):
            block = range(first, min(first + 64 * THREADS, count))
            for result in threads.map(function, block):
                yield result
                bar.update()
