"""Files in folders and zip files, and the names of splits."""

import functools
import logging
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from train.data.source import UnknownSplit
from zoo.decode import SUFFIXES, BadImage, looks_like_image

# A zip member that is larger than this once unpacked is refused.
MAX_MEMBER_BYTES = 256 * 2**20
# Number of nested links to folders that are followed.
MAX_LINKS = 3

# Names that operating systems, file managers and storage systems add, in lower case;
# names that begin with a dot are also left out.
_SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "lost+found", "__pycache__", "picasa.ini"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
    )
)
SYSTEM = "hidden or added by a file manager or storage system"
LOOP = "links that lead back to a folder above them"
NESTED = f"links to folders within more than {MAX_LINKS} other links"
SPECIAL = "neither files nor folders (broken links, pipes, devices)"
NO_IMAGE = "no images that Pillow reads"
OUTSIDE = "names that lead out of the zip file, by '..'"
_UNIX = 3  # `create_system` of a zip file's member that was made on Unix

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The contents of a folder or a zip file, as paths with forward slashes.

    Attributes:
      entries: The sorted paths of files and folders; those of folders end in a slash.
      left_out: The paths that are left out, by the reason.
    """

    entries: list[str]
    left_out: dict[str, list[str]]


class Files:
    """The files of a folder or a zip file; they can be pickled.

    Args:
      path: The folder or zip file.

    Raises:
      ValueError: The path does not exist, or is a file of another kind.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise ValueError(f"{path} does not exist; expected a folder or a zip file.")
        self.path = path
        self._zipped = not path.is_dir()
        if self._zipped:
            if not path.is_file():
                raise ValueError(f"{path} is not a folder or zip file.")
            try:
                self._archive()
            # For a broken file zipfile raises BadZipFile, OSError, struct.error,
            # NotImplementedError, UnicodeDecodeError and more.
            except Exception as error:
                raise ValueError(
                    f"{path} is not a folder or zip file: {error}."
                ) from error

    def listing(self) -> Listing:
        """Lists all files and folders, without hidden files and system files.

        Raises:
          ValueError: A folder cannot be listed, a name is not Unicode, or a zip file
            has two members of one name.
        """
        entries, left_out = self._list_zip() if self._zipped else _walk(self.path)
        for entry in entries:
            if not entry.isprintable() and any(
                "\ud800" <= c <= "\udfff" for c in entry
            ):
                raise ValueError(
                    f"{self.path}: the name {entry!r} is not UTF-8; rename it."
                )
        return Listing(sorted(entries), left_out)

    def is_image(self, name: str) -> bool:
        """Returns whether a file is an image, by its suffix or else its content."""
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            return True
        if any(map(str.isalpha, suffix)):
            return False
        try:
            return looks_like_image(self.read_start(name, 16))
        except BadImage:
            return False

    def read(self, name: str, most: int | None = None) -> bytes:
        """Reads a file.

        Args:
          name: The path of the file, as in `listing`.
          most: The largest size in a zip file, in bytes; `MAX_MEMBER_BYTES` if None.

        Raises:
          BadImage: The file cannot be read, or is too large.
        """
        try:
            if self._zipped:
                return self._read_member(name, most or MAX_MEMBER_BYTES)
            return (self.path / name).read_bytes()
        except BadImage:
            raise
        # Each compression method raises other errors; encryption a RuntimeError.
        except Exception as error:
            raise BadImage(
                f"{self.where(name)}: cannot be read ({type(error).__name__}: {error})."
            ) from error

    def read_start(self, name: str, size: int) -> bytes:
        """Reads the first bytes of a file, at most `size`.

        Raises:
          BadImage: The file cannot be read.
        """
        try:
            archive = self._archive() if self._zipped else None
            opened = archive.open(name) if archive else (self.path / name).open("rb")
            with opened as file:
                return file.read(size)
        except Exception as error:
            raise BadImage(
                f"{self.where(name)}: cannot be read ({type(error).__name__}: {error})."
            ) from error

    def stamp(self, name: str) -> str:
        """Returns the size of a file, and its CRC-32 in a zip file, without reading."""
        if self._zipped:
            info = self._archive().getinfo(name)
            return f"{info.file_size} {info.CRC:08x}"
        try:
            return str(os.stat(f"{self.path}/{name}").st_size)
        except OSError as error:  # reading it will say what is wrong
            return f"{error.strerror}"

    def where(self, name: str) -> str:
        """Returns the name of a file in errors."""
        return str(self.path / name)

    def _read_member(self, name: str, most: int) -> bytes:
        archive = self._archive()
        size = archive.getinfo(name).file_size
        if size > most:
            raise BadImage(
                f"{self.where(name)}: unpacks to {size} bytes, more than the limit of "
                f"{most}."
            )
        with archive.open(name) as member:
            # Reads no more than the declared size, whatever the member contains.
            return member.read(size)

    def _archive(self) -> zipfile.ZipFile:
        found = self.path.stat()
        version = found.st_ino, found.st_size, found.st_mtime_ns
        return _zip_file(self.path, os.getpid(), version)

    def _list_zip(self) -> tuple[list[str], dict[str, list[str]]]:
        entries, left_out = [], {}
        infos = self._archive().infolist()
        (name, count), *_ = Counter(i.filename for i in infos).most_common(1) or [
            ("", 0)
        ]
        if count > 1:
            raise ValueError(f"{self.path} has {count} members called {name}.")
        for info in infos:
            name = info.filename
            if ".." in PurePosixPath(name).parts:
                left_out.setdefault(OUTSIDE, []).append(name)
            elif any(map(_is_system, PurePosixPath(name).parts)):
                left_out.setdefault(SYSTEM, []).append(name)
            elif stat.S_ISLNK(info.external_attr >> 16):
                left_out.setdefault(SPECIAL, []).append(name)
            else:
                entries.append(name)
        return entries, left_out


