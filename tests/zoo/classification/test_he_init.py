"""The rectifier networks: table, parts, initializations, and what these are for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import TorchNet, assert_near, check_endpoints, random_variables

import zoo
from zoo.ops.pooling import spatial_pyramid_pool
from zoo.paths import flatten
from zoo.summary import abstract_variables, list_endpoints
from zoo.weights import from_torch, to_torch

# Tables 1 and 3: window and channels of the first convolution, of how many others, and
# their windows, channels and the sizes of their maps; the pyramid.
TABLES = {
    "msra_small14": ((7, 64), [(4, 2, 128, 36), (6, 2, 256, 18)], (6, 3, 2, 1)),
    "relu30": ((7, 64), [(4, 2, 128, 36), (22, 2, 256, 18)], (6, 3, 2, 1)),
    "msra_a": (
        (7, 96),
        [(5, 3, 256, 56), (5, 3, 512, 28), (5, 3, 512, 14)],
        (7, 3, 2, 1),
    ),
    "msra_b": (
        (7, 96),
        [(6, 3, 256, 56), (6, 3, 512, 28), (6, 3, 512, 14)],
        (7, 3, 2, 1),
    ),
    "msra_c": (
        (7, 96),
        [(6, 3, 384, 56), (6, 3, 768, 28), (6, 3, 896, 14)],
        (7, 3, 2, 1),
    ),
}
DEPTHS = {"msra_small14": 14, "relu30": 30, "msra_a": 19, "msra_b": 22, "msra_c": 22}
NARROW = {
    "msra_a": dict(widths=(4, 5, 6, 3), depths=(2, 1, 2), dense=64),
    "msra_small14": dict(widths=(4, 5, 3), depths=(3, 2), dense=64),
}


class TorchRectifiers(TorchNet):
    """The networks of `TABLES`, whatever their widths."""

    def __init__(self, variables, name):
        super().__init__(variables)
        self.small = name == "msra_small14"
        self.levels = TABLES[name][2]
        self.depths = NARROW[name]["depths"]

    def activate(self, x, layer):
        slope = self.leaves.get(f"params/backbone/{layer}_prelu/slope")
        return x.relu() if slope is None else self.f.prelu(x, slope)

    def conv(self, x, layer, stride, padding):
        kernel = self.leaves[f"params/backbone/{layer}/kernel"].permute(3, 2, 0, 1)
        bias = self.leaves[f"params/backbone/{layer}/bias"]
        return self.activate(self.f.conv2d(x, kernel, bias, stride, padding), layer)

    def endpoints(self, images):
        x = self.conv(self.images(images), "conv1", 2, 0 if self.small else 3)
        out = {"conv1": x}
        x = out["pool1"] = self.f.max_pool2d(x, 3 if self.small else 2)
        for i, count in enumerate(self.depths, start=2):
            for j in range(count):
                padding = [1, 0][j % 2] if self.small else 1
                name = f"conv{i}_{j + 1}"
                x = out[name] = self.conv(x, name, 1, padding)
            if i < len(self.depths) + 1:
                x = out[f"pool{i}"] = self.f.max_pool2d(x, 2)
        grids = [self.f.adaptive_max_pool2d(x, n).flatten(2) for n in self.levels]
        x = out["spp"] = self.torch.cat(grids, 2).transpose(1, 2)
        x = x.flatten(1)
        for layer in ("fc1", "fc2"):
            x = out[layer] = self.activate(self.dense(x, f"backbone/{layer}"), layer)
        out["logits"] = self.dense(x, "head/fc3")
        return out


def make_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("name", TABLES)
def test_layers_are_those_of_the_tables(name):
    model = zoo.build(name)
    params = abstract_variables(model, (224, 224, 3))["params"]["backbone"]
    found = {k: v["kernel"].shape for k, v in params.items() if "kernel" in v}
    shapes = list_endpoints(model, (224, 224, 3))
    (window, channels), stages, levels = TABLES[name]
    expected = {"conv1": (window, window, 3, channels)}
    for i, (count, window, features, size) in enumerate(stages, start=2):
        for j in range(1, count + 1):
            layer = f"conv{i}_{j}"
            expected[layer] = (window, window, channels, features)
            channels = features
            # A 2x2 convolution with a border adds a pixel, the next one takes it away.
            extra = j % 2 if window == 2 else 0
            assert shapes[layer] == (size + extra, size + extra, features)
    bins = sum(n * n for n in levels)
    expected |= {"fc1": (bins * channels, 4096), "fc2": (4096, 4096)}
    assert found == expected
    # The convolutions and the dense layers before the last.
    assert len(found) + 1 == DEPTHS[name]
    assert shapes["spp"] == (bins, channels)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("msra_a", "prelu"),
        ("msra_a", "relu"),
        ("msra_small14", "prelu"),
        ("msra_small14", "prelu_shared"),
    ],
)
def test_every_endpoint_and_gradient_is_torchs(name, activation, cheap_jit):
    images = make_images(2, 71, 54)
    model = zoo.build(name, num_classes=5, activation=activation, **NARROW[name])
    make_net = partial(TorchRectifiers, name=name)
    check_endpoints(model, make_net, images, jit=cheap_jit)
    variables = random_variables(model, images)
    net = make_net(variables)

    def loss(params):
        return jnp.square(model.apply({"params": params}, images)).sum()

    grads = flatten(cheap_jit(jax.grad(loss))(variables["params"]))
    net.endpoints(images)["logits"].square().sum().backward()
    slopes = [path for path in grads if path.endswith("/slope")]
    layers = 3 + sum(NARROW[name]["depths"])
    assert len(slopes) == (0 if activation == "relu" else layers)
    # One slope's gradient is a sum of both signs over a whole layer.
    tolerance = 1e-2 if activation == "prelu_shared" else 1e-4
    for path, grad in grads.items():
        expected = net.leaves[f"params/{path}"].grad.numpy()
        assert_near(grad, expected, tolerance, path)


def test_the_pyramid_covers_every_part_of_the_map(cheap_jit):
    images = make_images(1, 256, 224)
    options = dict(num_classes=5, **NARROW["msra_a"])
    dense = zoo.build("msra_a", fully_convolutional=True, **options)
    usual = zoo.build("msra_a", **options)
    variables = random_variables(usual, images)
    assert abstract_variables(dense, (224, 224, 3)) == jax.eval_shape(lambda: variables)

    def run(model, images):
        return cheap_jit(partial(model.apply, method="endpoints"))(variables, images)

    found = run(dense, images)
    assert found["conv4_2"].shape == (1, 16, 14, 3)
    assert found["spp"].shape == (1, 3, 1, 63, 3)
    params = jax.tree.map(np.asarray, variables["params"])
    for place in range(3):
        window = found["conv4_2"][:, place : place + 14]
        (spp,) = spatial_pyramid_pool(window, (7, 3, 2, 1))
        np.testing.assert_array_equal(found["spp"][0, place, 0], spp)
    fc2 = np.asarray(found["fc2"], np.float64)
    scores = fc2 @ params["head"]["fc3"]["kernel"] + params["head"]["fc3"]["bias"]
    assert_near(found["logits"], scores.mean((1, 2)), 1e-5, "logits")
    # Of an image of 224 pixels there is one part: the whole map.
    one, whole = (run(model, images[:, :224])["logits"] for model in (dense, usual))
    assert_near(one, whole, 1e-5, "logits")


@pytest.mark.parametrize(
    ("name", "dense", "side", "map_size"),
    [
        ("msra_small14", False, 17, 1),
        ("relu30", True, 221, 18),
        ("msra_c", False, 15, 1),
        ("relu22", True, 223, 14),
    ],
)
def test_the_smallest_images(name, dense, side, map_size):
    model = zoo.build(name, fully_convolutional=dense)
    shapes = list_endpoints(model, (side, side + 9, 3))
    last = [shape for layer, shape in shapes.items() if "conv" in layer][-1]
    assert last[0] == map_size
    words = rf"^{name} takes images of {side} x {side} pixels or more, got \[1, 250, "
    with pytest.raises(ValueError, match=words):
        list_endpoints(model, (250, side - 1, 3))
    # Nothing smaller fits: the message does not ask for too much.
    layout = model.backbone.layout._replace(min_size=1, dense_size=1)
    model = model.clone(backbone=model.backbone.clone(layout=layout))
    with pytest.raises(ValueError, match=r"window .*does not fit into"):
        list_endpoints(model, (250, side - 1, 3))


def test_activations_are_options_of_the_networks_that_have_them():
    assert zoo.list_options("msra_a")["activation"] == "prelu"
    assert "activation" not in zoo.list_options("relu22")
    with pytest.raises(ValueError, match=r"activation='elu'; choose from \['relu'"):
        zoo.build("msra_a", activation="elu")
    shapes = [
        abstract_variables(zoo.build(name, **options), (32, 32, 3))
        for name, options in (("relu22", {}), ("msra_b", {"activation": "relu"}))
    ]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match=r"init=.glorrot. is unknown; choose from"):
        zoo.build("relu22", init="glorrot")


@pytest.mark.parametrize("activation", ["prelu", "prelu_shared"])
def test_a_state_dict_comes_back_bit_by_bit(activation):
    rng = np.random.default_rng(0)
    options = dict(num_classes=5, activation=activation, **NARROW["msra_small14"])
    model = zoo.build("msra_small14", **options)
    variables = jax.tree.map(
        lambda v: rng.random(v.shape, np.float32),
        abstract_variables(model, (32, 32, 3)),
    )
    state = to_torch("msra_small14", variables, **options)
    # PyTorch has one `weight` in each PReLU.
    assert state["conv2_1_prelu.weight"].shape == (5 if activation == "prelu" else 1,)
    assert state["fc1.weight"].shape == (64, 3 * 50)
    # All bins of a channel, then those of the next one.
    x = rng.random((50, 3), np.float32)
    theirs = state["fc1.weight"] @ x.T.reshape(-1)
    ours = x.reshape(-1) @ variables["params"]["backbone"]["fc1"]["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    after = flatten(from_torch("msra_small14", {**state}, **options))
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(after[path], leaf)


def draw(jit, name, paths, **options):
    """Initializes a network and returns some leaves (the others are not computed)."""
    model = zoo.build(name, depths=(1, 1, 1), **options)

    @jit
    def run(key):
        flat = flatten(model.init(key, jnp.zeros((1, 32, 32, 3)))["params"])
        return {path: flat[path] for path in paths}

    return run(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "options", "variance"),
    [
        # Equation 15 for a slope of 0.25, and 14 for none; n is 3 * 3 * 512.
        ("msra_a", {}, 2 / 1.0625 / 4608),
        ("msra_a", {"activation": "prelu_shared"}, 2 / 1.0625 / 4608),
        ("relu22", {}, 2 / 4608),
        ("relu22", {"init": "he_fan_in"}, 2 / (9 * 256)),
        ("relu22", {"init": "glorot"}, 2 / (9 * 256 + 4608)),
        ("relu22", {"init": "caffe_xavier"}, 1 / (9 * 256)),
    ],
)
def test_convolutions_start_with_the_papers_variance(
    name, options, variance, cheap_jit
):
    path = "backbone/conv3_1/kernel"
    kernel = draw(cheap_jit, name, [path], **options)[path]
    assert kernel.shape == (3, 3, 256, 512)
    assert np.var(kernel) == pytest.approx(variance, rel=0.01)


def test_slopes_and_dense_layers_start_as_the_paper_says(cheap_jit):
    paths = ["backbone/conv2_1_prelu/slope", "head/fc3/kernel", "backbone/conv2_1/bias"]
    found = draw(cheap_jit, "msra_a", paths)
    slope, head, bias = (found[path] for path in paths)
    np.testing.assert_array_equal(slope, np.full(256, 0.25))
    assert np.std(head) == pytest.approx(0.001, rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize(
    "init",
    ["he_fan_in", pytest.param("he_fan_out", marks=pytest.mark.apart), "glorot"],
)
def test_the_signal_keeps_its_size_with_he_and_vanishes_with_glorot(init, cheap_jit):
    """The paper's section 2.2: why the 30-layer network learns from one of them."""
    model = zoo.build("relu30", init=init)
    names = [f"conv3_{j}" for j in range(2, 23, 2)]

    @cheap_jit
    def energies(key):
        init_key, image_key = jax.random.split(key)
        images = jax.random.normal(image_key, (2, 96, 96, 3))
        variables = model.init(init_key, images)
        found = model.apply(variables, images, method="endpoints")
        return jnp.array([jnp.square(found[name]).mean() for name in names])

    found = energies(jax.random.key(0))
    growth = found[-1] / found[0]
    # There are 20 convolutions between, each with as many inputs as outputs. With
    # Glorot's variance, half of the other, the rectifiers' half is not made good.
    expected = 2.0**-20 if init == "glorot" else 1.0
    # The borders of zeros take a little, the draw gives or takes some.
    assert expected / 4 < growth < expected * 4
    if init == "glorot":
        assert (np.diff(found) < 0).all()
