"""CRC-32 checksums of stored files, by which damage is detected when they are read.

A CRC-32 detects every burst error of up to 32 bits, and any other error with a
probability of 1 - 2^-32.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger("zoo")

FILE = "checksums.json"
_CHUNK = 1 << 22


def crc32(parts: Iterable[Any]) -> str:
    """Computes the CRC-32 of the concatenation of buffers, 8 hexadecimal digits."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def write_checksums(folder: str | os.PathLike) -> None:
    """Writes the sizes and checksums of all files below a folder into it."""
    folder = Path(folder)
    names = _list_files(folder)
    with ThreadPoolExecutor() as threads:  # zlib releases the global interpreter lock.
        sums = dict(
            zip(names, threads.map(_sum, map(folder.joinpath, names)), strict=True)
        )
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
    for name in sums.keys() & {*found}:
        try:
            same = _sum(folder / name) == sums[name]
        except OSError as error:
            wrong.append(f"{folder / name} cannot be read: {error.strerror}")
            continue
        if not same:
            wrong.append(f"{folder / name} is not as it was written")
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


def _sum(path: Path) -> list[int | str]:
    with open(path, "rb") as file:
        return [path.stat().st_size, crc32(iter(lambda: file.read(_CHUNK), b""))]
