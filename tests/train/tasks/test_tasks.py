"""Tasks: what is minimized and measured, with networks that say what they are told."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from train.config import DataConfig, OptimConfig
from train.data import Source
from train.evaluate import Evaluator
from train.experiment import check_augment, fit_preprocess
from train.steps import make_mesh, make_prepare
from train.task import Task
from train.tasks import (
    TASKS,
    Detection,
    Segmentation,
    make_pixel_loss,
    make_task,
)
from zoo.detection.types import Candidates, LossSum, Postprocess
from zoo.ops.losses import segmentation_cross_entropy
from zoo.spec import PRIMARY_METRICS, Preprocess

# What the network sees are the image's own values, 0 to 255.
DETECTION = Preprocess(16, 3, (0.0,) * 3, (1 / 255,) * 3, fit="stretch")
SEGMENTATION = Preprocess(8, 1, (0.0,), (1 / 255,), fit="keep")


class Reader(nn.Module):
    """A detector that reads from the image's first row the one box that it says."""

    postprocess: Postprocess = Postprocess(0.1, 0.5, 4)
    good: float = 0.9

    @nn.compact
    def __call__(self, images, sizes=None, train=False, targets=None):
        scale = self.param("scale", nn.initializers.ones, ())
        return {"said": scale * images[:, 0, :5, 0], "sizes": sizes}

    def decode(self, outputs, sizes=None):
        boxes = outputs["said"][:, None, :4]
        scores = (
            self.good * jax.nn.one_hot(outputs["said"][:, 4].astype(int), 3)[:, None]
        )
        return Candidates(boxes, scores, jnp.ones(boxes.shape[:2], bool))

    def loss_sums(self, outputs, targets):
        said = outputs["said"][:, None, :4]
        distance = jnp.abs(said - targets.boxes).sum(-1)
        one = jnp.float32(1)
        return {
            "box": LossSum(jnp.where(targets.valid, distance, 0).sum(), one),
            "class": LossSum(targets.valid.sum(dtype=jnp.float32), one),
        }


class Boxes(Source):
    """Images that say their first object in their first row."""

    task, name, split, class_names = "detection", "boxes", "test", ("a", "b", "c")

    def __init__(self, boxes, classes, difficult):
        self.boxes, self.classes, self.difficult = boxes, classes, difficult

    def __len__(self):
        return len(self.boxes)

    def image(self, index):
        return self.example(index)["image"]

    def provenance(self, index):
        return f"boxes #{index}"

    def example(self, index):
        image = np.zeros((16, 16, 3), np.uint8)
        image[0, :4, 0] = self.boxes[index][0]
        image[0, 4, 0] = self.classes[index][0]
        return {
            "image": image,
            "boxes": np.array(self.boxes[index], np.float32),
            "classes": np.array(self.classes[index], np.int32),
            "difficult": np.array(self.difficult[index]),
        }


def make_boxes():
    """Five images: the first object of each is found, the second one is missed."""
    boxes = [[[1 + i, 2, 9 + i, 12], [8, 8, 15, 15]] for i in range(5)]
    classes = [[i % 3, 1] for i in range(5)]
    difficult = [[False, i < 3] for i in range(5)]
    return Boxes(boxes, classes, difficult)


VARIABLES = {"params": {"scale": jnp.asarray(1.0)}}


def evaluate(model, source, batch_size, variables=VARIABLES):
    mesh = make_mesh(jax.devices()[:1])
    evaluator = Evaluator(
        model, Detection(), source, DETECTION, mesh, batch_size, max_boxes=3
    )
    return evaluator(variables)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_detections_of_every_image_count_once(batch_size):
    found = evaluate(Reader(), make_boxes(), batch_size)
    metrics = found.metrics
    assert (metrics["images"], metrics["objects"], metrics["detections"]) == (5, 7, 5)
    # Class 1 has four objects that are not difficult; of these two were found.
    assert found.precision == pytest.approx([1.0, 0.5, 1.0])
    assert metrics["ap50"] == pytest.approx(2.5 / 3)
    assert found.detections.boxes.shape == (5, 4, 4)
    np.testing.assert_array_equal(found.detections.boxes[:, 0, 0], [1, 2, 3, 4, 5])
    assert found.objects.valid.sum() == 10
    recall, precision = found.curves[1]
    assert recall[-1] == 0.5
    assert (precision == 1).all()


def test_boxes_are_measured_in_pixels_of_the_stored_image():
    batch = {
        "size": np.array([[16, 16]]),
        "original_size": np.array([[32, 64]]),
        "boxes": np.array([[[1, 2, 9, 12]]], np.float32),
        "classes": np.zeros((1, 1), np.int32),
        "box_valid": np.ones((1, 1), bool),
        "difficult": np.zeros((1, 1), bool),
    }
    images = jnp.zeros((1, 16, 16, 3)).at[0, 0, :4, 0].set(jnp.array([1, 2, 9, 12]))
    step = jax.jit(partial(Detection().evaluate, Reader()))
    _, each = step(VARIABLES, images, (), batch)
    np.testing.assert_allclose(each["boxes"][0, 0], [4, 4, 36, 24])
    np.testing.assert_allclose(each["object_boxes"][0, 0], [4, 4, 36, 24])


