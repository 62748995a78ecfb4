"""Averaged gradients, class activation maps and occlusion."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from tiny_explained import make_tiny

import zoo
from zoo import explain
from zoo.ops.resize import resize


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


def endpoint(tiny, name, images=None):
    model, variables, own = tiny
    images = own if images is None else images
    return np.asarray(model.apply(variables, images, method="endpoints")[name])


def test_smooth_grad_is_the_mean_gradient_of_noisy_images(tiny):
    model, variables, images = tiny
    key, samples, noise = jax.random.key(3), 3, 0.2
    place = np.array([[1, 2], [0, 3]])
    args = (model, variables, images, "conv2", 1, place)
    found = explain.smooth_grad(*args, key=key, samples=samples, noise=noise)
    span = images.max((1, 2, 3)) - images.min((1, 2, 3))
    expected = 0
    for own in jax.random.split(key, samples):
        drawn = jax.random.normal(own, images.shape)
        noisy = images + noise * span.reshape(-1, 1, 1, 1) * drawn
        expected += explain.saliency(model, variables, noisy, "conv2", 1, place)
    np.testing.assert_allclose(found, expected / samples, atol=1e-5)


def test_without_noise_it_is_the_gradient(tiny):
    key = jax.random.key(0)
    found = explain.smooth_grad(*tiny, "logits", 2, key=key, samples=2, noise=0.0)
    np.testing.assert_allclose(found, explain.saliency(*tiny, "logits", 2), atol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, "image"])
def test_integrated_gradients_sum_up_to_the_change(tiny, baseline):
    images = tiny[2]
    if baseline == "image":
        baseline = images[::-1] / 2
    options = dict(baseline=baseline)
    maps = explain.integrated_gradients(*tiny, "logits", 1, steps=1024, **options)
    start = endpoint(tiny, "logits", np.broadcast_to(baseline, images.shape))
    change = endpoint(tiny, "logits")[:, 1] - start[:, 1]
    assert np.abs(change).min() > 0.01
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), change, rtol=1e-3)
    error = explain.completeness_error(*tiny, "logits", maps, 1, **options)
    assert error.shape == (2,)
    assert error.max() < 1e-3
    wrong = explain.completeness_error(*tiny, "logits", 2 * maps, 1, **options)
    assert wrong.min() > 5e-3


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_maps_do_not_depend_on_how_many_copies_are_seen_at_once(tiny, chunk):
    key = jax.random.key(0)
    for method, options in (
        (explain.integrated_gradients, dict(steps=6)),
        (explain.smooth_grad, dict(key=key, samples=6)),
    ):
        expected = method(*tiny, "logits", np.array([0, 2]), **options)
        found = method(*tiny, "logits", np.array([0, 2]), chunk=chunk, **options)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, v, x: explain.integrated_gradients(m, v, x, "conv2", steps=4),
        lambda m, v, x: explain.smooth_grad(
            m, v, x, "conv2", key=jax.random.key(1), samples=2
        ),
        lambda m, v, x: explain.grad_cam(m, v, x, "conv1"),
        lambda m, v, x: explain.occlusion(m, v, x, "conv2", size=6, stride=6)[0],
    ],
    ids=("integrated_gradients", "smooth_grad", "grad_cam", "occlusion"),
)
def test_under_jit_and_vmap(tiny, call):
    model, variables, images = tiny
    expected = [call(model, variables, image[None])[0] for image in images]
    found = jax.jit(jax.vmap(lambda image: call(model, variables, image[None])[0]))(
        images
    )
    assert np.abs(np.stack(expected)).max() > 0
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)


def test_grad_cam_by_hand(tiny):
    """The head is linear and reads the mean of conv2: the weights are its kernel's."""
    kernel = tiny[1]["params"]["head"]["fc"]["kernel"]
    places = 4 * 4
    maps = endpoint(tiny, "conv2") @ kernel / places
    expected = np.maximum(maps[[0, 1], :, :, [2, 0]], 0)[..., None]
    found = explain.grad_cam(*tiny, "conv2", np.array([2, 0]))
    assert found.shape == (2, 12, 12, 1)
    small = resize(expected, (12, 12), antialias=False)
    np.testing.assert_allclose(found, small, atol=1e-6)
    assert found.max() > 0


@pytest.mark.apart
def test_grad_cam_of_recomputed_and_scanned_networks():
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    maps = []
    for options in ({}, {"remat": True}, {"scan": True}):
        model, variables = zoo.create("cifar_resnet20", **options)
        maps.append(explain.grad_cam(model, variables, images, "stage2", 3))
    assert maps[0].max() > 0
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-5 * maps[0].max())


