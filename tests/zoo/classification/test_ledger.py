"""Every registered classifier against its paper: counts, names and facts.

The numbers are written here by hand, and not taken from the specs that they check.
"""

import pytest

import zoo
from zoo.spec import Preprocess
from zoo.summary import list_endpoints, list_layers

# Trainable parameters and multiply-adds at the paper's number of classes.
LEDGER = {
    "lenet5": (60_000, 326_520),
    "lenet5_modern": (431_080, 2_293_000),
    "alexnet": (60_965_224, 724_406_816),
    "alexnet_tv": (61_100_840, 714_188_480),
    "zfnet": (62_357_608, 1_168_032_896),
    "vgg11": (132_863_336, 7_609_090_048),
    "vgg11_lrn": (132_863_336, 7_609_090_048),
    "vgg13": (133_047_848, 11_308_466_176),
    "vgg16_c": (133_638_952, 11_770_888_192),
    "vgg16": (138_357_544, 15_470_264_320),
    "vgg19": (143_667_240, 19_632_062_464),
    "vgg11_bn": (132_868_840, 7_609_090_048),
    "vgg13_bn": (133_053_736, 11_308_466_176),
    "vgg16_bn": (138_365_992, 15_470_264_320),
    "vgg19_bn": (143_678_248, 19_632_062_464),
    "googlenet": (6_998_552, 1_582_671_872),
    "googlenet_tv": (6_624_904, 1_498_376_192),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet50_v1": (25_557_032, 3_857_973_248),
    "resnet101_v1": (44_549_160, 7_570_194_432),
    "resnet152_v1": (60_192_808, 11_282_415_616),
    "plain18": (11_515_688, 1_794_805_760),
    "plain34": (21_623_848, 3_644_493_824),
    "resnet200_v2": (64_666_152, 15_007_481_856),
    "cifar_resnet164_v2": (1_703_258, 244_500_992),
    "cifar_resnet1001_v2": (10_327_706, 1_487_849_984),
    "cifar_resnet20": (269_722, 40_551_040),
    "cifar_resnet32": (464_154, 68_862_592),
    "cifar_resnet44": (658_586, 97_174_144),
    "cifar_resnet56": (853_018, 125_485_696),
    "cifar_resnet110": (1_727_962, 252_887_680),
    "cifar_resnet1202": (19_421_274, 2_829_238_912),
    "cifar_plain20": (269_722, 40_551_040),
    "cifar_plain32": (464_154, 68_862_592),
    "cifar_plain44": (658_586, 97_174_144),
    "cifar_plain56": (853_018, 125_485_696),
    "cifar_plain110": (1_727_962, 252_887_680),
    # With the slopes of their PReLUs, see below; the last two have ReLUs.
    "msra_small14": (75_004_200, 980_914_880),
    "msra_a": (178_032_072, 19_058_106_368),
    "msra_b": (183_343_048, 23_219_904_512),
    "msra_c": (330_623_944, 53_463_130_112),
    "relu22": (183_327_080, 23_219_904_512),
    "relu30": (79_192_296, 2_417_464_000),
}
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


# Tracing 1202 layers takes a third of a minute.
DEEPEST = ["cifar_resnet1202", "cifar_resnet1001_v2"]
QUICK = [n for n in LEDGER if n not in DEEPEST]


def count(name, **options):
    pre = zoo.get_spec(name).preprocess
    model = zoo.build(name, **options)
    layers = list_layers(model, pre.shape)
    return sum(r.params for r in layers), sum(r.macs for r in layers)


@pytest.mark.quick
def test_every_classifier_is_in_the_ledger():
    assert {*zoo.list_models(task="classification")} == {*LEDGER}


@pytest.mark.quick
@pytest.mark.parametrize("name", QUICK)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    assert (spec.params, spec.macs) == LEDGER[name]
    assert count(name) == LEDGER[name]


@pytest.mark.apart
@pytest.mark.parametrize("name", DEEPEST)
def test_parameters_and_multiply_adds_of_the_deepest(name):
    test_parameters_and_multiply_adds(name)


@pytest.mark.quick
@pytest.mark.parametrize("depth", OPTION_B)
def test_parameters_with_projections(depth):
    # Two projections, 1x1 from 16 to 32 and from 32 to 64 channels, at 16x16 and 8x8.
    macs = LEDGER[f"cifar_resnet{depth}"][1] + 16 * 32 * 16**2 + 32 * 64 * 8**2
    assert count(f"cifar_resnet{depth}", shortcut="B") == (OPTION_B[depth], macs)


@pytest.mark.quick
@pytest.mark.parametrize(("name", "shortcut"), SHORTCUTS)
def test_parameters_with_each_shortcut(name, shortcut):
    assert count(name, shortcut=shortcut) == SHORTCUTS[name, shortcut]


@pytest.mark.quick
@pytest.mark.parametrize("name", AUXILIARY_HEADS)
def test_parameters_with_auxiliary_heads(name):
    assert count(name, aux=True) == AUXILIARY_HEADS[name]
    assert count(name, aux=True, num_classes=0)[0] == LEDGER[name][0] - 1_025_000


@pytest.mark.quick
@pytest.mark.parametrize("name", SLOPES)
def test_parameters_without_and_with_slopes(name):
    without, slopes, layers = SLOPES[name]
    macs = LEDGER[name][1]
    assert count(name, activation="relu") == (without, macs)
    assert count(name, activation="prelu") == (without + slopes, macs)
    assert count(name, activation="prelu_shared") == (without + layers, macs)


@pytest.mark.quick
def test_parameters_without_a_head():
    assert count("cifar_resnet20", num_classes=0)[0] == 269_722 - 65 * 10
    assert count("cifar_resnet20", num_classes=100)[0] == 269_722 + 65 * 90
    assert count("lenet5_modern", num_classes=0)[0] == 431_080 - 5_010
    assert count("lenet5", num_classes=0) == (60_000, 326_520 - 840)


@pytest.mark.quick
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


@pytest.mark.quick
def test_parameters_of_each_layer_of_lenet5_modern():
    layers = list_layers(zoo.build("lenet5_modern"), (28, 28, 1))
    assert [(r.path, r.params) for r in layers] == [
        ("backbone/conv1", 520),
        ("backbone/conv2", 25_050),
        ("backbone/ip1", 400_500),
        ("head/ip2", 5_010),
    ]


@pytest.mark.quick
@pytest.mark.parametrize("name", LEDGER)
def test_facts_are_complete(name):
    spec = zoo.get_spec(name)
    assert spec.name == name
    assert spec.task == "classification"
    assert isinstance(spec.preprocess, Preprocess)
    assert spec.num_classes == (10 if spec.preprocess.size < 64 else 1000)
    assert spec.loss in ("softmax_cross_entropy", "lenet_map")
    for fact in ("paper", "init", "published", "deviations"):
        assert getattr(spec, fact), f"{name} has no {fact}"
    for fact in ("published", "deviations"):
        # A forgotten comma would make one string of the tuple.
        assert isinstance(getattr(spec, fact), tuple), fact


@pytest.mark.quick
@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_published_weights_are_complete(depth):
    (weights,) = zoo.get_spec(f"cifar_resnet{depth}").weights
    assert weights.name == "cifar10"
    assert weights.url.startswith("https://")
    assert weights.url.endswith(f"resnet{depth}-{weights.sha256}.th")
    assert len(weights.class_names) == 10
    assert weights.preprocess.std == (0.229, 0.224, 0.225)
    assert all((weights.accuracy, weights.source, weights.licence))


@pytest.mark.quick
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


@pytest.mark.quick
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
