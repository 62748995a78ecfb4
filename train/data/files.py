"""Folders and zip files, which are read in place."""

import functools
import os
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from train.data.decode import BadImage

# Of images.
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
SAME_SPLIT = ("val", "valid", "validation")
# A zip member that claims to be larger than this once unpacked is refused.
MAX_MEMBER_BYTES = 256 * 2**20
# RuntimeError is zipfile's word for an encrypted member.
_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Files:
    """The files of a folder or of a zip file; it can be pickled.

    Args:
      path: The folder or zip file.

    Raises:
      ValueError: The path does not exist, or is a file of another kind.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise ValueError(f"{path} does not exist; expected a folder or a zip file.")
        self.path = path
        self._zipped = path.is_file()
        if self._zipped:
            try:
                _zip_file(path, os.getpid())
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{path} is not a folder or zip file: {error}."
                ) from error

    def paths(self) -> list[str]:
        """Lists all paths with forward slashes; folders end in a slash."""
        if self._zipped:
            return _zip_file(self.path, os.getpid()).namelist()
        return _walk(self.path)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Reads a file.

        Args:
          name: As `paths` gives it.
          most: Largest size in a zip file, in bytes; `MAX_MEMBER_BYTES` if None.

        Raises:
          BadImage: The file cannot be read, or is too large.
        """
        try:
            if self._zipped:
                return self._read_member(name, most or MAX_MEMBER_BYTES)
            return (self.path / name).read_bytes()
        except _UNREADABLE as error:
            raise BadImage(f"{self.where(name)}: cannot be read ({error}).") from error

    def where(self, name: str) -> str:
        """Returns what to call a file in errors."""
        return str(self.path / name)

    def _read_member(self, name: str, most: int) -> bytes:
        archive = _zip_file(self.path, os.getpid())
        size = archive.getinfo(name).file_size
        if size > most:
            raise BadImage(
                f"{self.where(name)}: unpacks to {size} bytes, more than the limit of "
                f"{most}."
            )
        return archive.read(name)


def is_hidden(entry: str) -> bool:
    """Whether a path is of what file managers leave behind."""
    parts = PurePosixPath(entry).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def images_by_stem(entries: Sequence[str], folder: str) -> dict[str, str]:
    """Finds the images that lie directly in a folder: name without suffix -> path."""
    paths = map(PurePosixPath, entries)
    return {
        path.stem: str(path)
        for path in paths
        if str(path.parent) == folder
        and path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
    }


def find_splits(split: str, known: Collection[str], where: str) -> list[str]:
    """Returns the names in `known` of a split such as "train" or "train+val".

    Raises:
      ValueError: There is no such split, or one is named twice.
    """
    found = [_find_split(part, known, where) for part in split.split("+")]
    if len(set(found)) < len(found):
        raise ValueError(f"{where}: split {split!r} names one twice.")
    return found


def _find_split(split: str, known: Collection[str], where: str) -> str:
    if split in known:
        return split
    same = [s for s in known if split in SAME_SPLIT and s in SAME_SPLIT]
    if len(same) != 1:
        raise ValueError(
            f"{where} has no split {split!r}; it has {', '.join(sorted(known))}."
        )
    return same[0]


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
