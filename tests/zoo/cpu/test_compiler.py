"""Compiler options for CPUs: known or not, and in traced functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import cpu
from zoo.cpu import jit_gradients, jit_inference
from zoo.cpu.compiler import keep_known
from zoo.ops.convolution import convolve


def features(kernel, x):
    return jax.nn.relu(x @ kernel).mean(axis=0)


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return [
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in [(8, 4), (5, 8)]
    ]


@pytest.mark.parametrize("training", [False, True])
def test_this_jaxlib_takes_the_options_and_computes_the_same(arrays, training):
    options = cpu.compiler_options(training=training)
    found = jax.jit(features, compiler_options=options)(*arrays)
    np.testing.assert_allclose(found, jax.jit(features)(*arrays), rtol=1e-6)


def test_no_rectifier_is_computed_again_for_the_gradients_of_kernels():
    def loss(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(convolve(x, kernel, padding=((1, 1), (1, 1))))
        return x.sum()

    kernels, x = [jnp.ones((3, 3, 2, 2))] * 5, jnp.ones((2, 6, 6, 2))
    step = jax.jit(jax.grad(loss)).lower(kernels, x)
    text = step.compile(cpu.compiler_options(training=True)).as_text()
    assert 1 <= text.count(" maximum(") <= len(kernels)


def test_options_are_the_callers_to_change():
    cpu.compiler_options()["xla_bogus"] = "1"
    assert "xla_bogus" not in cpu.compiler_options()


def test_unknown_options_are_left_out():
    known = keep_known({"xla_backend_optimization_level": "0"})
    assert known == {"xla_backend_optimization_level": "0"}
    assert keep_known({"xla_cpu_no_such_option": "1"}) == {}


@pytest.mark.parametrize("compile_function", [jit_inference, jit_gradients])
def test_functions_can_be_called_in_traced_functions(arrays, compile_function):
    run = compile_function(features)
    expected = features(*arrays)
    found = {
        "alone": run(*arrays),
        "jit": jax.jit(run)(*arrays),
        "closure": jax.jit(lambda: run(*arrays))(),
        "vmap": jax.vmap(run, (None, 0))(arrays[0], arrays[1][None])[0],
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=name)
    assert jax.eval_shape(run, *arrays).shape == expected.shape
    gradient = jax.grad(lambda k: run(k, arrays[1]).sum())(arrays[0])
    direct = jax.grad(lambda k: features(k, arrays[1]).sum())(arrays[0])
    np.testing.assert_allclose(gradient, direct, rtol=1e-5)


def test_inference_takes_options_of_jit(arrays):
    run = jit_inference(lambda x, n: x[:n], static_argnums=1)
    assert run(arrays[1], 2).shape == (2, 8)
    assert jax.jit(lambda x: run(x, 3))(arrays[1]).shape == (3, 8)
