"""What holds for every test: warnings are errors, and programs compile quickly."""

import os
from functools import partial

import jax
import pytest

# Tests compile more than they compute, so XLA optimizes little. With
# ZOO_TESTS_OPTIMIZED=1 programs are compiled as users compile them.
CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    # The older emitters make a third less work for LLVM.
    "xla_cpu_use_fusion_emitters": False,
    # Parts that threads compile take a third more time together; tests run in parallel.
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Broadcasting [B, H, W, C] with [C] is said in the code, or it is a mistake.
jax.config.update("jax_numpy_rank_promotion", "raise")
# A type is what the code says, and not what the environment makes the default.
jax.config.update("jax_enable_x64", False)


def pytest_configure(config):
    # Workers and the commands that tests start inherit the environment.
    if "ZOO_TESTS_OPTIMIZED" not in os.environ:
        flags = [f"--{name}={str(value).lower()}" for name, value in CHEAP.items()]
        missing = [f for f in flags if f not in os.environ.get("XLA_FLAGS", "")]
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *missing])
    # A program that was compiled before is read, its key is a hash of all of it.
    folder = os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "compiled")
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    jax.config.update(name.lower(), float(os.environ.setdefault(name, "0")))


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Lets go of what a file has compiled: all of it together would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def cheap_jit():
    """Like `jax.jit`, but fast to compile and slow to run: for what runs once."""
    return partial(jax.jit, compiler_options=CHEAP)
