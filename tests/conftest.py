"""What holds for every test: no rank is promoted unasked; warnings are errors."""

from functools import partial

import jax
import pytest

# Broadcasting [B, H, W, C] with [C] is said in the code, or it is a mistake.
jax.config.update("jax_numpy_rank_promotion", "raise")
# A type is what the code says, and not what the environment makes the default.
jax.config.update("jax_enable_x64", False)
# Nothing that another version of the code compiled.
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Lets go of what a file has compiled: all of it together would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def cheap_jit():
    """Like `jax.jit`, but fast to compile and slow to run: for what runs once."""
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return partial(jax.jit, compiler_options=options)
