"""Data sets with random access: sources, subsets, and sources in memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tqdm import tqdm

from zoo.paths import nearest

if TYPE_CHECKING:
    from train.data.annotations import Objects

Example = dict[str, np.ndarray | np.int32]
_BLOCK = 1024  # examples that a thread handles at once for a fingerprint


class UnknownSplit(ValueError):
    """A data set does not have the requested split."""


class Source:
    """The annotated images of one split, with random access.

    A subclass for classification sets `name`, `split`, `class_names` and `labels`, and
    implements `image` and `provenance`. A source can be pickled, so that worker
    processes can read it.

    Attributes:
      task: "classification", "detection", "segmentation" or "verification".
      name: The name of the data set.
      split: The name of the split.
      class_names: The names of the classes, in the order of the labels.
      labels: int32 [N], each in `range(len(class_names))`, known without decoding; for
        classification only.
    """

    task = "classification"
    name: str
    split: str
    class_names: tuple[str, ...]
    labels: np.ndarray

    def image(self, index: int) -> np.ndarray:
        """Returns the image at a position: uint8 [height, width, 1 or 3]."""
        raise NotImplementedError

    def provenance(self, index: int) -> str:
        """Returns where the example at a position comes from, such as its file."""
        raise NotImplementedError

    def identity(self, index: int) -> str:
        """Returns a name of the example, independent of the data set's folder."""
        return self.provenance(index)

    def content(self, index: int) -> str:
        """Returns a text that changes with the example's content, without reading it.

        It has the sizes of its files, the CRC-32 of members of zip files, and those
        annotations that are in memory; "" if nothing is known.
        """
        del index
        return ""

    def objects(self, index: int) -> "Objects | None":
        """Returns the objects of an image; None if they must be read with it."""
        del index
        return None

    def fingerprint(self) -> dict[str, int | str]:
        """Returns the number of examples, and hashes that need no file to be read.

        Returns:
          `split`; `count`, the number of examples; `sha256`, the hash of the classes
          and of the examples' `identity` in their order; and `content_sha256`, the hash
          of their `content`, if there is any.
        """
        names = (*self.class_names, "", *map(self.identity, range(len(self))))
        found = {"split": self.split, "count": len(self), "sha256": _hash(names)}
        # In blocks, since a task per file would take longer than a local disk.
        blocks = [
            range(i, min(i + _BLOCK, len(self))) for i in range(0, len(self), _BLOCK)
        ]
        contents = [
            text
            for block in map_in_threads(
                lambda b: [self.content(i) for i in blocks[b]],
                len(blocks),
                f"looking at the files of {self.name}",
            )
            for text in block
        ]
        if any(contents):
            found["content_sha256"] = _hash(contents)
        return found

    def example(self, index: int) -> Example:
        """Returns the example at a valid position, without `index`."""
        return {"image": self.image(index), "label": np.int32(self.labels[index])}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """Returns one example.

        Args:
          index: Position, 0 to N-1.

        Returns:
          `image` uint8 [height, width, 1 or 3] of the image's own size, `index` int32,
          the position, and by the task

          - classification and verification: `label` int32;
          - detection: `boxes` float32 [n, 4], xyxy in pixels within the image,
            `classes` int32 [n] and `difficult` bool [n];
          - segmentation: `mask` uint8 [height, width], 255 where it is to be ignored.

        Raises:
          BadImage: The image, or what it shows, cannot be read.
          IndexError: There is no such position.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.name} {self.split} has {len(self)} examples, no #{index}."
            )
        return {**self.example(index), "index": np.int32(index)}


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


class Derived(Source):
    """Examples of other sources; a subclass implements `find`."""

    def find(self, index: int) -> tuple[Source, int]:
        """Returns the source of an example, and the example's position there."""
        raise NotImplementedError

    def image(self, index: int) -> np.ndarray:
        source, index = self.find(index)
        return source.image(index)

    def provenance(self, index: int) -> str:
        source, index = self.find(index)
        return source.provenance(index)

    def identity(self, index: int) -> str:
        source, index = self.find(index)
        return source.identity(index)

    def content(self, index: int) -> str:
        source, index = self.find(index)
        return source.content(index)

    def objects(self, index: int) -> "Objects | None":
        source, index = self.find(index)
        return source.objects(index)


