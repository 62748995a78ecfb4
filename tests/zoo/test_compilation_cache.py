"""Compiled programs are kept between processes, where nothing else was said."""

import os
import subprocess
import sys
import time
import zlib

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
jnp.ones(3).sum()  # compiled before there is a network
import zoo
model, variables = zoo.create("lenet5_modern")
jax.jit(model.apply)(variables, jnp.zeros((1, 28, 28, 1)))
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("kind", ["default", "off", "elsewhere"])
def test_creating_a_network_turns_the_cache_on(kind, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"JAX_PLATFORMS": "cpu", "ZOO_CACHE": str(tmp_path / "cache")}
    if kind == "off":
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if kind == "elsewhere":
        env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "mine")
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    folder = tmp_path / "cache" / "xla"
    assert folder.is_dir() == (kind == "default")
    expected = {"default": str(folder), "off": "None", "elsewhere": tmp_path / "mine"}
    assert done.stdout.strip() == str(expected[kind])
    if kind == "default":
        assert any("apply" in path.name for path in folder.iterdir())


def test_a_program_whose_writing_was_cut_off_is_compiled_anew(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"JAX_PLATFORMS": "cpu", "ZOO_CACHE": str(tmp_path)}
    program = (
        "import zoo, jax, jax.numpy as jnp; zoo.use_compilation_cache(); "
        "print(jax.jit(lambda x: jnp.tanh(x).sum())(jnp.ones((3, 5))))"
    )

    def run():
        command = [sys.executable, "-W", "error::UserWarning", "-c", program]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    first = run()
    programs = [*(tmp_path / "xla").glob("jit__lambda*-cache")]
    assert programs, first.stderr
    for path in programs:
        content = path.read_bytes()
        zlib.decompress(content)
        path.write_bytes(content[: len(content) // 2])
        before = time.time() - 3600
        os.utime(path, (before, before))
    (tmp_path / "xla" / "checked").unlink()
    again = run()
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    for path in programs:
        assert path.read_bytes() == content
