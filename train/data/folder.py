"""Folders and zip files of images, one folder a class."""

import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train.data.decode import BadImage, decode_image
from train.data.source import Source

SUFFIXES = tuple(
    f".{kind}"
    for kind in (
        "bmp",
        "gif",
        "jpeg",
        "jpg",
        "pgm",
        "png",
        "ppm",
        "tif",
        "tiff",
        "webp",
    )
)
SPLITS = ("train", "val", "valid", "validation", "test")
SAME_SPLIT = ("val", "valid", "validation")
# Share of a class that is held out for testing where a set comes without splits.
HELD_OUT = 0.2
# A zip member that claims to be larger than this once unpacked is refused.
MAX_MEMBER_BYTES = 256 * 2**20
# RuntimeError is zipfile's word for an encrypted member.
_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

_LAYOUTS = (
    "expected split/class/image (splits: train, val, test) or class/image, with "
    f"images ending in {' '.join(SUFFIXES)}"
)
Layout = dict[str, list[tuple[str, str]]]


class FolderSource(Source):
    """One split of an image folder or zip file.

    Args:
      path: The folder or zip file.
      split: Name of the split.
      class_names: Classes of the whole set, sorted.
      examples: Class and path (inside the folder or zip file) of each image.
      color: "rgb", "grey" or None, see `decode_image`.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        class_names: tuple[str, ...],
        examples: Sequence[tuple[str, str]],
        color: str | None,
    ):
        self.name, self.split, self.class_names = path.stem, split, class_names
        label = {name: i for i, name in enumerate(class_names)}
        self.labels = np.array([label[name] for name, _ in examples], np.int32)
        self._path, self._color = path, color
        self._zipped = path.is_file()
        self._members = [member for _, member in examples]

    def image(self, index: int) -> np.ndarray:
        member, provenance = self._members[index], self.provenance(index)
        try:
            data = (
                _read_member(self._path, member)
                if self._zipped
                else (self._path / member).read_bytes()
            )
        except _UNREADABLE as error:
            raise BadImage(f"{provenance}: cannot be read ({error}).") from error
        return decode_image(data, provenance, color=self._color, upright=True)

    def provenance(self, index: int) -> str:
        return str(self._path / self._members[index])


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
      split: A name of a split.
      color: "rgb", "grey" or None, see `decode_image`.

    Returns:
      The source.

    Raises:
      ValueError: The path does not exist or has another layout, a class folder is
        empty, or there is no such split.
    """
    if path.is_dir():
        entries = _walk(path)
    elif path.is_file():
        try:
            entries = _zip_file(path, os.getpid()).namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a folder or zip file: {error}.") from error
    else:
        raise ValueError(f"{path} does not exist; expected a folder or a zip file.")
    layout = find_layout(entries, str(path))
    class_names = sorted({name for images in layout.values() for name, _ in images})
    split = _find_split(split, layout, path)
    return FolderSource(path, split, tuple(class_names), layout[split], color)


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
    visible = [(PurePosixPath(e).parts, e) for e in entries if not _is_hidden(e)]
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


def _find_split(split: str, layout: Layout, path: Path) -> str:
    if split in layout:
        return split
    same = [s for s in layout if split in SAME_SPLIT and s in SAME_SPLIT]
    if len(same) != 1:
        raise ValueError(
            f"{path} has no split {split!r}; it has {', '.join(sorted(layout))}."
        )
    return same[0]


def _is_hidden(entry: str) -> bool:
    parts = PurePosixPath(entry).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _walk(path: Path) -> list[str]:
    entries = []
    for folder, _, files in os.walk(path, followlinks=True):
        relative = Path(folder).relative_to(path)
        if relative.parts:
            entries.append(relative.as_posix() + "/")
        entries.extend((relative / file).as_posix() for file in files)
    return entries


@functools.lru_cache(maxsize=8)
def _zip_file(path: Path, process: int) -> zipfile.ZipFile:
    """Opens a zip file once in each process: a fork must not share its position."""
    del process
    return zipfile.ZipFile(path)


def _read_member(path: Path, member: str) -> bytes:
    archive = _zip_file(path, os.getpid())
    size = archive.getinfo(member).file_size
    if size > MAX_MEMBER_BYTES:
        raise BadImage(
            f"{path / member}: unpacks to {size} bytes, more than the limit of "
            f"{MAX_MEMBER_BYTES}."
        )
    return archive.read(member)
