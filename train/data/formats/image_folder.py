"""Image folders and zip files, with one folder for each class."""

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train.data.files import (
    FILLERS,
    Files,
    find_splits,
    split_images,
    split_kind,
    warn_of_left_out,
)
from train.data.formats.image_files import FileSource
from train.data.source import Source
from zoo.decode import SUFFIXES

logger = logging.getLogger(__name__)

# Share of the images that is held out for testing if a set has no splits.
HELD_OUT = 0.2
UNLABELED = "in no class folder, beside splits that have them"

_LAYOUTS = (
    "expected split/class/image (splits: train, val, test) or class/image, with "
    f"images ending in {' '.join(SUFFIXES)}"
)
Layout = dict[str, list[tuple[str, str]]]
Parts = tuple[str, ...]


class FolderSource(FileSource):
    """One split of an image folder or zip file.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      class_names: The names of the classes of the whole set, sorted.
      examples: The class and the path of each image.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      upright: Whether to apply the EXIF orientation.
    """

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        examples: Sequence[tuple[str, str]],
        color: str | None,
        upright: bool = True,
    ):
        members = [member for _, member in examples]
        super().__init__(files, split, class_names, members, color, upright)
        label = {name: i for i, name in enumerate(class_names)}
        self.labels = np.array([label[name] for name, _ in examples], np.int32)


def open_folder(
    path: Path, split: str, *, color: str | None = None, orientation: str = "auto"
) -> Source:
    """Opens one split of a folder or zip file of images.

    Folders around the layout are skipped (`cifar10/test/cat/1.webp`). Splits can have
    any of the usual names, such as Training or test_set. Hidden files, files of file
    managers, files that are not images, and images that lie beside the splits without a
    class folder are left out, which is logged. The classes are those of the whole set,
    sorted by name, even if a split does not have all of them. A set without splits has
    "all", "train", and "test" with a share of `HELD_OUT` of the images. The path of an
    image below the layout decides its split, so that adding images does not move
    others. The EXIF orientation is applied. A set with one class alone is logged.

    Args:
      path: A folder, or a zip file, which is not unpacked.
      split: The name of a split, or several such as "train+val".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: "stored" to ignore the EXIF orientation.

    Returns:
      The source.

    Raises:
      ValueError: The path does not exist or has another layout, a class folder is
        empty, the only class has several folders, the names of two classes differ only
        by case, folders may be splits or classes, or there is no such split.
    """
    files, layout, splits = read_layout(path, split)
    class_names = sorted({name for part in layout.values() for name, _ in part})
    if len(class_names) == 1:
        logger.warning(
            "%s has the class %s alone; expected two or more to tell apart.",
            path,
            class_names[0],
        )
    return FolderSource(
        files,
        "+".join(splits),
        tuple(class_names),
        [example for part in splits for example in layout[part]],
        color,
        orientation != "stored",
    )


def read_layout(path: Path, split: str) -> tuple[Files, Layout, list[str]]:
    """Finds the layout of a folder or zip file, and logs what is left out.

    Args:
      path: A folder or a zip file.
      split: The name of a split, or several such as "train+val".

    Returns:
      The files, the class and the path of each image by split, and the names of the
      chosen splits, which have at least one image.

    Raises:
      ValueError: See `open_folder`.
    """
    files = Files(path)
    images, listing = split_images(files, files.listing())
    warn_of_left_out(str(path), listing.left_out)
    layout = find_layout([*images, *listing.entries], str(path))
    labeled = {image for part in layout.values() for _, image in part}
    unlabeled = [image for image in images if image not in labeled]
    warn_of_left_out(str(path), {UNLABELED: unlabeled})
    splits = find_splits(split, layout, str(path))
    if not any(layout[part] for part in splits):
        raise ValueError(
            f"{path} has {len(images)} images and no splits, and none of them falls to "
            f"{split!r}, which takes a share by chance; make folders train and test."
        )
    return files, layout, splits


