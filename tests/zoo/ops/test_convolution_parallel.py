"""The zoo's convolution on several devices, and on one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PARALLEL = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from zoo.ops.convolution import convolve

    # Direct, by Winograd's tiles, a product of matrices, groups, depthwise.
    SHAPES = [(3, 3, 4, 32), (3, 3, 32, 32), (1, 1, 32, 4), (3, 3, 2, 4), (3, 3, 1, 4)]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(8, 6, 6, 4)), jnp.float32)
    kernels = [
        jnp.asarray(random.normal(size=shape) / 3, jnp.float32)
        for shape in SHAPES
    ]

    def loss(kernels, x):
        for kernel in kernels:
            padding = ((kernel.shape[0] // 2,) * 2,) * 2
            groups = x.shape[-1] // kernel.shape[2]
            x = jnp.tanh(convolve(x, kernel, padding=padding, groups=groups))
        return jnp.sum(x)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    one = step(kernels, x)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(kernels, NamedSharding(mesh, P()))
    by_gspmd = step(replicated, sharded)

    def local(kernels, x):
        value, (dkernels, dx) = jax.value_and_grad(loss, argnums=(0, 1))(kernels, x)
        return jax.lax.psum(value, "data"), (dkernels, dx)

    specs = dict(in_specs=(P(), P("data")), out_specs=(P(), (P(), P("data"))))
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    by_shard_map = mapped(replicated, sharded)
    for many in (by_gspmd, by_shard_map):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    print("agree on", len(jax.devices()))
"""


@pytest.mark.slow
def test_data_parallel_gradients_are_those_of_one_device():
    flags = "--xla_force_host_platform_device_count=4"
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARALLEL)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "agree on 4\n", ran.stderr