def slow_occlusion(tiny, name, size, stride, fill, channels, labels):
    """One square after another, each in an image of its own."""
    _, _, images = tiny
    tops = range(0, images.shape[1] - size + stride, stride)
    maps = []
    for top in tops:
        for left in tops:
            hidden = images.copy()
            hidden[:, top : top + size, left : left + size] = fill
            sums = endpoint(tiny, name, hidden).sum(axis=(1, 2))
            shares = np.asarray(jax.nn.softmax(endpoint(tiny, "logits", hidden)))
            own = sums[[0, 1], channels], shares[[0, 1], labels], shares.argmax(-1)
            maps.append(own)
    shape = (2, len(tops), len(tops))
    return [np.stack(each, axis=1).reshape(shape) for each in zip(*maps, strict=True)]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_occlusion_gives_the_three_maps(tiny, chunk):
    labels, fill = np.array([0, 2]), np.array([0.5, -0.5], np.float32)
    options = dict(size=5, stride=3, fill=fill)
    found = explain.occlusion(*tiny, "conv2", labels=labels, chunk=chunk, **options)
    sums = endpoint(tiny, "conv2").sum(axis=(1, 2))
    np.testing.assert_array_equal(found.channels, sums.argmax(-1))
    expected = slow_occlusion(tiny, "conv2", 5, 3, fill, sums.argmax(-1), labels)
    assert found.activation.shape == (2, 4, 4)
    np.testing.assert_allclose(found.activation, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.probability, expected[1], atol=1e-5)
    np.testing.assert_array_equal(found.predicted, expected[2])
    assert found.corners[-1].tolist() == [9, 9]


def test_memory_of_occlusion_does_not_grow_with_positions(tiny):
    model, variables, images = tiny
    sizes = []
    for stride in (8, 1):  # 4 squares of each image, and 81.

        def run(images, stride=stride):
            options = dict(size=4, stride=stride, chunk=4)
            return explain.occlusion(model, variables, images, "conv2", **options)[:2]

        memory = jax.jit(run).lower(images).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    # A few numbers for each square, where an image has 288.
    assert sizes[1] - sizes[0] < 2 * 77 * 40


def test_occlusion_of_a_network_without_scores():
    model, variables = zoo.create("cifar_resnet20", num_classes=0)
    images = np.ones((1, 16, 16, 3), np.float32)
    options = dict(size=8, stride=8)
    found = explain.occlusion(
        model, variables, images, "stage1", scores=None, **options
    )
    assert found.probability is None
    assert found.activation.shape == (1, 2, 2)


def test_a_second_call_does_not_trace_the_network_again(tiny):
    model, variables, images = tiny
    boxes = np.array([[2, 2, 6, 6]] * len(images))
    labels, moves = [0] * len(images), explain.translations([1])

    def run(boxes):
        explain.correspondence(model, variables, images, boxes, "conv2")
        explain.invariance(model, variables, images, labels, moves, ["conv2"])

    calls = []

    def count(call, args, kwargs, context):
        calls.append(context.module.path)
        return call(*args, **kwargs)

    run(boxes)
    with nn.intercept_methods(count):
        run(boxes + 1)
    assert not calls


def test_correspondence_of_one_image_with_itself(tiny):
    model, variables, images = tiny
    same = np.repeat(images[:1], 2, axis=0)
    box = np.array([[2, 3, 7, 8]] * 2)
    assert explain.correspondence(model, variables, same, box, "conv2") == 0
    found = explain.correspondence(model, variables, images, box, "conv2")
    assert 0 < found <= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda *a: explain.grad_cam(*a, "conv2", 3), r"classes.*\[3\].*0 to 2"),
        (lambda *a: explain.grad_cam(*a, "pool"), "needs a map"),
        (lambda *a: explain.grad_cam(*a, "conv2", scores="pool1"), "does not depend"),
        (lambda *a: explain.grad_cam(*a, "conv9"), "'conv9'.*conv1"),
        (
            lambda *a: explain.smooth_grad(*a, "conv2", key=None, samples=0),
            "samples must be 1",
        ),
        (
            lambda *a: explain.integrated_gradients(*a, "conv2", chunk=0),
            "chunk must be 1",
        ),
        (lambda *a: explain.integrated_gradients(*a, "conv2", steps=0), "steps"),
        (
            lambda *a: explain.integrated_gradients(
                *a, "conv2", baseline=np.zeros((3, 3))
            ),
            "baseline",
        ),
        (
            lambda *a: explain.occlusion(*a, "conv2", size=13, stride=1),
            "size=13.*12 x 12",
        ),
        (lambda *a: explain.occlusion(*a, "conv2", size=3, stride=0), "stride"),
        (
            lambda *a: explain.occlusion(*a, "conv2", size=3, stride=3, labels=5),
            r"labels.*\[5\]",
        ),
        (
            lambda *a: explain.occlusion(*a, "conv2", size=3, stride=3, fill=[1.0] * 3),
            "fill",
        ),
    ],
)
def test_bad_input(tiny, call, words):
    with pytest.raises(ValueError, match=words):
        call(*tiny)
