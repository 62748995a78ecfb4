"""From uint8 images of any size to masks, with networks small enough to restate."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from zoo.ops.resize import resize
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess
from zoo.summary import abstract_variables

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
PREPROCESS = Preprocess(
    size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, fit="keep"
)


class Backbone(nn.Module):
    """A convolution, which notices what is beyond the border.

    Attributes:
      note: Called with the images' height and width at each tracing.
    """

    padding: str = "SAME"
    window: int = 3
    note: Callable = print

    @nn.compact
    def __call__(self, images, train=False):
        self.note(images.shape[1:3])
        window = (self.window,) * 2
        return {"conv": nn.Conv(5, window, padding=self.padding, name="conv")(images)}


class Head(nn.Module):
    """Scores of five classes, the endpoint itself."""

    num_classes: int = 5

    def __call__(self, features, size, train=False):
        return {"logits": features["conv"]}


def make(*, note=len, padding="SAME", window=3, **options):
    model = Segmenter(
        Backbone(padding, window, note),
        Head(),
        label="small",
        preprocess=PREPROCESS,
        **options,
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, variables


def make_images(height, width, count=2):
    return RNG.integers(0, 256, (count, height, width, 3), np.uint8)


@partial(jax.jit, static_argnames="model")
def probabilities(model, variables, images):
    return jax.nn.softmax(model.apply(variables, images))


def check(found, expected, **tolerance):
    """`expected` is [B, h, w, K]; a pixel between two classes may be either."""
    expected = np.asarray(expected)
    assert (found.classes.dtype, found.scores.dtype) == (np.uint8, np.float32)
    assert found.classes.shape == found.scores.shape == expected.shape[:3]
    best = expected.max(axis=-1)
    tolerance = {"rtol": 1e-5, "atol": 1e-6, **tolerance}
    np.testing.assert_allclose(found.scores, best, **tolerance)
    index = found.classes[..., None].astype(int)
    chosen = np.take_along_axis(expected, index, axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, best, **tolerance)
    assert (found.classes == expected.argmax(axis=-1)).mean() > 0.999


@pytest.mark.parametrize("bucket", [1, 32])
@pytest.mark.parametrize("size", [(32, 64), (33, 41), (8, 100)])
def test_the_border_is_that_of_the_image_itself(size, bucket):
    model, variables = make()
    images = make_images(*size)
    segment = zoo.make_segmenter(model, bucket=bucket)
    normal = zoo.normalize(images, PREPROCESS)
    check(segment(variables, images), probabilities(model, variables, normal))


def test_a_folder_of_many_sizes_is_compiled_few_times():
    seen = []
    model, variables = make(note=seen.append)
    seen.clear()
    segment = zoo.make_segmenter(model)
    for size in RNG.integers(65, 129, (20, 2)):
        assert segment(variables, make_images(*size, 1)).classes.shape == (1, *size)
    assert seen == [(128, 128)]
    segment(variables, make_images(129, 70, 1))
    assert seen == [(128, 128), (192, 128)]


@pytest.mark.parametrize(("stride", "remainder"), [(8, 1), (16, 0), (1, 0), (32, 12)])
def test_sizes_are_what_the_stride_demands(stride, remainder):
    seen = []
    model, variables = make(note=seen.append, stride=stride, remainder=remainder)
    for bucket in (1, 64):
        segment = zoo.make_segmenter(model, bucket=bucket)
        for height, width in ((65, 64), (31, 150)):
            seen.clear()
            segment(variables, make_images(height, width, 1))
            ((rows, columns),) = seen
            for side, least in ((rows, height), (columns, width)):
                assert side % stride == remainder
                assert least <= side < least + max(bucket, stride)


@pytest.mark.parametrize("size", [(30, 41), (9, 70), (4, 4)])
def test_a_network_without_padding_sees_a_mirrored_border(size):
    facts = dict(margin=3, stride=4, remainder=2, min_size=10)
    model, variables = make(padding="VALID", window=7, **facts)
    images = make_images(*size)
    more = ((0, 0), (3, 3), (3, 3), (0, 0))
    normal = zoo.normalize(np.pad(images, more, mode="reflect"), PREPROCESS)
    expected = probabilities(model, variables, normal)
    check(zoo.make_segmenter(model)(variables, images), expected)


def test_flipping_averages_both_sides():
    model, variables = make()
    images = make_images(33, 41)
    normal = zoo.normalize(images, PREPROCESS)
    plain = probabilities(model, variables, normal)
    mirrored = probabilities(model, variables, normal[:, :, ::-1])[:, :, ::-1]
    assert abs(plain - mirrored).max() > 0.1
    segment = zoo.make_segmenter(model, flip=True)
    check(segment(variables, images), (plain + mirrored) / 2)


@pytest.mark.parametrize("size", [(64, 32), (40, 44)])
def test_scales_average_what_is_seen_at_each(size):
    # Multiples of 4: the scaled images have whole pixels.
    scales = (0.75, 1.5)
    model, variables = make()
    images = make_images(*size)
    normal = zoo.normalize(images, PREPROCESS)

    @jax.jit
    def average(variables, images):
        total = 0.0
        for scale in scales:
            x = resize(images, [int(n * scale) for n in size], antialias=False)
            for turn in (1, -1):
                y = probabilities(model, variables, x[:, :, ::turn])[:, :, ::turn]
                total = total + resize(y, size, antialias=False) / (2 * len(scales))
        return total

    segment = zoo.make_segmenter(model, scales=scales, flip=True, bucket=16)
    check(segment(variables, images), average(variables, normal), atol=1e-5)


def test_no_scale_makes_an_image_smaller_than_the_network_takes():
    seen = []
    model, variables = make(note=seen.append, min_size=24, stride=8)
    segment = zoo.make_segmenter(model, scales=(0.5,), bucket=1)
    seen.clear()
    assert segment(variables, make_images(24, 60)).classes.shape == (2, 24, 60)
    assert seen == [(24, 32)]


@pytest.mark.parametrize("size", [(64, 70), (33, 100), (20, 24)])
def test_windows_average_what_is_seen_in_each(size):
    model, variables = make()
    images = make_images(*size)
    normal = zoo.normalize(images, PREPROCESS)
    window, step = (24, 32), (16, 22)
    height, width = (max(pair) for pair in zip(size, window, strict=True))
    more = ((0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0))
    normal = np.pad(normal, more)
    total, count = 0.0, np.zeros((height, width, 1))
    total = np.zeros((2, height, width, 5))
    for top in {*range(0, height - 24, step[0]), height - 24}:
        for left in {*range(0, width - 32, step[1]), width - 32}:
            at = np.s_[top : top + 24, left : left + 32]
            total[:, *at] += probabilities(model, variables, normal[:, *at])
            count[at] += 1
    expected = (total / count)[:, : size[0], : size[1]]
    segment = zoo.make_segmenter(model, window=window, bucket=32)
    check(segment(variables, images), expected)


def test_windows_of_a_network_without_padding():
    model, variables = make(padding="VALID", window=7, margin=3)
    images = make_images(50, 41)
    whole = zoo.make_segmenter(model)(variables, images)
    windows = zoo.make_segmenter(model, window=(20, 17), overlap=0.25)
    found = windows(variables, images)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-5)
    np.testing.assert_array_equal(found.classes, whole.classes)


def test_some_classes_alone():
    model, variables = make()
    images = make_images(20, 30)
    expected = probabilities(model, variables, zoo.normalize(images, PREPROCESS))
    expected = np.asarray(expected)
    found = zoo.make_segmenter(model, classes=(4, 1))(variables, images)
    assert {*np.unique(found.classes)} == {1, 4}
    np.testing.assert_allclose(
        found.scores, expected[..., [1, 4]].max(axis=-1), rtol=1e-5
    )
    assert (found.classes == 4).mean() == pytest.approx(
        (expected[..., 4] > expected[..., 1]).mean(), abs=1e-3
    )


def test_the_preprocessing_may_be_another():
    model, variables = make()
    images = make_images(20, 30)
    other = Preprocess(
        size=8, channels=3, mean=(0.1,) * 3, std=(1.0,) * 3, channel_order="bgr"
    )
    expected = probabilities(model, variables, zoo.normalize(images, other))
    check(zoo.make_segmenter(model, other)(variables, images), expected)


def test_numpy_stays_numpy_and_jax_stays_jax():
    model, variables = make()
    segment = zoo.make_segmenter(model, bucket=16)
    images = make_images(20, 30)
    found = segment(variables, images)
    same = segment(variables, jnp.asarray(images))
    inside = jax.jit(segment)(variables, images)
    for a, b, c in zip(found, same, inside, strict=True):
        assert isinstance(a, np.ndarray)
        assert isinstance(b, jax.Array)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-6)


def test_it_exports():
    model, variables = make(stride=8, remainder=1)
    segment = zoo.make_segmenter(model, flip=True, window=33)
    shape = jax.export.symbolic_shape("b, 40, 60, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)

    @jax.jit
    def masks(variables, images):
        return segment(variables, images)._asdict()

    exported = jax.export.export(masks)(variables, images)
    again = jax.export.deserialize(exported.serialize())
    images = make_images(40, 60, 3)
    found, expected = again.call(variables, images), segment(variables, images)
    np.testing.assert_array_equal(found["classes"], expected.classes)
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    "fcn32s_vgg16 fcn_resnet50 pspnet_resnet50 unet unet_small unet_resnet34 "
    "segnet_basic frrn_a".split(),
)
def test_networks_of_the_zoo_make_masks_of_any_size(name):
    model = zoo.build(name)
    shape = model.preprocess.shape
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((2, 43, 130, shape[-1]), jnp.uint8)
    found = jax.eval_shape(zoo.make_segmenter(model), variables, images)
    assert found.classes.shape == found.scores.shape == (2, 43, 130)
    assert (found.classes.dtype, found.scores.dtype) == (jnp.uint8, jnp.float32)


MESH = """
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import test_segment
    import zoo

    model, variables = test_segment.make(stride=8)
    segment = zoo.make_segmenter(model, flip=True, window=48)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_image = NamedSharding(mesh, P("data"))
    replicated = jax.device_put(variables, NamedSharding(mesh, P()))
    for size in ((64, 64), (64, 50)):
        images = test_segment.make_images(*size, 8)
        expected = segment(variables, images)
        found = segment(replicated, jax.device_put(images, by_image))
        assert found.classes.sharding.is_equivalent_to(by_image, 3)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    print("agree on", len(jax.devices()))