def split_images(files: Files, listing: Listing) -> tuple[list[str], Listing]:
    """Separates the images of a listing from its folders and other files.

    Returns:
      The images, and the listing with the other files left out.
    """
    images, folders, others = [], [], []
    for entry in listing.entries:
        if entry.endswith("/"):
            folders.append(entry)
        else:
            (images if files.is_image(entry) else others).append(entry)
    return images, Listing(folders, {**listing.left_out, NO_IMAGE: others})


def warn_of_left_out(where: str, left_out: Mapping[str, Sequence[str]]) -> None:
    """Logs how many files are left out, and the names of some, once for each set.

    Args:
      where: The name of the data set in messages.
      left_out: The paths that are left out, by the reason.
    """
    parts = []
    for reason, paths in left_out.items():
        if not paths:
            continue
        names = paths
        if reason == NO_IMAGE:  # the suffixes tell more than the names
            suffixes = (PurePosixPath(path).suffix.lower() for path in paths)
            counts = Counter(suffix or "no suffix" for suffix in suffixes)
            names = [f"{count} x {suffix}" for suffix, count in counts.most_common()]
            if {".heic", ".heif"} & counts.keys():
                names[0] += "; pip install pillow-heif reads .heic"
        shown = [*names[:5], "..."] if len(names) > 5 else names
        parts.append(f"{len(paths)} {reason} ({', '.join(map(_printable, shown))})")
    if parts:
        _warn_once(f"{where}: left out are {'; '.join(parts)}.")


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def images_by_stem(files: Files, entries: Sequence[str], folder: str) -> dict[str, str]:
    """Finds the images directly in a folder: name without suffix -> path.

    Raises:
      ValueError: Two images have the same name except for the suffix.
    """
    found: dict[str, str] = {}
    for entry in entries:
        path = PurePosixPath(entry)
        if entry.endswith("/") or str(path.parent) != folder:
            continue
        if not files.is_image(entry):
            continue
        if found.setdefault(path.stem, entry) != entry:
            raise ValueError(
                f"{files.path}: {found[path.stem]} and {entry} are two images called "
                f"{path.stem!r}; which one is meant? Rename or remove one."
            )
    return found


