"""Detectors and segmentation networks, and every registered network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import random_variables

import zoo
from zoo.summary import abstract_variables


@pytest.mark.parametrize(
    ("name", "scores", "place", "channel"),
    [
        ("unet_small", "logits", (40, 50), 3),
        pytest.param("ssd96_small", "class_logits", (700,), 4, marks=pytest.mark.apart),
        pytest.param("yolo96_small", "classes", (5, 6), 2, marks=pytest.mark.apart),
        # Of its regions only the first one is valid with these variables.
        pytest.param(
            "faster_rcnn_small", "class_logits", (0,), 2, marks=pytest.mark.apart
        ),
    ],
)
def test_the_score_of_one_pixel_or_box(name, scores, place, channel):
    options = {"widths": (4, 5, 6, 7)} if name == "unet_small" else {}
    model, shape = zoo.build(name, **options), zoo.get_spec(name).preprocess.shape
    images = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    variables = random_variables(model, images)

    @jax.jit
    @jax.grad
    def gradient(images):
        out = model.apply(variables, images)
        return (out[scores] if isinstance(out, dict) else out)[(0, *place, channel)]

    expected = np.asarray(gradient(images))
    args = (model, variables, images, scores, channel, np.array([place]))
    found = np.asarray(zoo.explain.saliency(*args))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    for method in (zoo.explain.deconvnet, zoo.explain.guided_backprop):
        assert np.abs(method(*args)).max() > 0


@pytest.mark.apart
@pytest.mark.parametrize("name", zoo.list_models())
def test_every_network_is_projected(name):
    """Traced, not run: from an endpoint in the middle, by each rule that it has."""
    model, shape = zoo.build(name), zoo.get_spec(name).preprocess.shape
    endpoints = [k for k in zoo.list_endpoints(model, shape) if "mask" not in k]
    endpoint = endpoints[len(endpoints) // 2]
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    method = "saliency" if name == "lenet5" else "deconvnet"

    def project(variables, images):
        return getattr(zoo.explain, method)(model, variables, images, endpoint)

    found = jax.eval_shape(project, abstract_variables(model, shape), images)
    assert (found.shape, found.dtype) == ((2, *shape), jnp.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, v, x: zoo.explain.deconvnet(m, v, x, "conv2"),
        lambda m, v, x: zoo.explain.integrated_gradients(m, v, x, "logits"),
        lambda m, v, x: zoo.explain.grad_cam(m, v, x, "conv2"),
        lambda m, v, x: zoo.explain.occlusion(m, v, x, "conv2", size=9, stride=9),
        lambda m, v, x: zoo.explain.top_activations(m, v, [x], "conv2"),
        lambda m, v, x: zoo.explain.invariance(m, v, x, [0], [], ["conv2"]),
    ],
)
def test_images_of_the_wrong_size(call):
    model, variables = zoo.create("lenet5_modern")
    words = r"lenet5_modern takes images .*28.*, got \[1, 27, 28, 1\]"
    with pytest.raises(ValueError, match=words):
        call(model, variables, np.zeros((1, 27, 28, 1), np.float32))
