"""Folders of images beside folders of masks."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from train.data.files import Files, find_splits, images_by_stem, is_hidden
from train.data.located import FileMasks
from train.data.masks import make_values
from train.data.source import Source
from train.data.voc import NAMES_FILE, read_names


def open_pairs(
    path: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    ignored: tuple[int, ...] = (),
    color: str | None = None,
) -> Source:
    """Opens SPLIT/images/NAME.jpg (or another kind) with SPLIT/masks/NAME.png.

    Args:
      path: A folder or a zip file with such folders, at any depth.
      split: A name of a split, or several such as "train+val".
      class_names: Of the masks' values 0, 1, ..; those of a file classes.txt beside the
        splits, one a line, if None.
      ignored: Values of pixels to be ignored, besides 255.
      color: "rgb", "grey" or None, see `decode_image`.

    Returns:
      The source.

    Raises:
      ValueError: There is no such split, an image has no mask, or the classes' names
        are not known.
    """
    files = Files(path)
    entries = sorted(e for e in files.paths() if not is_hidden(e))
    existing = set(entries)
    splits = {}  # name -> folder
    for entry in entries:
        parts = PurePosixPath(entry).parts
        if len(parts) >= 3 and parts[-2] == "images" and not entry.endswith("/"):
            folder = "/".join(parts[:-2])
            other = splits.setdefault(parts[-3], folder)
            if other != folder:
                raise ValueError(f"{path} has two splits {other} and {folder}.")
    if not splits:
        raise ValueError(f"{path} has no folder SPLIT/images with images.")
    images, masks = [], []
    for name in find_splits(split, splits, str(path)):
        folder = splits[name]
        for stem, image in images_by_stem(entries, f"{folder}/images").items():
            images.append(image)
            masks.append(f"{folder}/masks/{stem}.png")
    missing = [mask for mask in masks if mask not in existing]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(masks)} images of split {split!r} have no "
            f"mask; the first that is missing is {missing[0]}."
        )
    if class_names is None:
        beside = str(PurePosixPath(splits[name]).parent / NAMES_FILE)
        if beside not in existing:
            raise ValueError(
                f"{path}: what are its classes called? Name them as classes=, in the "
                f"order of the masks' values, or in a file {beside}, one a line."
            )
        class_names = read_names(files, beside)
    values = make_values(len(class_names), ignored)
    names = tuple(class_names)
    return FileMasks(files, split, names, images, masks, values, color)
