"""Export to ONNX: what jax2onnx is given, and what onnxruntime makes of the result."""

import sys
import types

import jax
import numpy as np
import pytest
from jax.extend import core

import zoo
from zoo.detect import mask_scores, select_detections
from zoo.detection.types import Candidates, Detections, Postprocess
from zoo.onnx import CANDIDATES, append_selection, to_onnx
from zoo.segmentation.segmenter import ConvTransposed


def list_steps(program):
    """The operations of a program and of the programs in it."""
    for step in program.eqns:
        yield step
        for value in step.params.values():
            if isinstance(value, core.ClosedJaxpr):
                yield from list_steps(value.jaxpr)


@pytest.fixture
def library(monkeypatch):
    """A library in place of jax2onnx, which keeps what it is given."""
    given = {}

    def to_onnx(function, inputs, **options):
        given.update(function=function, inputs=inputs, **options)
        return types.SimpleNamespace(SerializeToString=lambda: b"model")

    module = types.SimpleNamespace(to_onnx=to_onnx)
    monkeypatch.setitem(sys.modules, "jax2onnx", module)
    return given


@pytest.mark.parametrize("name", ["lenet5_modern", "unet_small"])
def test_the_library_is_given_the_same_function_without_what_it_lacks(library, name):
    model, variables = zoo.create(name, num_classes=3)
    size = zoo.get_spec(name).preprocess.shape
    assert zoo.export(name, variables, format="onnx") == b"model"
    assert library["input_names"] == ["images"]
    assert library["output_names"] == ["logits"]
    (shape,) = library["inputs"]
    assert (str(shape.shape[0]), shape.shape[1:]) == ("b", size)
    program = jax.make_jaxpr(library["function"])(*library["inputs"])
    for step in list_steps(program.jaxpr):
        assert step.primitive.name not in ("platform_index", "cond", "pad")
        assert not step.primitive.name.startswith("reduce_window")
    images = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    zoo.export(name, variables, format="onnx", batch=2)
    (found,) = jax.jit(library["function"])(images)
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_transposed_convolutions_whose_windows_touch_become_products(library):
    layer = ConvTransposed(5, 2, 2)
    images = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype(np.float32)
    variables = layer.init(jax.random.key(0), images)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 6, 7, 3"), np.float32)
    names = {"input_names": ["images"], "output_names": ["maps"], "name": "layer"}
    for inputs in ([shape], [images]):
        to_onnx(lambda x: layer.apply(variables, x), inputs, **names)
        program = jax.make_jaxpr(library["function"])(*inputs)
        kinds = {step.primitive.name for step in list_steps(program.jaxpr)}
        assert "dot_general" in kinds
        assert "conv_general_dilated" not in kinds
    (found,) = library["function"](images)
    expected = layer.apply(variables, images)
    assert expected.shape == (2, 12, 14, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_onnxruntime_gives_the_logits_of_jax():
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, variables, card = zoo.create_with_card("lenet5_modern", weights="digits")
    artifact = zoo.export(
        "lenet5_modern", variables, format="onnx", preprocess=card.preprocess
    )
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    (found,) = session.run(None, {"images": images})
    expected = model.apply(variables, zoo.normalize(images, card.preprocess))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rules",
    [
        Postprocess(0.3, 0.5, 10),
        Postprocess(0.05, 0.45, 30, max_candidates=5, min_size=3.0),
        Postprocess(0.0, 0.3, 500),  # more than there are candidates
    ],
)
def test_suppression_of_onnx_selects_what_that_of_jax_does(rules):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    shapes = (["b", 40, 4], ["b", 3, 40], ["b", 40, 4])
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip(("a", "b", "c"), shapes, strict=True)
    ]
    graph = onnx.GraphProto(name="selection", input=given)
    for one, name in zip(given, CANDIDATES, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [one.name], [name]))
        one = onnx.ValueInfoProto(name=name, type=one.type)
        graph.output.append(one)
    append_selection(graph, rules)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (4, 40, 2))
    boxes = np.concatenate([low, low + rng.integers(-1, 12, low.shape)], -1)
    # Many ties, and some that are no number.
    scores = np.float32(rng.integers(0, 12, (4, 40, 3)) / 12)
    scores[rng.random(scores.shape) < 0.03] = np.nan
    candidates = Candidates(
        np.float32(boxes), scores, rng.random((4, 40)) < [[0.9], [0.5], [0.1], [0]]
    )
    masked = np.asarray(mask_scores(candidates, rules))
    arrays = {"a": candidates.boxes, "b": masked, "c": candidates.boxes}
    found = Detections(*session.run([*Detections._fields], arrays))
    expected = select_detections(candidates, rules)
    assert np.asarray(expected.valid).any()
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.apart
def test_onnxruntime_gives_the_objects_of_jax():
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    name, size = "ssd96_small", (64, 100)
    model, variables, card = zoo.create_with_card(name, weights="digits_canvas")
    artifact = zoo.export(name, variables, format="onnx", size=size, batch=2)
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    sizes = np.int32([size, (30, 80)])
    found = session.run(None, {"images": images, "sizes": sizes})
    expected = zoo.make_detector(model, card.preprocess)(variables, images, sizes)
    assert np.asarray(expected.valid).any()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_networks_of_two_stages_are_refused(library):
    _, variables = zoo.create("faster_rcnn_small", weights="digits_canvas")
    with pytest.raises(NotImplementedError, match="networks of two stages have no tr"):
        zoo.export("faster_rcnn_small", variables, format="onnx")


def test_what_cannot_be_translated(library, monkeypatch):
    _, variables = zoo.create("lenet5")
    with pytest.raises(ValueError, match="format='onx' must be one of"):
        zoo.export("lenet5", variables, format="onx")
    with pytest.raises(ValueError, match="constants=False: an ONNX model has its var"):
        zoo.export("lenet5", variables, format="onnx", constants=False)
    library.clear()

    def fail(*_, **__):
        raise TypeError("no translation of erf")

    monkeypatch.setattr(sys.modules["jax2onnx"], "to_onnx", fail)
    with pytest.raises(NotImplementedError, match=r"cannot translate lenet5: TypeErr"):
        zoo.export("lenet5", variables, format="onnx")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'canon-zoo\[onnx\]'"):
        zoo.export("lenet5", variables, format="onnx")
