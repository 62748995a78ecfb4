"""Prepared data sets of TFDS and of this project, read without TensorFlow."""

import contextlib
import errno
import functools
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from train.data.annotations import (
    IGNORED,
    detection_example,
    make_objects,
    make_values,
    segmentation_example,
)
from train.data.datasets import FORMATS
from train.data.faces.source import FaceSource
from train.data.faces.synthetic import KNOWN, FacesSynthetic, FacesSyntheticTiny
from train.data.files import split_kind
from train.data.formats.cifar import Cifar10Binary, Cifar100Binary
from train.data.formats.digits import Digits, DigitsCanvas
from train.data.source import Example, Source, UnknownSplit, check_labels
from zoo.decode import decode_image, decode_mask
from zoo.face.verification import UNKNOWN
from zoo.paths import nearest

_CITYSCAPES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation "
    "terrain sky person rider car truck bus train motorcycle bicycle"
)
# Cityscapes' own ids of these 19 classes, the only ones that it evaluates.
_CITYSCAPES_IDS = (*(7, 8, 11, 12, 13, 17), *range(19, 29), *(31, 32, 33))
# Data sets in which pixels are counted from 1, and boxes include their last pixel.
_FROM_ONE = ("voc",)


class MaskFeatures(NamedTuple):
    """The features of a data set with masks, and the values of masks.

    Attributes:
      image: The name of the feature with the image.
      mask: The name of the feature with the mask.
      class_names: The names of the classes.
      ids: The value of each class; 0, 1, .. if None. Other values are ignored.
    """

    image: str
    mask: str
    class_names: tuple[str, ...]
    ids: tuple[int, ...] | None = None


MASKS = {
    "digits_canvas": MaskFeatures("image", "mask", ("background", *"0123456789")),
    "oxford_iiit_pet": MaskFeatures(
        "image", "segmentation_mask", ("pet", "background", "border"), (1, 2, 3)
    ),
    "cityscapes": MaskFeatures(
        "image_left",
        "segmentation_label",
        tuple(name.replace("_", " ") for name in _CITYSCAPES.split()),
        _CITYSCAPES_IDS,
    ),
}


class PreparedSource(Source):
    """One split of a prepared TFDS data set, with features `image` and `label`.

    Args:
      name: The name of the data set.
      split: The name of the split, or a slice such as "train[:10%]".
      builder: The prepared data set.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.
    """

    undecoded: Sequence[str] = ("image",)

    def __init__(
        self,
        name: str,
        split: str,
        builder,
        color: str | None,
        orientation: str = "auto",
    ):
        self.name, self.split, self._color = name, split, color
        turned = ("upright", "auto") if self.task == "classification" else ("upright",)
        self._upright = orientation in turned
        self.class_names = self.find_class_names(builder.info.features)
        self._version = builder.info.full_name
        self._records = builder.as_data_source(
            split, decoders=dict.fromkeys(self.undecoded, tfds.decode.SkipDecoding())
        )

    def find_class_names(self, features) -> tuple[str, ...]:
        """Returns the names of the classes, from the features of the builder."""
        return tuple(features["label"].names)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        # Read on first use, since this takes minutes for a large set, and training on
        # all of it does not need the labels.
        labels = [self._records[i]["label"] for i in range(len(self))]
        labels = np.array(labels, np.int64)
        check_labels(labels, len(self.class_names), f"{self.name} {self.split}")
        return labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int) -> Example:
        record, provenance = self._records[index], self.provenance(index)
        label, count = int(record["label"]), len(self.class_names)
        if not 0 <= label < count:
            raise ValueError(
                f"{provenance}: label {label} is not in 0 .. {count - 1} "
                f"({count} classes)."
            )
        return {"image": self._decode(record, index), "label": np.int32(label)}

    def image(self, index: int) -> np.ndarray:
        return self._decode(self._records[index], index)

    def provenance(self, index: int) -> str:
        return f"{self.name} {self.split} #{index}"

    def content(self, index: int) -> str:
        return self._version

    def _decode(self, record, index: int) -> np.ndarray:
        data = record[self.undecoded[0]]
        return decode_image(
            data, self.provenance(index), color=self._color, upright=self._upright
        )


