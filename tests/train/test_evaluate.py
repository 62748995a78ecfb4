"""Evaluation counts each image once, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from train.data import array_source
from train.evaluate import Evaluator
from train.steps import make_mesh
from train.tasks import Classification, softmax_cross_entropy
from zoo.spec import Preprocess

PREPROCESS = Preprocess(size=4, channels=1, mean=(0.0,), std=(1.0,))
COUNT = 23


class Peek(nn.Module):
    """Reads the class that it says from the first pixel: 10 a class."""

    classes: int = 7

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        said = jnp.round(images[:, 0, 0, 0] * 25.5)
        distance = jnp.abs(said[:, None] - jnp.arange(self.classes)[None])
        return -scale * distance


def make_source():
    labels = np.arange(COUNT) % 7
    said = labels.copy()
    said[[2, 9, 22]] = [0, 6, 5]  # Three wrong: true classes 2, 2 and 1.
    images = np.zeros((COUNT, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = 10 * said
    return array_source(images, labels), said


def make_evaluator(batch_size, source=None, megabytes=1024):
    return Evaluator(
        Peek(),
        Classification(softmax_cross_entropy),
        source or make_source()[0],
        PREPROCESS,
        make_mesh(jax.devices()[:1]),
        batch_size,
        kept_megabytes=megabytes,
    )


VARIABLES = {"params": {"scale": jnp.asarray(1.0)}}


@pytest.mark.parametrize("megabytes", [1024, 0], ids=["kept", "streamed"])
@pytest.mark.parametrize("batch_size", [1, 5, 8, 23, 64])
def test_every_image_counts_once(batch_size, megabytes):
    source, said = make_source()
    evaluator = make_evaluator(batch_size, source, megabytes)
    found, confusion, predictions = evaluator(VARIABLES)
    assert (found["count"], found["correct"]) == (23, 20)
    assert found["accuracy"] == pytest.approx(20 / 23)
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (source.labels, said), 1)
    np.testing.assert_array_equal(confusion, expected)
    np.testing.assert_array_equal(predictions.predicted, said)
    logits = -np.abs(said[:, None] - np.arange(7.0))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(predictions.probability, p.max(1), rtol=1e-5)
    losses = -np.log(p[np.arange(COUNT), source.labels])
    np.testing.assert_allclose(predictions.loss, losses, rtol=1e-5)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    five = np.abs(said[:, None] - np.arange(7.0))
    rank = (five < five[np.arange(COUNT), source.labels][:, None]).sum(1)
    assert found["top5"] == pytest.approx((rank < 5).mean())


@pytest.mark.parametrize("megabytes", [1024, 0], ids=["kept", "streamed"])
def test_an_evaluation_begins_anew_each_time(megabytes):
    evaluator = make_evaluator(8, megabytes=megabytes)
    first, again = evaluator(VARIABLES)[0], evaluator(VARIABLES)[0]
    assert first == again
    other = evaluator({"params": {"scale": jnp.asarray(0.5)}})[0]
    assert other["loss"] != first["loss"]
    assert other["count"] == 23


@pytest.mark.parametrize(("megabytes", "reads"), [(1024, 23), (0, 46)])
def test_a_small_set_is_read_once_and_a_large_one_each_time(
    megabytes, reads, monkeypatch
):
    source, _ = make_source()
    count, image = [], type(source).image
    monkeypatch.setattr(
        type(source), "image", lambda self, i: count.append(i) or image(self, i)
    )
    evaluator = make_evaluator(8, source, megabytes)
    evaluator(VARIABLES)
    evaluator(VARIABLES)
    assert len(count) == reads


def test_a_set_of_few_classes_has_no_top5():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    source = array_source(images, np.arange(3))
    evaluator = Evaluator(
        Peek(3),
        Classification(softmax_cross_entropy),
        source,
        PREPROCESS,
        make_mesh(jax.devices()[:1]),
        2,
    )
    assert evaluator(VARIABLES)[0].keys() == {"count", "correct", "accuracy", "loss"}
