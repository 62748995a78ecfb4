"""Darknet's weights files: the parameters of a network in order, without names.

A file starts with its version (three int32) and the number of training images. The
layers follow in the network's order as float32: bias, scale, mean and variance of a
layer with batch norm, and the kernel, whose axes are in PyTorch's order.

Reference:
  Redmon, Darknet: Open Source Neural Networks in C; load_weights_upto in parser.c.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.registry import build, get_spec
from zoo.weights.files import write_whole
from zoo.weights.torch_format import count_classes, list_torch_shapes, to_torch

SUFFIX = ".weights"
# The networks that Darknet has.
NETWORKS = ("yolo_v1", "yolo_v1_tiny", "yolo_v1_tiny_bn")
# The version that is written. The number of images is int64 since 0.2, else int32.
_VERSION = (0, 2, 0)


class Header(NamedTuple):
    """The header of a file.

    Attributes:
      seen: Number of images that the network was trained on.
      transposed: Whether dense kernels are [in, out], as in old files without a
        version, which start with the learning rate, momentum and decay.
      size: Size of the header, in bytes.
    """

    seen: int
    transposed: bool
    size: int


def read_darknet(
    name: str, path: str | os.PathLike, **overrides: Any
) -> dict[str, np.ndarray]:
    """Reads a weights file by the order of a network's layers.

    Args:
      name: Name of the model, one of `NETWORKS`.
      path: Path of the file.
      **overrides: Options of the model, and `num_classes`, which the file does not
        contain: the paper's if it is not given.

    Returns:
      float32 arrays by the names of a state dict, which `from_torch` takes.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: Darknet has no such network, or the file does not have as many
        numbers as the network.
    """
    shapes = _list_shapes(name, overrides)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    header = read_header(path)
    rest = path.stat().st_size - header.size
    needed = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if rest != needed:
        classes = overrides.get("num_classes") or get_spec(name).num_classes
        what = "is cut off or of another network" if rest < needed else "is too long"
        raise ValueError(
            f"{path} {what}: behind its header of {header.size} bytes there are "
            f"{rest:,} bytes, and {name} with {classes} classes has {needed // 4:,} "
            f"numbers in {needed:,} bytes."
        )
    numbers = np.fromfile(path, "<f4", offset=header.size)
    arrays, start = {}, 0
    for key, shape in shapes.items():
        end = start + int(np.prod(shape))
        array = numbers[start:end]
        if header.transposed and len(shape) == 2:
            array = array.reshape(shape[::-1]).T
        arrays[key], start = array.reshape(shape), end
    return arrays


def save_darknet(
    name: str,
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    *,
    seen: int = 0,
    **overrides: Any,
) -> None:
    """Writes variables in Darknet's format; the inverse of `read_darknet`.

    Args:
      name: Name of the model, one of `NETWORKS`.
      path: Path that ends in .weights; its folder is created if needed.
      variables: {"params": ..., "batch_stats": ...} of arrays.
      seen: Number of images that the network was trained on.
      **overrides: Options of the model, and `num_classes`: the variables' if it is not
        given.

    Raises:
      ValueError: Darknet has no such network, the suffix is another, `seen` is less
        than 0, or the variables do not fit the network.
      OSError: The file cannot be written; a previous file is unchanged.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: must end in {SUFFIX}, got {path.suffix!r}.")
    if seen < 0:
        raise ValueError(f"save_darknet: seen must be 0 or more, got {seen}.")
    _check_network(name)
    if overrides.get("num_classes") is None:
        model = build(name, **overrides)
        overrides["num_classes"] = count_classes(name, model, variables)
    arrays = to_torch(name, variables, **overrides)
    with write_whole(path) as file:
        file.write(np.array(_VERSION, "<i4").tobytes())
        file.write(np.array(seen, "<i8").tobytes())
        for key in _list_shapes(name, overrides):
            file.write(np.ascontiguousarray(arrays[key], "<f4").tobytes())


def read_header(path: str | os.PathLike) -> Header:
    """Reads the header of a weights file.

    Raises:
      ValueError: The file is shorter than a header.
    """
    with open(path, "rb") as file:
        start = file.read(20)
    if len(start) < 16:
        raise ValueError(f"{path} is no weights file of Darknet: {len(start)} bytes.")
    major, minor, _, seen = np.frombuffer(start[:16], "<i4").tolist()
    # The bits of a learning rate, read as an integer, exceed any version.
    old = major > 1000 or minor > 1000
    if old or 10 * major + minor < 2:
        return Header(seen, old, 16)
    if len(start) < 20:
        raise ValueError(f"{path} is no weights file of Darknet: {len(start)} bytes.")
    return Header(int(np.frombuffer(start[12:], "<i8")[0]), False, 20)


def _check_network(name: str) -> None:
    get_spec(name)
    if name not in NETWORKS:
        raise ValueError(
            f"Darknet's weights files are for {', '.join(NETWORKS)}, not for {name}."
        )


def _list_shapes(name: str, overrides: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Lists the arrays of a state dict in the order of the file."""
    _check_network(name)
    shapes, layers = list_torch_shapes(name, **overrides), []
    for rule in get_spec(name).torch_rules(build(name, **overrides)):
        if f"{rule.key}.running_mean" in shapes:
            # The bias of batch norm precedes the kernel of the convolution before it.
            kinds = ("bias", "weight", "running_mean", "running_var")
            layers[-1] = [f"{rule.key}.{kind}" for kind in kinds] + layers[-1]
        else:
            kinds = ("bias", "weight")
            layers.append([f"{rule.key}.{kind}" for kind in kinds])
    keys = [key for layer in layers for key in layer if key in shapes]
    return {key: shapes[key] for key in keys}
