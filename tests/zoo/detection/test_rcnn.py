"""R-CNN: warped regions, what is fitted on them, and what comes out in the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_rcnn import make_model

import zoo
from train.data.source import Source
from train.rcnn import FitConfig, LinearSVM, fit_head, overlaps
from zoo.detection.rcnn import warp

RNG = np.random.default_rng(0)


def warp_slowly(image, box, size, context):
    """The same by loops, from the text of the paper's appendix."""
    height, width = image.shape[:2]
    scale = size / (size - 2 * context)
    out = np.zeros((size, size, image.shape[2]))
    (x1, y1, x2, y2) = box
    for i in range(size):
        for j in range(size):
            y = (y1 + y2) / 2 + ((i + 0.5) / size - 0.5) * (y2 - y1) * scale - 0.5
            x = (x1 + x2) / 2 + ((j + 0.5) / size - 0.5) * (x2 - x1) * scale - 0.5
            if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
                continue
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[below, left] * (1 - x + left)
            lower = lower + image[below, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


def test_warps_as_loops_do():
    image = RNG.normal(size=(20, 31, 2)).astype(np.float32)
    boxes = np.array(
        [[3, 4, 17, 12], [0, 0, 31, 20], [-5, -6, 4, 3], [30, 19, 31, 20], [2, 2, 2, 9]]
        + [
            [*low, *(low + RNG.uniform(0.5, 15, 2))]
            for low in RNG.uniform(0, 15, (9, 2))
        ],
        np.float32,
    )
    found = warp(jnp.asarray(image), boxes, np.array([20, 31]), size=12, context=2)
    expected = np.stack([warp_slowly(image, b, 12, 2) for b in boxes])
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_borders_of_a_padded_image_are_not_seen():
    image = RNG.normal(size=(20, 30, 3)).astype(np.float32)
    padded = np.full((32, 32, 3), 9, np.float32)
    padded[:20, :30] = image
    boxes, extent = np.array([[10, 8, 40, 25]], np.float32), np.array([20, 30])
    plain, other = (warp(x, boxes, extent, size=9, context=1) for x in (image, padded))
    np.testing.assert_array_equal(plain, other)


def test_the_context_is_so_many_pixels_of_the_result():
    image = np.zeros((64, 64, 1), np.float32)
    image[16:48, 16:48] = 1
    box = np.array([[16, 16, 48, 48]], np.float32)
    (found,) = warp(image, box, np.array([64, 64]), size=32, context=4)
    inside = np.zeros((32, 32), bool)
    inside[4:28, 4:28] = True
    np.testing.assert_array_equal(np.asarray(found[..., 0]) > 0.5, inside)


@pytest.mark.parametrize("name", ["rcnn_alexnet", "rcnn_vgg16"])
def test_takes_a_classifiers_layers(name):
    model, classifier = zoo.build(name), zoo.build(name.removeprefix("rcnn_"))
    size = zoo.get_spec(name).preprocess.size
    shapes = [
        jax.eval_shape(m.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
        for m in (model, classifier)
    ]
    ours, theirs = (s["params"]["backbone"] for s in shapes)
    assert ours == theirs
    assert {*shapes[0]["params"]["head"]} == {"svm", "box"}


def test_options_that_are_out_of_range_are_said():
    with pytest.raises(ValueError, match="context=200 must be 0 to 112"):
        zoo.build("rcnn_alexnet", context=200)
    with pytest.raises(ValueError, match="batch=0 must be 1 or more"):
        zoo.make_region_detector(make_model(), batch=0)
    with pytest.raises(ValueError, match=r"iou_threshold=1\.5 must be 0 to 1"):
        zoo.make_region_detector(make_model(), iou_threshold=1.5)
    with pytest.raises(ValueError, match="max_detections=0 must be 1 or more"):
        zoo.make_region_detector(make_model(), max_detections=0)


class Squares(Source):
    """Images with a bright and a dark square on gray."""

    name, split, task = "squares", "train", "detection"
    class_names = ("bright", "dark")

    def __init__(self, count):
        self.labels = np.zeros(count, np.int32)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(110, 140, (48, 60, 3)).astype(np.uint8)
        # The left half has one, the right half the other.
        low = np.array([[rng.integers(0, 12), rng.integers(0, 30)] for _ in range(2)])
        low[1, 0] += 30
        side = rng.integers(10, 18, 2)
        for (x, y), n, level in zip(low, side, (250, 10), strict=True):
            image[y : y + n, x : x + n] = level
        boxes = np.concatenate([low, low + side[:, None]], axis=1).astype(np.float32)
        return {
            "image": image,
            "boxes": boxes,
            "classes": np.arange(2, dtype=np.int32),
            "difficult": np.zeros(2, bool),
        }


def propose(image):
    """Windows of three sizes on a grid: none is exactly right."""
    height, width = image.shape[:2]
    found = [
        [x, y, x + n, y + n]
        for n in (10, 13, 16)
        for y in range(0, height - n, 4)
        for x in range(0, width - n, 4)
    ]
    return np.array(found, np.float32)


CONFIG = FitConfig(cost=1e-3, ridge=1.0, retrain_every=50, norm_images=4)


def fit(config=CONFIG, images=12):
    model = make_model()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return model, fit_head(model, variables, Squares(images), propose, config=config)


@pytest.mark.apart
def test_finds_what_it_was_fitted_on():
    model, variables = fit()
    detect = zoo.make_region_detector(model, batch=32, max_detections=10)
    for index in range(100, 105):
        example = Squares(0)[index]
        found = detect(variables, example["image"], propose(example["image"]))
        boxes, scores, classes, valid = (np.asarray(v[0]) for v in found)
        assert valid.any()
        assert (np.diff(scores[valid]) <= 0).all()
        for box, k in zip(example["boxes"], example["classes"], strict=True):
            best = np.flatnonzero(valid & (classes == k))[0]
            assert overlaps(boxes[best][None], box[None]) > 0.7


def test_the_regressor_moves_boxes_nearer():
    model, variables = fit()
    read = zoo.make_region_reader(model, batch=32)
    decode = jax.jit(model.decode_regions)
    nearer = []
    for index in range(100, 110):
        example = Squares(0)[index]
        proposals = propose(example["image"])
        outputs = read(variables, example["image"], proposals)
        (moved,) = np.asarray(decode(outputs, proposals, np.float32([48, 60])).boxes)
        before = overlaps(proposals, example["boxes"])
        for k in range(2):
            near = before[:, k] > 0.6
            after = overlaps(moved[near, k], example["boxes"])[:, k]
            nearer += [*(after - before[near, k])]
    assert np.mean(nearer) > 0.05


def test_batches_do_not_change_what_is_read():
    model, variables = fit(images=3)
    image = Squares(0)[7]["image"]
    boxes = propose(image)
    reads = [
        zoo.make_region_reader(model, batch=b)(variables, image, boxes) for b in (7, 64)
    ]
    for name in ("margins", "deltas"):
        np.testing.assert_allclose(reads[0][name], reads[1][name], atol=1e-5)
        assert len(reads[0][name]) == len(boxes)


def test_an_image_without_proposals_has_no_detections():
    model, variables = fit(images=3)
    detect = zoo.make_region_detector(model)
    found = detect(variables, np.zeros((30, 40, 3), np.uint8), np.zeros((0, 4)))
    assert not found.valid.any()


def test_only_hard_negatives_are_kept():
    config = FitConfig(cost=0.01, retrain_every=10)
    positives = RNG.normal(3, 1, (40, 5)).astype(np.float32)
    svm = LinearSVM(positives, config)
    svm.mine(RNG.normal(-3, 1, (200, 5)).astype(np.float32))
    assert svm.fitted
    assert len(svm.negatives) < 200  # the easy ones are forgotten
    kept = len(svm.negatives)
    svm.mine(np.full((30, 5), -9, np.float32))
    assert len(svm.negatives) == kept
    svm.mine(np.full((1, 5), 2, np.float32))
    assert len(svm.negatives) == kept + 1


def test_a_class_without_objects_is_an_error():
    class Three(Squares):
        class_names = ("bright", "dark", "none")

    model = make_model(3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="class 'none' has no object"):
        fit_head(model, variables, Three(3), propose, config=CONFIG)


def test_difficult_objects_teach_nothing():
    class Difficult(Squares):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"difficult": np.ones(2, bool)}

    model = make_model()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="class 'bright' has no object"):
        fit_head(model, variables, Difficult(2), propose, config=CONFIG)


def test_every_setting_is_the_papers():
    assert dataclasses.astuple(FitConfig())[:8] == (
        *(20.0, 0.3, 1e-3, 2.0, 10.0, -1.0001, -1.2, 2000),
    )