def read_text(files: Files, file: str) -> str:
    """Reads a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
      ValueError: The file has another encoding; the message names file and line.
    """
    data = files.read(file)
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{files.where(file)}:{line}: not UTF-8 ({error.reason}); save it as UTF-8."
        ) from error


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _walk(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Lists a folder; links are followed, but not back to a folder above them."""
    entries: list[str] = []
    left_out: dict[str, list[str]] = {}
    # Folder, path below `root`, identities of it and its parents, links among these.
    pending = [(str(root), "", (_identity(root.stat()),), 0)]
    while pending:
        folder, prefix, above, links = pending.pop()
        try:
            found = list(os.scandir(folder))
        except OSError as error:
            raise ValueError(f"{folder}: cannot be listed ({error}).") from error
        for entry in found:
            path, reason = prefix + entry.name, None
            try:
                is_folder = entry.is_dir()
                is_file = not is_folder and entry.is_file()
                here = _identity(entry.stat()) if is_folder else None
            except OSError:  # such as a link to itself
                is_folder = is_file = False
            inside = links + entry.is_symlink()
            if _is_system(entry.name):
                reason = SYSTEM
            elif not is_folder and not is_file:
                reason = SPECIAL
            elif is_folder and here in above:
                reason = LOOP
            elif is_folder and inside > MAX_LINKS:
                reason = NESTED
            if reason:
                left_out.setdefault(reason, []).append(path)
            elif is_file:
                entries.append(path)
            else:
                entries.append(path + "/")
                pending.append((entry.path, path + "/", (*above, here), inside))
    return entries, {reason: sorted(paths) for reason, paths in left_out.items()}


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@functools.lru_cache(maxsize=8)
def _zip_file(path: Path, process: int, version: tuple[int, ...]) -> zipfile.ZipFile:
    """Opens a zip file once per process, since forks must not share a file position.

    Some programs write Windows backslashes as separators; they are replaced.
    """
    del process, version
    archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        if info.create_system != _UNIX:
            info.filename = info.filename.replace("\\", "/")
    archive.NameToInfo = {info.filename: info for info in archive.infolist()}
    return archive


_KINDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# Words that may surround them, as in seg_train, training_set or TestImages.
FILLERS = frozenset(
    "set data dataset image images img imgs picture pictures photos seg split".split()
)


def split_kind(name: str) -> str | None:
    """Returns "train", "val" or "test" for a name such as Training, or else None.

    Case, separators, and words such as "set" or "images" do not matter.
    """
    if any(map(str.isdigit, name)):
        return None
    # Words end at separators, and before capitals that follow small letters.
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    kinds = set()
    for word in re.split(r"[\W_]+", spaced.lower()):
        if not word or word in FILLERS:
            continue
        for ending in ("", "set", "data", "images"):
            if word.removesuffix(ending) in _KINDS:
                kinds.add(_KINDS[word.removesuffix(ending)])
                break
        else:
            return None
    return kinds.pop() if len(kinds) == 1 else None


def find_splits(split: str, known: Collection[str], where: str) -> list[str]:
    """Returns the names in `known` that a split such as "train+val" stands for.

    Raises:
      UnknownSplit: There is no such split.
      ValueError: A split is named twice.
    """
    found = [_find_split(part, known, where) for part in split.split("+")]
    if len(set(found)) < len(found):
        raise ValueError(f"{where}: split {split!r} names one twice.")
    return found


def _find_split(split: str, known: Collection[str], where: str) -> str:
    if split in known:
        return split
    kind = split_kind(split)
    same = [name for name in known if kind and split_kind(name) == kind]
    if len(same) != 1:
        several = f"; {' and '.join(sorted(same))} could be meant" if same else ""
        raise UnknownSplit(
            f"{where} has no split {split!r}; it has {', '.join(sorted(known))}"
            f"{several}."
        )
    return same[0]
