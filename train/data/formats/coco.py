"""The format of COCO: images with the boxes of a split in one JSON file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from train.data.annotations import clip_objects, log_dropped_boxes, make_objects
from train.data.files import Files, split_kind, warn_of_left_out
from train.data.formats.image_files import FileObjects
from train.data.formats.xml import MAX_COORDINATE
from train.data.source import Joined, Source, UnknownSplit

_USAGE = (
    "expected coco:DIR, a folder with annotations/instances_SPLIT.json and images in "
    "SPLIT, or coco:FILE.json:IMAGES with {split} where they depend on the split"
)


def open_coco(
    path: str, split: str, *, color: str | None = None, orientation: str = "auto"
) -> Source:
    """Opens images with boxes in the format of COCO.

    Classes are sorted by their category id, and crowds are marked as difficult.
    Boxes are clipped to their image; those without area are left out, which is logged.

    Args:
      path: "DIR", a folder with annotations/instances_SPLIT.json and images in SPLIT
        (where SPLIT may have a year behind it, such as train2017), or
        "FILE.json:IMAGES", a file and a folder or zip file of images, with "{split}"
        where they depend on the split.
      split: The name of a split, or several such as "train+val".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      ValueError: A file is missing, is not JSON (the message names file and line) or
        incomplete, two images or categories have the same id, a split is named twice,
        or the categories of several splits differ.
    """
    parts = split.split("+")
    found = [_find(path, part) for part in parts]
    if len(set(found)) < len(found):
        raise ValueError(f"{path}: split {split!r} names one twice.")
    sources = [
        _open_one(*where, part, color, orientation)
        for where, part in zip(found, parts, strict=True)
    ]
    return sources[0] if len(sources) == 1 else Joined(sources)


def _find(path: str, split: str) -> tuple[Path, Path]:
    """Returns the file of a split and the folder of its images."""
    if ".json:" in path:
        file, _, images = path.replace("{split}", split).partition(".json:")
        file, images = Path(f"{file}.json"), Path(images)
        if not file.is_file():
            error = UnknownSplit if "{split}" in path else ValueError
            raise error(f"{file} does not exist; {_USAGE}.")
        return file, images
    folder = Path(path)
    kind = split_kind(split)
    known = sorted(folder.glob("annotations/instances_*.json"))
    found = [
        file
        for file in known
        if (name := file.stem.removeprefix("instances_")) == split
        or (bare := name.rstrip("0123456789_")) == split
        or (kind is not None and split_kind(bare) == kind)
    ]
    if len(found) != 1:
        there = ", ".join(file.stem.removeprefix("instances_") for file in known)
        raise UnknownSplit(
            f"{folder} has {'several' if found else 'no'} annotations for split "
            f"{split!r}; it has {there or 'none at all'}; {_USAGE}."
        )
    return found[0], folder / found[0].stem.removeprefix("instances_")


def _open_one(
    file: Path, folder: Path, split: str, color: str | None, orientation: str
) -> Source:
    content = _read_json(file)
    categories = sorted(content["categories"], key=lambda c: _get_id(file, c, "id"))
    class_names = tuple(_get_text(file, c, "name") for c in categories)
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{file}: two categories have the same name.")
    class_of = {category["id"]: i for i, category in enumerate(categories)}
    _check_unique(file, categories, "id", "name", "categories")
    for image in content["images"]:
        _get_id(file, image, "id"), _get_text(file, image, "file_name")
    _check_unique(file, content["images"], "id", "file_name", "images")
    _check_unique(file, content["images"], "file_name", "id", "images")
    found: dict[float, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        for key, known in (("image_id", found), ("category_id", class_of)):
            if _get_id(file, annotation, key) not in known:
                raise ValueError(
                    f"{file}: annotation {annotation.get('id')} has {key} "
                    f"{annotation[key]}, which is not in the file."
                )
        if annotation.get("iscrowd") not in (None, 0, 1):
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} has iscrowd "
                f"{annotation['iscrowd']!r}, expected 0 or 1."
            )
        found[annotation["image_id"]].append(annotation)
    files = Files(folder)
    existing, left = files.listing()
    warn_of_left_out(str(folder), left)
    existing = set(existing)
    images, objects, sizes, left_out, outside = [], [], [], [], 0
    for image in content["images"]:
        name = image["file_name"]
        if name not in existing:
            raise ValueError(f"{file}: {name} is not in {folder}.")
        size = tuple(_get_side(file, image, side) for side in ("height", "width"))
        annotations = found[image["id"]]
        tidy, reasons, reaching = clip_objects(
            make_objects(
                _boxes(file, annotations),
                [class_of[a["category_id"]] for a in annotations],
                [bool(a.get("iscrowd")) for a in annotations],
            ),
            size,
            [f"{name}: annotation {a.get('id')}" for a in annotations],
        )
        images.append(name)
        objects.append(tidy)
        sizes.append(size)
        left_out += reasons
        outside += reaching
    if not images:
        raise ValueError(f"{file} has no images.")
    log_dropped_boxes(str(file), left_out)
    return FileObjects(
        files,
        split,
        class_names,
        images,
        objects,
        sizes=sizes,
        color=color,
        orientation=orientation,
        outside=outside,
    )


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a file, and checks that it has the lists of COCO's format."""
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not JSON ({error.msg}).") from error
    # Such as a wrong encoding, deep nesting, or a number with too many digits.
    except Exception as error:
        raise ValueError(f"{file}: not JSON ({error}).") from error
    for key in ("images", "annotations", "categories"):
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise ValueError(f"{file}: expected a list {key!r} of objects, as in COCO.")
    return content


