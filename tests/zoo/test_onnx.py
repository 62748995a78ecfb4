"""Export to ONNX: what jax2onnx is given, and what onnxruntime makes of the result."""

import sys
import types

import jax
import numpy as np
import pytest
from jax.extend import core

import zoo


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
