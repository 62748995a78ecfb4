"""Every registered segmentation network against its paper: counts, names and facts.

The counts of the specs, from the papers, are held to those of the modules.
"""

import pytest

import zoo
from zoo.summary import list_endpoints, list_layers

# The same with other options, and at another number of classes and size: the published
# counts, and multiply-adds in units of 10**7.
OPTIONS = [
    # All kernels of upsampling counted, as in the released networks, and none.
    ("fcn32s_vgg16", dict(upsampling="learnt"), 500, 136_152_917, 18_137),
    ("fcn16s_vgg16", dict(upsampling="learnt"), 500, 134_815_994, 18_145),
    ("fcn8s_vgg16", dict(upsampling="learnt"), 500, 134_489_759, 18_153),
    ("fcn32s_vgg16", dict(upsampling="fixed"), 500, 134_346_581, 18_090),
    ("fcn16s_vgg16", dict(upsampling="fixed"), 500, 134_357_354, 18_092),
    ("fcn8s_vgg16", dict(upsampling="fixed"), 500, 134_362_751, 18_097),
    ("fcn_resnet50", dict(aux=True), 520, 35_322_218, 15_272),
    ("fcn_resnet101", dict(aux=True), 520, 54_314_346, 23_274),
    ("pspnet_resnet50", dict(num_classes=150), 473, 46_782_550, 16_153),
    ("pspnet_resnet50", dict(num_classes=150, aux=True), 473, 49_180_908, 17_016),
    ("pspnet_resnet101", dict(num_classes=21), 473, 65_708_501, 22_947),
    (
        "pspnet_resnet101",
        dict(num_classes=21, early_stride=False),
        473,
        65_708_501,
        22_982,
    ),
    ("pspnet_resnet101", dict(num_classes=21, aux=True), 473, 68_073_706, 23_799),
    ("pspnet_resnet101", dict(aux=True), 713, 68_072_166, 53_556),
    ("unet_resnet34", dict(num_classes=1), 224, 24_436_369, 598),
]
# Without a head, and what the head's layers have.
HEADS = {
    "fcn8s_vgg16": 21 * (4097 + 513 + 257) + 2 * 16 * 21**2,
    "fcn_resnet50": 2048 * 9 * 512 + 2 * 512 + 513 * 21,
    "pspnet_resnet50": 4 * 2050 * 512 + 4096 * 9 * 512 + 2 * 512 + 513 * 19,
}
_RESNET = "stem stem_pool stage1 stage2 stage3 stage4"
NAMES = zoo.list_models(task="segmentation")
# Tracing these takes seconds each.
DEEPEST = ["fcn_resnet101", "pspnet_resnet101", "frrn_a", "frrn_b"]
ENDPOINTS = {
    "fcn8s_vgg16": "conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 "
    "conv3_3 pool3 conv4_1 conv4_2 conv4_3 pool4 conv5_1 conv5_2 conv5_3 pool5 fc6 fc7 "
    "score_fr upscore2 score_pool4 fuse_pool4 upscore_pool4 score_pool3 fuse_pool3 "
    "logits",
    "fcn_resnet50": f"{_RESNET} head_conv score logits",
    "pspnet_resnet50": f"{_RESNET} pyramid head_conv score logits",
}


def count(name, size=None, **options):
    shape = zoo.get_spec(name).preprocess.shape
    shape = shape if size is None else (size, size, shape[-1])
    layers = list_layers(zoo.build(name, **options), shape)
    return sum(r.params for r in layers), sum(r.macs for r in layers)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.apart] * (n in DEEPEST)) for n in NAMES],
)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    assert count(name) == (spec.params, spec.macs)


@pytest.mark.parametrize(("name", "options", "size", "params", "macs"), OPTIONS)
def test_counts_with_options(name, options, size, params, macs):
    found = count(name, size, **options)
    assert (found[0], round(found[1] / 1e7)) == (params, macs)


@pytest.mark.parametrize("name", HEADS)
def test_parameters_without_a_head(name):
    assert count(name, 64, num_classes=0)[0] == zoo.get_spec(name).params - HEADS[name]


@pytest.mark.parametrize("name", ENDPOINTS)
def test_endpoints_have_names(name):
    shape = (64, 80, zoo.get_spec(name).preprocess.channels)
    wanted = ENDPOINTS[name].split()
    found = list_endpoints(zoo.build(name), shape)
    assert [*found] == wanted
    assert found["logits"] == (64, 80, zoo.get_spec(name).num_classes)
    # Without a head the backbone's last endpoint is the output.
    bare = [*list_endpoints(zoo.build(name, num_classes=0), shape)]
    assert bare == wanted[: len(bare)]
    assert bare[-1] in ("fc7", "stage4")
    if "aux" in zoo.list_options(name):
        found = list_endpoints(zoo.build(name, aux=True), shape)
        assert [*found] == [*wanted[:-1], "aux", "logits"]
        assert found["aux"] == found["logits"]


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_complete(name):
    spec = zoo.get_spec(name)
    assert spec.name == name
    assert spec.task == "segmentation"
    assert spec.preprocess.fit == "keep"
    assert spec.build(num_classes=3).preprocess == spec.preprocess
    for fact in ("paper", "init", "published", "deviations"):
        assert getattr(spec, fact), f"{name} has no {fact}"
    for fact in ("published", "deviations"):
        # A forgotten comma would make one string of the tuple.
        assert isinstance(getattr(spec, fact), tuple), fact
    factors = dict(spec.aux_losses)
    assert {*factors} == ({"aux"} if "aux" in zoo.list_options(name) else set())


@pytest.mark.parametrize("depth", [50, 101])
def test_published_weights_are_complete(depth):
    (weights,) = zoo.get_spec(f"fcn_resnet{depth}").weights
    assert weights.name == "coco_voc"
    assert weights.url.endswith(f"fcn_resnet{depth}_coco-{weights.sha256}.pth")
    assert len(weights.class_names) == 21
    assert weights.class_names[15] == "person"
    assert weights.preprocess.std == (0.229, 0.224, 0.225)
    assert all((weights.accuracy, weights.source, weights.licence))
