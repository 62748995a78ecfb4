"""Checksums of stored files, by which damage is detected when they are read.

A file's checksum is its XXH3 hash of 128 bits; earlier versions used the slower CRC-32.

Reference:
  https://github.com/Cyan4973/xxHash
"""

import json
import logging
import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

logger = logging.getLogger("zoo")

FILE = "checksums.json"


def crc32(parts: Iterable[Any]) -> str:
    """Computes the CRC-32 of the concatenation of buffers, 8 hexadecimal digits."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def xxh3(parts: Iterable[Any]) -> str:
    """Computes the XXH3 hash of the concatenation of buffers, 32 hexadecimal digits."""
    total = xxhash.xxh3_128()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def write_checksums(folder: str | os.PathLike) -> None:
    """Writes the sizes and checksums of all files below a folder into it."""
    folder = Path(folder)
    names = _list_files(folder)
    with ThreadPoolExecutor() as threads:  # Both hashes release the interpreter lock.
        found = threads.map(lambda name: _sum(folder / name, xxh3), names)
        sums = dict(zip(names, found, strict=True))
    text = json.dumps(sums, indent=1)
    content = {"files": sums, "crc32": crc32([text.encode()])}
    (folder / FILE).write_text(json.dumps(content, indent=1))


def check_checksums(folder: Path) -> bool:
    """Compares all files below a folder with the checksums of `write_checksums`.

    Returns:
      Whether the folder has checksums.

    Raises:
      ValueError: Files are damaged; the message names them.
    """
    path = folder / FILE
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_bytes())
        sums = content["files"]
        whole = crc32([json.dumps(sums, indent=1).encode()]) == content["crc32"]
    except (ValueError, LookupError, TypeError, OSError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not as it was written.")
    found = _list_files(folder)
    wrong = [f"{folder / name} is missing" for name in sums if name not in found]

    def check(name: str) -> str | None:
        path, (_, expected) = folder / name, sums[name]
        try:
            same = _sum(path, xxh3 if len(expected) == 32 else crc32) == sums[name]
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return None if same else f"{path} is not as it was written"

    with ThreadPoolExecutor() as threads:
        wrong += filter(None, threads.map(check, [n for n in found if n in sums]))
    if wrong:
        raise ValueError(f"{'; '.join(sorted(wrong)[:5])}.")
    return True


def check_step(folder: Path, items: Iterable[str] | None = None) -> bool:
    """Compares the items of a saved step with their checksums.

    Args:
      folder: Folder of the step.
      items: Names of the items, such as "state"; None for all.

    Returns:
      Whether there are checksums; steps of earlier versions have none.

    Raises:
      ValueError: An item is damaged, or is the only one without checksums.
    """
    present = {path.name for path in folder.iterdir() if path.is_dir()}
    asked = present if items is None else present & {*items}
    checked = {name: check_checksums(folder / name) for name in sorted(asked)}
    if any((folder / name / FILE).exists() for name in present):
        for name, found in checked.items():
            if not found:
                raise ValueError(f"{folder / name / FILE} is missing.")
        return True
    logger.warning("%s has no checksums: damage would not be noticed.", folder)
    return False


def _list_files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return sorted(name for name in names if name != FILE)


def _sum(path: Path, compute: Callable[[Iterable[Any]], str]) -> list[int | str]:
    """Returns the size of a file in bytes and its checksum."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # An empty file cannot be mapped.
            return [0, compute([b""])]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return [size, compute([data])]
