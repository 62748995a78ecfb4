"""Every registered detector against its paper: counts, names and facts.

The numbers are written here by hand, and not taken from the specs that they check.
"""

import pytest

import zoo
from zoo.spec import Preprocess
from zoo.summary import list_endpoints, list_layers

pytestmark = pytest.mark.quick

# Trainable parameters and multiply-adds at the spec's number of classes and size.
LEDGER = {
    # Of one warped region.
    "rcnn_alexnet": (57_687_524, 721_130_016),
    "rcnn_vgg16": (136_349_604, 15_468_257_280),
    "fast_rcnn_vgg16": (134_690_729, 183_989_231_616),
    "faster_rcnn_vgg16": (137_078_239, 225_573_931_008),
    "faster_rcnn_resnet101_c4": (47_462_111, 314_128_862_208),
    "faster_rcnn_resnet50_fpn": (41_808_406, 177_581_734_144),
    "faster_rcnn_small": (1_287_526, 133_751_552),
    "ssd300_vgg16": (35_641_826, 34_858_153_472),
    "ssd512_vgg16": (27_188_676, 90_207_908_864),
    "ssd96_small": (899_684, 62_664_192),
    "yolo_v1": (271_703_550, 20_285_153_280),
    "yolo_v1_tiny": (45_089_374, 2_418_728_960),
    "yolo_v1_tiny_bn": (27_095_374, 1_608_015_360),
    "yolo96_small": (406_788, 76_253_184),
}
# Parameters for other numbers of classes: VOC's 20, COCO's 80 and its numbers to 90.
CLASSES = [
    ("faster_rcnn_resnet50_fpn", 20, 41_808_406 - 70 * 5 * 1025),
    ("faster_rcnn_vgg16", 80, 137_078_239 + 60 * 5 * 4097),
    ("ssd300_vgg16", 20, 26_285_486),
    ("ssd300_vgg16", 80, 34_305_206),
    ("ssd512_vgg16", 80, 36_038_196),
    ("ssd512_vgg16", 90, 37_513_116),
    ("yolo_v1", 80, 271_703_550 + 60 * 49 * 4097),
]
_VGG = (
    "conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 conv3_3 pool3 conv4_1 "
    "conv4_2 conv4_3 pool4 conv4_3_norm conv5_1 conv5_2 conv5_3 pool5 fc6 fc7"
)
_RESNET = "stem stem_pool stage1 stage2 stage3"
ENDPOINTS = {
    "fast_rcnn_vgg16": _VGG.replace(" conv4_3_norm", "").partition(" pool5")[0],
    "faster_rcnn_vgg16": _VGG.replace(" conv4_3_norm", "").partition(" pool5")[0]
    + " rpn_logits rpn_deltas",
    "faster_rcnn_resnet101_c4": f"{_RESNET} rpn_logits rpn_deltas",
    "faster_rcnn_resnet50_fpn": f"{_RESNET} stage4 p2 p3 p4 p5 p6 rpn_logits "
    "rpn_deltas",
    "faster_rcnn_small": f"{_RESNET} p2 p3 p4 rpn_logits rpn_deltas",
    "ssd300_vgg16": f"{_VGG} conv8_1 conv8_2 conv9_1 conv9_2 conv10_1 conv10_2 "
    "conv11_1 conv11_2 deltas class_logits",
    "ssd96_small": "stage1 stage2 stage3 stage4 stage5 deltas class_logits",
    "yolo_v1_tiny": "conv1 pool1 conv2 pool2 conv3 pool3 conv4 pool4 conv5 pool5 conv6 "
    "pool6 conv7 conv8 conv9 fc1 fc2 classes confidences boxes",
    "yolo96_small": "stage1 stage2 stage3 classes confidences boxes",
}


def count(name, **options):
    layers = list_layers(
        zoo.build(name, **options), zoo.get_spec(name).preprocess.shape
    )
    return sum(r.params for r in layers), sum(r.macs for r in layers)


def test_every_detector_is_in_the_ledger():
    assert {*zoo.list_models(task="detection")} == {*LEDGER}


@pytest.mark.parametrize("name", LEDGER)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    assert (spec.params, spec.macs) == LEDGER[name]
    assert count(name) == LEDGER[name]


@pytest.mark.parametrize(("name", "num_classes", "params"), CLASSES)
def test_parameters_for_other_classes(name, num_classes, params):
    assert count(name, num_classes=num_classes)[0] == params


@pytest.mark.parametrize("name", ENDPOINTS)
def test_names_of_the_endpoints(name):
    shape = zoo.get_spec(name).preprocess.shape
    assert [*list_endpoints(zoo.build(name), shape)] == ENDPOINTS[name].split()


@pytest.mark.parametrize("name", LEDGER)
def test_facts_are_complete(name):
    spec = zoo.get_spec(name)
    assert spec.name == name
    assert spec.task == "detection"
    assert isinstance(spec.preprocess, Preprocess)
    for fact in ("paper", "init", "loss", "published", "deviations"):
        assert getattr(spec, fact), f"{name} has no {fact}"
    for fact in ("published", "deviations"):
        # A forgotten comma would make one string of the tuple.
        assert isinstance(getattr(spec, fact), tuple), fact
    for weights in spec.weights:
        assert len(weights.class_names) == spec.num_classes


@pytest.mark.parametrize("name", LEDGER)
def test_a_detector_has_classes(name):
    with pytest.raises(ValueError, match=f"{name}: num_classes must be 1 or more"):
        zoo.build(name, num_classes=0)
