"""Recomputing activations: the same numbers from less memory."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import build_small, family_of, image_shape, smallest_of_each_family, train

import zoo
from zoo.ops import convolution_cpu
from zoo.summary import abstract_variables

NAMES = [
    name for name in smallest_of_each_family() if "remat" in zoo.list_options(name)
]
# XLA's CPU compiler merges what is computed again with what was computed before, unless
# it leaves the barriers between the two, as this makes it do.
OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


def mark(names):
    """Leaves those that compile for a minute to `pytest -m apart`."""
    long = ("googlenet_tv", "msra_small14", "plain18", "vgg11", "zfnet", "alexnet_tv")
    return [pytest.param(n, marks=[pytest.mark.apart] * (n in long)) for n in names]


@pytest.fixture(autouse=True)
def one_formulation(monkeypatch):
    """Has convolutions computed as on accelerators: they need no patches or tiles."""
    monkeypatch.setattr(convolution_cpu, "convolve", convolution_cpu.convolve_by_xla)


def compile_training(name, images, **options):
    model = build_small(name, **options)
    variables = abstract_variables(model, images.shape[1:])
    step = jax.jit(partial(train, model))
    return step.lower(variables, images).compile(OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", mark(NAMES))
def test_computes_the_same(name, monkeypatch):
    family = importlib.import_module(f"zoo.classification.{family_of(name)}")
    if hasattr(family, "DENSE"):
        monkeypatch.setattr(family, "DENSE", 64)
    any_size = "resnet" in name or name.startswith(("plain", "googlenet"))
    size = min(64, image_shape(name)[0]) if any_size else image_shape(name)[0]
    images = np.random.default_rng(0).normal(
        size=(2 if size > 64 else 4, size, size, 3)
    )
    images = jnp.asarray(images, jnp.float32)

    init = jax.jit(build_small(name).init, compiler_options=OPTIONS)
    variables = init(jax.random.key(0), images[:1])
    found = [
        compile_training(name, images, remat=remat)(variables, images)
        for remat in (False, True)
    ]
    for expected, again in zip(*map(jax.tree.leaves, found), strict=True):
        limit = 1e-5 * max(float(jnp.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(again, expected, rtol=1e-4, atol=limit)


def saved_bytes(name, images, **options):
    """The bytes that the backward pass gets beside as many as the parameters have."""
    model = build_small(name, **options)
    variables = abstract_variables(model, images.shape[1:])

    def keep(variables, images):
        def forward(params):
            return model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )

        return jax.vjp(forward, variables["params"], has_aux=True)[1]

    def count(arrays):
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))

    kept = jax.eval_shape(keep, variables, images)
    return count(kept) - count(variables["params"])


@pytest.mark.quick
@pytest.mark.parametrize("name", NAMES)
def test_keeps_less_for_the_backward_pass(name):
    images = jax.ShapeDtypeStruct((32, *image_shape(name)), jnp.float32)
    plain, remat = (saved_bytes(name, images, remat=remat) for remat in (False, True))
    assert remat < 0.6 * plain


# Where one stage needs the most by far, as AlexNet's first, the peak stays what it is.
@pytest.mark.quick
@pytest.mark.parametrize("name", ["cifar_resnet20", "plain18"])
def test_takes_less_memory(name):
    images = jax.ShapeDtypeStruct((32, *image_shape(name)), jnp.float32)
    plain, remat = (
        compile_training(name, images, remat=remat).memory_analysis()
        for remat in (False, True)
    )
    assert remat.temp_size_in_bytes < 0.9 * plain.temp_size_in_bytes


@pytest.mark.quick
def test_every_large_network_has_the_option():
    small = {name for name in zoo.list_models() if zoo.get_spec(name).params < 10**6}
    without = {
        name for name in zoo.list_models() if "remat" not in zoo.list_options(name)
    }
    # Of these the head alone is fitted.
    assert without <= small | {"rcnn_alexnet", "rcnn_vgg16"}
