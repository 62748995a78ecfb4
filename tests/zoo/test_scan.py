"""Equal blocks as one loop: the same numbers from a program that depth leaves alone."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import train

import zoo
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.data import array_source
from train.experiment import prepare_experiment
from zoo.classification.preact_resnet import PreActBottleneck
from zoo.classification.resnet import BasicBlock, resnet

# Three blocks in a stage, so that a loop has two.
small = partial(resnet, blocks=(3, 2), small=True, num_classes=10, width=4)
BUILDS = {
    "cifar": partial(small, block=BasicBlock),
    "imagenet": partial(zoo.build, "resnet18", num_classes=10, width=4),
    "remat": partial(small, block=BasicBlock, remat=True),
    "v2": partial(small, block=PreActBottleneck, early_stride=True),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.apart] * (k != "cifar")) for k in BUILDS],
)
def test_computes_the_same_with_the_same_variables(kind, cheap_jit):
    build = BUILDS[kind]
    size = 32 if kind == "imagenet" else 16
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    plain, scanned = build(), build(scan=True)
    variables = cheap_jit(plain.init)(jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes(
        variables, jax.eval_shape(scanned.init, jax.random.key(0), images)
    )
    logits = [cheap_jit(m.apply)(variables, images) for m in (plain, scanned)]
    chex.assert_trees_all_close(*logits, rtol=1e-4, atol=1e-5)
    steps = [cheap_jit(partial(train, m))(variables, images) for m in (plain, scanned)]
    expected, found = map(jax.tree.leaves, steps)
    for a, b in zip(expected, found, strict=True):
        assert jnp.abs(a - b).max() <= 1e-3 * jnp.abs(a).max() + 1e-6


def count_equations(name):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = zoo.build(name, scan=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    text = str(jax.make_jaxpr(model.apply)(variables, images))
    return text.count("platform_index") + text.count("conv_general_dilated")


def test_the_program_does_not_grow_with_the_depth():
    assert count_equations("cifar_resnet20") == count_equations("cifar_resnet56")


def test_freezing_is_refused():
    source = array_source(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2)
    config = TrainConfig(
        model=ModelConfig("cifar_resnet20", options=("scan=True",)),
        data=DataConfig("arrays", batch_size=2, eval_batch_size=2),
        optim=OptimConfig(freeze=("backbone/**",)),
    )
    with pytest.raises(ValueError, match="scan=True blocks run as one loop"):
        prepare_experiment(config, (source, source))


def test_a_loop_is_described_as_its_blocks_are():
    for name in ("cifar_resnet20", "resnet18"):
        assert (
            zoo.describe(name, scan=True).splitlines()[-1]
            == (zoo.describe(name).splitlines()[-1])
        )
    model, variables = zoo.create("cifar_resnet20", scan=True, width=4)
    images = np.zeros((1, 32, 32, 3), np.float32)
    found = zoo.features(model, variables, images, ["stage2/block1", "stage3"])
    assert {k: v.shape for k, v in found.items()} == {
        "stage2/block1": (1, 16, 16, 8),
        "stage3": (1, 8, 8, 16),
    }
    blocks = zoo.features(model, variables, images, "stage2/block*")
    assert [*blocks] == [f"stage2/block{i}" for i in (1, 2, 3)]


def test_statistics_in_a_loop_are_not_frozen_silently():
    model, variables = zoo.create("cifar_resnet20", scan=True, width=4)
    images = np.zeros((2, 32, 32, 3), np.float32)

    def apply(*frozen):
        modules = zoo.transfer.frozen_modules(variables["params"], frozen)
        with zoo.transfer.freeze_statistics(modules):
            model.apply(variables, images, train=True, mutable=["batch_stats"])

    apply("backbone/stem/**")
    with pytest.raises(ValueError, match="backbone/stage1 runs as a loop"):
        apply("backbone/**")
