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
