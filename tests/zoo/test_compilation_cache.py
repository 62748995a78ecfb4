"""Compiled programs are kept between processes, where nothing else was said."""

import os
import subprocess
import sys
import time
import zlib

import jax
import pytest

import zoo

PROGRAM = """
import jax, jax.numpy as jnp
jnp.ones(3).sum()  # compiled before there is a network
import zoo
model, variables = zoo.create("lenet5_modern")
print(jax.jit(model.apply)(variables, jnp.ones((1, 28, 28, 1))).sum())
print(jax.config.jax_compilation_cache_dir)
"""


def test_creating_a_network_turns_the_cache_on_and_damage_is_compiled_anew(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"JAX_PLATFORMS": "cpu", "ZOO_CACHE": str(tmp_path)}

    def run():
        command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[1] == str(tmp_path / "xla")
    programs = [*(tmp_path / "xla").glob("jit_apply*-cache")]
    assert programs
    # Its writing was cut off, an hour ago.
    for path in programs:
        content = path.read_bytes()
        zlib.decompress(content)  # whole
        path.write_bytes(content[: len(content) // 2])
        before = time.time() - 3600
        os.utime(path, (before, before))
    (tmp_path / "xla" / "checked").unlink()
    again = run()
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    for path in programs:
        zlib.decompress(path.read_bytes())


@pytest.mark.parametrize("kind", ["off", "elsewhere"])
def test_what_jax_was_told_stays(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    names = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
    before = [getattr(jax.config, name) for name in names]
    said = (False, None) if kind == "off" else (True, str(tmp_path / "mine"))
    try:
        for name, value in zip(names, said, strict=True):
            jax.config.update(name, value)
        zoo.create("lenet5_modern")
        assert tuple(getattr(jax.config, name) for name in names) == said
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
    assert not (tmp_path / "cache").exists()
