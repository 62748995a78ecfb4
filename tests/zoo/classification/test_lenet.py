"""LeNet-5 and its modern form against slow restatements in numpy, and their loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from zoo.classification.lenet import C3_TABLE, Convolution, rbf_codes
from zoo.ops.losses import lenet_map_loss

# Table I of the paper as it is printed: a column for each map of C3, an X for each
# map of S2 that it reads.
TABLE_I = """
X . . . X X X . . X X X X . X X
X X . . . X X X . . X X X X . X
X X X . . . X X X . . X . X X X
. X X X . . X X X X . . X . X X
. . X X X . . X X X X . X X . X
. . . X X X . . X X X X . X X X
"""


def squash(x):
    return 1.7159 * np.tanh(2 * x / 3)


def correlate(x, kernel, bias):
    """5x5 correlation of [H, W, I] with [5, 5, I, O], one output at a time."""
    height, width = x.shape[0] - 4, x.shape[1] - 4
    out = np.zeros((height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[i : i + 5, j : j + 5, :, None]
            out[i, j] = (patch * kernel).sum((0, 1, 2)) + bias
    return out


def numpy_lenet5(params, image):
    """The endpoints of one image [32, 32, 1], in float64."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params["backbone"])

    def convolve(x, layer, reads):
        # Kernels are stored link by link, in the order of the maps that are written.
        kernel = np.zeros((5, 5, *reads.shape))
        link = 0
        for o in range(reads.shape[1]):
            for i in range(reads.shape[0]):
                if reads[i, o]:
                    kernel[:, :, i, o] = layer["kernel"][:, :, link]
                    link += 1
        assert link == layer["kernel"].shape[-1]
        return squash(correlate(x, kernel, layer["bias"]))

    def subsample(x, layer):
        height, width, maps = x.shape
        out = np.zeros((height // 2, width // 2, maps))
        for i in range(height // 2):
            for j in range(width // 2):
                total = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((0, 1))
                out[i, j] = total * layer["coefficient"] + layer["bias"]
        return squash(out)

    table = np.array([row.split() for row in TABLE_I.strip().splitlines()]) == "X"
    out = {"c1": convolve(image, p["c1"], np.ones((1, 6)))}
    out["s2"] = subsample(out["c1"], p["s2"])
    out["c3"] = convolve(out["s2"], p["c3"], table)
    out["s4"] = subsample(out["c3"], p["s4"])
    out["c5"] = convolve(out["s4"], p["c5"], np.ones((16, 120)))
    f6 = out["c5"].reshape(-1) @ p["f6"]["kernel"] + p["f6"]["bias"]
    out["f6"] = squash(f6)
    codes = rbf_codes(10)
    out["logits"] = np.array(
        [-sum((out["f6"][j] - codes[j, k]) ** 2 for j in range(84)) for k in range(10)]
    )
    return out


@pytest.fixture(scope="module")
def networks(cheap_jit):
    """LeNet-5 and its modern form, with their variables."""
    out = {}
    for name in ("lenet5", "lenet5_modern"):
        model, pre = zoo.build(name), zoo.get_spec(name).preprocess
        images = jnp.zeros((1, pre.size, pre.size, 1))
        out[name] = model, cheap_jit(model.init)(jax.random.key(3), images)
    return out


@pytest.fixture(scope="module")
def lenet5(networks):
    return networks["lenet5"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)


def assert_near(got, expected, tolerance, name=""):
    """Compares relative to the largest magnitude."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: relative error {error}"


def test_lenet5_at_every_endpoint(lenet5, images):
    model, variables = lenet5
    found = model.apply(variables, images, method="endpoints")
    for b, image in enumerate(images):
        expected = numpy_lenet5(variables["params"], image)
        assert [*found] == [*expected]
        for name in found:
            assert_near(found[name][b], expected[name], 1e-5, name)


def test_lenet5_loss(lenet5, images):
    model, variables = lenet5
    labels = jnp.array([3, 7])
    got = lenet_map_loss(model.apply(variables, images), labels)
    for b, label in enumerate([3, 7]):
        penalty = -numpy_lenet5(variables["params"], images[b])["logits"]
        total = np.exp(-10.0) + sum(np.exp(-y) for y in penalty)
        assert_near(got[b], penalty[label] + np.log(total), 1e-5)


@pytest.mark.parametrize("j", [1.0, 10.0, 30.0])
def test_map_loss_is_the_papers_formula(j):
    penalty = np.random.default_rng(1).uniform(0, 40, (2, 5, 4))
    labels = np.random.default_rng(2).integers(0, 4, (2, 5))
    right = np.take_along_axis(penalty, labels[..., None], -1)[..., 0]
    expected = right + np.log(np.exp(-j) + np.exp(-penalty).sum(-1))
    got = lenet_map_loss(jnp.float32(-penalty), jnp.array(labels), j)
    assert got.shape == (2, 5)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_map_loss_is_finite_far_from_every_code():
    logits = jnp.array([[-1e4, -2e4], [0.0, -1e4]])
    loss, gradient = jax.value_and_grad(
        lambda x: lenet_map_loss(x, jnp.array([0, 1])).sum()
    )(logits)
    # Far from all codes only the rubbish class is left: the right penalty less j.
    assert loss == pytest.approx(1e4 - 10 + 1e4, rel=1e-6)
    assert jnp.isfinite(gradient).all()


def test_c3_reads_what_the_table_says(lenet5):
    params = {"params": lenet5[1]["params"]["backbone"]["c3"]}
    table = np.array([row.split() for row in TABLE_I.strip().splitlines()]) == "X"
    assert table.sum() == 60
    assert [tuple(np.flatnonzero(column)) for column in table.T] == [*C3_TABLE]

    layer = Convolution(16, C3_TABLE)
    s2 = jnp.zeros((1, 14, 14, 6))
    still = layer.apply(params, s2)
    for i in range(6):
        moved = layer.apply(params, s2.at[..., i].set(1.0))
        changed = np.abs(np.asarray(moved - still)).max((0, 1, 2)) > 0
        np.testing.assert_array_equal(changed, table[i])


def test_lenet5_starts_within_the_papers_bounds(lenet5):
    params = lenet5[1]["params"]["backbone"]
    fan_in = {"c1": 25, "s2": 4, "s4": 4, "c5": 400, "f6": 120}
    for name, count in fan_in.items():
        values = np.concatenate([np.ravel(v) for v in params[name].values()])
        assert np.abs(values).max() <= 2.4 / count
        if values.size > 100:
            assert np.abs(values).max() > 0.9 * 2.4 / count
            assert np.std(values) == pytest.approx(2.4 / count / 3**0.5, rel=0.15)
    link = 0
    for o, reads in enumerate(C3_TABLE):
        bound = 2.4 / (25 * len(reads))
        kernel = params["c3"]["kernel"][:, :, link : link + len(reads)]
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        assert np.abs(params["c3"]["bias"][o]) <= bound
        link += len(reads)


def test_codes_are_distinct_signs_and_do_not_depend_on_the_number_of_classes():
    codes = rbf_codes(14)
    assert codes.shape == (84, 14)
    assert {*np.unique(codes)} == {-1.0, 1.0}
    assert len(np.unique(codes, axis=1).T) == 14
    for count in (1, 10, 12):
        np.testing.assert_array_equal(rbf_codes(count), codes[:, :count])
    one = (codes[:, 1].reshape(12, 7) > 0).astype(int)
    assert one[0].tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert one[9].tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_lenet5_classifies_each_code_as_its_class():
    head = zoo.build("lenet5").head
    logits = head.apply({}, jnp.array(rbf_codes(10)).T)
    np.testing.assert_array_equal(logits.argmax(-1), np.arange(10))
    np.testing.assert_array_equal(logits.max(-1), np.zeros(10))


def numpy_lenet5_modern(params, image):
    """The endpoints of one image [28, 28, 1], in float64."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    b, out = p["backbone"], {}

    def pool(x):
        height, width, maps = x.shape
        return x.reshape(height // 2, 2, width // 2, 2, maps).max((1, 3))

    out["conv1"] = correlate(image, **b["conv1"])
    out["pool1"] = pool(out["conv1"])
    out["conv2"] = correlate(out["pool1"], **b["conv2"])
    out["pool2"] = pool(out["conv2"])
    ip1 = out["pool2"].reshape(-1) @ b["ip1"]["kernel"] + b["ip1"]["bias"]
    out["ip1"] = np.maximum(ip1, 0)
    head = p["head"]["ip2"]
    out["logits"] = out["ip1"] @ head["kernel"] + head["bias"]
    return out


def test_lenet5_modern_at_every_endpoint(networks):
    model, variables = networks["lenet5_modern"]
    image = np.random.default_rng(1).random((28, 28, 1)).astype(np.float32)
    found = model.apply(variables, image[None], method="endpoints")
    expected = numpy_lenet5_modern(variables["params"], image)
    assert [*found] == [*expected]
    for name in found:
        assert_near(found[name][0], expected[name], 1e-5, name)


def test_lenet5_modern_starts_as_caffes_xavier(networks):
    params = networks["lenet5_modern"][1]["params"]
    for fan_in, kernel in (
        (25, params["backbone"]["conv1"]["kernel"]),
        (500, params["backbone"]["conv2"]["kernel"]),
        (800, params["backbone"]["ip1"]["kernel"]),
        (500, params["head"]["ip2"]["kernel"]),
    ):
        bound = (3 / fan_in) ** 0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound


@pytest.mark.apart
@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_gradients_are_finite_and_reach_every_parameter(networks, name):
    spec = zoo.get_spec(name)
    model, variables = networks[name]
    side = spec.preprocess.size
    images = np.random.default_rng(0).normal(size=(2, side, side, 1))
    labels = jnp.array([1, 2])
    losses = {
        "lenet_map": lenet_map_loss,
        "softmax_cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
    }

    @jax.jit
    def gradient(params):
        def loss(params):
            logits = model.apply({"params": params}, jnp.float32(images), train=True)
            return losses[spec.loss](logits, labels).mean()

        return jax.grad(loss)(params)

    for leaf in jax.tree.leaves(gradient(variables["params"])):
        assert jnp.isfinite(leaf).all()
        assert jnp.abs(leaf).max() > 0


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lenet5", (2, 28, 28, 1), ["lenet5", "[B, 32, 32, C]", "[2, 28, 28, 1]"]),
        ("lenet5", (32, 32, 1), ["lenet5", "[32, 32, 1]"]),
        ("lenet5_modern", (2, 32, 32, 1), ["lenet5_modern", "[B, 28, 28, C]"]),
    ],
)
def test_images_of_another_size_are_named(networks, name, shape, words):
    model, variables = networks[name]
    with pytest.raises(ValueError, match="takes images") as error:
        model.apply(variables, jnp.zeros(shape))
    for word in words:
        assert word in str(error.value)
