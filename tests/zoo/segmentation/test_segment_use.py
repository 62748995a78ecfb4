"""Segmenters where they are used: jit, export, a mesh, the zoo's networks, mistakes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from segmenters import Head, make, make_images
from tiny_runs import forced_devices

import zoo
from zoo.summary import abstract_variables

ROOT = Path(__file__).parents[3]


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
    [
        *("fcn32s_vgg16", "pspnet_resnet50", "unet_small", "segnet_basic"),
        pytest.param("fcn_resnet50", marks=pytest.mark.apart),
        pytest.param("unet", marks=pytest.mark.apart),
        pytest.param("unet_resnet34", marks=pytest.mark.apart),
        pytest.param("frrn_a", marks=pytest.mark.apart),
    ],
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
    import segmenters
    import zoo

    model, variables = segmenters.make(stride=8)
    segment = zoo.make_segmenter(model, flip=True, window=48)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_image = NamedSharding(mesh, P("data"))
    replicated = jax.device_put(variables, NamedSharding(mesh, P()))
    for size in ((64, 64), (64, 50)):
        images = segmenters.make_images(*size, 8)
        expected = segment(variables, images)
        found = segment(replicated, jax.device_put(images, by_image))
        assert found.classes.sharding.is_equivalent_to(by_image, 3)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    print("agree on", len(jax.devices()))
"""


def test_a_batch_may_be_spread_over_a_mesh():
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MESH)],
        cwd=ROOT / "tests/reference",
        env={
            **os.environ,
            "XLA_FLAGS": forced_devices(4),
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
