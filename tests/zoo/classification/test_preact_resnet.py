"""Pre-activation networks against an independent PyTorch restatement."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import (
    TorchResNet,
    check_endpoints,
    check_training_step,
    random_variables,
)

import zoo
from zoo.classification.preact_resnet import PreActBottleneck
from zoo.classification.resnet import resnet
from zoo.paths import flatten
from zoo.summary import list_layers
from zoo.weights import from_torch, to_torch

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
LABELS = np.array([3, 1])
build = partial(resnet, block=PreActBottleneck)
cifar = partial(build, small=True, early_stride=True, num_classes=10)
# ResNet-200's arrangement, few and narrow blocks.
imagenet = partial(build, blocks=(1, 2, 1, 1), width=4, num_classes=5)


def test_cifar_endpoints_are_what_torch_computes(cheap_jit):
    options = dict(blocks=(2, 2, 2), kind="preact", early_stride=True)
    make_net = partial(TorchResNet, **options)
    check_endpoints(cifar(blocks=(2, 2, 2)), make_net, IMAGES, jit=cheap_jit)


def test_imagenet_endpoints_are_what_torch_computes(cheap_jit):
    images = RNG.normal(size=(2, 64, 48, 3)).astype(np.float32)
    options = dict(blocks=(1, 2, 1, 1), kind="preact", small=False)
    make_net = partial(TorchResNet, **options)
    check_endpoints(imagenet(), make_net, images, jit=cheap_jit)


def test_one_training_step_is_what_torch_computes(cheap_jit):
    options = dict(blocks=(1, 1, 1), kind="preact", early_stride=True)
    make_net = partial(TorchResNet, **options)
    images = IMAGES[:, :16, :16]
    check_training_step(
        cifar(blocks=(1, 1, 1)), make_net, images, LABELS, jit=cheap_jit
    )


def test_the_input_goes_through_a_block_untouched(cheap_jit):
    model = imagenet(blocks=(1, 2, 1, 1))
    images = jnp.asarray(IMAGES)
    variables = random_variables(model, images)
    stage = variables["params"]["backbone"]["stage2"]
    before = stage["block2"]["conv3"]["kernel"]
    run = cheap_jit(partial(model.apply, method="endpoints"))
    stage["block2"]["conv3"]["kernel"] = jnp.zeros_like(before)
    without = np.asarray(run(variables, images)["stage2"])
    stage["block2"]["conv3"]["kernel"] = 2 * before
    doubled = np.asarray(run(variables, images)["stage2"])
    stage["block2"]["conv3"]["kernel"] = before
    once = np.asarray(run(variables, images)["stage2"])
    # Linear in the branch, and negative values pass.
    np.testing.assert_allclose(doubled - once, once - without, atol=1e-5)
    assert (without < 0).any()


def test_where_batch_norms_and_projections_are():
    variables = jax.eval_shape(imagenet().init, jax.random.key(0), IMAGES)
    paths = {p for p in flatten(variables["params"]) if p.endswith(("scale", "kernel"))}
    blocks = ["stage1/block1", "stage2/block1", "stage2/block2", "stage3/block1"]
    expected = {
        "backbone/stem/conv/kernel",
        "backbone/stem/bn/scale",
        "backbone/final_bn/scale",
        "head/fc/kernel",
    }
    for block in [*blocks, "stage4/block1"]:
        first = block == "stage1/block1"
        expected |= {f"backbone/{block}/conv{i}/kernel" for i in (1, 2, 3)}
        expected |= {f"backbone/{block}/bn{i}/scale" for i in (1, 2, 3)[first:]}
        if block.endswith("block1"):
            expected.add(f"backbone/{block}/shortcut_conv/kernel")
    assert paths == expected


@pytest.mark.parametrize(
    ("build", "sizes"),
    [(partial(cifar, blocks=(1, 1, 1)), (16, 16)), (imagenet, (8, 4))],
    ids=["cifar", "imagenet"],
)
def test_which_convolution_has_the_stride(build, sizes):
    layers = {r.path: r.shape[0] for r in list_layers(build(), (32, 32, 3))}
    found = [layers[f"backbone/stage2/block1/conv{i}"] for i in (1, 2)]
    assert tuple(found) == sizes


def test_pytorch_names_come_back_bit_by_bit():
    name = "cifar_resnet164_v2"
    shapes = jax.eval_shape(zoo.build(name).init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    state = to_torch(name, variables)
    assert {"conv1.weight", "layer1.0.bn2.weight", "bn_final.running_var"} <= {*state}
    assert "layer1.0.bn1.weight" not in state
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    back = from_torch(name, state)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_options():
    expected = {"width", "init", "momentum", "dtype", "param_dtype", "remat", "scan"}
    for name in ("resnet200_v2", "cifar_resnet164_v2"):
        assert {*zoo.list_options(name)} == expected
    with pytest.raises(ValueError, match="unknown option of resnet200_v2 'shortcut'"):
        zoo.build("resnet200_v2", shortcut="A")


def test_the_smallest_images():
    model = cifar(blocks=(1, 1, 1))
    shapes = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((1, 1, 1, 3))
    )
    assert shapes[0].shape == (1, 10)
    with pytest.raises(ValueError, match="resnet takes images of 1 x 1 "):
        model.init(jax.random.key(0), jnp.zeros((1, 0, 1, 3)))
