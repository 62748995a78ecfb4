"""Compiled programs are kept between processes, where nothing else was said."""

import os
import subprocess
import sys

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
