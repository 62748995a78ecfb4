"""Weights files: safetensors with a card, and PyTorch's own."""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from zoo.paths import flatten, unflatten
from zoo.spec import Card
from zoo.weights.checksums import crc32
from zoo.weights.torch_format import from_torch, to_numpy, to_torch

logger = logging.getLogger("zoo")

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
# Entries of PyTorch checkpoints that may be the state dict, in the order of preference;
# moving averages come last.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module"),
    *("weights", "params", "model_ema", "state_dict_ema", "ema", "params_ema"),
)
LAYOUTS = ("zoo", "torch")
_COLLECTIONS = ("params/", "batch_stats/")
_CARD_KEY = "zoo"
_SUM_KEY = "zoo_crc32"
_SCALE = ":scale"


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the named arrays of a weights file.

    Args:
      path: A .safetensors file, or a .pt, .pth, .th, .bin or .ckpt file, for which
        torch must be installed. The state dict of a PyTorch checkpoint with other
        entries, such as "epoch", is its first entry of `WRAPPERS`, or its only entry
        with tensors; the choice is logged.

    Returns:
      Arrays by the file's own names.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: The file needs torch, which is not installed.
      ValueError: The file is unsupported, damaged, or holds more than tensors.
    """
    path = check_file(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return _read_torch(path)


def check_file(path: str | os.PathLike) -> Path:
    """Checks that `path` is a file of a kind that can be read.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is of an unsupported kind.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    if path.suffix not in suffixes:
        raise ValueError(
            f"{path}: weights files end in {', '.join(suffixes)}, or .weights for a "
            f"network of Darknet's, got {path.suffix!r}."
        )
    return path


