"""Folders of images with folders of masks."""

import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train.data.annotations import IGNORED, UnnamedClasses, make_values
from train.data.files import (
    NO_IMAGE,
    Files,
    find_splits,
    images_by_stem,
    warn_of_left_out,
)
from train.data.formats.image_files import FileMasks
from train.data.formats.voc import NAMES_FILE, read_names
from train.data.source import Source
from zoo.decode import BadImage, decode_mask

ALONE = "masks without an image"
ALL = "all"  # the split of a set without splits


def open_masks(
    path: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    ignored: tuple[int, ...] = (),
    values: tuple[int, ...] = (),
    color: str | None = None,
    orientation: str = "auto",
) -> Source:
    """Opens SPLIT/images/NAME.jpg (or another kind) with SPLIT/masks/NAME.png.

    Args:
      path: A folder or a zip file with such folders, at any depth. If `images` and
        `masks` lie in it directly, the split is called "all".
      split: The name of a split, or several such as "train+val".
      class_names: The names of the classes; if None, the lines of a file classes.txt
        beside the splits.
      ignored: The pixel values to ignore, besides 255.
      values: The value of each class; 0, 1, .. if empty.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      UnnamedClasses: The classes' names are not known.
      ValueError: There is no such split, or an image has no mask.
    """
    files = Files(path)
    entries, left_out = files.listing()
    existing = set(entries)
    splits = {}  # name -> folder
    for entry in entries:
        parts = PurePosixPath(entry).parts
        if parts[-2:-1] == ("images",) and not entry.endswith("/"):
            folder = str(PurePosixPath(*parts[:-2]))
            other = splits.setdefault(parts[-3] if len(parts) > 2 else ALL, folder)
            if other != folder:
                raise ValueError(f"{path} has two splits {other} and {folder}.")
    if not splits:
        raise ValueError(f"{path} has no folder images, or SPLIT/images, with images.")
    images, masks = [], []
    for name in find_splits(split, splits, str(path)):
        folder = splits[name]
        of_split = images_by_stem(files, entries, str(PurePosixPath(folder, "images")))
        for stem, image in of_split.items():
            images.append(image)
            masks.append(str(PurePosixPath(folder, "masks", f"{stem}.png")))
        used = {*of_split.values(), *masks}
        for inside, reason in (("images", NO_IMAGE), ("masks", ALONE)):
            others = [
                entry
                for entry in entries
                if PurePosixPath(entry).parent == PurePosixPath(folder, inside)
                and not entry.endswith("/")
                and entry not in used
            ]
            left_out = {**left_out, reason: [*left_out.get(reason, ()), *others]}
    warn_of_left_out(str(path), left_out)
    if not images:
        raise ValueError(f"{path}: split {split!r} has no images.")
    missing = [mask for mask in masks if mask not in existing]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(masks)} images of split {split!r} have no "
            f"mask; the first that is missing is {missing[0]}."
        )
    if class_names is None:
        beside = str(PurePosixPath(splits[name]).parent / NAMES_FILE)
        if beside not in existing:
            first = _find_values(files, masks)
            raise UnnamedClasses(
                f"{path}: what are its classes called? Name them in the order of the "
                f"masks' values as --classes (classes=), or in a file {beside}, one a "
                f"line. The first masks have the values {first}; those of no class are "
                "named as --data.ignored."
            )
        class_names = read_names(files, beside)
    table = make_values(len(class_names), ignored, values)
    return FileMasks(
        files,
        split,
        tuple(class_names),
        images,
        masks,
        table,
        color,
        orientation,
        sure=bool(values) or IGNORED in ignored,
    )


def _find_values(files: Files, masks: Sequence[str]) -> str:
    """Lists the values of the first masks that can be read."""
    found: set[int] = set()
    for mask in masks[:50]:
        with contextlib.suppress(BadImage):
            values = decode_mask(files.read(mask), files.where(mask))
            found.update(np.unique(values).tolist())
    return " ".join(map(str, sorted(found)))