class Subset(Derived):
    """Some examples of a source; for classification they can have new labels.

    Args:
      source: The source to choose from.
      indices: int [M], the positions in `source`.
      labels: int32 [M], the new labels; those of `source` if None.
      class_names: The names of the new classes; those of `source` if None.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
    ):
        self.name, self.split, self.task = source.name, source.split, source.task
        self.class_names = source.class_names if class_names is None else class_names
        if self.task == "classification":
            self.labels = source.labels[indices] if labels is None else labels
        self.source, self.indices = source, np.asarray(indices)

    def find(self, index: int) -> tuple[Source, int]:
        return self.source, int(self.indices[index])

    def example(self, index: int) -> Example:
        example = self.source.example(int(self.indices[index]))
        if self.task == "classification":
            example["label"] = np.int32(self.labels[index])
        return example

    def __len__(self) -> int:
        return len(self.indices)


class Joined(Derived):
    """The concatenation of several sources.

    Args:
      sources: At least one source; all have the same task and the same classes.

    Raises:
      ValueError: The tasks or the classes differ.
    """

    def __init__(self, sources: Sequence[Source]):
        first = sources[0]
        self.name, self.task = first.name, first.task
        self.class_names = first.class_names
        self.split = "+".join(source.split for source in sources)
        for source in sources:
            if (source.task, source.class_names) != (self.task, self.class_names):
                raise ValueError(
                    f"{source.name} {source.split} has other classes than {first.name} "
                    f"{first.split}."
                )
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *map(len, sources)])

    def find(self, index: int) -> tuple[Source, int]:
        which = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._sources[which], index - int(self._starts[which])

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels for source in self._sources])

    def example(self, index: int) -> Example:
        source, index = self.find(index)
        return source.example(index)

    def __len__(self) -> int:
        return int(self._starts[-1])


class _Arrays(Source):
    """Images in memory."""

    def __init__(self, images, labels, class_names, name, split):
        self.name, self.split, self.class_names = name, split, class_names
        self.labels, self._images = labels, images

    def image(self, index: int) -> np.ndarray:
        return self._images[index]

    def provenance(self, index: int) -> str:
        return f"{self.name} {self.split} #{index}"

    def identity(self, index: int) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self._images[index]))
        return f"{self.labels[index]} {digest.hexdigest()}"


def array_source(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
    split: str = "train",
) -> Source:
    """Makes a source from arrays in memory, which are not copied.

    Args:
      images: uint8 [N, height, width, 1 or 3], or [N, height, width] if gray.
      labels: Integers [N].
      class_names: The names of the classes, in the order of the labels; "0", "1", .. up
        to the largest label if None.
      name: The name of the data set.
      split: The name of the split.

    Returns:
      The source.

    Raises:
      ValueError: A shape, a dtype or a label is invalid.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name}: images must be uint8 [N, height, width, 1 or 3], got "
            f"{images.dtype} {list(images.shape)}."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: labels must be integers [{len(images)}], one for each image, got "
            f"{labels.dtype} {list(labels.shape)}."
        )
    if class_names is None:
        class_names = map(str, range(int(labels.max(initial=-1)) + 1))
    class_names = tuple(class_names)
    check_labels(labels, len(class_names), f"{name} {split}")
    return _Arrays(images, labels.astype(np.int32), class_names, name, split)


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises ValueError with the position and value of the first invalid label."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"{where} #{wrong[0]}: label {labels[wrong[0]]} is not in 0 .. "
            f"{num_classes - 1} ({num_classes} classes)."
        )


