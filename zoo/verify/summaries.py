"""Summaries of large arrays that fit into small golden files.

A summary has some values of the array, most of them at the borders of a map, and a few
sums of all its values with random signs: a wrong value anywhere changes every sum.
Positions and signs follow from the array's name.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.verify.deterministic import random_bytes
from zoo.weights.files import write_whole

_CHUNK = 1 << 22
# Row j has the signs that bit j of each byte stands for.
_SIGNS = 1.0 - 2.0 * (np.arange(256)[None] >> np.arange(8)[:, None] & 1)


@dataclasses.dataclass(frozen=True)
class Summaries:
    """The summaries of a dict of arrays; each field has an entry for every array.

    Attributes:
      names: Names of the arrays.
      shapes: Shapes of the arrays.
      largest: Largest magnitude, float32 [N].
      norms: Root of the sum of squares, float32 [N].
      samples: Some values, float32 [N, samples].
      sums: Sums of all values with random signs, float32 [N, sums]. The mean square of
        their differences estimates the arrays' squared distance.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    largest: np.ndarray
    norms: np.ndarray
    samples: np.ndarray
    sums: np.ndarray


def summarize(
    arrays: Mapping[str, np.ndarray], *, samples: int, sums: int
) -> Summaries:
    """Summarizes named arrays.

    Args:
      arrays: Floating point arrays; maps are [B, H, W, C].
      samples: Number of values to keep of each array.
      sums: Number of sums to keep of each array, 8 or fewer.
    """
    largest, norms = np.zeros((2, len(arrays)), np.float32)
    values = np.zeros((len(arrays), samples), np.float32)
    totals = np.zeros((len(arrays), sums), np.float32)
    for i, (name, array) in enumerate(arrays.items()):
        row = _summarize(name, np.asarray(array), samples, sums)
        largest[i], norms[i], values[i], totals[i] = row
    shapes = tuple(np.shape(array) for array in arrays.values())
    return Summaries(tuple(arrays), shapes, largest, norms, values, totals)


def measure(
    found: Summaries, expected: Summaries, *, by_layer: bool = False
) -> dict[str, float]:
    """Measures relative errors, one for each array.

    An error is the maximum of two relative errors: the largest difference between
    samples, relative to the array's largest magnitude, and the distance of the arrays
    that the sums estimate, relative to the array's norm.

    Args:
      found: Summaries of the computed arrays.
      expected: Summaries of the expected arrays.
      by_layer: Whether errors are relative to the largest magnitude in the layer, as
        of "conv1" for "conv1.bias". (The gradient of a bias before batch norm is 0.)

    Raises:
      ValueError: The arrays' names or shapes are not the same.
    """
    _check_same(found, expected)
    unit = expected.largest.astype(np.float64)
    if by_layer:
        layers = [name.rsplit(".", 1)[0] for name in expected.names]
        of_layer = {}
        for layer, value in zip(layers, unit, strict=True):
            of_layer[layer] = max(value, of_layer.get(layer, 0.0))
        unit = np.array([of_layer[layer] for layer in layers])
    own = np.maximum(expected.largest, np.finfo(np.float32).tiny)
    norms = np.maximum(expected.norms, np.finfo(np.float32).tiny) * (unit / own)
    values = np.abs(found.samples - expected.samples.astype(np.float64)).max(axis=1)
    totals = found.sums - expected.sums.astype(np.float64)
    distances = np.sqrt(np.square(totals).mean(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.maximum(values / unit, distances / norms)
    # If zero is expected, only zero is correct; NaN never is.
    errors = np.where((unit == 0) & (values == 0) & (distances == 0), 0.0, errors)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    return dict(zip(expected.names, errors.tolist(), strict=True))


def save_summaries(
    path: str | os.PathLike, sections: Mapping[str, Summaries], facts: Mapping[str, Any]
) -> None:
    """Writes summaries by section, and facts about them, to an .npz file."""
    content, arrays = {"facts": dict(facts), "sections": {}}, {}
    for section, table in sections.items():
        content["sections"][section] = [table.names, table.shapes]
        for field in ("largest", "norms", "samples", "sums"):
            arrays[f"{section}/{field}"] = getattr(table, field)
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with write_whole(Path(path)) as file:
        np.savez_compressed(file, content=text, **arrays)


def load_summaries(
    path: str | os.PathLike,
) -> tuple[dict[str, Summaries], dict[str, Any]]:
    """Reads a file of `save_summaries`: `(sections, facts)`."""
    with np.load(path, allow_pickle=False) as arrays:
        content = json.loads(arrays["content"].tobytes())
        sections = {}
        for section, (names, shapes) in content["sections"].items():
            fields = ("largest", "norms", "samples", "sums")
            sections[section] = Summaries(
                tuple(names),
                tuple(map(tuple, shapes)),
                *(arrays[f"{section}/{field}"] for field in fields),
            )
    return sections, content["facts"]


def _summarize(
    name: str, array: np.ndarray, samples: int, sums: int
) -> tuple[float, float, np.ndarray, np.ndarray]:
    values = array[_positions(name, array.shape, samples)]
    flat = array.reshape(-1)
    signs = random_bytes(f"{name} signs", flat.size)
    largest, squares, by_byte = 0.0, 0.0, np.zeros(256)
    for part in _chunks(flat.size):
        x = flat[part].astype(np.float64)
        largest = max(largest, float(np.abs(x).max()))
        squares += float(x @ x)
        by_byte += np.bincount(signs[part], weights=x, minlength=256)
    return largest, math.sqrt(squares), values, _SIGNS[:sums] @ by_byte


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, start + _CHUNK)


def _positions(name: str, shape: tuple[int, ...], count: int) -> tuple[np.ndarray, ...]:
    """Chooses positions; of 16 in a map, 4 are at corners and 8 at other edges."""
    raw = random_bytes(f"{name} positions", 4 * count * len(shape)).view("<u4")
    index = [r % n for r, n in zip(raw.reshape(len(shape), -1), shape, strict=True)]
    if len(shape) == 4:
        turn = np.arange(count)
        for axis, period in ((1, 1), (2, 4)):
            step = turn // period % 4
            index[axis] = np.where(step == 0, 0, index[axis])
            index[axis] = np.where(step == 1, shape[axis] - 1, index[axis])
    return tuple(i.astype(np.intp) for i in index)


def _check_same(found: Summaries, expected: Summaries) -> None:
    pairs = dict(zip(found.names, found.shapes, strict=True))
    wanted = dict(zip(expected.names, expected.shapes, strict=True))
    missing = [name for name in wanted if name not in pairs]
    extra = [name for name in pairs if name not in wanted]
    other = [
        f"{name} is {[*pairs[name]]}, not {[*wanted[name]]}"
        for name in wanted
        if name in pairs and pairs[name] != wanted[name]
    ]
    if missing or extra or other:
        raise ValueError(
            f"not the same arrays: missing {missing}, unexpected {extra}, of another "
            f"shape {other}."
        )
    if found.names != expected.names:
        raise ValueError(
            f"arrays in another order: {found.names}, expected {expected.names}."
        )