def test_a_network_that_is_not_finite_has_no_average_precision():
    variables = {"params": {"scale": jnp.asarray(jnp.nan)}}
    found = evaluate(Reader(good=jnp.nan), make_boxes(), 2, variables)
    assert np.isnan(found.metrics["ap50"])


def test_a_set_without_objects_is_refused():
    source = make_boxes()
    source.difficult = [[True, True]] * 5
    with pytest.raises(ValueError, match="none of the 5 images has an object"):
        evaluate(Reader(), source, 2)


@pytest.mark.parametrize(("difficult", "count"), [(False, 1), (True, 2)])
def test_targets_are_what_is_valid_and_not_difficult(difficult, count):
    batch = {
        "index": np.array([0]),
        "size": np.array([[16, 16]]),
        "boxes": np.array([[[1, 2, 9, 12], [0, 0, 4, 4], [9, 9, 9, 9]]], np.float32),
        "classes": np.zeros((1, 3), np.int32),
        "box_valid": np.array([[True, True, False]]),
        "difficult": np.array([[False, True, False]]),
    }
    images = jnp.zeros((1, 16, 16, 3))
    loss, scalars, statistics = Detection(difficult).objective(
        Reader(), VARIABLES, images, batch, {"sample": jax.random.key(0)}
    )
    assert float(scalars["class"]) == count
    assert float(scalars["box"]) == 24 + 8 * (count - 1)
    assert float(loss) == float(scalars["class"] + scalars["box"])
    assert statistics == {}