class PreparedObjects(PreparedSource):
    """One split with features `image` and `objects`, which have `bbox` and `label`.

    Difficult objects and crowds are marked as difficult. TFDS stores boxes as float32
    relative to the image's sides; they are rounded to a thousandth of a pixel, which
    restores the publisher's numbers.
    """

    task = "detection"

    def find_class_names(self, features) -> tuple[str, ...]:
        return tuple(features["objects"]["label"].names)

    def example(self, index: int) -> Example:
        record = self._records[index]
        image, objects = self._decode(record, index), record["objects"]
        classes = np.array(objects["label"], np.int64).reshape(-1)
        check_labels(classes, len(self.class_names), f"{self.provenance(index)} object")
        height, width = image.shape[:2]
        shares = np.array(objects["bbox"], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
        boxes = (shares * [width, height, width, height]).round(3)
        if self.name.partition("/")[0] in _FROM_ONE:
            boxes -= [1, 1, 0, 0]
        flags = [objects[k] for k in ("is_difficult", "is_crowd") if k in objects]
        difficult = np.array(flags[0], bool) if flags else None
        return detection_example(image, make_objects(boxes, classes, difficult))


class PreparedMasks(PreparedSource):
    """One split with masks, of a data set in `MASKS`."""

    task = "segmentation"

    def __init__(self, name: str, *arguments):
        self._features = MASKS[name.partition("/")[0]]
        self.undecoded = self._features[:2]
        super().__init__(name, *arguments)
        self._values = make_values(len(self.class_names))
        if self._features.ids is not None:
            self._values = np.full(256, IGNORED, np.int16)
            self._values[[*self._features.ids]] = np.arange(len(self.class_names))

    def find_class_names(self, features) -> tuple[str, ...]:
        return self._features.class_names

    def example(self, index: int) -> Example:
        record, provenance = self._records[index], self.provenance(index)
        mask = decode_mask(
            record[self._features.mask], provenance, upright=self._upright
        )
        image = self._decode(record, index)
        return segmentation_example(image, mask, self._values, provenance)


class PreparedFaces(FaceSource, PreparedSource):
    """One split with people: the feature `person`, or `label` with their names.

    In `faces_synthetic` the first people are those to train on; in other data sets all
    people are. Images can have `landmarks` and the person's `group`.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if not self.class_names:  # Labels are names, as in TFDS's LFW.
            names, numbers = np.unique(self._read("label"), return_inverse=True)
            self.class_names = tuple(name.decode() for name in names)
            self.people = numbers.astype(np.int32)

    def find_class_names(self, features) -> tuple[str, ...]:
        kinds = dict(features.items())
        self._has = {*kinds}
        if "group" in kinds:
            self.group_names = tuple(kinds["group"].names)
        if "person" in kinds:
            return tuple(f"person {i}" for i in range(KNOWN[self.name]))
        return tuple(getattr(kinds["label"], "names", None) or ())

    @functools.cached_property
    def people(self) -> np.ndarray:
        feature = "person" if "person" in self._has else "label"
        return self._read(feature).astype(np.int32)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        people = self.people
        known = people < len(self.class_names)
        return np.where(known, people, UNKNOWN).astype(np.int32)

    @functools.cached_property
    def groups(self) -> np.ndarray | None:
        return self._read("group").astype(np.int32) if self.group_names else None

    def _read(self, feature: str) -> np.ndarray:
        return np.array([self._records[i][feature] for i in range(len(self))])

    def landmarks(self, index: int) -> np.ndarray | None:
        if "landmarks" not in self._has:
            return None
        return np.array(self._records[index]["landmarks"], np.float32)

    def example(self, index: int) -> Example:
        return {"image": self.image(index), "label": self.labels[index]}


def find_kind(name: str, features, task: str | None) -> type[PreparedSource]:
    """Returns the class of source for the features of a data set.

    Args:
      name: The name of the data set.
      features: The features of its builder.
      task: The task; None for the first of classification, detection, segmentation and
        verification for which the data set has the features.

    Raises:
      ValueError: The data set does not have the features.
    """
    kinds = dict(features.items())
    objects = getattr(kinds.get("objects"), "feature", {})
    masks = MASKS.get(name.partition("/")[0])
    images = isinstance(kinds.get("image"), tfds.features.Image)
    images = images and kinds["image"].np_dtype == np.uint8
    possible = {}
    if images and isinstance(kinds.get("label"), tfds.features.ClassLabel):
        possible["classification"] = PreparedSource
    if images and "bbox" in objects and "label" in objects:
        possible["detection"] = PreparedObjects
    if masks is not None and masks.mask in kinds:
        possible["segmentation"] = PreparedMasks
    named = "person" in kinds or isinstance(
        kinds.get("label"), tfds.features.ClassLabel | tfds.features.Text
    )
    if images and named:
        possible["verification"] = PreparedFaces
    if not possible or (task is not None and task not in possible):
        found = [f"{key} ({type(f).__name__})" for key, f in kinds.items()]
        raise ValueError(
            f"{name}: expected a uint8 'image' and a class 'label' (classification), "
            "'objects' with 'bbox' and 'label' (detection), masks of "
            f"{', '.join(MASKS)} (segmentation) or a 'person' or 'label' (verification)"
            f"{'' if task is None else f', for task={task!r}'}; it has "
            f"{', '.join(found)}."
        )
    return possible[task or next(iter(possible))]


OWN = {
    "digits": Digits,
    "digits_canvas": DigitsCanvas,
    "faces_synthetic": FacesSynthetic,
    "faces_synthetic_tiny": FacesSyntheticTiny,
    "cifar10": Cifar10Binary,
    "cifar100": Cifar100Binary,
}
# A file format with random access that can be written without TensorFlow.
_FORMAT = "array_record"
# Errors of a folder that cannot be written, or of a full disk.
_DISK_ERRORS = (
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
)


def open_prepared(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None,
    color: str | None,
    task: str | None = None,
    orientation: str = "auto",
) -> Source:
    """Opens a data set of TFDS or of this project, and prepares it if necessary.

    Two processes may prepare it at once, and one may be killed: TFDS writes into a
    temporary folder and renames it when it is complete.

    Args:
      name: One of `OWN`, or a data set of TFDS such as "mnist".
      split: The name of the split, a slice such as "train[:10%]", or several such as
        "train+test[:50%]", whose slice is of "test" alone.
      data_dir: The folder of prepared data sets; TFDS's own folder if None. For
        "cifar10" and "cifar100" it can contain the publisher's archive.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      task: The task, see `find_kind`.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      ValueError: The name or the split is unknown, a split is named twice, or the data
        set is not for the task.
      ModuleNotFoundError: TensorFlow is needed to prepare the data set.
    """
    if name in OWN:
        builder = OWN[name](data_dir=data_dir, file_format=_FORMAT)
        if not builder.data_path.exists():
            _prepare(builder, name, data_dir)
            builder = OWN[name](data_dir=data_dir, file_format=_FORMAT)
    else:
        builder = _open_builder(name, data_dir)
    kind = find_kind(name, builder.info.features, task)
    splits = list(builder.info.splits)
    parts = [_find_split(name, part, splits) for part in split.split("+")]
    if len(set(parts)) < len(parts):
        raise ValueError(f"{name}: split {split!r} names one twice.")
    split = "+".join(parts)
    try:
        return kind(name, split, builder, color, orientation)
    except NotImplementedError as error:
        raise ValueError(
            f"{name} was prepared as {builder.info.file_format.value} in "
            f"{builder.data_dir}, which has no random access; name another data_dir "
            f"to prepare it there as {_FORMAT}."
        ) from error


def _find_split(name: str, split: str, known: Sequence[str]) -> str:
    """Returns the name in `known` of a split or slice, such as "testing[:10%]"."""
    split, bracket, rest = split.partition("[")
    if split == "all" and bracket:  # TFDS does not slice "all"
        return "+".join(f"{each}[{rest}" for each in known)
    if split not in known and (kind := split_kind(split)):
        same = [s for s in known if split_kind(s) == kind]
        split = same[0] if len(same) == 1 else split
    if known and split.isidentifier() and split not in (*known, "all"):
        there = ", ".join(known)
        raise UnknownSplit(f"{name} has no split {split!r}; it has {there}.")
    return f"{split}{bracket}{rest}"


def _prepare(builder, name: str, data_dir: str | Path | None) -> None:
    """Prepares a data set of this project, with a progress bar if it takes long."""
    archive = getattr(builder, "ARCHIVE", None)
    manual = data_dir if archive and (Path(data_dir or "") / archive).exists() else None
    config = tfds.download.DownloadConfig(manual_dir=manual)
    bars = (
        contextlib.nullcontext()
        if archive
        else contextlib.redirect_stderr(io.StringIO())
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), bars:
            builder.download_and_prepare(download_config=config)
    except OSError as error:
        if builder.data_path.exists():
            return  # another process was faster
        if archive is None or error.errno in _DISK_ERRORS:
            raise _cannot_write(name, builder, error) from error
        raise OSError(
            f"{name}: cannot prepare from {builder.URL} ({error}). Without a network, "
            f"put {archive} into a folder and name it as data_dir."
        ) from error


def _open_builder(name: str, data_dir: str | Path | None):
    """Returns the builder of a TFDS data set, prepared."""
    known = tfds.list_builders(with_community_datasets=False)
    base = name.partition("/")[0].partition(":")[0]
    if base not in known:
        raise ValueError(
            f"unknown data set {name!r}{nearest(base, [*FORMATS, *OWN, *known])} Also "
            f"{', '.join(f'{form}:PATH' for form in FORMATS)} open files."
        )
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    try:
        builder = _make_builder(name, data_dir)
    except ModuleNotFoundError as error:
        # The code of some builders, such as COCO's, needs TensorFlow, but their
        # prepared files do not: a version pattern finds these without the code.
        any_version = name if ":" in name else f"{name}:*.*.*"
        try:
            builder = _make_builder(any_version, data_dir)
        except ModuleNotFoundError:
            raise _needs_tensorflow(name, data_dir) from error
    if not builder.data_path.exists():
        if not has_tensorflow:
            raise _needs_tensorflow(name, builder.data_dir)
        try:
            builder.download_and_prepare(file_format=_FORMAT)
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise _cannot_write(name, builder, error) from error
    return builder


def _cannot_write(name: str, builder, error: OSError) -> OSError:
    return OSError(
        f"{name} cannot be prepared in {builder.data_dir}: {error.strerror or error}. "
        "--data.data-dir (data_dir=) or the environment variable TFDS_DATA_DIR names "
        "another folder."
    )


def _make_builder(name: str, data_dir: str | Path | None):
    with contextlib.redirect_stdout(io.StringIO()):
        return tfds.builder(name, data_dir=data_dir)


def _needs_tensorflow(name: str, where) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name} is not prepared in {where}, and preparing it needs TensorFlow "
        "(reading it does not): pip install 'canon-zoo[tfds-prepare]'"
    )