"""


@pytest.mark.slow
def test_a_batch_may_be_spread_over_a_mesh():
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MESH)],
        cwd=ROOT / "tests",
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.stdout.strip() == "agree on 4", ran.stderr


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), r"uint8 .* got float32 \[1, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 .* got uint8 \[8, 8, 3\]"),
        (np.zeros((1, 8, 8, 1), np.uint8), r"the image has 1 channel.* takes 3"),
        (np.zeros((1, 3, 9, 3), np.uint8), r"small takes .* 4 x 4 .* \[1, 3, 9, 3\]"),
    ],
)
def test_wrong_images_are_named(images, words):
    model, variables = make(min_size=10, margin=3)
    segment = zoo.make_segmenter(model)
    for given in (images, jnp.asarray(images)):
        with pytest.raises(ValueError, match=words):
            segment(variables, given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(scales=()), r"scales=\(\) must be"),
        (dict(scales=(1, 0)), r"scales=\(1, 0\) must be .* positive"),
        (dict(overlap=1), r"overlap=1 must be .* less than 1"),
        (dict(bucket=0), r"bucket=0 must be"),
        (dict(window=(25, 24)), r"window=\(25, 24\).* 8 n \+ 1 .* the next is 25"),
        (dict(window=1), r"window=\(1, 1\): small takes 4 .* the next is 9"),
        (dict(classes=(0, 5)), r"classes=\(0, 5\) must be some of 0 to 4"),
        (dict(classes=()), r"classes=\(\) must be some of 0 to 4"),
    ],
)
def test_wrong_options_are_named(options, words):
    model, _ = make(stride=8, remainder=1, min_size=4)
    with pytest.raises(ValueError, match=words):
        zoo.make_segmenter(model, **options)


def test_networks_that_make_no_masks_are_named():
    model, _ = make()
    with pytest.raises(ValueError, match="small has no head"):
        zoo.make_segmenter(model.clone(head=None))
    with pytest.raises(ValueError, match="small needs a preprocess"):
        zoo.make_segmenter(model.clone(preprocess=None))
    with pytest.raises(ValueError, match="up to 255 classes, small has 300"):
        zoo.make_segmenter(model.clone(head=Head(num_classes=300)))
