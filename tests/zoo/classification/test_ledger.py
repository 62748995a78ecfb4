"""Every registered classifier against its paper: counts, names and facts.

The counts of the specs, from the papers, are held to those of the modules.
"""

import pytest

import zoo
from zoo.spec import Preprocess
from zoo.summary import list_endpoints, list_layers

# Without slopes, and how many of those there are: one for each channel, or each layer.
SLOPES = {
    "msra_small14": (74_993_896, 64 + 4 * 128 + 6 * 256 + 2 * 4096, 13),
    "msra_a": (178_017_384, 96 + 5 * 256 + 10 * 512 + 2 * 4096, 18),
    "msra_b": (183_327_080, 96 + 6 * 256 + 12 * 512 + 2 * 4096, 21),
    "msra_c": (330_603_368, 96 + 6 * 384 + 6 * 768 + 6 * 896 + 2 * 4096, 21),
}
OPTION_B = {20: 272_474, 32: 466_906, 44: 661_338, 56: 855_770, 110: 1_730_714}
# "A" has no parameters, and so the counts of the plain networks.
SHORTCUTS = {
    ("resnet18", "A"): (11_515_688, 1_794_805_760),
    ("resnet18", "C"): (12_043_816, 1_878_298_624),
    ("resnet34", "A"): (21_623_848, 3_644_493_824),
    ("resnet34", "C"): (22_716_840, 3_830_747_136),
}
AUXILIARY_HEADS = {
    "googlenet": (13_378_280, 1_591_044_096),
    "googlenet_tv": (13_004_888, 1_506_748_416),
}
ENDPOINTS = {
    "lenet5": "c1 s2 c3 s4 c5 f6 logits",
    "lenet5_modern": "conv1 pool1 conv2 pool2 ip1 logits",
    "cifar": "stem stage1 stage2 stage3 pool logits",
    "resnet": "stem stem_pool stage1 stage2 stage3 stage4 pool logits",
    "googlenet": "conv1 pool1 norm1 conv2_reduce conv2 norm2 pool2 inception_3a "
    "inception_3b pool3 inception_4a inception_4b inception_4c inception_4d "
    "inception_4e pool4 inception_5a inception_5b pool logits",
}

# Top-1 accuracy in percent, written here by hand from torchvision's own list.
IMAGENET_ACCURACY = {
    ("alexnet_tv", "imagenet"): 56.52,
    ("vgg11", "imagenet"): 69.02,
    ("vgg13", "imagenet"): 69.93,
    ("vgg16", "imagenet"): 71.59,
    ("vgg19", "imagenet"): 72.38,
    ("vgg11_bn", "imagenet"): 70.37,
    ("vgg13_bn", "imagenet"): 71.59,
    ("vgg16_bn", "imagenet"): 73.36,
    ("vgg19_bn", "imagenet"): 74.22,
    ("googlenet_tv", "imagenet"): 69.78,
    ("resnet18", "imagenet"): 69.76,
    ("resnet34", "imagenet"): 73.31,
    ("resnet50", "imagenet"): 76.13,
    ("resnet101", "imagenet"): 77.37,
    ("resnet152", "imagenet"): 78.31,
    ("resnext50_32x4d", "imagenet"): 77.62,
    ("resnext101_32x8d", "imagenet"): 79.31,
    ("wide_resnet50_2", "imagenet"): 78.47,
    ("resnet50", "imagenet_v2"): 80.86,
    ("resnet101", "imagenet_v2"): 81.89,
    ("resnet152", "imagenet_v2"): 82.28,
    ("resnext50_32x4d", "imagenet_v2"): 81.20,
    ("resnext101_32x8d", "imagenet_v2"): 82.83,
    ("wide_resnet50_2", "imagenet_v2"): 81.60,
}

# Tracing these takes seconds each, and more than a minute together.
DEEPEST = [
    *("cifar_resnet1202", "cifar_resnet1001_v2", "cifar_resnet164_v2", "resnet200_v2"),
    *("cifar_resnet110", "cifar_plain110", "cifar_resnet56", "cifar_plain56"),
    *(
        "resnext101_32x8d",
        "resnet101",
        "resnet101_v1",
        "resnet152",
        "resnet152_v1",
        "msra_c",
        "relu30",
    ),
]
NAMES = zoo.list_models(task="classification")


def count(name, **options):
    pre = zoo.get_spec(name).preprocess
    model = zoo.build(name, **options)
    layers = list_layers(model, pre.shape)
    return sum(r.params for r in layers), sum(r.macs for r in layers)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.apart] * (n in DEEPEST)) for n in NAMES],
)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    assert count(name) == (spec.params, spec.macs)


@pytest.mark.parametrize("depth", OPTION_B)
def test_parameters_with_projections(depth):
    # Two projections, 1x1 from 16 to 32 and from 32 to 64 channels, at 16x16 and 8x8.
    macs = zoo.get_spec(f"cifar_resnet{depth}").macs + 16 * 32 * 16**2 + 32 * 64 * 8**2
    assert count(f"cifar_resnet{depth}", shortcut="B") == (OPTION_B[depth], macs)


