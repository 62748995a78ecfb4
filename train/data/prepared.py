"""Data sets of TFDS, and this project's own builders, read without TensorFlow."""

import contextlib
import functools
import importlib.util
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.cifar import Cifar10Binary, Cifar100Binary
from train.data.decode import decode_image
from train.data.digits import Digits
from train.data.folder import SAME_SPLIT
from train.data.source import Source, check_labels, nearest

OWN = {"digits": Digits, "cifar10": Cifar10Binary, "cifar100": Cifar100Binary}
# Read at random by position, and written without TensorFlow.
_FORMAT = "array_record"
_UNDECODED = {"image": tfds.decode.SkipDecoding()}


class PreparedSource(Source):
    """One split of a prepared TFDS data set.

    Args:
      name: What to call the data set.
      split: Name of the split, or a slice such as "train[:10%]".
      builder: The prepared data set, with features `image` and `label`.
      color: "rgb", "grey" or None, see `decode_image`.
    """

    def __init__(self, name: str, split: str, builder, color: str | None):
        self.name, self.split, self._color = name, split, color
        self.class_names = tuple(builder.info.features["label"].names)
        self._records = builder.as_data_source(split, decoders=_UNDECODED)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        # Read when first asked for: of a large set this takes minutes, and training
        # on all of it does not need them.
        labels = [self._records[i]["label"] for i in range(len(self))]
        labels = np.array(labels, np.int64)
        check_labels(labels, len(self.class_names), f"{self.name} {self.split}")
        return labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.name} {self.split} has {len(self)} examples, no #{index}."
            )
        record, provenance = self._records[index], self.provenance(index)
        label, count = int(record["label"]), len(self.class_names)
        if not 0 <= label < count:
            raise ValueError(
                f"{provenance}: label {label} is not in 0 .. {count - 1} "
                f"({count} classes)."
            )
        return {
            "image": decode_image(record["image"], provenance, color=self._color),
            "label": np.int32(label),
            "index": np.int32(index),
        }

    def image(self, index: int) -> np.ndarray:
        record = self._records[index]["image"]
        return decode_image(record, self.provenance(index), color=self._color)

    def provenance(self, index: int) -> str:
        return f"{self.name} {self.split} #{index}"


def open_prepared(
    name: str, split: str, *, data_dir: str | Path | None, color: str | None
) -> Source:
    """Opens a data set of TFDS or of this project, preparing it if need be.

    Two processes may prepare at once, and one may be killed: TFDS writes into a folder
    of its own and renames it when all is there.

    Args:
      name: One of `OWN`, or a data set of TFDS such as "mnist".
      split: Name of the split, or a slice such as "train[:10%]".
      data_dir: Where prepared data sets are kept; TFDS's own folder if None. For
        "cifar10" and "cifar100" the publisher's archive may lie here.
      color: "rgb", "grey" or None, see `decode_image`.

    Returns:
      The source.

    Raises:
      ValueError: The name or the split is unknown, or the data set has no image and
        label.
      ModuleNotFoundError: TensorFlow is needed to prepare the data set.
    """
    if name in OWN:
        builder = OWN[name](data_dir=data_dir, file_format=_FORMAT)
        if not builder.data_path.exists():
            _prepare(builder, name, data_dir)
            builder = OWN[name](data_dir=data_dir, file_format=_FORMAT)
    else:
        builder = _open_builder(name, data_dir)
    _check_features(name, builder.info.features)
    splits = list(builder.info.splits)
    if split in SAME_SPLIT and split not in splits:
        split = next((s for s in splits if s in SAME_SPLIT), split)
    try:
        return PreparedSource(name, split, builder, color)
    except NotImplementedError as error:
        raise ValueError(
            f"{name} was prepared as {builder.info.file_format.value} in "
            f"{builder.data_dir}, which has no random access; name another data_dir "
            f"to prepare it there as {_FORMAT}."
        ) from error


def _prepare(builder, name: str, data_dir: str | Path | None) -> None:
    """Prepares one of our own data sets; shows progress only where it takes long."""
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
        if archive is None:
            raise
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
            f"unknown data set {name!r}{nearest(base, [*OWN, *known])} Also "
            "'imagefolder:PATH' opens a folder or zip file of images."
        )
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(name, data_dir=data_dir)
    except ModuleNotFoundError as error:
        raise _needs_tensorflow(name, data_dir) from error
    if not builder.data_path.exists():
        if not has_tensorflow:
            raise _needs_tensorflow(name, builder.data_dir)
        builder.download_and_prepare(file_format=_FORMAT)
    return builder


def _needs_tensorflow(name: str, where) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name} is not prepared in {where}, and preparing it needs TensorFlow "
        "(reading it does not): pip install 'canon-zoo[tfds-prepare]'"
    )


def _check_features(name: str, features) -> None:
    kinds = dict(features.items())
    if (
        not isinstance(kinds.get("image"), tfds.features.Image)
        or not isinstance(kinds.get("label"), tfds.features.ClassLabel)
        or kinds["image"].np_dtype != np.uint8
    ):
        found = [f"{key} ({type(f).__name__})" for key, f in kinds.items()]
        raise ValueError(
            f"{name}: expected a uint8 'image' and a class 'label', it has "
            f"{', '.join(found)}."
        )
