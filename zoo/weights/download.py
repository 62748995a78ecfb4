"""Download of published weights into a cache of verified files."""

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from zoo.spec import Weights

logger = logging.getLogger("zoo")

_CHUNK = 1 << 20
# A connection that transfers less than this within the time-out has stalled.
_LEAST_BYTES = 1 << 16
# Larger than any published file of one network.
MAX_BYTES = 4 << 30
# HTTP statuses after which another attempt may succeed.
_PASSING = (408, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416


class _Interrupted(ConnectionError):
    """A failure after which another attempt may succeed."""


class _CannotContinue(_Interrupted):
    """A failure after which an attempt from the start may succeed."""


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, request, file, code, message, headers, url):
        if urllib.parse.urlparse(url).scheme not in ("http", "https"):
            raise ConnectionError(
                f"{request.full_url} redirects to {url}, which is neither http nor "
                "https."
            )
        return super().redirect_request(request, file, code, message, headers, url)


def fetch(
    weights: Weights,
    *,
    cache_dir: str | os.PathLike | None = None,
    max_bytes: int = MAX_BYTES,
    attempts: int = 4,
    pause_seconds: float = 1.0,
    timeout_seconds: float = 60.0,
) -> Path:
    """Returns the path of the weights' file, which is downloaded if it is not cached.

    The hash is checked at each call. An interrupted download is retried, by a later
    call as well, and resumed if the server supports it. If several processes need the
    same file, one of them downloads it and the others wait.

    Args:
      weights: The weights to fetch.
      cache_dir: Folder of the cache; None for the value of the environment variable
        ZOO_CACHE or else ~/.cache/canon-zoo/weights.
      max_bytes: Largest size of the file, in bytes.
      attempts: Maximum number of attempts if the connection breaks.
      pause_seconds: Pause before the second attempt; doubled before each further one.
      timeout_seconds: Time without an answer, or almost without bytes, after which a
        connection counts as broken.

    Raises:
      FileNotFoundError: The file is not cached, and ZOO_OFFLINE=1 forbids downloads.
      ConnectionError: The download failed; the part that was received is kept for a
        later call, unless it is too large.
      ValueError: The downloaded file has another hash; it is removed.
      OSError: The file cannot be written; the partial file is removed.
    """
    if len(weights.sha256) < 8:
        raise ValueError(
            f"{weights.name}: sha256 needs 8 digits or more, got {weights.sha256!r}."
        )
    path = cache_path(weights, cache_dir)
    if _is_published(path, weights):
        return path
    found = "damaged or another file" if path.exists() else "not there"
    offline = os.environ.get("ZOO_OFFLINE", "0")
    if offline not in ("", "0"):
        raise FileNotFoundError(
            f"{path} with the hash {weights.sha256}... is {found}, and ZOO_OFFLINE="
            f"{offline} forbids to fetch it from {weights.url}. Put it there, or let "
            "ZOO_CACHE name the folder that has it."
        )
    if path.exists():
        logger.warning("%s is not the file that was published; fetching again.", path)
    with _alone(path):
        if not _is_published(path, weights):  # Else another process downloaded it.
            _Download(weights, path, max_bytes, timeout_seconds).run(
                attempts, pause_seconds
            )
    return path


def cache_path(weights: Weights, cache_dir: str | os.PathLike | None = None) -> Path:
    """Returns the path of the weights' file in the cache, whether or not it exists."""
    folder = cache_dir or os.environ.get("ZOO_CACHE") or "~/.cache/canon-zoo/weights"
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(weights.url).path)).name
    try:
        return Path(folder).expanduser() / (weights.file or name)
    except RuntimeError as error:
        raise ValueError(
            f"{folder}: this user has no home folder; let the environment variable "
            "ZOO_CACHE name a folder for weights."
        ) from error