class KeptClasses(Derived):
    """A source for detection without the objects of some classes.

    Args:
      source: The source, all images of which are kept.
      new_label: int32 [K], the new label of each class of `source`, or -1.
      class_names: The names of the new classes.
    """

    task = "detection"

    def __init__(
        self, source: Source, new_label: np.ndarray, class_names: tuple[str, ...]
    ):
        self.name, self.split, self.class_names = source.name, source.split, class_names
        self._source, self._new_label = source, new_label

    def find(self, index: int) -> tuple[Source, int]:
        return self._source, index

    def objects(self, index: int) -> "Objects | None":
        objects = self._source.objects(index)
        if objects is None:
            return None
        classes = self._new_label[objects.classes]
        return objects._replace(classes=classes).choose(classes >= 0)

    def example(self, index: int) -> Example:
        example = self._source.example(index)
        example["classes"] = self._new_label[example["classes"]]
        kept = example["classes"] >= 0
        objects = ("boxes", "classes", "difficult")
        return {**example, **{field: example[field][kept] for field in objects}}

    def __len__(self) -> int:
        return len(self._source)


def select(
    source: Source,
    *,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Keeps only some classes, or a few images of each class.

    Args:
      source: The source to choose from.
      classes: The names of the classes to keep, which are relabeled 0, 1, .. in this
        order; None for all.
      per_class: The number of images to keep of each class, drawn without replacement;
        None for all.
      seed: The seed with which images are drawn.

    Returns:
      The chosen examples, in the order of `source`.

    Raises:
      ValueError: A class is unknown or named twice, or has too few images, or the task
        does not allow the choice: `per_class` is for classification only, and
        segmentation cannot leave out classes.
    """
    chosen = {"classes": classes, "per_class": per_class}
    possible = {"classification": ("classes", "per_class"), "detection": ("classes",)}
    for option, value in chosen.items():
        if value is not None and option not in possible.get(source.task, ()):
            raise ValueError(
                f"{source.name}: {option}={value!r} is not possible for {source.task}; "
                f"leave out --{option.replace('_', '-')}."
            )
    if classes is not None:
        source = _keep_classes(source, tuple(classes))
    if per_class is not None:
        source = _keep_few(source, per_class, seed)
    return source


def _keep_classes(source: Source, classes: tuple[str, ...]) -> Source:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"classes={classes!r}: expected names that differ, at least one."
        )
    new_label = np.full(len(source.class_names), -1, np.int32)
    for label, name in enumerate(classes):
        if name not in source.class_names:
            raise ValueError(
                f"{source.name} has no class {name!r}"
                f"{nearest(name, source.class_names)} "
                f"Its {len(source.class_names)} classes begin with "
                f"{', '.join(source.class_names[:10])}."
            )
        new_label[source.class_names.index(name)] = label
    if source.task == "detection":
        return KeptClasses(source, new_label, classes)
    labels = new_label[source.labels]
    indices = np.flatnonzero(labels >= 0)
    return Subset(source, indices, labels[indices], classes)


def _keep_few(source: Source, per_class: int, seed: int) -> Source:
    if per_class < 1:
        raise ValueError(f"per_class={per_class}: expected at least 1.")
    chosen = []
    for label, name in enumerate(source.class_names):
        # Seeded by class, so that the draw of a class does not depend on the others.
        members = np.flatnonzero(source.labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has {len(members)} "
                f"images, per_class={per_class} asks for more."
            )
        key = np.random.SeedSequence([seed, *name.encode()])
        chosen.append(np.random.default_rng(key).choice(members, per_class, False))
    return Subset(source, np.sort(np.concatenate(chosen)))


def evenly_spaced(count: int, most: int) -> list[int]:
    """Returns up to `most` positions of `count`, from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


T = TypeVar("T")
# Threads that read and decode; Pillow and zlib release Python's lock.
THREADS = 8
_WORTH_A_BAR = 5000


def map_in_threads(function: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """Yields `function(0)`, `function(1)`, ..; stops at the first exception.

    Args:
      function: A function that reads the example at a position.
      count: The number of positions.
      what: The text of the progress bar, which is shown for many positions only.
    """
    quiet = count < _WORTH_A_BAR
    with (
        ThreadPoolExecutor(THREADS) as threads,
        tqdm(desc=what, total=count, unit=" images", disable=quiet) as bar,
    ):
        # Block by block, since every pending call takes memory.
        for first in range(0, count, 64 * THREADS):
            block = range(first, min(first + 64 * THREADS, count))
            for result in threads.map(function, block):
                yield result
                bar.update()
