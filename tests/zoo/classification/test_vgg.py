"""VGG's networks against the paper's table 1, narrow, and a PyTorch restatement."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import TorchNet, assert_near, check_endpoints, random_variables

import zoo
from zoo.classification import vgg
from zoo.paths import flatten
from zoo.summary import abstract_variables, list_endpoints, list_layers
from zoo.weights import from_torch, to_torch
from zoo.weights.torch_format import list_torch_shapes

# Table 1 as it is printed, a line for a column; LRN, and | for a pool.
TABLE_1 = {
    "vgg11": "3-64 | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "vgg11_lrn": "3-64 LRN | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "vgg13": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512 |",
    "vgg16_c": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 1-256 | 3-512 3-512 1-512 "
    "| 3-512 3-512 1-512 |",
    "vgg16": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 | 3-512 3-512 3-512 "
    "| 3-512 3-512 3-512 |",
    "vgg19": "3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 3-256 "
    "| 3-512 3-512 3-512 3-512 | 3-512 3-512 3-512 3-512 |",
}
# Where torchvision's Sequential has the convolutions.
TORCHVISION = {
    "vgg11": [0, 3, 6, 8, 11, 13, 16, 18],
    "vgg13": [0, 2, 5, 7, 10, 12, 15, 17, 20, 22],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    "vgg19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
    "vgg11_bn": [0, 4, 8, 11, 15, 18, 22, 25],
    "vgg13_bn": [0, 3, 7, 10, 14, 17, 21, 24, 28, 31],
    "vgg16_bn": [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
    "vgg19_bn": [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49],
}
NAMES = [*TABLE_1, "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]


class TorchVGG(TorchNet):
    """A column of table 1; with batch norm where there are parameters of it."""

    def __init__(self, variables, name):
        super().__init__(variables)
        self.table = TABLE_1[name.removesuffix("_bn")].split()
        self.normed = name.endswith("_bn")

    def endpoints(self, images, train=False):
        x, out, block, layer = self.images(images), {}, 1, 1
        for entry in self.table:
            if entry == "|":
                x = out[f"pool{block}"] = self.f.max_pool2d(x, 2)
                block, layer = block + 1, 1
            elif entry == "LRN":
                # torch divides alpha by the size.
                how = dict(alpha=5 * 1e-4, beta=0.75, k=2.0)
                x = out["norm1"] = self.f.local_response_norm(x, 5, **how)
            else:
                x = self.conv(x, f"backbone/conv{block}_{layer}")
                if self.normed:
                    x = self.norm(x, f"backbone/bn{block}_{layer}", train)
                x = out[f"conv{block}_{layer}"] = x.relu()
                layer += 1
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = out["fc6"] = self.dense(x, "backbone/fc6").relu()
        x = out["fc7"] = self.dense(x, "backbone/fc7").relu()
        out["logits"] = self.dense(x, "head/fc8")
        return out


# A few channels in every layer, and in each block another number of them.
NARROW = dict(widths=(4, 5, 6, 7, 3), dense=32)


def build(name, **options):
    return zoo.build(name, **{"num_classes": 5, **NARROW, **options})


def make_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("name", TABLE_1)
def test_convolutions_are_those_of_table_1(name):
    model = zoo.build(name)
    params = abstract_variables(model, (224, 224, 3))["params"]["backbone"]
    windows = {path: layer["kernel"].shape for path, layer in params.items()}
    expected, endpoints, channels, block, layer = {}, [], 3, 1, 1
    for entry in TABLE_1[name].split():
        if entry == "|":
            endpoints.append(f"pool{block}")
            block, layer = block + 1, 1
        elif entry == "LRN":
            endpoints.append("norm1")
        else:
            window, features = map(int, entry.split("-"))
            endpoints.append(f"conv{block}_{layer}")
            expected[endpoints[-1]] = (window, window, channels, features)
            channels, layer = features, layer + 1
    expected |= {"fc6": (7 * 7 * 512, 4096), "fc7": (4096, 4096)}
    assert windows == expected
    shapes = list_endpoints(model, (224, 224, 3))
    assert [*shapes] == [*endpoints, "fc6", "fc7", "logits"]
    pools = [shape for name, shape in shapes.items() if "pool" in name]
    sides = [112, 56, 28, 14, 7]
    assert pools == [(s, s, w) for s, w in zip(sides, vgg.WIDTHS, strict=True)]


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16_c", "vgg13_bn"])
def test_every_endpoint_is_what_torch_computes(name, cheap_jit):
    images = make_images(1, 224, 224)
    check_endpoints(build(name), partial(TorchVGG, name=name), images, jit=cheap_jit)


def test_batch_statistics_are_torchs(cheap_jit):
    images = make_images(2, 224, 224)
    model = build("vgg11_bn", dropout=0.0)
    variables = random_variables(model, images)
    net = TorchVGG(variables, "vgg11_bn")
    run = cheap_jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, new = run(variables, images)
    expected = net.endpoints(images, train=True)["logits"]
    assert_near(logits, expected.detach().numpy(), 1e-4, "logits")
    found = flatten(new)
    assert len(found) == 2 * 8
    for path, leaf in found.items():
        assert_near(leaf, net.leaves[path].numpy(), 1e-5, path)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_state_dict(name):
    shapes = list_torch_shapes(name)
    layers = [r.path for r in list_layers(zoo.build(name), (224, 224, 3))]
    convs = [path.split("/")[1] for path in layers if "/conv" in path]
    keys = [key.removesuffix(".weight") for key in shapes if len(shapes[key]) == 4]
    if name not in TORCHVISION:
        assert {*keys} == {*convs}
        assert shapes["fc6.weight"] == (4096, 512 * 7 * 7)
        assert shapes["fc8.bias"] == (1000,)
        return
    places = TORCHVISION[name]
    assert {*keys} == {f"features.{i}" for i in places}
    for place, conv in zip(places, convs, strict=True):
        width = vgg.WIDTHS[int(conv[4]) - 1]
        assert shapes[f"features.{place}.weight"][0] == width
        norm = f"features.{place + 1}.running_var"
        assert shapes.get(norm) == ((width,) if name.endswith("_bn") else None)
    dense = {k: v for k, v in shapes.items() if "classifier" in k and "weight" in k}
    assert dense == {
        "classifier.0.weight": (4096, 512 * 7 * 7),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.weight": (1000, 4096),
    }


@pytest.mark.parametrize("name", ["vgg16_c", "vgg11_bn"])
def test_a_state_dict_comes_back_bit_by_bit(name):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda v: rng.random(v.shape, np.float32),
        abstract_variables(build(name), (224, 224, 3)),
    )
    state = to_torch(name, variables, **NARROW)
    after = flatten(from_torch(name, {**state}, **NARROW))
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(after[path], leaf)
    # PyTorch flattens channels first, before rows and columns.
    x = rng.random((7, 7, 3), np.float32)
    weight = state["fc6.weight" if name == "vgg16_c" else "classifier.0.weight"]
    theirs = weight @ x.transpose(2, 0, 1).reshape(-1)
    ours = x.reshape(-1) @ variables["params"]["backbone"]["fc6"]["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_smallest_images():
    model = build("vgg16", fully_convolutional=True)
    assert list_endpoints(model, (224, 230, 3))["fc6"] == (1, 1, 32)
    assert list_endpoints(model, (255, 256, 3))["fc6"] == (1, 2, 32)
    words = "vgg16 takes images of 224 x 224 pixels or more, got"
    with pytest.raises(ValueError, match=rf"{words} \[1, 223, 300, 3\]"):
        list_endpoints(model, (223, 300, 3))
    for shape in ((256, 256, 3), (223, 223, 3)):
        with pytest.raises(ValueError, match=r"vgg16_bn takes images \[B, 224, 224, "):
            list_endpoints(build("vgg16_bn"), shape)
    # Nothing smaller fits: the message does not ask for too much.
    model = model.clone(backbone=model.backbone.clone(min_size=1))
    with pytest.raises(ValueError, match=r"The kernel .* is larger than x"):
        list_endpoints(model, (223, 300, 3))


def test_dense_layers_read_every_place(cheap_jit):
    images = make_images(2, 256, 224)
    model = build("vgg11", fully_convolutional=True)
    variables = random_variables(model, images)
    found = cheap_jit(partial(model.apply, method="endpoints"))(variables, images)
    assert found["fc6"].shape == (2, 2, 1, 32)
    params = jax.tree.map(np.asarray, variables["params"])
    fc6, fc8 = params["backbone"]["fc6"], params["head"]["fc8"]
    for place in range(2):
        window = np.asarray(found["pool5"][:, place : place + 7], np.float64)
        expected = np.maximum(window.reshape(2, -1) @ fc6["kernel"] + fc6["bias"], 0)
        got = found["fc6"][:, place, 0]
        np.testing.assert_allclose(got, expected, atol=1e-5 * expected.max())
    scores = np.asarray(found["fc7"], np.float64) @ fc8["kernel"] + fc8["bias"]
    expected = scores.mean((1, 2))
    np.testing.assert_allclose(
        found["logits"], expected, atol=1e-5 * np.abs(expected).max()
    )
    # The usual network has the same parameters.
    shapes = abstract_variables(build("vgg11"), (224, 224, 3))
    assert shapes == jax.eval_shape(lambda: variables)


def test_dropout_is_after_the_dense_layers_in_training(cheap_jit):
    images = make_images(1, 224, 224)
    model = build("vgg11", dense=512)
    variables = random_variables(model, images)

    @cheap_jit
    def run(variables, key):
        apply = partial(model.apply, variables, images, method="endpoints")
        return apply(train=True, rngs={"dropout": key}), apply(train=False)

    train, test = run(variables, jax.random.key(0))
    np.testing.assert_array_equal(train["pool5"], test["pool5"])
    positive = np.asarray(test["fc6"]) > 0
    kept = np.asarray(train["fc6"] / test["fc6"])[positive]
    assert {*np.unique(kept)} == {0.0, 2.0}
    assert np.mean(kept > 0) == pytest.approx(0.5, abs=0.1)
    # Of fc7 half of what is positive is dropped again.
    assert np.mean(np.asarray(train["fc7"]) == 0) == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(
    ("name", "init", "conv", "dense"),
    [
        ("vgg11", None, 0.1, 0.1),
        ("vgg11_bn", None, (2 / (9 * 7)) ** 0.5, 0.01),
        ("vgg11", "glorot", (2 / (9 * 7 + 9 * 7)) ** 0.5, (2 / (32 + 900)) ** 0.5),
    ],
)
def test_initializations(name, init, conv, dense, cheap_jit):
    model = build(name, num_classes=900, init=init)

    @cheap_jit
    def draw(key):
        params = model.init(key, jnp.zeros((1, 224, 224, 3)))["params"]
        flat = flatten(params)
        paths = ["backbone/conv4_2/kernel", "head/fc8/kernel"]
        biases = [leaf for path, leaf in flat.items() if path.endswith("/bias")]
        return [flat[path] for path in paths], biases

    kernels, biases = draw(jax.random.key(0))
    found = [np.std(kernel) for kernel in kernels]
    assert found == pytest.approx([conv, dense], rel=0.1)
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("name", NAMES)
def test_published_weights(name):
    weights = zoo.get_spec(name).weights
    assert [w.name for w in weights] == ["imagenet"] * (name in TORCHVISION)
    for w in weights:
        assert name in w.url
        assert w.source.startswith("torchvision")
        assert w.preprocess.std == (0.229, 0.224, 0.225)
