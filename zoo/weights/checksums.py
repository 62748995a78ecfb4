"""Checksums of stored files, by which damage is detected when they are read.

The checksum of a file is the CRC-32 of its parities. The file is read as a matrix of
64-bit words, block by block, and the parities of a block are the exclusive or of its
rows and the exclusive or of each row's words. A flipped bit changes a bit of both,
which a CRC-32 always detects; any other error is detected with a probability of
1 - 2^-32. It takes a third of the time of a CRC-32 of the whole file, which the
checkpoints of earlier versions have.
"""

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger("zoo")

FILE = "checksums.json"
_PARITIES = "parities-"  # before the checksum; a CRC-32 of the whole file has nothing
_ROW = 1 << 15  # bytes of a row
_CHUNK = 1 << 20  # bytes that are read at a time
_BLOCK = 1 << 24  # bytes of a block, which a thread reads


def crc32(parts: Iterable[Any]) -> str:
    """Computes the CRC-32 of the concatenation of buffers, 8 hexadecimal digits."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def write_checksums(
    folder: str | os.PathLike, finish: Callable[[], None] = lambda: None
) -> None:
    """Writes the sizes and checksums of all files below a folder into it.

    Args:
      folder: The folder.
      finish: A function that completes the folder. Large files that are there already
        are read while it runs.
    """
    folder = Path(folder)
    with ThreadPoolExecutor() as threads:
        paths = [folder / name for name in _list_files(folder)]
        large = [path for path in paths if path.stat().st_size >= _BLOCK]
        early = {path: (_stamp(path), _start_sum(path, threads)) for path in large}
        finish()
        waits = {}
        for name in _list_files(folder):
            stamp, wait = early.get(folder / name, (None, None))
            if wait is None or stamp != _stamp(folder / name):
                wait = _start_sum(folder / name, threads)
            waits[name] = wait
        sums = {name: wait() for name, wait in waits.items()}
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
    with ThreadPoolExecutor() as threads:
        known = [name for name in found if name in sums]
        waits = {
            name: _start_sum(
                folder / name, threads, str(sums[name][-1]).startswith(_PARITIES)
            )
            for name in known
        }
        for name, wait in waits.items():
            try:
                same = wait() == sums[name]
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


def _start_sum(
    path: Path, threads: ThreadPoolExecutor, parities: bool = True
) -> Callable[[], list[int | str]]:
    """Starts to compute a checksum in threads.

    Args:
      path: The file.
      threads: The threads; numpy and zlib release the global interpreter lock.
      parities: Whether the checksum is that of the parities, not of the whole file.

    Returns:
      A function that waits for the file's size and its checksum.
    """
    size = path.stat().st_size
    if parities:
        starts = range(0, size, _BLOCK)
        blocks = [threads.submit(_find_parities, path, start) for start in starts]
        return lambda: [size, _PARITIES + crc32(block.result() for block in blocks)]
    whole = threads.submit(_sum_whole, path)
    return lambda: [size, whole.result()]


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _find_parities(path: Path, start: int) -> bytes:
    """Returns the parities of the columns and then of the rows of a block."""
    columns, rows = np.zeros(_ROW // 8, np.uint64), []
    buffer = np.empty(_CHUNK, np.uint8)
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(_BLOCK // _CHUNK):
            length = file.readinto(buffer)
            if not length:
                break
            padded = -(-length // _ROW) * _ROW
            buffer[length:padded] = 0
            words = buffer[:padded].view(np.uint64).reshape(-1, len(columns))
            columns ^= np.bitwise_xor.reduce(words, axis=0)
            rows.append(np.bitwise_xor.reduce(words, axis=1))
    return b"".join(array.tobytes() for array in (columns, *rows))


def _sum_whole(path: Path) -> str:
    with open(path, "rb") as file:
        return crc32(iter(lambda: file.read(_CHUNK), b""))
