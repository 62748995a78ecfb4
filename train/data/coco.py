"""COCO's files: images with boxes in one JSON file a split."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from train.data.files import SAME_SPLIT, Files
from train.data.located import FileObjects
from train.data.objects import log_left_out, make_objects, tidy_objects
from train.data.source import Joined, Source

_USAGE = (
    "expected coco:DIR, a folder with annotations/instances_SPLIT.json and images in "
    "SPLIT, or coco:FILE.json:IMAGES with {split} where they depend on the split"
)


def open_coco(path: str, split: str, *, color: str | None = None) -> Source:
    """Opens images with boxes, as COCO describes them.

    Classes are in the order of the categories' numbers, crowds are marked as difficult,
    and boxes are cut to their image; those of which nothing is left are left out and
    logged.

    Args:
      path: "DIR", a folder with annotations/instances_SPLIT.json and images in SPLIT
        (where SPLIT may have a year behind it, such as train2017), or
        "FILE.json:IMAGES", a file and a folder or zip file of images, with "{split}"
        where they depend on the split.
      split: A name of a split, or several such as "train+val".
      color: "rgb", "grey" or None, see `decode_image`.

    Returns:
      The source.

    Raises:
      ValueError: A file is missing, is not JSON (file and line are named) or lacks
        something, or the categories of several splits differ.
    """
    sources = [_open_one(*_find(path, part), part, color) for part in split.split("+")]
    return sources[0] if len(sources) == 1 else Joined(sources)


def _find(path: str, split: str) -> tuple[Path, Path]:
    """Returns the file of a split and the folder of its images."""
    if ".json:" in path:
        file, _, images = path.format(split=split).partition(".json:")
        file, images = Path(f"{file}.json"), Path(images)
        if not file.is_file():
            raise ValueError(f"{file} does not exist; {_USAGE}.")
        return file, images
    folder = Path(path)
    same = SAME_SPLIT if split in SAME_SPLIT else (split,)
    known = sorted(folder.glob("annotations/instances_*.json"))
    found = [
        file
        for file in known
        if (name := file.stem.removeprefix("instances_")) == split
        or name.rstrip("0123456789") in same
    ]
    if len(found) != 1:
        there = ", ".join(file.stem.removeprefix("instances_") for file in known)
        raise ValueError(
            f"{folder} has {'several' if found else 'no'} annotations for split "
            f"{split!r}; it has {there or 'none at all'}; {_USAGE}."
        )
    return found[0], folder / found[0].stem.removeprefix("instances_")


def _open_one(file: Path, folder: Path, split: str, color: str | None) -> Source:
    content = _read_json(file)
    categories = sorted(content["categories"], key=lambda c: _get(file, c, "id", int))
    class_names = tuple(_get(file, c, "name", str) for c in categories)
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{file}: two categories have the same name.")
    class_of = {category["id"]: i for i, category in enumerate(categories)}
    number = int | float
    found: dict[int, list[dict]] = {
        _get(file, image, "id", number): [] for image in content["images"]
    }
    for annotation in content["annotations"]:
        for key, known in (("image_id", found), ("category_id", class_of)):
            if _get(file, annotation, key, number) not in known:
                raise ValueError(
                    f"{file}: annotation {annotation.get('id')} has {key} "
                    f"{annotation[key]}, which is not in the file."
                )
        found[annotation["image_id"]].append(annotation)
    files = Files(folder)
    existing = set(files.paths())
    images, objects, sizes, left_out = [], [], [], []
    for image in content["images"]:
        name = _get(file, image, "file_name", str)
        if name not in existing:
            raise ValueError(f"{file}: {name} is not in {folder}.")
        size = tuple(
            int(_get(file, image, side, number)) if image.get(side) else 0
            for side in ("height", "width")
        )
        annotations = found[image["id"]]
        tidy, reasons = tidy_objects(
            make_objects(
                _boxes(file, annotations),
                [class_of[a["category_id"]] for a in annotations],
                [bool(a.get("iscrowd", 0)) for a in annotations],
            ),
            size,
            [f"{name}: annotation {a.get('id')}" for a in annotations],
        )
        images.append(name)
        objects.append(tidy)
        sizes.append(size)
        left_out += reasons
    if not images:
        raise ValueError(f"{file} has no images.")
    log_left_out(str(file), left_out)
    return FileObjects(files, split, class_names, images, objects, sizes, color)


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads a file, and checks that it has the lists that COCO's have."""
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not JSON ({error.msg}).") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}).") from error
    for key in ("images", "annotations", "categories"):
        values = content.get(key) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise ValueError(f"{file}: expected a list {key!r} of objects, as in COCO.")
    return content


def _get(file: Path, item: dict[str, Any], key: str, kind) -> Any:
    value = item.get(key)
    if not isinstance(value, kind):
        raise ValueError(
            f"{file}: {key!r} is {value!r} in {str(item)[:80]}; expected "
            f"{getattr(kind, '__name__', kind)}."
        )
    return value


def _boxes(file: Path, annotations: list[dict[str, Any]]) -> np.ndarray:
    """Returns the boxes of an image as float64 [n, 4], xyxy."""
    boxes = np.zeros((len(annotations), 4))
    for box, annotation in zip(boxes, annotations, strict=True):
        values = annotation.get("bbox")
        try:
            box[:] = values
        except (TypeError, ValueError):
            box[:] = np.nan
        if not np.isfinite(box).all() or np.size(values) != 4:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} has bbox {values!r}, "
                "expected four numbers: x, y, width, height."
            )
    boxes[:, 2:] += boxes[:, :2]
    return boxes
