"""CRC-32 checksums of stored files, by which damage is detected when they are read.

A CRC-32 detects every burst error of up to 32 bits, and any other error with a
probability of 1 - 2^-32.
"""

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

logger = logging.getLogger("zoo")

FILE = "checksums.json"
_BLOCK = 1 << 24  # bytes that a thread sums at a time
_CHUNK = 1 << 22
_POLYNOMIAL = 0xEDB88320  # of CRC-32, x^31 in bit 0


def crc32(parts: Iterable[Any]) -> str:
    """Computes the CRC-32 of the concatenation of buffers, 8 hexadecimal digits."""
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return f"{total:08x}"


def combine_crc32(first: int, second: int, length: int) -> int:
    """Computes the CRC-32 of the concatenation of two byte strings from theirs.

    Args:
      first: The CRC-32 of the first one.
      second: The CRC-32 of the second one.
      length: The length of the second one, in bytes.

    Reference: `crc32_combine` of zlib.
    """
    factor, power = 1 << 31, 1 << 23  # 1, and x^8, which appends a byte
    while length:
        if length & 1:
            factor = _multiply(factor, power)
        power, length = _multiply(power, power), length >> 1
    return _multiply(factor, first) ^ second


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
        waits = {name: _start_sum(folder / name, threads) for name in known}
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
    path: Path, threads: ThreadPoolExecutor
) -> Callable[[], list[int | str]]:
    """Starts to sum a file in blocks; zlib releases the global interpreter lock.

    Returns:
      A function that waits for the file's size and its CRC-32.
    """
    size = path.stat().st_size
    starts = range(0, size, _BLOCK)
    blocks = [threads.submit(_sum_block, path, start) for start in starts]

    def wait() -> list[int | str]:
        total = 0
        for start, block in zip(starts, blocks, strict=True):
            length = min(_BLOCK, size - start)
            total = combine_crc32(total, block.result(), length)
        return [size, f"{total:08x}"]

    return wait


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sum_block(path: Path, start: int) -> int:
    buffer, total = memoryview(bytearray(_CHUNK)), 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        for _ in range(_BLOCK // _CHUNK):
            total = zlib.crc32(buffer[: file.readinto(buffer)], total)
    return total


def _multiply(a: int, b: int) -> int:
    """Multiplies polynomials over two elements modulo that of CRC-32."""
    product = 0
    while a:
        if a & 1 << 31:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