def file_sha256(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_published(path: Path, weights: Weights) -> bool:
    return path.is_file() and file_sha256(path).startswith(weights.sha256)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the lock of `path`, which the system releases if the process is killed."""
    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("waiting for another process that fetches %s.", path)
            lock.acquire()
    try:
        yield
        # A waiting process finds the file; a later one creates another lock.
        with contextlib.suppress(OSError):
            lock_path.unlink()
    finally:
        lock.release()


@dataclasses.dataclass(frozen=True)
class _Download:
    """The download of one file.

    Attributes:
      weights: The weights to download.
      path: Path of the whole file.
      max_bytes: Largest size of the file, in bytes.
      timeout_seconds: See `fetch`.
    """

    weights: Weights
    path: Path
    max_bytes: int
    timeout_seconds: float

    @property
    def url(self) -> str:
        return self.weights.url

    @property
    def part(self) -> Path:
        """Path of the partial file, which belongs to this file and this URL only."""
        origin = f"{self.url} {self.weights.sha256}".encode()
        digits = hashlib.sha256(origin).hexdigest()[:8]
        return self.path.with_name(f"{self.path.name}.{digits}.part")

    def run(self, attempts: int, pause_seconds: float) -> None:
        """Downloads the missing part, checks the file's hash, and renames it."""
        part = self.part
        if not _is_published(part, self.weights):  # Else only the renaming is left.
            self.fill(attempts, pause_seconds)
        got = file_sha256(part)
        if not got.startswith(self.weights.sha256):
            part.unlink()
            raise ValueError(
                f"{self.url} has the hash {got}, expected {self.weights.sha256}...; "
                "the download was removed. It was damaged on its way, or is another "
                "file."
            )
        os.replace(part, self.path)

    def fill(self, attempts: int, pause_seconds: float) -> None:
        """Downloads the rest, with several attempts if the connection breaks."""
        for attempt in range(1, attempts + 1):
            try:
                return self.resume()
            except ConnectionError as error:
                if isinstance(error, _CannotContinue):
                    self.part.unlink(missing_ok=True)
                if attempt == attempts or not isinstance(error, _Interrupted):
                    raise ConnectionError(f"{error} {self.way_out()}") from error
                pause = pause_seconds * 2 ** (attempt - 1)
                logger.warning("%s Trying again in %g s.", error, pause)
                time.sleep(pause)

    def way_out(self) -> str:
        if self.part.exists():
            size = _megabytes(self.part.stat().st_size)
            return f"The first {size} are kept; call again to go on from there."
        return f"With the file from elsewhere as {self.path} no connection is needed."

    def resume(self) -> None:
        """Downloads the rest in one attempt."""
        url, path, part = self.url, self.path, self.part
        start = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = urllib.request.Request(url, headers=headers)
        with _receiving(url):
            opener = urllib.request.build_opener(_Redirect)
            response = opener.open(request, timeout=self.timeout_seconds)
        with response:
            start = _find_start(response, start, url)
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if re.fullmatch(r"\d{1,18}", length) else None
            self.require_size(total or 0)
            size = "size unknown" if total is None else _megabytes(total)
            where = f", from byte {start} on" if start else ""
            logger.warning("fetching %s (%s) from %s%s.", path, size, url, where)
            with _writing(path, part), open(part, "r+b" if start else "wb") as file:
                _require_space(part, total, start)
                file.truncate(start)
                file.seek(start)
                for chunk in self.read(response, start, total):
                    self.require_size(file.tell() + len(chunk))
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        received = part.stat().st_size
        if total is not None and received != total:
            raise _Interrupted(
                f"{url}: the connection was cut after {received} of {total} bytes."
            )

    def require_size(self, size: int) -> None:
        if size > self.max_bytes:
            self.part.unlink(missing_ok=True)
            raise ConnectionError(
                f"{self.url} sends {_megabytes(size)} or more, and the weights have at "
                f"most {_megabytes(self.max_bytes)}: it is another file."
            )

    def read(
        self, response: http.client.HTTPResponse, start: int, total: int | None
    ) -> Iterator[bytes]:
        """Yields the content in chunks, with a progress bar."""
        # None shows the bar in a terminal only, and a notebook is not one.
        disable = False if "ipykernel" in sys.modules else None
        with tqdm(
            desc=self.path.name,
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=disable,
        ) as bar:
            received, since = 0, time.monotonic()
            while True:
                with _receiving(self.url):
                    # `read1` does not wait for a whole chunk from a slow server.
                    chunk = response.read1(_CHUNK)
                if not chunk:
                    return
                received += len(chunk)
                if time.monotonic() - since > self.timeout_seconds:
                    if received < _LEAST_BYTES:
                        raise _Interrupted(
                            f"{self.url}: stalled, {received} bytes in "
                            f"{self.timeout_seconds:g} s."
                        )
                    received, since = 0, time.monotonic()
                bar.update(len(chunk))
                yield chunk


def _find_start(response: http.client.HTTPResponse, start: int, url: str) -> int:
    """Returns the offset in the file of the first byte of the response."""
    if not start or response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    sent = response.headers.get("Content-Range", "")
    if not re.match(rf"bytes {start}-", sent):
        raise _CannotContinue(f"{url}: asked for bytes {start}-, got {sent!r}.")
    return start


@contextlib.contextmanager
def _receiving(url: str) -> Iterator[None]:
    """Turns the errors of the network into messages for users.

    Raises:
      ConnectionError: An `_Interrupted` if another attempt may succeed.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            message = f"{url}: HTTP {error.code}, {error.reason}."
        if error.code == _RANGE_NOT_SATISFIABLE:
            raise _CannotContinue(message) from error
        kind = _Interrupted if error.code in _PASSING else ConnectionError
        raise kind(message) from error
    except urllib.error.URLError as error:
        raise ConnectionError(f"{url} cannot be reached: {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if type(error) is ConnectionError:  # A refused redirect.
            raise
        reason = str(error) or type(error).__name__
        raise _Interrupted(f"{url}: the connection broke: {reason}.") from error


@contextlib.contextmanager
def _writing(path: Path, part: Path | None = None) -> Iterator[None]:
    """Turns the errors of the disk into messages, and removes the partial file."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} cannot be written: {error.strerror or error}; nothing of it is "
            "left. ZOO_CACHE names another folder for weights",
        ) from error


def _require_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - start:
        needed = f"{_megabytes(total - start)} are needed, {_megabytes(free)} free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
