"""The folder in which compiled programs are kept between processes."""

import contextlib
import functools
import logging
import os
import tempfile
import time
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

logger = logging.getLogger("zoo")

_SETTLED = 60.0  # seconds after which a file is no longer being written


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless jax has a cache folder already.

    They are written to $ZOO_CACHE/xla, or ~/.cache/canon-zoo/xla; if that folder cannot
    be written, a warning is logged and nothing is kept. The command lines call it, and
    so do `zoo.create` and all functions that create a network with it. It sets jax's
    own configuration: `jax_compilation_cache_dir`, and that programs are kept however
    fast they compile.

    `JAX_ENABLE_COMPILATION_CACHE=false` in the environment, or
    `jax.config.update("jax_enable_compilation_cache", False)`, turns the cache off;
    `JAX_COMPILATION_CACHE_DIR` names another folder, and then nothing is set here.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    if jax.config.jax_compilation_cache_dir is None:
        _set_folder(os.environ.get("ZOO_CACHE") or "~/.cache/canon-zoo")


@functools.cache  # A failure is logged only once.
def _set_folder(folder: str) -> None:
    cache = Path(folder) / "xla"
    try:
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        _drop_damaged(cache)
    except (OSError, RuntimeError) as error:
        logger.warning(
            "compiled steps are not kept: %s. ZOO_CACHE names another folder.", error
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # Small programs too: a first prediction is mostly compilation.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # If a program was compiled before, jax has decided that there is no cache.
    compilation_cache.reset_cache()


def _drop_damaged(cache: Path) -> None:
    """Deletes incomplete programs, about which jax would warn forever.

    Only files that were written since the last check are read.
    """
    checked, now = cache / "checked", time.time()
    since = checked.stat().st_mtime if checked.exists() else 0.0
    for path in cache.glob("*-cache"):
        with contextlib.suppress(OSError):  # Another process was quicker.
            settled = since - _SETTLED < path.stat().st_mtime < now - _SETTLED
            if settled and not _is_whole(path.read_bytes()):
                path.unlink()
    checked.touch()


def _is_whole(content: bytes) -> bool:
    """Whether a compressed program is complete; jax's other format is not checked."""
    if content[:1] != b"\x78":  # not zlib's
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True
