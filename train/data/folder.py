"""Folders and zip files of images, one folder a class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train.data.decode import decode_image
from train.data.files import SUFFIXES, Files, find_splits, is_hidden
from train.data.source import Source

SPLITS = ("train", "val", "valid", "validation", "test")
# Share of a class that is held out for testing where a set comes without splits.
HELD_OUT = 0.2

_LAYOUTS = (
    "expected split/class/image (splits: train, val, test) or class/image, with "
    f"images ending in {' '.join(SUFFIXES)}"
)
Layout = dict[str, list[tuple[str, str]]]


class FolderSource(Source):
    """One split of an image folder or zip file.

    Args:
      files: The folder or zip file.
      split: Name of the split.
      class_names: Classes of the whole set, sorted.
      examples: Class and path (inside the folder or zip file) of each image.
      color: "rgb", "grey" or None, see `decode_image`.
    """

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        examples: Sequence[tuple[str, str]],
        color: str | None,
    ):
        self.name, self.split = files.path.stem, split
        self.class_names = class_names
        label = {name: i for i, name in enumerate(class_names)}
        self.labels = np.array([label[name] for name, _ in examples], np.int32)
        self._files, self._color = files, color
        self._members = [member for _, member in examples]

    def image(self, index: int) -> np.ndarray:
        data = self._files.read(self._members[index])
        return decode_image(
            data, self.provenance(index), color=self._color, upright=True
        )

    def provenance(self, index: int) -> str:
        return self._files.where(self._members[index])


def open_folder(path: Path, split: str, *, color: str | None = None) -> Source:
    """Opens one split of a folder or zip file of images.

    Folders around the layout are skipped (`cifar10/test/cat/1.webp`), and so are
    hidden files and files that are no images. Classes are those of the whole set,
    sorted by name, whichever of them a split has. A set without splits has "train"
    and "test", where `HELD_OUT` of each class (chosen by a hash of the file's path,
    thus the same everywhere) is for testing, and "all". Images are turned upright by
    their EXIF orientation.

    Args:
      path: A folder, or a zip file, which is read in place.
      split: A name of a split, or several such as "train+val".
      color: "rgb", "grey" or None, see `decode_image`.

    Returns:
      The source.

    Raises:
      ValueError: The path does not exist or has another layout, a class folder is
        empty, or there is no such split.
    """
    files = Files(path)
    layout = find_layout(files.paths(), str(path))
    class_names = sorted({name for images in layout.values() for name, _ in images})
    splits = find_splits(split, layout, str(path))
    examples = [example for part in splits for example in layout[part]]
    return FolderSource(files, "+".join(splits), tuple(class_names), examples, color)


def find_layout(entries: Sequence[str], where: str) -> Layout:
    """Finds splits and classes in a listing.

    Args:
      entries: Paths with forward slashes; folders end in a slash.
      where: What to call the listing in errors.

    Returns:
      For each split its images, sorted: class and path.

    Raises:
      ValueError: See `open_folder`.
    """
    visible = [(PurePosixPath(e).parts, e) for e in entries if not is_hidden(e)]
    images = [
        (p, e)
        for p, e in visible
        if not e.endswith("/") and PurePosixPath(e).suffix.lower() in SUFFIXES
    ]
    if not images:
        raise ValueError(f"{where} has no images; {_LAYOUTS}.")
    top = 0  # how many folders lie around the layout
    while (
        len({p[top] for p, _ in images}) == 1
        and min(len(p) for p, _ in images) - top > 2
        and images[0][0][top] not in SPLITS
    ):
        top += 1
    with_splits = _has_splits(images, top, where)
    depth = top + 1 + with_splits  # of the classes' folders, from 1
    for p, e in images:
        if len(p) <= depth:
            raise ValueError(f"{where}: {e} is in no class folder; {_LAYOUTS}.")
    folders = {p[:depth] for p, e in visible if e.endswith("/") or len(p) > depth}
    around = images[0][0][:top]
    empty = {f for f in folders if len(f) == depth and f[:top] == around}
    empty -= {p[:depth] for p, _ in images}
    if empty:
        raise ValueError(f"{where}: class folder {'/'.join(min(empty))} has no images.")
    if with_splits:
        layout: Layout = {}
        for p, e in sorted(images):
            layout.setdefault(p[top], []).append((p[top + 1], e))
        return layout
    return _hold_out([(p[top], "/".join(p[top:]), e) for p, e in sorted(images)])


def _has_splits(images: list[tuple[tuple[str, ...], str]], top: int, where: str):
    """Whether the first folders are splits; raises ValueError if only some are."""
    deep = {p[top] for p, _ in images if len(p) > top + 2}
    shallow = {p[top] for p, _ in images if len(p) == top + 2}
    firsts = deep | shallow
    if not any(name in SPLITS for name in firsts):
        return False
    if all(name in SPLITS for name in shallow) and not deep:
        raise ValueError(
            f"{where}: images lie directly in {', '.join(sorted(shallow))}; {_LAYOUTS}."
        )
    if not any(name in SPLITS for name in deep):
        return False  # a class that happens to be called "test"
    others = sorted(firsts.difference(SPLITS))
    if others:
        raise ValueError(
            f"{where} has splits ({', '.join(sorted(firsts & set(SPLITS)))}) and "
            f"beside them {', '.join(others[:5])}; {_LAYOUTS}."
        )
    return True


def _hold_out(images: list[tuple[str, str, str]]) -> Layout:
    """Splits class by class; `images` are (class, path below the top, path)."""
    by_class: dict[str, list[tuple[str, str]]] = {}
    for name, below, path in images:
        # A hash, not a generator: no version of numpy can change the split, and
        # neither can the folder around it.
        rank = hashlib.sha256(below.encode()).hexdigest()
        by_class.setdefault(name, []).append((rank, path))
    held_out = set()
    for ranked in by_class.values():
        count = max(1, round(HELD_OUT * len(ranked))) if len(ranked) > 1 else 0
        held_out.update(path for _, path in sorted(ranked)[:count])
    everything = [(name, path) for name, _, path in images]
    return {
        "train": [image for image in everything if image[1] not in held_out],
        "test": [image for image in everything if image[1] in held_out],
        "all": everything,
    }
