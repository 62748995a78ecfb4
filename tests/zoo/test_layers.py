"""The shared layers: batch norm's arithmetic above all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from zoo.layers import INITIALIZERS, BatchNorm, initializer, make_head
from zoo.ops.pooling import max_pool

X = np.random.default_rng(0).normal(3, 2, (4, 2, 2, 5)).astype(np.float32)


def train_on(layer, x, variables=None):
    """Returns the output and the variables after one batch."""
    variables = variables or layer.init(jax.random.key(0), x, train=True)
    y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, {**variables, **new}


def test_batch_norm_standardizes_the_batch():
    x = X.astype(np.float64)
    y, _ = train_on(BatchNorm(epsilon=0.1), X)
    # The batch is normalized by its biased variance.
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 0.1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_epsilon_is_torchs_by_default():
    layer = BatchNorm()
    x = jnp.ones((3, 1))
    variables = layer.init(jax.random.key(0), x, train=False)
    variables["batch_stats"]["var"] = jnp.zeros(1)
    y = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(y, 1e-5**-0.5, rtol=1e-5)


def test_momentum_is_what_is_kept():
    x = np.full((4, 1), 10, np.float32)
    _, after = train_on(BatchNorm(momentum=0.9), x)
    assert after["batch_stats"]["mean"][0] == pytest.approx(1.0)
    assert after["batch_stats"]["var"][0] == pytest.approx(0.9)
    _, after = train_on(BatchNorm(momentum=0.9), x, after)
    assert after["batch_stats"]["mean"][0] == pytest.approx(1.9)


def test_the_running_variance_is_unbiased():
    x = X.astype(np.float64)
    _, after = train_on(BatchNorm(momentum=0.0), X)
    assert X.size // 5 == 16
    np.testing.assert_allclose(
        after["batch_stats"]["var"], x.var((0, 1, 2), ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(after["batch_stats"]["mean"], x.mean((0, 1, 2)), 1e-5)


def test_variance_survives_a_large_mean():
    x = (np.random.default_rng(1).normal(size=(64, 3)) + 1000).astype(np.float32)
    _, after = train_on(BatchNorm(momentum=0.0), x)
    expected = x.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(after["batch_stats"]["var"], expected, rtol=1e-3)


def test_inference_uses_the_running_statistics_and_parameters():
    layer = BatchNorm(epsilon=0.25)
    variables = {
        "params": {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([1.0, -1.0])},
        "batch_stats": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([0.75, 3.75])},
    }
    y = layer.apply(variables, jnp.array([[3.0, 0.0]]), train=False)
    np.testing.assert_allclose(y, [[2 * 2 + 1, -2 / 2 * 3 - 1]], rtol=1e-6)


def test_initializing_in_training_leaves_the_statistics():
    variables = BatchNorm().init(jax.random.key(0), X, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))


def global_and_mapped():
    whole = train_on(BatchNorm(), X)
    layer = BatchNorm(axis_name="data")
    return whole, layer, layer.init(jax.random.key(0), X, train=True)


def test_mapped_statistics_are_those_of_the_whole_batch():
    (y, after), layer, variables = global_and_mapped()
    parts = X.reshape(2, 2, *X.shape[1:])
    ys, new = jax.vmap(lambda x: train_on(layer, x, variables), axis_name="data")(parts)
    np.testing.assert_allclose(ys.reshape(X.shape), y, rtol=1e-5, atol=1e-5)
    for name, leaf in after["batch_stats"].items():
        for device in range(2):
            np.testing.assert_allclose(
                new["batch_stats"][name][device], leaf, rtol=1e-5, atol=1e-6
            )


def test_sharded_statistics_run_on_a_mesh():
    (y, after), layer, variables = global_and_mapped()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    spread = partial(
        jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P())
    )
    ys, new = jax.jit(spread(lambda x: train_on(layer, x, variables)))(X)
    np.testing.assert_allclose(ys, y, rtol=1e-5, atol=1e-5)
    got = new["batch_stats"]["var"]
    np.testing.assert_allclose(got, after["batch_stats"]["var"], rtol=1e-5)


def test_training_must_be_allowed_to_change_the_statistics():
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), X, train=True)
    with pytest.raises(errors.ModifyScopeVariableError, match="batch_stats"):
        layer.apply(variables, X, train=True)


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5)])
def test_one_value_per_channel_has_no_statistics(shape):
    with pytest.raises(ValueError, match="more than one value per channel") as error:
        train_on(BatchNorm(), np.zeros(shape, np.float32))
    assert str([*shape]) in str(error.value)
    # At inference, one is enough.
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.zeros(shape), train=False)
    assert layer.apply(variables, jnp.zeros(shape), train=False).shape == shape


def test_statistics_are_float32_under_bfloat16():
    x = jnp.asarray(X, jnp.bfloat16)
    y, after = train_on(BatchNorm(dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    reference, expected = train_on(BatchNorm(), x.astype(jnp.float32))
    for name, leaf in expected["batch_stats"].items():
        np.testing.assert_allclose(after["batch_stats"][name], leaf, rtol=1e-6)
    rounded = np.float32(reference.astype(jnp.bfloat16))
    np.testing.assert_allclose(np.float32(y), rounded, rtol=2**-8, atol=1e-6)


def test_max_pool_pads_symmetrically_with_nothing():
    x = -jnp.arange(1.0, 37.0).reshape(1, 6, 6, 1)
    got = max_pool(x, 3, 2, padding=1)[0, :, :, 0]
    rows = [slice(0, 2), slice(1, 4), slice(3, 6)]
    expected = [[x[0, r, c, 0].max() for c in rows] for r in rows]
    np.testing.assert_array_equal(got, np.array(expected))
    # Rounded down: of seven rows the last does not make a window of two.
    assert max_pool(jnp.zeros((1, 7, 7, 1)), 2, 2).shape == (1, 3, 3, 1)


# Standard deviations of kernels [3, 3, 64, 256] after the papers.
STD = {
    "he_fan_in": (2 / (9 * 64)) ** 0.5,
    "he_fan_out": (2 / (9 * 256)) ** 0.5,
    "caffe_xavier": (1 / (9 * 64)) ** 0.5,
    "glorot": (2 / (9 * 64 + 9 * 256)) ** 0.5,
    "gaussian_0.01": 0.01,
    "gaussian_0.1": 0.1,
    "truncated_0.01": 0.0088,
    "torch": (1 / (3 * 9 * 64)) ** 0.5,
}
UNIFORM = ("caffe_xavier", "glorot", "torch")


@pytest.mark.parametrize("name", STD)
def test_initializers(name):
    kernel = initializer(name)(jax.random.key(0), (3, 3, 64, 256), jnp.float32)
    assert np.std(kernel) == pytest.approx(STD[name], rel=0.02)
    # A uniform distribution ends at 1.73 deviations, a normal one does not.
    largest = np.abs(kernel).max() / STD[name]
    assert (largest < 1.74) == (name in UNIFORM)
    # Cut at two deviations, and not scaled back to the deviation it is named after.
    assert (largest > 3.5) == (name not in UNIFORM and "truncated" not in name)


def test_every_initializer_is_tested_and_unknown_ones_are_named():
    assert {*STD} == {*INITIALIZERS}
    with pytest.raises(
        ValueError, match=r"init='he' is unknown; choose from .*he_fan_"
    ):
        initializer("he")


def test_logits_are_float32():
    head = make_head(3, dtype=jnp.bfloat16)
    features = jnp.ones((2, 4), jnp.bfloat16)
    logits, variables = head.init_with_output(jax.random.key(0), features)
    assert logits.dtype == jnp.float32
    assert variables["params"]["fc"]["kernel"].dtype == jnp.float32
    assert make_head(0) is None
