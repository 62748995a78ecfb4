"""DeepFace's layers, counts and initialization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.face.deepface import DeepFaceSizes, deepface
from zoo.summary import abstract_variables, list_endpoints, list_layers

NAMES = zoo.list_models(task="verification")
TINY = DeepFaceSizes(
    size=24,
    c1=(4, 5),
    c3=(4, 3),
    local=(("l4", 4, 3, 1), ("l5", 4, 2, 2), ("l6", 4, 2, 1)),
    f7=8,
)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_adds(name):
    spec = zoo.get_spec(name)
    layers = list_layers(zoo.build(name), spec.preprocess.shape)
    found = sum(row.params for row in layers), sum(row.macs for row in layers)
    assert found == (spec.params, spec.macs)


def test_layers_are_the_papers():
    model = zoo.build("deepface")
    assert list_endpoints(model, (152, 152, 3)) == {
        "c1": (142, 142, 32),
        "m2": (71, 71, 32),
        "c3": (63, 63, 16),
        "l4": (55, 55, 16),
        "l5": (25, 25, 16),
        "l6": (21, 21, 16),
        "f7": (4096,),
        "logits": (4030,),
    }
    params = {row.path: row.params for row in list_layers(model, (152, 152, 3))}
    assert params["backbone/l4"] == 62_774_800
    headless = zoo.build("deepface", num_classes=0)
    layers = list_layers(headless, (152, 152, 3))
    assert sum(row.params for row in layers) == 102_412_864


def test_parameters_start_as_in_the_paper():
    model = deepface(sizes=TINY, num_classes=5)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    for name, layer in variables["params"]["backbone"].items():
        np.testing.assert_array_equal(layer["bias"], 0.5, err_msg=name)
        assert 0.005 < layer["kernel"].std() < 0.015, name


def test_the_descriptors_maximum_is_kept_in_training_and_frozen_with_its_layer():
    model = deepface(sizes=TINY, num_classes=5)
    images = jax.random.uniform(jax.random.key(1), (6, 24, 24, 3))
    variables = model.init(jax.random.key(0), images)

    def train(variables):
        rngs = {"dropout": jax.random.key(2)}
        kwargs = dict(train=True, mutable=["batch_stats"], rngs=rngs)
        stats = model.apply(variables, images, **kwargs)[1]["batch_stats"]
        return stats["backbone"]["f7"]["max"]

    features = model.apply(variables, images, method="endpoints")["f7"]
    assert not variables["batch_stats"]["backbone"]["f7"]["max"].any()
    np.testing.assert_allclose(train(variables), features.max(0), rtol=1e-6)
    large = {"backbone": {"f7": {"max": jnp.full(8, 100.0)}}}
    np.testing.assert_allclose(train({**variables, "batch_stats": large}), 99.9)
    with zoo.transfer.freeze_statistics(frozenset({"backbone/f7"})):
        assert not train(variables).any()


def test_dropout_changes_the_descriptor_in_training_alone():
    model = deepface(sizes=TINY, num_classes=0)
    images = jax.random.uniform(jax.random.key(1), (2, 24, 24, 3))
    variables = model.init(jax.random.key(0), images)
    still = model.apply(variables, images)
    kwargs = dict(mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
    dropped = model.apply(variables, images, train=True, **kwargs)[0]
    assert 0 < (dropped == 0).mean() < 1
    np.testing.assert_allclose(
        dropped[dropped != 0], 2 * still[dropped != 0], rtol=1e-6
    )


def test_variables_go_to_pytorch_and_back():
    shapes = abstract_variables(zoo.build("deepface_small"), (64, 64, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    state = zoo.weights.to_torch("deepface_small", variables)
    assert state["l4.kernel"].shape == (24, 24, 3, 3, 16, 16)
    back = zoo.weights.from_torch("deepface_small", state)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"deepface takes images \[B, 24, 24, C\]"):
        deepface(sizes=TINY).init(jax.random.key(0), jnp.zeros((1, 25, 25, 3)))
