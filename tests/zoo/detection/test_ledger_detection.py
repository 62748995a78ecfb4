"""Every registered detector against its paper: counts, names and facts.

The counts of the specs, from the papers, are held to those of the modules.
"""

import pytest

import zoo
from zoo.spec import Preprocess
from zoo.summary import list_endpoints, list_layers

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
NAMES = zoo.list_models(task="detection")
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


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    assert count(name) == (spec.params, spec.macs)


@pytest.mark.parametrize(("name", "num_classes", "params"), CLASSES)
def test_parameters_for_other_classes(name, num_classes, params):
    assert count(name, num_classes=num_classes)[0] == params


@pytest.mark.parametrize("name", ENDPOINTS)
def test_names_of_the_endpoints(name):
    shape = zoo.get_spec(name).preprocess.shape
    assert [*list_endpoints(zoo.build(name), shape)] == ENDPOINTS[name].split()


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_has_classes(name):
    with pytest.raises(ValueError, match=f"{name}: num_classes must be 1 or more"):
        zoo.build(name, num_classes=0)
