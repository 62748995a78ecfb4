"""Shipped detectors: pixels to boxes where there is no zoo, for any batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo


def load(artifact):
    return jax.export.deserialize(bytearray(artifact))


def shapes_of(name):
    model = zoo.build(name)
    images = jax.ShapeDtypeStruct((1, *model.preprocess.shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.apart
def test_the_whole_function_is_shipped(cheap_jit):
    name = "ssd96_small"
    model = zoo.build(name, num_classes=3)
    shape = jnp.zeros((1, *model.preprocess.shape))
    variables = cheap_jit(model.init)(jax.random.key(0), shape)
    options = dict(max_detections=5, score_threshold=0.1)
    artifact = zoo.export(
        name, variables, size=(64, 100), platforms=["cpu"], detector=options
    )
    exported = load(artifact)
    assert [str(a) for a in exported.in_avals] == ["uint8[b,64,100,3]", "int32[b,2]"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 100, 3), np.uint8)
    sizes = np.int32([(64, 100), (30, 80), (64, 41)])
    expected = cheap_jit(zoo.make_detector(model, **options))(variables, images, sizes)
    assert np.asarray(expected.valid).any()
    for count in (1, 3):
        found = exported.call(images[:count], sizes[:count])
        assert {*found} == {"boxes", "scores", "classes", "valid"}
        for key, values in expected._asdict().items():
            np.testing.assert_allclose(found[key], values[:count], atol=1e-3)


@pytest.mark.parametrize("name", ["yolo96_small", "faster_rcnn_small"])
def test_detectors_take_any_batch(name):
    exported = load(zoo.export(name, shapes_of(name), constants=False))
    most = zoo.build(name).postprocess.max_detections
    shapes = sorted(map(str, exported.out_avals))
    assert shapes == [
        f"bool[b,{most}]",
        f"float32[b,{most},4]",
        f"float32[b,{most}]",
        f"int32[b,{most}]",
    ]


WHOLE = [
    n for n in zoo.list_models(task="detection") if not zoo.get_spec(n).reads_regions
]


@pytest.mark.apart
@pytest.mark.parametrize("name", WHOLE)
def test_every_detector_can_be_shipped(name):
    exported = load(zoo.export(name, shapes_of(name), constants=False))
    assert str(exported.in_avals[-1]) == "int32[b,2]"


@pytest.mark.parametrize("name", ["rcnn_alexnet", "fast_rcnn_vgg16"])
def test_what_reads_regions_is_not_shipped(name):
    with pytest.raises(ValueError, match=f"{name} reads regions, which an artifact"):
        zoo.export(name, {})


def test_options_of_detectors_are_not_for_classifiers():
    with pytest.raises(ValueError, match="is for detectors, and lenet5 is none"):
        zoo.export("lenet5", {}, detector={"max_detections": 3})