def find_layout(entries: Sequence[str], where: str) -> Layout:
    """Finds splits and classes in a listing.

    Args:
      entries: Paths of images and folders with forward slashes; folders end in one.
      where: The name of the listing in errors.

    Returns:
      The class and the path of each image, sorted, by split.

    Raises:
      ValueError: See `open_folder`.
    """
    paths = [(PurePosixPath(e).parts, e) for e in sorted(entries)]
    images = [(p, e) for p, e in paths if not e.endswith("/")]
    folders = [p for p, e in paths if e.endswith("/")]
    if not images:
        raise ValueError(f"{where} has no images; {_LAYOUTS}.")
    top = 0  # how many folders lie around the layout
    while (
        len({p[top] for p, _ in images}) == 1
        and min(len(p) for p, _ in images) - top > 2
        and split_kind(images[0][0][top]) is None
    ):
        top += 1
    around = images[0][0][:top]
    images = [(p[top:], e) for p, e in images]
    folders = [p[top:] for p in folders if p[:top] == around]
    with_splits = _has_splits(images, where)
    if with_splits:
        # Images beside the splits, without a class folder, are ignored.
        deep = {p[0] for p, _ in images if len(p) > 2}
        images = [(p, e) for p, e in images if p[0] in deep]
        wrappers = _find_wrappers([p for p, _ in images])
        images = [(_unwrap(p, wrappers), e) for p, e in images]
        folders = [_unwrap(p, wrappers) for p in folders if p and p[0] in deep]
    depth = 1 + with_splits  # of the classes' folders, from 1
    for p, e in images:
        if len(p) <= depth:
            raise ValueError(f"{where}: {e} is in no class folder; {_LAYOUTS}.")
    empty = {p for p in folders if len(p) == depth} - {p[:depth] for p, _ in images}
    if empty:
        name = "/".join((*around, *min(empty)))
        raise ValueError(f"{where}: class folder {name} has no images.")
    classes = {p[depth - 1] for p, _ in images}
    below = sorted({p[depth] for p, _ in images if len(p) > depth + 1})
    if len(classes) == 1 and len(below) > 1:
        raise ValueError(
            f"{where}: the only class would be {classes.pop()!r}, and it has folders "
            f"{', '.join(below[:5])}{' ..' * (len(below) > 5)}: are these the classes? "
            f"{_LAYOUTS.capitalize()}."
        )
    _check_names(sorted({p[:depth] for p, _ in images}), where)
    if not with_splits:
        return _hold_out(images)
    layout: Layout = {}
    for p, e in images:
        layout.setdefault(p[0], []).append((p[1], e))
    return layout


def _has_splits(images: list[tuple[Parts, str]], where: str) -> bool:
    """Returns whether the first folders are splits; ValueError if only some are."""
    below: dict[str, set[str]] = {}  # folders in the first folders
    for p, _ in images:
        if len(p) > 2:
            below.setdefault(p[0], set()).add(p[1])
    shallow = {p[0] for p, _ in images if len(p) == 2}
    firsts = {*below, *shallow}
    named = {name for name in firsts if split_kind(name)}
    if named and named >= shallow and not below:
        raise ValueError(
            f"{where}: images lie directly in {', '.join(sorted(shallow))}; {_LAYOUTS}."
        )
    if not named & below.keys():  # perhaps a class that happens to be called "test"
        _check_alike(below, where)
        return False
    others = sorted(below.keys() - named)
    if others:
        raise ValueError(
            f"{where} has splits ({', '.join(sorted(named))}) and beside them "
            f"{', '.join(others[:5])}; {_LAYOUTS}."
        )
    return True


def _check_alike(below: Mapping[str, set[str]], where: str) -> None:
    """Raises ValueError if several first folders contain folders of the same names."""
    counts = Counter(name for names in below.values() for name in names)
    shared = {name for name, count in counts.items() if count > 1}
    folders = sorted(name for name, names in below.items() if len(names & shared) > 1)
    for i, first in enumerate(folders):
        for second in folders[i + 1 :]:
            both = sorted(below[first] & below[second])
            if len(both) > 1:
                raise ValueError(
                    f"{where}: {first} and {second} both have folders "
                    f"{', '.join(both[:3])}. If they are splits, call them train, val "
                    f"or test; if they are classes, let images lie in them directly."
                )


def _find_wrappers(paths: Sequence[Parts]) -> dict[str, str]:
    """Finds splits with a single folder around their classes: seg_train/seg_train/.."""
    below: dict[str, set[str]] = {}
    least: dict[str, int] = {}
    for p in paths:
        below.setdefault(p[0], set()).add(p[1])
        least[p[0]] = min(least.get(p[0], len(p)), len(p))
    return {
        split: name
        for split, names in below.items()
        for name in names
        if len(names) == 1
        and least[split] > 3
        and (split_kind(name) == split_kind(split) or name.lower() in FILLERS)
    }


def _unwrap(path: Parts, wrappers: Mapping[str, str]) -> Parts:
    wrapped = len(path) > 1 and wrappers.get(path[0]) == path[1]
    return (path[0], *path[2:]) if wrapped else path


def _check_names(folders: Sequence[Parts], where: str) -> None:
    """Raises ValueError if two classes differ only by case or Unicode form."""
    known: dict[str, Parts] = {}
    for folder in folders:
        key = unicodedata.normalize("NFC", folder[-1]).casefold().strip()
        other = known.setdefault(key, folder)
        if other[-1] != folder[-1]:
            raise ValueError(
                f"{where}: {'/'.join(other)} and {'/'.join(folder)} are two classes "
                "whose names differ by case, accents or spaces alone; give them one "
                "name, or different ones."
            )


def _hold_out(images: Sequence[tuple[Parts, str]]) -> Layout:
    """Splits by a hash of each image's path below the layout."""
    layout: Layout = {"train": [], "test": [], "all": []}
    for p, e in images:
        # A hash, not a generator, so that the split does not depend on the version of
        # numpy, the folders above, or other images.
        digest = hashlib.sha256("/".join(p).encode()).digest()
        held_out = int.from_bytes(digest[:8]) < HELD_OUT * 2**64
        layout["test" if held_out else "train"].append((p[0], e))
        layout["all"].append((p[0], e))
    return layout
