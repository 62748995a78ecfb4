"""Published weights: from their URL into a folder of verified files."""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from zoo.spec import Weights
from zoo.weights.files import write_whole

logger = logging.getLogger("zoo")

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


def fetch(weights: Weights, *, cache_dir: str | os.PathLike | None = None) -> Path:
    """Returns the path of the weights' file, downloaded where it is not there yet.

    The file keeps the name it has in the URL. Its hash is checked each time.

    Args:
      weights: What to fetch.
      cache_dir: Where files are kept; None for the folder that the environment variable
        ZOO_CACHE names or, without it, ~/.cache/canon-zoo/weights.

    Raises:
      FileNotFoundError: The file is not there, and ZOO_OFFLINE=1 forbids to fetch it.
      ConnectionError: The download failed; nothing of it is left.
      ValueError: What was downloaded has another hash; nothing of it is left.
    """
    if len(weights.sha256) < 8:
        raise ValueError(
            f"{weights.name}: sha256 needs 8 digits or more, got {weights.sha256!r}."
        )
    folder = cache_dir or os.environ.get("ZOO_CACHE") or "~/.cache/canon-zoo/weights"
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(weights.url).path)).name
    path = Path(folder).expanduser() / name
    if path.is_file():
        if file_sha256(path).startswith(weights.sha256):
            return path
        logger.warning("%s is not the file that was published; fetching again.", path)
    if os.environ.get("ZOO_OFFLINE") == "1":
        raise FileNotFoundError(
            f"{path} with the hash {weights.sha256}... is not there, and ZOO_OFFLINE=1 "
            f"forbids to fetch it from {weights.url}."
        )
    _download(weights, path)
    return path


def file_sha256(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(weights: Weights, path: Path) -> None:
    digest = hashlib.sha256()
    with write_whole(path) as file:
        for chunk in _read_url(weights.url, path.name):
            file.write(chunk)
            digest.update(chunk)
        got = digest.hexdigest()
        if not got.startswith(weights.sha256):
            raise ValueError(
                f"{weights.url} has the hash {got}, expected {weights.sha256}...; the "
                "download was removed."
            )


def _read_url(url: str, name: str) -> Iterator[bytes]:
    """Yields the content in pieces, and shows how far it is under `name`."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            received = 0
            # disable=None: no bar where nobody looks at a terminal.
            with tqdm(
                total=total, desc=name, unit="B", unit_scale=True, disable=None
            ) as bar:
                while chunk := response.read(_CHUNK):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        with error:
            raise ConnectionError(
                f"{url}: HTTP {error.code}, {error.reason}."
            ) from error
    except urllib.error.URLError as error:
        raise ConnectionError(f"{url} cannot be reached: {error.reason}.") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: the connection broke: {error}.") from error
    if total is not None and received != total:
        raise ConnectionError(
            f"{url}: the connection was cut after {received} of {total} bytes."
        )
