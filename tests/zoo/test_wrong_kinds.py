"""What no public function takes is said in words, with what it takes."""

import jax
import numpy as np
import pytest
from PIL import Image
from segmenters import PREPROCESS, make

import zoo

LENET = zoo.get_spec("lenet5_modern").preprocess


@pytest.fixture(scope="module")
def lenet():
    return zoo.create("lenet5_modern")


def test_each_door_names_the_models_that_it_takes():
    detector = zoo.build("ssd96_small")
    with pytest.raises(ValueError, match=r"got SSD, which zoo\.make_detector takes"):
        zoo.make_classifier(detector, detector.preprocess)
    with pytest.raises(ValueError, match=r"which zoo\.make_segmenter takes"):
        zoo.make_classifier(zoo.build("unet_small"), LENET)
    with pytest.raises(ValueError, match=r"which zoo\.make_region_detector takes"):
        zoo.make_classifier(zoo.build("rcnn_alexnet"), LENET)
    with pytest.raises(ValueError, match=r"got one of num_classes=0"):
        zoo.make_classifier(zoo.build("lenet5_modern", num_classes=0), LENET)
    with pytest.raises(ValueError, match="takes a DeepFace network, got Classifier"):
        zoo.make_describer(zoo.build("lenet5_modern"), LENET)
    with pytest.raises(ValueError, match="takes an R-CNN, got SSD"):
        zoo.make_region_detector(detector)
    with pytest.raises(ValueError, match="max_proposals=0"):
        zoo.make_region_detector(zoo.build("rcnn_alexnet"), max_proposals=0)
    for name in ("ssd96_small", "lenet5_modern"):
        with pytest.raises(ValueError, match="takes a segmentation network, got"):
            zoo.make_segmenter(zoo.build(name))


LISTS = ("list", "tuple")  # which a classifier takes


@pytest.mark.parametrize("kind", ["list", "pillow", "tuple", "none", "one"])
def test_images_that_are_no_array_are_said(lenet, kind):
    model, variables = lenet
    one = np.zeros((28, 28, 1), np.uint8)
    images = {
        "list": [one, one],
        "pillow": Image.new("L", (28, 28)),
        "tuple": (one,),
        "none": None,
        "one": one,
    }[kind]
    segmenter, segmenter_variables = make()
    detector = zoo.build("ssd96_small")
    for run, given in (
        *(
            [(zoo.make_classifier(model, LENET), variables)]
            if kind not in LISTS
            else []
        ),
        (zoo.make_segmenter(segmenter, PREPROCESS), segmenter_variables),
        (zoo.make_detector(detector), {}),
    ):
        with pytest.raises(ValueError, match=r"images must be .*uint8 \[B, h, w, ch"):
            run(given, images)


def test_pillow_images_can_be_padded():
    images = [Image.new("RGB", (30, 20)), np.zeros((5, 70, 3), np.uint8)]
    arrays, sizes = zoo.pad_images(images)
    assert arrays.shape == (2, 64, 128, 3)
    assert sizes.tolist() == [[20, 30], [5, 70]]


def test_a_seed_is_no_key_and_true_no_weights():
    for key in (0, "x", np.float32(1)):
        with pytest.raises(ValueError, match=r"key must be .*jax\.random\.key"):
            zoo.create("lenet5_modern", key=key)
    zoo.create("lenet5_modern", key=jax.random.PRNGKey(0))
    for weights in (True, 3, ["imagenet"], {"params": {}}):
        with pytest.raises(ValueError, match="weights must be a registered name, a pa"):
            zoo.create("lenet5_modern", weights=weights)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zfnet64_small", {"dropout": 1.0}, "dropout must be 0 to below 1, got 1.0"),
        ("cifar_resnet20", {"momentum": -3.0}, "momentum must be 0 to below 1"),
        ("cifar_resnet20", {"width": -16}, "width must be 1 or more, got -16"),
        ("vgg11", {"dense": 0}, "dense must be 1 or more"),
        ("alexnet", {"widths": (8, 8)}, r"widths=\(8, 8\) must be 5 numbers"),
        ("vgg16", {"widths": (8,) * 7}, "must be 5 numbers"),
        ("msra_a", {"widths": (8,) * 5}, "must be 4 numbers"),
        ("fast_rcnn_vgg16", {"widths": (8,)}, "must be 5 numbers"),
        ("faster_rcnn_vgg16", {"widths": (8,) * 7}, "must be 5 numbers"),
        ("ssd300_vgg16", {"widths": (8,)}, "must be 5 numbers"),
        ("fcn32s_vgg16", {"widths": (8,) * 7}, "must be 5 numbers"),
        ("yolo96_small", {"widths": (8, 8)}, "must be 3 numbers"),
        ("unet_small", {"up_widths": (8,)}, "up_widths=.* must be 3 numbers"),
        (
            "lenet5",
            {"num_classes": "7"},
            "num_classes must be 0 .* got '7' .str",
        ),
        ("lenet5", {"num_classes": 2.5}, "num_classes must be 0 .* got 2.5 .float"),
        ("lenet5", {"num_classes": -1}, "num_classes must be 0 .no head. or"),
    ],
)
def test_options_out_of_range_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, **options)


def test_classes_are_checked_before_weights_are_read(caplog):
    with pytest.raises(ValueError, match="num_classes"):
        zoo.create("lenet5_modern", weights="digits", num_classes=-1)
    assert not caplog.text


@pytest.mark.parametrize("shape", [(0, 28, 28, 1), (1, 0, 28, 1), (1, 28, 0, 1)])
def test_images_without_pixels_are_said(lenet, shape):
    model, variables = lenet
    classify = zoo.make_classifier(model, LENET)
    for images in (np.zeros(shape, np.uint8), jax.numpy.zeros(shape, np.uint8)):
        with pytest.raises(ValueError, match="no images, or no pixels"):
            classify(variables, images)
    if shape[0]:
        with pytest.raises(ValueError, match="an image has no pixels"):
            classify(variables, [np.zeros(shape[1:], np.uint8)])


def test_channels_are_not_broadcast():
    preprocess = zoo.get_spec("resnet18").preprocess
    with pytest.raises(ValueError, match=r"1 channel\(s\), and the network takes 3"):
        zoo.normalize(np.zeros((2, 8, 8, 1), np.uint8), preprocess)


@pytest.mark.parametrize("name", ["ssd96_small", "yolo96_small", "rcnn_alexnet"])
def test_detectors_refuse_images_that_are_not_preprocessed(name):
    model = zoo.build(name)
    shape = (1, *zoo.get_spec(name).preprocess.shape)
    with pytest.raises(ValueError, match="preprocessed floating point, got uint8"):
        jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.uint8)
        )


def test_proposals_are_for_networks_that_take_them():
    model = zoo.build("ssd96_small")
    detect = zoo.make_detector(model)
    images = np.zeros((1, 96, 96, 3), np.uint8)
    with pytest.raises(ValueError, match="SSD takes no proposals"):
        detect({}, images, None, np.zeros((1, 2, 4)))


def test_regions_have_four_coordinates():
    model = zoo.build("rcnn_alexnet")
    image = np.zeros((30, 30, 3), np.uint8)
    for function in (zoo.make_region_detector(model), zoo.make_region_reader(model)):
        with pytest.raises(ValueError, match=r"boxes must be \[R, 4\].* got \[4, 5\]"):
            function({}, image, np.arange(20.0).reshape(4, 5))


def test_default_boxes_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        zoo.build("ssd96_small").default_boxes()[:] = 0