def save_safetensors(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    card: Card,
    *,
    layout: str = "zoo",
) -> None:
    """Writes variables and their card to a file atomically.

    Args:
      path: Path that ends in .safetensors; its folder is created if needed.
      variables: {"params": ..., "batch_stats": ...} of arrays.
      card: Card, which is stored as JSON in the file's metadata with a checksum.
      layout: "zoo" for our names and axes, such as "params/backbone/stem/conv/kernel";
        "torch" for those of a PyTorch state dict.

    Raises:
      ValueError: The suffix or the layout is unknown, the variables do not fit the
        card's model, or the card has a value that is not JSON.
      OSError: The file cannot be written; a previous file is unchanged.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end in .safetensors, got {path.suffix!r}.")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    try:
        metadata = {_CARD_KEY: json.dumps(card.to_json())}
    except TypeError as error:
        raise ValueError(f"{path}: the card is not plain JSON: {error}.") from error
    if layout == "torch":
        metadata["format"] = "pt"
        options = {"num_classes": card.num_classes, **card.overrides}
        arrays = to_torch(card.model, variables, **options)
    else:
        arrays = flatten(variables)
    # safetensors copies the memory of an array, which must be in C order.
    arrays = {key: np.array(value, order="C") for key, value in arrays.items()}
    metadata[_SUM_KEY] = _sum(arrays, metadata[_CARD_KEY])
    data = safetensors.numpy.save(arrays, metadata)
    with write_whole(path) as file:
        file.write(data)


def load_safetensors(path: str | os.PathLike) -> tuple[dict[str, Any], Card | None]:
    """Reads a file of `save_safetensors`, in either layout.

    Returns:
      `(variables, card)`: numpy arrays, and the card or None.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged or has neither a card nor our names.
    """
    path = check_file(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end in .safetensors, got {path.suffix!r}.")
    arrays, card = read_safetensors(path)
    if has_our_names(arrays):
        return nest(arrays, path), card
    if card is None:
        raise ValueError(
            f"{path}: {next(iter(arrays))!r} is no name of the zoo, and no card says "
            "which model it belongs to; give the file to `load` with a model."
        )
    options = {"num_classes": card.num_classes, **card.overrides}
    try:
        return from_torch(card.model, arrays, **options), card
    # A card can name any model and any options.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} does not fit its card: {reason}") from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], Card | None]:
    """Reads the arrays of a file by its own names, and its card if it has one.

    Raises:
      ValueError: The file is damaged or empty.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # The library raises errors of many types, and others for dtypes that numpy lacks.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path} is damaged or incomplete as a safetensors file: {reason}."
        ) from error
    if not arrays:
        raise ValueError(f"{path} holds no arrays.")
    expected = metadata.get(_SUM_KEY)
    if expected and expected != _sum(arrays, metadata.get(_CARD_KEY, "")):
        raise ValueError(
            f"{path} is not as it was written: its arrays or its card have another "
            f"checksum than {_SUM_KEY}={expected[:20]!r} in its metadata. (A tool that "
            "changes arrays should drop that entry.)"
        )
    arrays = _dequantize(arrays)
    if _CARD_KEY not in metadata:
        return arrays, None
    try:
        return arrays, Card.from_json(json.loads(metadata[_CARD_KEY]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its card cannot be read: {error}") from error


def _dequantize(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiplies int8 kernels by their scales, whose names end in ":scale"."""
    scales = {key: arrays.pop(key) for key in [*arrays] if key.endswith(_SCALE)}
    for key, scale in scales.items():
        name = key.removesuffix(_SCALE)
        if name not in arrays or arrays[name].dtype != np.int8:
            raise ValueError(f"{key} is the scale of an int8 array that is not there.")
        arrays[name] = arrays[name] * scale
    return arrays


def _sum(arrays: Mapping[str, np.ndarray], card: str) -> str:
    """Computes the checksum of named arrays and a card."""

    def parts() -> Iterator[Any]:
        yield card.encode()
        for name in sorted(arrays):
            array = arrays[name]
            yield f"{name} {array.dtype} {array.shape}".encode()
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return crc32(parts())


def nest(arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Nests arrays with our names in dicts, by the paths in their names.

    Raises:
      ValueError: One name is a prefix of another's path; `path` is the file.
    """
    folders = {p.rpartition("/")[0] for p in arrays}
    folders |= {"/".join(f.split("/")[:i]) for f in folders for i in range(1, 9)}
    clashes = sorted(folders & arrays.keys())
    if clashes:
        raise ValueError(f"{path}: {clashes[0]!r} is an array and holds others, too.")
    return unflatten(arrays)


def has_our_names(arrays: Mapping[str, Any]) -> bool:
    """Whether the names are paths of a variables dict."""
    return all(key.startswith(_COLLECTIONS) for key in arrays)


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path`, or is removed if the block fails.

    Raises:
      OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: reading {path.suffix} files needs torch; "
            "`pip install 'canon-zoo[torch]'`, or use a .safetensors file."
        ) from error
    try:
        # `weights_only` refuses pickles, which may name any function to call.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises errors of many types, with long messages.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip()
        if named := re.search(r"GLOBAL (\S+)", reason):
            raise ValueError(
                f"{path} is refused: it holds more than tensors, and opening it could "
                f"run code ({named[1]})."
            ) from error
        reason = reason.splitlines()[0][:200] if reason else type(error).__name__
        raise ValueError(
            f"{path} is damaged or incomplete as a PyTorch file: {reason}"
        ) from error
    try:
        content = _unwrap(content, path)
        return {key: to_numpy(value, key) for key, value in content.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unwrap(content: Any, path: Path) -> Mapping[str, Any]:
    """Finds the state dict in the content of a PyTorch file."""
    taken = []
    while isinstance(content, Mapping) and not _has_tensors(content):
        wrappers = [w for w in WRAPPERS if isinstance(content.get(w), Mapping)]
        others = [k for k, v in content.items() if _has_tensors(v)]
        if not wrappers and len(others) != 1:
            break
        taken.append([*wrappers, *others][0])
        content = content[taken[-1]]
    if not isinstance(content, Mapping) or not _has_tensors(content):
        found = type(content).__name__
        if isinstance(content, Mapping):
            entries = [f"{k!r} ({type(v).__name__})" for k, v in content.items()]
            found += f" with the entries {', '.join(entries[:10]) or 'none'}"
        raise ValueError(
            f"no state dict, but {found}; its tensors may be entries of their own or "
            f"of one called {', '.join(WRAPPERS)}."
        )
    if taken:
        logger.warning("%s: the weights are its entry %s.", path, " / ".join(taken))
    return content


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        hasattr(each, "detach") or isinstance(each, np.ndarray)
        for each in value.values()
    )
