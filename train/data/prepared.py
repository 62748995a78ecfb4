"""Data sets of TFDS, and this project's own builders, read without TensorFlow."""

import contextlib
import importlib.util
import io
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.canvas import DigitsCanvas
from train.data.cifar import Cifar10Binary, Cifar100Binary
from train.data.digits import Digits
from train.data.faces_synthetic import FacesSynthetic, FacesSyntheticTiny
from train.data.opening import FORMATS
from train.data.records import find_kind
from train.data.source import Source, nearest
from train.data.splits import split_kind

OWN = {
    "digits": Digits,
    "digits_canvas": DigitsCanvas,
    "faces_synthetic": FacesSynthetic,
    "faces_synthetic_tiny": FacesSyntheticTiny,
    "cifar10": Cifar10Binary,
    "cifar100": Cifar100Binary,
}
# Read at random by position, and written without TensorFlow.
_FORMAT = "array_record"


def open_prepared(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None,
    color: str | None,
    task: str | None = None,
    orientation: str = "auto",
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
      task: What it shall be for, see `find_kind`.
      orientation: One of `ORIENTATIONS`.

    Returns:
      The source.

    Raises:
      ValueError: The name or the split is unknown, or the data set is not for the
        task.
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
    if split not in splits and (known := split_kind(split)):
        same = [s for s in splits if split_kind(s) == known]
        split = same[0] if len(same) == 1 else split
    try:
        return kind(name, split, builder, color, orientation)
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
            f"unknown data set {name!r}{nearest(base, [*FORMATS, *OWN, *known])} Also "
            f"{', '.join(f'{form}:PATH' for form in FORMATS)} open files."
        )
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    try:
        builder = _make_builder(name, data_dir)
    except ModuleNotFoundError as error:
        # The code of some, such as COCO's, needs TensorFlow; the files that it has
        # written do not, which any version stands for.
        any_version = name if ":" in name else f"{name}:*.*.*"
        try:
            builder = _make_builder(any_version, data_dir)
        except ModuleNotFoundError:
            raise _needs_tensorflow(name, data_dir) from error
    if not builder.data_path.exists():
        if not has_tensorflow:
            raise _needs_tensorflow(name, builder.data_dir)
        builder.download_and_prepare(file_format=_FORMAT)
    return builder


def _make_builder(name: str, data_dir: str | Path | None):
    with contextlib.redirect_stdout(io.StringIO()):
        return tfds.builder(name, data_dir=data_dir)


def _needs_tensorflow(name: str, where) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name} is not prepared in {where}, and preparing it needs TensorFlow "
        "(reading it does not): pip install 'canon-zoo[tfds-prepare]'"
    )
