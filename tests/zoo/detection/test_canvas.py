"""The scale of an image does not depend on the others of its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_detectors import Bright, draw, facts

import zoo
from zoo.preprocess import canvas_size, resize_and_pad, resized_size

SIDES = facts("sides", resize=64, longest=106)
SIZES = ((60, 45), (45, 60), (30, 90))


def make_images() -> list[np.ndarray]:
    return [draw(size, size, [(8, 3, 24, 7)]) for size in SIZES]


def test_images_of_mixed_orientation_have_the_sizes_that_they_have_alone(cheap_jit):
    images = make_images()
    arrays, sizes = zoo.pad_images(images)
    together = cheap_jit(lambda a: resize_and_pad(a, SIDES, sizes))(arrays)
    fit = cheap_jit(lambda a: resize_and_pad(a, SIDES))
    for i, image in enumerate(images):
        alone = jax.device_get(fit(image[None]))
        assert together.sizes[i].tolist() == alone.sizes[0].tolist()
        height, width = alone.sizes[0]
        np.testing.assert_allclose(
            together.images[i, :height, :width],
            alone.images[0, :height, :width],
            atol=1e-5,
        )
        assert not together.images[i, height:].any()


@pytest.mark.parametrize("kind", ["numpy", "jit"])
def test_detections_are_those_of_each_image_alone(kind, cheap_jit):
    images = make_images()
    variables = {"params": {"scale": jnp.ones(3)}}
    detect = zoo.make_detector(Bright(SIDES), score_threshold=0.3)
    arrays, sizes = zoo.pad_images(images)
    together = (cheap_jit(detect) if kind == "jit" else detect)(
        variables, arrays, sizes
    )
    for i, image in enumerate(images):
        alone = detect(variables, image[None])
        assert alone.valid.any()
        np.testing.assert_array_equal(together.valid[i], alone.valid[0])
        np.testing.assert_allclose(together.boxes[i], alone.boxes[0], atol=1e-3)
        np.testing.assert_allclose(together.scores[i], alone.scores[0], atol=1e-5)


def test_the_canvas_grows_with_the_images_as_torchvisions_does():
    sides = facts("sides", resize=800, longest=1333)
    one, two = (640, 480), (480, 640)
    assert canvas_size(640, 640, sides, sizes=np.array([one])) == (1088, 800)
    assert canvas_size(640, 640, sides, sizes=np.array([two])) == (800, 1088)
    assert canvas_size(640, 640, sides, sizes=np.array([one, two])) == (1088, 1088)
    fitted = jax.eval_shape(
        lambda a, s: resize_and_pad(a, sides, s),
        jax.ShapeDtypeStruct((1, 640, 640, 3), jnp.uint8),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    assert fitted.images.shape[1:3] == (1344, 1344)


def test_a_chosen_canvas_still_limits_each_image_by_itself(cheap_jit):
    arrays, sizes = zoo.pad_images(make_images())
    fit = cheap_jit(lambda a, s: resize_and_pad(a, SIDES, s, canvas=(64, 64)))
    fitted = fit(arrays, sizes)
    assert fitted.images.shape[1:3] == (64, 64)
    expected = [resized_size(*size, SIDES, canvas=(64, 64)) for size in SIZES]
    assert fitted.sizes.tolist() == [[*size] for size in expected]