class Painter(nn.Module):
    """Says as each pixel's class its value, of all or of the middle of the image."""

    margin: int = 0

    @nn.compact
    def __call__(self, images, train=False):
        return self.endpoints(images, train)["logits"]

    @nn.compact
    def endpoints(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        m = self.margin
        logits = scale * 9 * jax.nn.one_hot(images[..., 0].astype(int), 3)
        logits = logits[:, m : 8 - m, m : 8 - m]
        return {"aux": -logits, "logits": logits}


def paint():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    image = mask.copy()
    image[0, :4] = (image[0, :4] + 1) % 3  # Wrong: half of the first image,
    mask[0, 0] = 255  # of which an eighth does not count.
    return image[..., None].astype(np.float32), mask


@pytest.mark.parametrize("margin", [0, 2])
def test_pixels_that_count_are_those_of_the_logits(margin):
    images, mask = paint()
    batch = {"mask": mask, "valid": np.array([True, True])}
    task = Segmentation(segmentation_cross_entropy)
    args = Painter(margin), VARIABLES, images
    state, each = task.evaluate(*args, task.empty(3), batch)
    part = slice(margin, 8 - margin)
    counts = mask[:, part, part] != 255
    hits = (images[..., 0] == mask)[:, part, part] & counts
    expected = hits.sum((1, 2)) / counts.sum((1, 2))
    np.testing.assert_allclose(each["right"], expected, rtol=1e-6)
    found = task.collect(state, {"right": np.asarray(each["right"])}, ("a", "b", "c"))
    assert found.metrics["pixels"] == counts.sum()
    assert found.metrics["pixel_accuracy"] == pytest.approx(hits.sum() / counts.sum())
    assert found.confusion.sum() == counts.sum()
    _, scalars, _ = task.objective(*args, batch, {})
    assert float(scalars["pixel_accuracy"]) == pytest.approx(hits.sum() / counts.sum())


def test_padding_is_not_evaluated():
    images, mask = paint()
    task = Segmentation(segmentation_cross_entropy)
    batch = {"mask": mask, "valid": np.array([False, True])}
    state, each = task.evaluate(Painter(), VARIABLES, images, task.empty(3), batch)
    found = task.collect(state, each, ("a", "b", "c"))
    assert (found.metrics["images"], found.metrics["pixels"]) == (1, 64)
    assert found.metrics["mean_iou"] == 1


def test_auxiliary_logits_are_added_with_their_factor():
    images, mask = paint()
    losses = {}
    for factor in (0.0, 0.4):
        task = Segmentation(segmentation_cross_entropy, (("aux", factor), ("no", 9)))
        batch = {"mask": mask}
        losses[factor] = task.objective(Painter(), VARIABLES, images, batch, {})[0]
    out = Painter().apply(VARIABLES, images, method="endpoints")
    aux = segmentation_cross_entropy(out["aux"], mask).mean()
    assert float(losses[0.4] - losses[0.0]) == pytest.approx(0.4 * float(aux), rel=1e-5)


def test_auxiliary_logits_may_have_a_loss_of_their_own():
    images, mask = paint()
    batch, twice = {"mask": mask}, lambda *args: 2 * segmentation_cross_entropy(*args)
    one, two = (
        Segmentation(segmentation_cross_entropy, (("aux", 0.4),), aux_loss)
        for aux_loss in (None, twice)
    )
    losses = [
        task.objective(Painter(), VARIABLES, images, batch, {})[0]
        for task in (one, two)
    ]
    out = Painter().apply(VARIABLES, images, method="endpoints")
    aux = segmentation_cross_entropy(out["aux"], mask).mean()
    assert float(losses[1] - losses[0]) == pytest.approx(0.4 * float(aux), rel=1e-5)


def test_background_counts_less():
    images, mask = paint()
    logits = Painter().apply(VARIABLES, images)
    found = make_pixel_loss("background:0.25")(logits, mask)
    weights = (0.25, 1.0, 1.0)
    expected = segmentation_cross_entropy(logits, mask, class_weights=weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.asarray(mask) == 0).any()
    only = make_pixel_loss("background:0")(logits, jnp.where(mask == 255, 255, 0))
    np.testing.assert_array_equal(only, 0.0)


def test_losses_of_pixels_by_name():
    images, mask = paint()
    logits = Painter().apply(VARIABLES, images)
    plain = make_pixel_loss("softmax_cross_entropy")(logits, mask)
    weighted = make_pixel_loss("median_frequency", (2.0, 2.0, 2.0))(logits, mask)
    np.testing.assert_allclose(weighted, 2 * plain, rtol=1e-6)
    worst = make_pixel_loss("bootstrapped_cross_entropy:4")(logits, mask)
    assert (np.asarray(worst) >= np.asarray(plain)).all()
    for name, message in (
        ("softmax", "did you mean softmax_cross_entropy"),
        ("median_frequency", "needs the classes' weights"),
        ("bootstrapped_cross_entropy", "must say of how many pixels"),
        ("bootstrapped_cross_entropy:0", "must say of how many pixels"),
        ("background", "must say how much the background counts, 0 or more"),
        ("background:-1", "must say how much the background counts, 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            make_pixel_loss(name)


def test_options_that_do_not_fit_the_task_are_refused():
    detector = zoo.get_spec("ssd96_small")
    with pytest.raises(ValueError, match="has losses of its own, and not 'x'"):
        make_task(detector, OptimConfig(loss="x"))
    with pytest.raises(ValueError, match="aux_loss='x' is of pixels; ssd96_small is"):
        make_task(detector, OptimConfig(aux_loss="x"))
    with pytest.raises(ValueError, match="auxiliary scores, which segnet has not"):
        make_task(zoo.get_spec("segnet"), OptimConfig(aux_loss="median_frequency"))
    with pytest.raises(ValueError, match="label smoothing is for classifiers"):
        make_task(detector, OptimConfig(label_smoothing=0.1))
    assert make_task(detector, data=DataConfig("", difficult=True)) == Detection(True)
    for name in ("rcnn_vgg16", "fast_rcnn_vgg16"):
        with pytest.raises(
            ValueError, match=f"{name} reads regions, and a data set has"
        ):
            make_task(zoo.get_spec(name))
    with pytest.raises(ValueError, match=r"data.augment=flip moves .* data.geometry"):
        check_augment(("photometric", "flip"), Detection)
    check_augment(("photometric",), TASKS["segmentation"])
    check_augment(("flip",), TASKS["classification"])


def test_what_an_image_does_not_fill_is_of_the_mean_color():
    pre = Preprocess(4, 1, (0.5,), (0.25,), fit="keep")
    batch = {"image": np.full((2, 4, 4, 1), 255, np.uint8)}
    batch["size"] = np.array([[4, 4], [2, 3]], np.int32)
    images = np.asarray(make_prepare(pre, None)(None, batch))[..., 0]
    assert (images[0] == 2).all()
    expected = np.zeros((4, 4))
    expected[:2, :3] = 2
    np.testing.assert_array_equal(images[1], expected)


def test_the_input_is_as_large_as_the_config_says():
    pre = fit_preprocess(SEGMENTATION, "", (12, 20))
    assert pre.shape == (12, 20, 1)
    assert fit_preprocess(SEGMENTATION, "stretch", ()).fit == "stretch"
    assert fit_preprocess(SEGMENTATION, "", ()) == SEGMENTATION


def test_every_network_has_a_task_with_a_primary_metric():
    specs = [zoo.get_spec(name) for name in zoo.list_models()]
    assert {spec.task for spec in specs} == {*TASKS}
    for name, task in TASKS.items():
        assert task.name == name
        assert task.primary_metric == PRIMARY_METRICS[name]
        assert issubclass(task, Task)
        assert callable(task.report)
    # Each is made from the facts of the network alone.
    for spec in specs:
        if not spec.reads_regions:
            assert make_task(spec).name == spec.task