def _check_unique(
    file: Path, items: list[dict[str, Any]], key: str, name: str, what: str
) -> None:
    """Raises ValueError if two items have the same value of a key."""
    known: dict[Any, dict[str, Any]] = {}
    for item in items:
        other = known.setdefault(item[key], item)
        if other is not item:
            count = len(items) - len({i[key] for i in items})
            raise ValueError(
                f"{file}: two {what} have the same {key} {item[key]!r}: their {name} "
                f"is {other[name]!r} and {item[name]!r}, and {count} of {len(items)} "
                "repeat an earlier one. Files that are merged need new numbers."
            )


def _get_text(file: Path, item: dict[str, Any], key: str) -> str:
    if not isinstance(item.get(key), str) or not item[key]:
        raise _unexpected(file, item, key, "str")
    return item[key]


def _get_id(file: Path, item: dict[str, Any], key: str) -> float:
    value = item.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _unexpected(file, item, key, "int or float")
    if value != value or abs(value) == math.inf:
        raise _unexpected(file, item, key, "a finite number")
    return value


def _get_side(file: Path, item: dict[str, Any], key: str) -> int:
    """Returns a length in pixels, 0 if none is stated."""
    value = item.get(key)
    if value is None:
        return 0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_COORDINATE:
        raise _unexpected(
            file, item, key, f"a number of pixels, 0 to {MAX_COORDINATE:g}"
        )
    return int(value)


def _unexpected(file: Path, item: dict[str, Any], key: str, wanted: str) -> ValueError:
    # Shortened, since a number may have thousands of digits (`repr` allows 4,300).
    return ValueError(
        f"{file}: {key!r} is {_shorten(item.get(key))} in {_shorten(item)}; expected "
        f"{wanted}."
    )


def _shorten(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _boxes(file: Path, annotations: list[dict[str, Any]]) -> np.ndarray:
    """Returns the boxes of an image as float64 [n, 4], xyxy."""
    boxes = np.zeros((len(annotations), 4))
    for box, annotation in zip(boxes, annotations, strict=True):
        values = annotation.get("bbox")
        good = isinstance(values, list) and len(values) == 4
        if not good or not all(
            isinstance(v, int | float) and -MAX_COORDINATE <= v <= MAX_COORDINATE
            for v in values
        ):
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} has bbox "
                f"{_shorten(values)}, expected four numbers: x, y, width, height."
            )
        box[:] = values
    boxes[:, 2:] += boxes[:, :2]
    return boxes