@pytest.mark.parametrize(("name", "shortcut"), SHORTCUTS)
def test_parameters_with_each_shortcut(name, shortcut):
    assert count(name, shortcut=shortcut) == SHORTCUTS[name, shortcut]


@pytest.mark.parametrize("name", AUXILIARY_HEADS)
def test_parameters_with_auxiliary_heads(name):
    assert count(name, aux=True) == AUXILIARY_HEADS[name]
    assert (
        count(name, aux=True, num_classes=0)[0] == zoo.get_spec(name).params - 1_025_000
    )


@pytest.mark.parametrize("name", SLOPES)
def test_parameters_without_and_with_slopes(name):
    without, slopes, layers = SLOPES[name]
    macs = zoo.get_spec(name).macs
    assert count(name, activation="relu") == (without, macs)
    assert count(name, activation="prelu") == (without + slopes, macs)
    assert count(name, activation="prelu_shared") == (without + layers, macs)


def test_parameters_without_a_head():
    assert count("cifar_resnet20", num_classes=0)[0] == 269_722 - 65 * 10
    assert count("cifar_resnet20", num_classes=100)[0] == 269_722 + 65 * 90
    assert count("lenet5_modern", num_classes=0)[0] == 431_080 - 5_010
    assert count("lenet5", num_classes=0) == (60_000, 326_520 - 840)


def test_parameters_of_each_layer_of_lenet5():
    layers = list_layers(zoo.build("lenet5"), (32, 32, 1))
    assert [(r.path, r.params, r.shape) for r in layers] == [
        ("backbone/c1", 156, (28, 28, 6)),
        ("backbone/s2", 12, (14, 14, 6)),
        ("backbone/c3", 1_516, (10, 10, 16)),
        ("backbone/s4", 32, (5, 5, 16)),
        ("backbone/c5", 48_120, (1, 1, 120)),
        ("backbone/f6", 10_164, (84,)),
        ("head", 0, (10,)),
    ]


def test_parameters_of_each_layer_of_lenet5_modern():
    layers = list_layers(zoo.build("lenet5_modern"), (28, 28, 1))
    assert [(r.path, r.params) for r in layers] == [
        ("backbone/conv1", 520),
        ("backbone/conv2", 25_050),
        ("backbone/ip1", 400_500),
        ("head/ip2", 5_010),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_complete(name):
    spec = zoo.get_spec(name)
    assert spec.name == name
    assert spec.task == "classification"
    assert isinstance(spec.preprocess, Preprocess)
    assert spec.num_classes == (10 if spec.preprocess.size <= 64 else 1000)
    assert spec.loss in ("softmax_cross_entropy", "lenet_map")
    for fact in ("paper", "init", "published", "deviations"):
        assert getattr(spec, fact), f"{name} has no {fact}"
    for fact in ("published", "deviations"):
        # A forgotten comma would make one string of the tuple.
        assert isinstance(getattr(spec, fact), tuple), fact


def test_every_set_for_imagenet_is_listed_with_its_accuracy():
    found = {
        (name, weights.name): float(weights.accuracy.split()[0])
        for name in NAMES
        for weights in zoo.get_spec(name).weights
        if "ImageNet" in weights.accuracy
    }
    assert found == IMAGENET_ACCURACY


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_published_weights_are_complete(depth):
    (weights,) = zoo.get_spec(f"cifar_resnet{depth}").weights
    assert weights.name == "cifar10"
    assert weights.url.startswith("https://")
    assert weights.url.endswith(f"resnet{depth}-{weights.sha256[:8]}.th")
    assert len(weights.class_names) == 10
    assert weights.preprocess.std == (0.229, 0.224, 0.225)
    assert all((weights.accuracy, weights.source, weights.licence))


@pytest.mark.parametrize(
    "name",
    "lenet5 lenet5_modern cifar_resnet20 cifar_plain20 cifar_resnet32 resnet18 "
    "resnet50 googlenet".split(),
)
def test_endpoints_have_the_same_names_at_each_depth(name):
    pre = zoo.get_spec(name).preprocess
    shape = pre.shape
    found = list_endpoints(zoo.build(name), shape)
    key = "cifar" if "cifar" in name else name.rstrip("0123456789")
    expected = ENDPOINTS[name if name in ENDPOINTS else key].split()
    assert [*found] == expected
    assert found["logits"] == (zoo.get_spec(name).num_classes,)
    bare = list_endpoints(zoo.build(name, num_classes=0), shape)
    assert [*bare] == expected[:-1]


def test_shapes_of_the_endpoints():
    found = list_endpoints(zoo.build("cifar_resnet20"), (32, 32, 3))
    assert [*found.values()] == [
        (32, 32, 16),
        (32, 32, 16),
        (16, 16, 32),
        (8, 8, 64),
        (64,),
        (10,),
    ]
