"""Loading of data sets by name."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.data.faces.formats import open_lfw, open_orl, open_people, open_ytf
from train.data.formats.coco import open_coco
from train.data.formats.image_folder import open_folder
from train.data.formats.masks import open_masks
from train.data.formats.voc import open_voc, open_voc_masks
from train.data.source import Source, Subset, select
from zoo.decode import check_color, check_orientation
from zoo.paths import nearest

# The prefix of a name -> the task, and the function that opens the path.
FORMATS = {
    "imagefolder": ("classification", open_folder),
    "voc": ("detection", open_voc),
    "coco": ("detection", open_coco),
    "voc_masks": ("segmentation", open_voc_masks),
    "masks": ("segmentation", open_masks),
    "lfw": ("verification", open_lfw),
    "ytf": ("verification", open_ytf),
    "orl": ("verification", open_orl),
}

_SLICE = re.compile(r"(?P<split>[^\[\]]+)\[(?:(?P<first>\d+)%)?:(?:(?P<last>\d+)%)?\]")


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
    color: str | None = None,
    task: str | None = None,
    ignored: Sequence[int] = (),
    values: Sequence[int] = (),
    orientation: str = "auto",
) -> Source:
    """Loads a data set by name, and prepares it first if possible and necessary.

    Args:
      name: "digits" or "digits_canvas" (from scikit-learn), "faces_synthetic" (drawn),
        "cifar10" or "cifar100" (from their publisher's archives), any data set of TFDS
        with an image and a label or objects, "cityscapes" or "oxford_iiit_pet" with
        their masks, or files:

        - "imagefolder:PATH", a folder or zip file with `split/class/image` or
          `class/image`, see `open_folder`;
        - "voc:PATH", boxes as in PASCAL VOC's folders, see `open_voc`;
        - "coco:DIR" or "coco:FILE.json:IMAGES", boxes as in COCO, see `open_coco`;
        - "voc_masks:PATH", masks as in PASCAL VOC's folders, see `open_voc_masks`;
        - "masks:PATH", `split/images` and `split/masks`, see `open_masks`;
        - "lfw:PATH", "ytf:PATH" and "orl:PATH", people's pictures as in these data
          sets, see `train.data.faces.formats`; an "imagefolder" is one, too, for the
          task "verification".
      split: The name of the split, such as "train" or "test"; "val", "valid" and
        "validation" are the same, and "train+val" is both. It may be a slice, such as
        "train[:80%]"; images in files are then ordered by a hash of their names, so
        that a slice has images of all classes. "train+val[:80%]" is a slice of both in
        files, and of "val" alone in prepared data sets.
      data_dir: The folder of prepared data sets; TFDS's own folder if None. A relative
        PATH starts here.
      classes: The names of the classes to keep, which are relabeled 0, 1, .. in this
        order. For files with masks: the names of the values 0, 1, ..
      per_class: The number of images of each class to keep, for classification.
      seed: The seed with which `per_class` chooses images.
      color: "rgb" or "gray" to convert all images; None to keep what is stored.
      task: "classification", "detection" or "segmentation", for a data set with several
        tasks; None for the first of them.
      ignored: For files with masks: the pixel values to ignore, besides 255.
      values: For files with masks: the value of each class, such as 0 and 255; 0, 1, ..
        if empty.
      orientation: "upright" to apply the EXIF orientation to images, "stored" to ignore
        it; "auto" applies it for classification, and otherwise logs how many images
        have one.

    Returns:
      The source.

    Raises:
      ValueError: A name is unknown (the nearest are given), or the data set is not
        as described above.
    """
    check_color(color)
    check_orientation(orientation)
    form, colon, path = name.partition(":")
    options, part = {}, None
    # TFDS has data sets with some of these names.
    if form in FORMATS and not path and (colon or form not in ("voc", "coco", "lfw")):
        raise ValueError(f"{name!r} lacks a path; expected {form}:PATH.")
    if colon and form in FORMATS:
        found, opener = FORMATS[form]
        if (form, task) == ("imagefolder", "verification"):
            found, opener = task, open_people
        _check_task(name, task, found)
        if found == "segmentation":
            options = {"class_names": classes, "ignored": tuple(ignored)}
            options["values"] = tuple(values)
            classes, ignored, values = None, (), ()
        if found != "verification":
            options["orientation"] = orientation
        elif orientation == "stored":
            raise ValueError(
                f"{name}: orientation='stored' (--data.orientation): faces are always "
                "turned upright, as their EXIF orientation says."
            )
        # In "coco:FILE:IMAGES" both paths start at `data_dir`.
        coco = opener is open_coco
        paths = [_place(data_dir, p) for p in (path.split(":") if coco else [path])]
        path = ":".join(map(str, paths)) if coco else paths[0]
        if found != "verification" and (part := _SLICE.fullmatch(split)):
            split = part["split"]
        source = opener(path, split, color=color, **options)
        if part:
            source = _slice(source, part)
    else:
        # Imported late: TFDS takes seconds, and files do without.
        from train.data.formats.tfds import open_prepared

        source = open_prepared(
            name,
            split,
            data_dir=data_dir,
            color=color,
            task=task,
            orientation=orientation,
        )
    for option, chosen in (("ignored", ignored), ("values", values)):
        if chosen:
            raise ValueError(
                f"{name}: {option}={tuple(chosen)} (--data.{option}) is for files with "
                "masks."
            )
    return select(source, classes=classes, per_class=per_class, seed=seed)


def _slice(source: Source, part: re.Match) -> Source:
    """Returns the images of a slice in percent, in the order of `source`."""
    first, last = int(part["first"] or 0), int(part["last"] or 100)
    if not first < last <= 100:
        raise ValueError(
            f"split {part[0]!r}: expected rising percentages from 0 to 100, such as "
            f"{part['split']}[:80%] and {part['split']}[80%:]."
        )
    names = [source.identity(i).encode() for i in range(len(source))]
    # A hash, not a generator: no version of numpy can change the order.
    order = np.array(sorted(range(len(names)), key=lambda i: _hash(names[i])))
    start, stop = (round(len(names) * share / 100) for share in (first, last))
    if start == stop:
        raise ValueError(
            f"{source.name}: split {part[0]!r} has none of the {len(names)} images of "
            f"{part['split']}."
        )
    chosen = Subset(source, np.sort(order[start:stop]))
    chosen.split = part[0]
    return chosen


def _hash(name: bytes) -> bytes:
    return hashlib.sha256(name).digest()


def _place(data_dir: str | Path | None, path: str) -> Path:
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; write the whole path.") from error
    return Path(data_dir or "") / path


def _check_task(name: str, task: str | None, found: str) -> None:
    if task not in (None, found):
        tasks = tuple(kind for kind, _ in FORMATS.values())
        hint = nearest(task, tasks) if task not in tasks else "."
        raise ValueError(f"{name} is for {found}, not for task={task!r}{hint}")
