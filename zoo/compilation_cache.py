"""The folder in which compiled programs are kept between processes."""

import logging
import os
import tempfile
from pathlib import Path

import jax

logger = logging.getLogger("zoo")


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless jax has been told where.

    They go to $ZOO_CACHE/xla, or ~/.cache/canon-zoo/xla; nowhere, which the log says,
    where that folder cannot be written. The command lines call it; in Python it is
    called by whoever wants it, because it sets jax's own configuration:
    `jax_compilation_cache_dir`, and that programs are kept however fast they compile.
    `JAX_ENABLE_COMPILATION_CACHE=false` in the environment turns the cache off.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    cache = Path(os.environ.get("ZOO_CACHE", "~/.cache/canon-zoo")) / "xla"
    try:
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except (OSError, RuntimeError) as error:
        logger.warning(
            "compiled steps are not kept: %s. ZOO_CACHE names another folder.", error
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # Small programs too: a first prediction is mostly compilation.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
