"""The ImageNet networks' details, small, against an independent PyTorch restatement."""

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

import zoo
from zoo.classification.preact_resnet import PreActBottleneck
from zoo.classification.resnet import BasicBlock, Bottleneck, resnet
from zoo.paths import flatten
from zoo.summary import abstract_variables, list_endpoints, list_layers
from zoo.weights import from_torch, to_torch

RNG = np.random.default_rng(0)
# Even and odd sizes of maps, which strides and pools treat in different ways.
IMAGES = RNG.normal(size=(2, 72, 50, 3)).astype(np.float32)
LABELS = np.array([3, 1])
BLOCKS = (1, 2, 1, 1)
KINDS = {"basic": BasicBlock, "bottleneck": Bottleneck}
DILATIONS = {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}


def small(block, *, blocks=BLOCKS, width=4, **options):
    """A network of the ImageNet kind, few and narrow blocks."""
    return resnet(block=block, blocks=blocks, width=width, num_classes=5, **options)


def make_pair(kind, output_stride=32, groups=1, width_per_group=64, **options):
    """The network, and the constructor of the same one in PyTorch."""
    model = small(
        KINDS[kind],
        output_stride=output_stride,
        groups=groups,
        width_per_group=width_per_group,
        **options,
    )
    net = partial(
        TorchResNet,
        blocks=BLOCKS,
        kind=kind,
        small=False,
        dilations=DILATIONS[output_stride],
        **options,
    )
    return model, net


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("basic", {"shortcut": "A"}),
        ("basic", {"shortcut": "C"}),
        ("basic", {"shortcut": None}),
        ("basic", {"shortcut": "B", "output_stride": 8}),
        ("bottleneck", {"shortcut": "B", "early_stride": True}),
        ("bottleneck", {"shortcut": "A", "output_stride": 16}),
        ("bottleneck", {"shortcut": "B", "groups": 2, "width_per_group": 48}),
        ("bottleneck", {"shortcut": "B", "output_stride": 8}),
    ],
    ids=str,
)
def test_every_endpoint_is_what_torch_computes(kind, options, cheap_jit):
    check_endpoints(*make_pair(kind, **options), IMAGES, jit=cheap_jit)


def test_one_training_step_is_what_torch_computes(cheap_jit):
    groups = {"groups": 2, "width_per_group": 48}
    pair = make_pair("bottleneck", shortcut="B", output_stride=16, **groups)
    check_training_step(*pair, IMAGES[:, :40, :40], LABELS, jit=cheap_jit)


@pytest.mark.parametrize(
    ("name", "output_stride", "sizes"),
    [
        ("resnet50", 32, (14, 7)),
        ("resnet50", 16, (14, 14)),
        ("resnet18", 8, (28, 28)),
    ],
)
def test_output_stride_keeps_the_resolution(name, output_stride, sizes):
    model = zoo.build(name, output_stride=output_stride)
    shapes = list_endpoints(model, (224, 224, 3))
    assert [*shapes] == "stem stem_pool stage1 stage2 stage3 stage4 pool logits".split()
    found = [shape[0] for shape in shapes.values()]
    assert found[:6] == [112, 56, 56, 28, *sizes]
    assert abstract_variables(model, (224, 224, 3)) == abstract_variables(
        zoo.build(name), (64, 64, 3)
    )


@pytest.mark.parametrize(("name", "sizes"), [("resnet50", "56 28"), ("_v1", "28 28")])
def test_which_convolution_has_the_stride(name, sizes):
    name = "resnet50_v1" if name == "_v1" else name
    layers = {r.path: r.shape[0] for r in list_layers(zoo.build(name), (224, 224, 3))}
    found = [layers[f"backbone/stage2/block1/conv{i}"] for i in (1, 2)]
    assert found == [int(n) for n in sizes.split()]


def test_where_projections_are():
    def projections(**options):
        model = small(BasicBlock, **options)
        paths = flatten(abstract_variables(model, (32, 32, 3))["params"])
        return [
            path.split("/")[1:3] for path in paths if "shortcut_conv/kernel" in path
        ]

    assert projections(shortcut="A") == []
    assert projections(shortcut=None) == []
    changes = [["stage2", "block1"], ["stage3", "block1"], ["stage4", "block1"]]
    assert projections(shortcut="B") == changes
    every = [["stage1", "block1"], ["stage2", "block1"], ["stage2", "block2"]]
    assert projections(shortcut="C") == [*every, *changes[1:]]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreActBottleneck])
def test_every_block_is_recomputed_and_no_path_changes(block):
    def trace(remat):
        model = small(block, remat=remat, blocks=(2, 1))
        variables = abstract_variables(model, (8, 8, 3))
        images = jnp.zeros((1, 8, 8, 3))
        return variables, str(jax.make_jaxpr(model.apply)(variables, images))

    (plain, text), (again, recomputed) = trace(False), trace(True)
    assert again == plain
    # The convolution recomputes its patches, whatever the network does.
    assert recomputed.count("remat") >= text.count("remat") + 3


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1", "plain34"])
def test_the_smallest_images(name):
    model = zoo.build(name)
    shapes = list_endpoints(model, (1, 1, 3))
    assert shapes["stage4"][:2] == (1, 1)
    images = jax.ShapeDtypeStruct((1, 1, 0, 3), jnp.float32)
    with pytest.raises(ValueError, match=rf"{name} takes images of 1 x 1 .*\[1, 1, 0"):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        zoo.build("resnet50", output_stride=4)
    with pytest.raises(ValueError, match="shortcut must be 'A', 'B' or 'C', got 'D'"):
        zoo.build("resnet18", shortcut="D")
    with pytest.raises(ValueError, match=r"width=8 leaves no whole .* multiple of 16"):
        resnet(block=Bottleneck, blocks=(1,), width=8, groups=32, width_per_group=4)
    with pytest.raises(ValueError, match="unknown option of plain18 'shortcut'"):
        zoo.build("plain18", shortcut="A")
    with pytest.raises(ValueError, match="unknown option of resnet50 'early_stride'"):
        zoo.build("resnet50", early_stride=True)


def test_torchvision_names_come_back_bit_by_bit():
    variables = abstract_variables(zoo.build("resnet18"), (32, 32, 3))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda v: rng.random(v.shape, np.float32), variables)
    state = to_torch("resnet18", variables)
    # conv1, bn1 and fc; 8 blocks of 2 convolutions and norms; 3 projections.
    assert len(state) == 1 + 4 + 2 + 8 * 2 * 5 + 3 * 5
    assert state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert {"bn1.running_var", "layer4.1.bn2.bias", "fc.bias"} <= {*state}
    back = from_torch("resnet18", state)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_other_initializations_are_options(cheap_jit):
    images = jnp.zeros((1, 8, 8, 3))
    for init, std in ((None, (2 / (9 * 64)) ** 0.5), ("gaussian_0.01", 0.01)):
        model = small(BasicBlock, blocks=(1,), width=64, init=init)
        variables = cheap_jit(model.init)(jax.random.key(0), images)
        kernel = variables["params"]["backbone"]["stage1"]["block1"]["conv1"]["kernel"]
        assert np.std(kernel) == pytest.approx(std, rel=0.02)
