"""The format of PASCAL VOC: images with boxes in XML files, or with masks."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from train.data.annotations import (
    IGNORED,
    Objects,
    clip_objects,
    log_dropped_boxes,
    make_objects,
    make_values,
)
from train.data.files import (
    Files,
    find_splits,
    images_by_stem,
    read_text,
    warn_of_left_out,
)
from train.data.formats.image_files import FileMasks, FileObjects
from train.data.formats.xml import Element, parse_xml
from train.data.source import Source
from zoo.paths import nearest
from zoo.segmentation.voc import CLASS_NAMES

CLASSES = CLASS_NAMES[1:]  # without the background
NAMES_FILE = "classes.txt"
# The texts of <difficult> in lower case.
_DIFFICULT = {"": False, "0": False, "false": False, "1": True, "true": True}
# A line in the list of a class: an image, then -1, 0 or 1.
_FLAGGED = re.compile(r"(.*\S)\s+(?:-1|0|1)")


def open_voc(
    path: Path, split: str, *, color: str | None = None, orientation: str = "auto"
) -> Source:
    """Opens images with boxes: JPEGImages, Annotations and ImageSets/Main/SPLIT.txt.

    The classes are the lines of a file classes.txt beside the folders; without it, the
    20 of VOC, or the set's own classes, sorted, if it has others. In VOC the first
    pixel has the coordinate 1, and xmax and ymax are the last pixel of a box, so that
    the box of the first pixel is 0, 0, 1, 1 here. Boxes are clipped to their image;
    those without area are left out, which is logged.

    Args:
      path: A folder or a zip file with these folders, at any depth. If there are
        several, such as VOC2007 and VOC2012, a split is named "VOC2007/trainval".
      split: The name of a split, or several such as "train+val".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      ValueError: There is no such split, an image or an annotation is missing, a class
        is unknown, or an annotation cannot be read; its file and line are named.
    """
    tree = _Tree(path, "Main")
    items = tree.find(split, "Annotations", ".xml")
    annotations = {file: tree.read_xml(file) for _, file in items}
    class_names = tree.read_names() or _collect_names(tree, annotations)
    images, objects, sizes, left_out, outside = [], [], [], [], 0
    for image, file in items:
        found, size, reasons, reaching = _read_objects(annotations[file], class_names)
        images.append(image)
        objects.append(found)
        sizes.append(size)
        left_out += reasons
        outside += reaching
    log_dropped_boxes(f"{path} {split}", left_out)
    return FileObjects(
        tree.files,
        split,
        class_names,
        images,
        objects,
        sizes=sizes,
        color=color,
        orientation=orientation,
        outside=outside,
    )


def open_voc_masks(
    path: Path,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    ignored: tuple[int, ...] = (),
    values: tuple[int, ...] = (),
    color: str | None = None,
    orientation: str = "auto",
) -> Source:
    """Opens images with masks: JPEGImages, SegmentationClass, ImageSets/Segmentation.

    Args:
      path: A folder or a zip file with these folders, as for `open_voc`.
      split: The name of a split, or several such as "train+val".
      class_names: The names of the classes of masks; "background" and the 20 of VOC if
        None. (A file classes.txt names the classes of boxes, without a background.)
      ignored: The pixel values to ignore, besides 255.
      values: The value of each class; 0, 1, .. if empty.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      ValueError: There is no such split, or an image or a mask is missing.
    """
    tree = _Tree(path, "Segmentation")
    items = tree.find(split, "SegmentationClass", ".png")
    names = tuple(class_names or CLASS_NAMES)
    table = make_values(len(names), ignored, values)
    images, masks = zip(*items, strict=True)
    # VOC's own masks have 255 on the borders of objects.
    sure = class_names is None or bool(values) or IGNORED in ignored
    return FileMasks(
        tree.files, split, names, images, masks, table, color, orientation, sure=sure
    )


class _Tree:
    """The locations of VOC's folders within a folder or zip file."""

    def __init__(self, path: Path, kind: str):
        self.files = Files(path)
        self.entries, left_out = self.files.listing()
        warn_of_left_out(str(path), left_out)
        self._existing = set(self.entries)
        lists = {}  # folder above JPEGImages and name of the split -> its file
        for entry in self.entries:
            parts = PurePosixPath(entry).parts
            if parts[-3:-1] == ("ImageSets", kind) and entry.endswith(".txt"):
                lists["/".join(parts[:-3]), PurePosixPath(entry).stem] = entry
        if not lists:
            raise ValueError(
                f"{path} has no ImageSets/{kind}/SPLIT.txt; expected it beside "
                "JPEGImages, as in PASCAL VOC."
            )
        self.tops = sorted({top for top, _ in lists})
        alone = len(self.tops) == 1
        self._splits = {
            name if alone else f"{PurePosixPath(top).name}/{name}": (top, file)
            for (top, name), file in lists.items()
        }

    def find(self, split: str, folder: str, suffix: str) -> list[tuple[str, str]]:
        """Returns the image and the annotation file for each line of a split's list."""
        items = []
        for name in find_splits(split, self._splits, str(self.files.path)):
            top, file = self._splits[name]
            images = images_by_stem(self.files, self.entries, _join(top, "JPEGImages"))
            for i, line in enumerate(read_text(self.files, file).splitlines()):
                stem, where = line.strip(), self.files.where(file)
                if not stem:
                    continue
                flagged = _FLAGGED.fullmatch(stem)
                if stem not in images and flagged:
                    stem = flagged[1]
                other = _join(top, folder, stem + suffix)
                if stem not in images:
                    raise ValueError(f"{where}:{i + 1}: JPEGImages has no {stem}.")
                if other not in self._existing:
                    raise ValueError(f"{where}:{i + 1}: there is no {other}.")
                items.append((images[stem], other))
        if not items:
            raise ValueError(f"{self.files.path}: split {split!r} names no image.")
        if len(set(items)) < len(items):
            raise ValueError(f"{self.files.path}: split {split!r} has images twice.")
        return items

    def read_names(self) -> tuple[str, ...]:
        """Returns the lines of classes.txt; empty if there is no such file."""
        for top in self.tops:
            if (file := _join(top, NAMES_FILE)) in self._existing:
                return read_names(self.files, file)
        return ()

    def read_xml(self, file: str) -> Element:
        return parse_xml(self.files.read(file), self.files.where(file))


