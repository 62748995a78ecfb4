"""The parts of a batch, one after the other, are the whole batch to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from torch_nets import random_variables

import zoo
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.tasks import Detection, Segmentation, make_pixel_loss
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess

RNG = np.random.default_rng(0)
COUNT = 6
# Objects of each image: the parts of a batch have very different numbers, one has none.
OBJECTS = (9, 0, 1, 0, 4, 0)


def detection_batch(size: int, classes: int) -> dict[str, jax.Array]:
    corners = RNG.uniform(0, size - 40, (COUNT, max(OBJECTS), 2))
    sides = RNG.uniform(14, 40, (COUNT, max(OBJECTS), 2))
    valid = np.arange(max(OBJECTS))[None] < np.array(OBJECTS)[:, None]
    return {
        "image": jnp.asarray(RNG.integers(0, 256, (COUNT, size, size, 3)), jnp.uint8),
        "index": jnp.arange(COUNT, dtype=jnp.int32) + 17,
        "size": jnp.full((COUNT, 2), size, jnp.int32),
        "boxes": jnp.asarray(np.concatenate([corners, corners + sides], -1), "float32"),
        "classes": jnp.asarray(RNG.integers(0, classes, valid.shape), jnp.int32),
        "box_valid": jnp.asarray(valid),
        "difficult": jnp.zeros(valid.shape, bool),
    }


class Backbone(nn.Module):
    """A convolution without batch norm."""

    @nn.compact
    def __call__(self, images, train=False):
        return {"conv": nn.Conv(4, (3, 3), name="conv")(images)}


class Head(nn.Module):
    """Scores of three classes."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, features, size, train=False):
        return {"logits": nn.Conv(3, (1, 1), name="conv")(features["conv"])}


def segmentation_batch() -> dict[str, jax.Array]:
    """Images of which 1 to all pixels are ignored."""
    masks = RNG.integers(0, 3, (COUNT, 8, 8)).astype(np.uint8)
    for i, rows in enumerate((0, 7, 3, 8, 1, 6)):
        masks[i, :rows] = 255
    return {
        "image": jnp.asarray(RNG.integers(0, 256, (COUNT, 8, 8, 3)), jnp.uint8),
        "index": jnp.arange(COUNT, dtype=jnp.int32),
        "mask": jnp.asarray(masks),
    }


def assert_parts_are_the_whole(jit, model, variables, task, batch, parts, frozen=()):
    tx = optax.sgd(1.0)
    state = create_state(variables, tx, frozen=frozen)

    def make(accumulate):
        step = make_train_step(
            model,
            task,
            tx,
            schedule=lambda step: 1.0,
            prepare=make_prepare(model.preprocess, None),
            seed=3,
            frozen=frozen,
            accumulate=accumulate,
        )
        new, scalars = jit(step)(state, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, new.params)
        return moved, scalars

    (whole, scalars), (split, others) = make(1), make(parts)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    assert scale > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * scale),
        whole,
        split,
    )
    for name, value in scalars.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ssd96_small", 3),
        pytest.param("faster_rcnn_small", 2, marks=pytest.mark.apart),
        pytest.param("yolo96_small", 2, marks=pytest.mark.apart),
    ],
)
def test_detectors_whose_images_have_different_numbers_of_objects(
    cheap_jit, name, parts
):
    model = zoo.build(name, num_classes=3)
    batch = detection_batch(model.preprocess.size, 3)
    images = jnp.zeros(batch["image"].shape)
    variables = random_variables(model, images)
    # Frozen batch norm has no statistics of the batch.
    frozen = ("backbone/**",)
    args = (cheap_jit, model, variables, Detection(), batch, parts)
    assert_parts_are_the_whole(*args, frozen)


@pytest.mark.parametrize(
    "loss",
    [
        make_pixel_loss("softmax_cross_entropy"),
        make_pixel_loss("median_frequency", (0.2, 1.0, 5.0)),
        make_pixel_loss("bootstrapped_cross_entropy:20"),
    ],
    ids=["plain", "weighted classes", "worst pixels"],
)
@pytest.mark.parametrize("parts", [2, 3])
def test_masks_of_which_different_numbers_of_pixels_are_ignored(cheap_jit, loss, parts):
    preprocess = Preprocess(8, 3, (0.5,) * 3, (0.2,) * 3, fit="keep")
    model = Segmenter(Backbone(), Head(), label="small", preprocess=preprocess)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    batch = segmentation_batch()
    args = (cheap_jit, model, variables, Segmentation(loss), batch, parts)
    assert_parts_are_the_whole(*args)
