"""The CIFAR-10 study against an independent PyTorch restatement, and its details."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import (
    TorchResNet,
    check_endpoints,
    check_training_step,
)

from zoo.classification.resnet import BasicBlock, resnet
from zoo.paths import flatten

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
LABELS = np.array([3, 7])
NETWORKS = {
    "resnet14 A": {"blocks": (2, 2, 2)},
    "resnet8 B": {"shortcut": "B"},
    "resnet8 C": {"shortcut": "C"},
    "plain8": {"shortcut": None},
}
resnet8 = partial(
    resnet, block=BasicBlock, blocks=(1, 1, 1), small=True, num_classes=10
)


def make_pair(name):
    """The network, and what makes the same in PyTorch."""
    options = NETWORKS[name]
    net = partial(TorchResNet, **{"blocks": (1, 1, 1), "shortcut": "A", **options})
    return resnet8(**options), net


@pytest.mark.parametrize("name", NETWORKS)
def test_every_endpoint_is_what_torch_computes(name, cheap_jit):
    check_endpoints(*make_pair(name), IMAGES, jit=cheap_jit)


@pytest.mark.parametrize("name", ["resnet14 A", "resnet8 B", "plain8"])
def test_one_training_step_is_what_torch_computes(name, cheap_jit):
    check_training_step(*make_pair(name), IMAGES[:, :16, :16], LABELS, jit=cheap_jit)


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides(cheap_jit):
    model = resnet8()
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    # With the residual branch at zero a block passes on its shortcut.
    block = variables["params"]["backbone"]["stage2"]["block1"]
    block["bn2"]["scale"] = jnp.zeros_like(block["bn2"]["scale"])
    found = cheap_jit(partial(model.apply, method="endpoints"))(variables, IMAGES)
    before, after = np.asarray(found["stage1"]), np.asarray(found["stage2"])
    np.testing.assert_array_equal(after[..., 8:24], before[:, ::2, ::2])
    assert not after[..., :8].any()
    assert not after[..., 24:].any()


def test_convolutions_start_as_he_et_al_say(cheap_jit):
    model = resnet8(num_classes=100)
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    flat = flatten(variables["params"])
    for path, kernel in flat.items():
        if not path.endswith("conv1/kernel"):
            continue
        expected = (2 / (9 * kernel.shape[-1])) ** 0.5
        deviations = np.ravel(kernel) / expected
        assert np.std(deviations) == pytest.approx(1, rel=0.05), path
        assert np.mean(deviations) == pytest.approx(0, abs=0.05), path
    # 37,000 normal numbers go beyond three deviations; a truncated normal stops at two.
    wide = np.ravel(flat["backbone/stage3/block1/conv2/kernel"]) / (2 / 576) ** 0.5
    assert np.mean(np.abs(wide) > 2) == pytest.approx(0.0455, rel=0.1)
    assert np.abs(wide).max() > 3.5
    assert np.std(flat["head/fc/kernel"]) == pytest.approx(0.01, rel=0.05)
    assert not flat["head/fc/bias"].any()


def test_fan_in_and_fan_out_are_not_the_same(cheap_jit):
    """Between 16 and 32 channels fan-in and fan-out differ by a factor of two."""
    images = jnp.zeros((1, 8, 8, 3))
    std = {}
    for init in ("he_fan_out", "he_fan_in"):
        model = resnet8(init=init)
        params = cheap_jit(model.init)(jax.random.key(0), images)
        kernel = flatten(params)["params/backbone/stage2/block1/conv1/kernel"]
        std[init] = float(np.std(kernel))
    assert std["he_fan_in"] / std["he_fan_out"] == pytest.approx(2**0.5, rel=0.02)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="shortcut must be 'A', 'B' or 'C', got 'D'"):
        resnet8(shortcut="D")
    with pytest.raises(ValueError, match="init='he' is unknown; choose from"):
        resnet8(init="he")
    with pytest.raises(ValueError, match=r"0 \(no head\) or more, got -1"):
        resnet8(num_classes=-1)


@pytest.mark.parametrize("side", [24, 31])
def test_other_sizes_of_images_are_fine(side):
    model = resnet8()
    images = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert shapes[0].shape == (1, 10)
