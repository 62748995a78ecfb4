"""Opens the training and evaluation splits, and finds those that are not given."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from train.config import DataConfig
from train.data.annotations import IGNORED, UnnamedClasses
from train.data.datasets import FORMATS
from train.data.files import split_kind
from train.data.formats.image_files import FileMasks
from train.data.inspect import file_source
from train.data.source import Source, UnknownSplit, evenly_spaced, map_in_threads
from train.experiment import open_split


def open_splits(
    data: DataConfig, task: str, seed: int
) -> tuple[DataConfig, tuple[Source, Source], list[str]]:
    """Opens the images to train and to evaluate on.

    A split to evaluate on is found if it is no part of the images to train on;
    otherwise, a fifth of these is held out.

    Args:
      data: The data set; splits that are "" are to be found.
      task: The name of the task.
      seed: The seed of few-shot sampling.

    Returns:
      The config with splits and classes filled in, the two sources, and remarks.

    Raises:
      ValueError: The data set cannot be read, has no images to train on, or none that
        can be held out.
    """
    given, notes = data.train_split, []
    splits = (given,) if given else ("train", "trainval", "all")
    data, train = _open_first(data, splits, task, seed, notes)
    if data.eval_split:
        return data, (train, open_split(data, data.eval_split, task, seed)), notes
    prepared = data.dataset.partition(":")[0] not in FORMATS
    parts = [part.partition("[")[0] for part in data.train_split.split("+")]
    parts = [split_kind(part) or part for part in parts]
    trained = {*map(train.provenance, range(len(train)))}
    for split in ("test", "val"):
        # Images of prepared data sets have no names that could be compared.
        if split in parts or (prepared and "all" in parts):
            continue
        try:
            evaluation = open_split(data, split, task, seed)
        except UnknownSplit:
            continue
        found = {*map(evaluation.provenance, range(len(evaluation)))}
        if found <= trained or (
            found & trained and data.train_split in ("trainval", "all")
        ):
            continue
        data = dataclasses.replace(data, eval_split=split)
        if split == "test" and data.train_split == "train":
            with contextlib.suppress(UnknownSplit):
                unused = len(open_split(data, "val", task, seed))
                notes.append(
                    f"the {unused:,} images of val are not used; --data.train-split "
                    "train+val trains on them, too."
                )
        return data, (train, evaluation), notes
    whole = data.train_split
    # In files a slice is of the sum of splits, in prepared data sets of its last one.
    each = whole.split("+") if prepared else [whole]
    train_split, eval_split = map("+".join, zip(*map(_hold_out, each), strict=True))
    data = dataclasses.replace(data, train_split=train_split, eval_split=eval_split)
    notes.append(
        f"there is no split test or val outside of {whole}: a fifth of {whole} is held "
        "out to evaluate on."
    )
    sources = [
        open_split(data, s, task, seed) for s in (data.train_split, data.eval_split)
    ]
    return data, tuple(sources), notes


def _hold_out(split: str) -> tuple[str, str]:
    """Returns the first 80 % of a split, or of a slice in percent, and the rest."""
    match = re.fullmatch(r"([^\[]+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", split)
    if match:
        name, first, last = match[1], match[2] or "0", match[3] or "100"
        middle = int(first) + round(0.8 * (int(last) - int(first)))
        if int(first) < middle < int(last):
            start, end = (f"{x}%" if x else "" for x in (match[2], match[3]))
            return f"{name}[{start}:{middle}%]", f"{name}[{middle}%:{end}]"
    raise ValueError(
        f"--data.train-split {split}: a fifth to evaluate on cannot be held out of it; "
        "expected a split, or a slice of 2% or more such as train[:50%], or the split "
        "to evaluate on as --data.eval-split."
    )


def _open_first(
    data: DataConfig, splits: Sequence[str], task: str, seed: int, notes: list[str]
) -> tuple[DataConfig, Source]:
    """Opens the first of some splits that exists."""
    errors = []
    for split in splits:
        try:
            return _open_named(data, split, task, seed, notes)
        except UnknownSplit as error:
            errors.append(error)
    raise errors[0]


def _open_named(
    data: DataConfig, split: str, task: str, seed: int, notes: list[str]
) -> tuple[DataConfig, Source]:
    """Opens a split to train on, and finds the classes of masks."""
    data = dataclasses.replace(data, train_split=split)
    # Which values are ignored may decide which ones are those of the classes.
    opened = data if data.values else dataclasses.replace(data, ignored=())
    try:
        source = open_split(opened, split, task, seed)
    except UnnamedClasses:
        # Opened with a name for every value, to find out which values there are.
        names = tuple(map(str, range(IGNORED)))
        probe = dataclasses.replace(data, classes=names, ignored=(), values=())
        source = open_split(probe, split, task, seed)
        counts = count_values(source)
        found = class_values(counts, data.ignored)
        # Names that no other data set has.
        names = tuple(f"value {value}" for value in data.values or found)
        notes.append(explain_unnamed(counts, data, names))
        data = dataclasses.replace(data, classes=names)
        if not data.values and found != [*range(len(found))]:
            data = dataclasses.replace(data, values=tuple(found))
        return data, open_split(data, split, task, seed)
    masks = file_source(source, FileMasks)
    if masks is not None and not data.values:
        counts, names = count_values(source), source.class_names
        found = class_values(counts, data.ignored)
        unnamed = find_unnamed(counts, masks[0].values)
        if unnamed and not data.ignored:
            notes.append(
                f"the value(s) {describe_values(counts, unnamed)} have no name, and "
                f"each of the {len(names)} names has its value: they are taken for no "
                f"class, and ignored (--data.ignored {' '.join(map(str, unnamed))})."
            )
            data = dataclasses.replace(data, ignored=tuple(unnamed))
        elif len(found) == len(names) == 2 and found != [0, 1]:
            notes.append(
                f"masks have the values {found[0]} and {found[1]}: they are taken for "
                f"{names[0]} and {names[1]} (--data.values)."
            )
            data = dataclasses.replace(data, values=tuple(found))
    return data, source if data == opened else open_split(data, split, task, seed)


def count_values(source: Source) -> np.ndarray:
    """Counts the pixels of each value in up to 500 masks; returns int [256].

    Args:
      source: Images with masks in files.
    """
    found = file_source(source, FileMasks)
    assert found is not None
    masks, positions = found

    chosen = [positions[i] for i in evenly_spaced(len(positions), 500)]
    each = map_in_threads(
        lambda i: masks.count_values(chosen[i]), len(chosen), "reading masks"
    )
    return sum(each, np.zeros(256, int))


def class_values(counts: np.ndarray, ignored: Sequence[int]) -> list[int]:
    """Returns the mask values that stand for classes.

    255 stands for a class if the masks have at most two values; else it is ignored.

    Args:
      counts: int [256], the number of pixels with each value.
      ignored: Values that stand for no class.
    """
    values = {*np.flatnonzero(counts).tolist()} - {*ignored}
    if len(values) > 2:
        values -= {IGNORED}
    return sorted(values)


def find_unnamed(counts: np.ndarray, values: np.ndarray) -> list[int]:
    """Returns the values that occur in masks but have no class name.

    If the value of some name does not occur, the names may belong to other values, and
    an empty list is returned.

    Args:
      counts: int [256], the number of pixels with each value.
      values: int16 [256], the table of `make_values`.
    """
    named = (values >= 0) & (values < IGNORED)
    if (counts[named] == 0).any():
        return []
    return np.flatnonzero((counts > 0) & (values < 0)).tolist()


def describe_values(counts: np.ndarray, values: Sequence[int]) -> str:
    """Lists mask values with their shares of the pixels."""
    return ", ".join(f"{v} ({counts[v] / counts.sum():.1%})" for v in values)


def explain_unnamed(counts: np.ndarray, data: DataConfig, names: Sequence[str]) -> str:
    """Explains that each mask value is taken for a class, and how to leave one out.

    Args:
      counts: int [256], the number of pixels with each value.
      data: The data config.
      names: The names of the classes.
    """
    found = class_values(counts, data.ignored)
    text = (
        "nothing says what the classes are called, so EACH of these values of the "
        f"masks is one: {describe_values(counts, found)} of the pixels."
    )
    if not data.values and not data.ignored and len(found) > 2:
        last = found[-1]
        command = f"canon-zoo train my_masks --dataset {data.dataset}"
        text += (
            " A value that stands for no class, such as pixels without a label, is "
            f"left out by its number; {last} by {command} --data.ignored {last}."
        )
    return (
        f"{text} --classes names the {len(names)} in this order, or a file classes.txt "
        "beside the splits."
    )