def read_names(files: Files, file: str) -> tuple[str, ...]:
    """Reads the names of classes, one on each line.

    Raises:
      ValueError: There is no name, or a name is repeated.
    """
    lines = read_text(files, file).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{files.where(file)}: expected names of classes that differ, one a line."
        )
    return names


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _collect_names(tree: _Tree, known: dict[str, Element]) -> tuple[str, ...]:
    """Returns the classes of the whole set, even if a split has only some of them."""
    folders = {_join(top, "Annotations") for top in tree.tops}
    names = set()
    for entry in tree.entries:
        if entry.endswith(".xml") and str(PurePosixPath(entry).parent) in folders:
            annotation = known.get(entry) or tree.read_xml(entry)
            names |= {obj.text("name") for obj in annotation.find_all("object")}
    if names <= {*CLASSES}:
        return CLASSES
    by_case: dict[str, str] = {}
    for name in sorted(names):
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"{tree.files.path}: the classes {other!r} and {name!r} differ by case "
                f"alone; write them alike, or list both in a file {NAMES_FILE}."
            )
    return tuple(sorted(names))


def _read_objects(
    annotation: Element, class_names: tuple[str, ...]
) -> tuple[Objects, tuple[int, int], list[str], int]:
    """Returns objects, (height, width) or zeros, and `clip_objects`' other results."""
    elements = annotation.find_all("object")
    boxes, classes, difficult = [], [], []
    for element in elements:
        name = element.text("name")
        if name not in class_names:
            raise ValueError(
                f"{element.where}: unknown class {name!r}{nearest(name, class_names)} "
                f"There are {', '.join(class_names[:20])}."
            )
        box = element.find("bndbox")
        if box is None:
            raise ValueError(f"{element.where}: <object> has no <bndbox>.")
        x1, y1, x2, y2 = map(box.number, ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((x1 - 1, y1 - 1, x2, y2))
        classes.append(class_names.index(name))
        hard = element.find("difficult")
        text = "" if hard is None else "".join(hard.texts).strip()
        if text.lower() not in _DIFFICULT:
            raise ValueError(
                f"{hard.where}: <difficult> is {text!r}, expected 0, 1, true or false."
            )
        difficult.append(_DIFFICULT[text.lower()])
    size = annotation.find("size")
    height, width = (
        (0, 0)
        if size is None
        else (int(size.number(side, least=0)) for side in ("height", "width"))
    )
    objects, left_out, reaching = clip_objects(
        make_objects(boxes, classes, difficult),
        (height, width),
        [element.where for element in elements],
    )
    return objects, (height, width), left_out, reaching
