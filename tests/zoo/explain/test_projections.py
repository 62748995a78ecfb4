"""Deconvnet, guided backprop and the gradient against independent statements."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_runs import forced_devices

import zoo
from zoo.classification.he_init import PReLU
from zoo.explain.projections import count_rectifiers
from zoo.layers import BatchNorm, Classifier, Conv, FullyConnected, LinearHead
from zoo.ops.normalization import local_response_norm
from zoo.ops.pooling import max_pool
from zoo.ops.resize import resize
from zoo.ops.unpooling import max_pool_with_indices, max_unpool
from zoo.segmentation.segmenter import ConvTransposed

METHODS = ("saliency", "deconvnet", "guided_backprop")


class Columns(nn.Module):
    """A small AlexNet: groups, strides, overlapping pools, normalization, fc6."""

    @nn.compact
    def __call__(self, x, train=False):
        out = {}
        conv1 = Conv(6, 3, stride=2, padding=1, name="conv1")
        x = out["conv1"] = nn.relu(conv1(x))
        x = out["norm1"] = local_response_norm(x)
        x = out["pool1"] = max_pool(x, 3, 2, ceil=True)
        x = out["conv2"] = nn.relu(Conv(8, 3, padding=1, groups=2, name="conv2")(x))
        x = out["pool2"] = max_pool(x, 2, 2)
        fc6 = FullyConnected(7, window=2, name="fc6")
        out["fc6"] = nn.relu(fc6(x))
        return out


def run(method, *args, **kwargs):
    return np.asarray(getattr(zoo.explain, method)(*args, **kwargs))


def random_variables(model, images, seed=0):
    """All variables at random, biases too: a bias that is used on the way is seen."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=leaf.shape).astype(np.float32) / 2 for leaf in leaves]
    variables = jax.tree.unflatten(tree, drawn)
    if "batch_stats" in variables:
        positive = {"var": lambda leaf: np.abs(leaf) + 0.5}
        variables["batch_stats"] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: positive.get(path[-1].key, lambda x: x)(leaf),
            variables["batch_stats"],
        )
    return variables


def random_images(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def columns():
    model, images = (
        Classifier(Columns(), LinearHead(5)),
        40 * random_images(2, 16, 16, 3),
    )
    return model, random_variables(model, images), images


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("endpoint", ["norm1", "pool1", "pool2", "logits"])
def test_every_layer_equals_a_statement_in_torch(columns, method, endpoint):
    torch = pytest.importorskip("torch")
    import restate_deconvnet as restate

    model, variables, images = columns
    layers = [
        ("conv1", [restate.conv("conv1", stride=2, padding=1), restate.RELU]),
        ("norm1", [restate.NORM]),
        ("pool1", [restate.pool(3, 2, ceil=True)]),
        ("conv2", [restate.conv("conv2", padding=1, groups=2), restate.RELU]),
        ("pool2", [restate.pool(2, 2)]),
        ("fc6", [restate.FLATTEN, restate.dense("fc6"), restate.RELU]),
        ("logits", [restate.dense("fc")]),
    ]
    weights, parts = {}, variables["params"]
    for name, part in {**parts["backbone"], **parts["head"]}.items():
        kernel = part["kernel"]
        if name == "fc6":  # From rows, columns, channels to channels, rows, columns.
            kernel = kernel.reshape(2, 2, 8, 7).transpose(2, 0, 1, 3).reshape(-1, 7)
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        weights[f"{name}.weight"] = torch.tensor(kernel.transpose(axes).copy())
        weights[f"{name}.bias"] = torch.tensor(part["bias"])
    network = restate.Restated(
        layers, weights, torch.tensor(images.transpose(0, 3, 1, 2).copy())
    )
    expected = network.project(endpoint, method).numpy().transpose(0, 2, 3, 1)
    found = run(method, model, variables, images, endpoint)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


class Mixed(nn.Module):
    """The layers that the paper does not have."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(BatchNorm, momentum=0.9)
        x = nn.relu(
            norm(name="bn1")(Conv(4, 3, padding=1, name="conv1")(x), train=train)
        )
        y = Conv(4, 3, padding=2, dilation=2, name="dilated")(x)
        x = nn.relu(x + norm(name="bn2")(y, train=train))
        x = jnp.concatenate(
            [x, nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))], axis=-1
        )
        x = nn.leaky_relu(Conv(4, 2, stride=2, name="down")(x), 0.1)
        x = PReLU(name="prelu")(ConvTransposed(3, 4, 2, offset=1, name="up")(x))
        x = nn.relu6(Conv(3, 1, name="last")(resize(x, (5, 5), antialias=False)))
        return {"last": x, "mean": x.mean(axis=(1, 2))}


def make_rectify(torch, method):
    """A rectifier in torch with a method's way back."""

    class Rectify(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, slope, top):
            ctx.save_for_backward(x, slope)
            ctx.top = top
            return torch.where(x > 0, x, slope * x).clamp(max=top)

        @staticmethod
        def backward(ctx, g):
            x, slope = ctx.saved_tensors
            if method != "deconvnet":
                g = torch.where(x > 0, g, slope * g) * (x < ctx.top)
            if method != "saliency":
                g = torch.where(g > 0, g, slope * g)
            return g, None, None

    def rectify(x, slope=0.0, top=np.inf):
        slope = torch.as_tensor(slope, dtype=x.dtype).reshape(1, -1, 1, 1)
        return Rectify.apply(x, slope, top)

    return rectify


def restate_mixed(torch, method, v, images):
    """The same with torch's layers, and rectifiers with a way back of their own."""
    F, rectify = torch.nn.functional, make_rectify(torch, method)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), v["params"]["backbone"])
    s = jax.tree.map(
        lambda a: torch.tensor(np.asarray(a)), v["batch_stats"]["backbone"]
    )

    def conv(x, name, **how):
        kernel = p[name]["kernel"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, p[name]["bias"], **how)

    def norm(x, name):
        stats, affine = s[name], p[name]
        how = (stats["mean"], stats["var"], affine["scale"], affine["bias"])
        return F.batch_norm(x, *how)

    images = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    x = rectify(norm(conv(images, "conv1", padding=1), "bn1"))
    x = rectify(x + norm(conv(x, "dilated", padding=2, dilation=2), "bn2"))
    x = torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], dim=1)
    x = rectify(conv(x, "down", stride=2), 0.1)
    up = p["up"]["kernel"].permute(2, 3, 0, 1)
    x = F.conv_transpose2d(x, up, p["up"]["bias"].reshape(-1), stride=2)[..., 1:, 1:]
    x = rectify(x, p["prelu"]["slope"])
    x = F.interpolate(x, size=(5, 5), mode="bilinear", align_corners=False)
    return images, rectify(conv(x, "last"), top=6.0)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_the_paper_does_not_have(method):
    torch = pytest.importorskip("torch")
    images = random_images(2, 8, 8, 3)
    model = Classifier(Mixed(), None)
    variables = random_variables(model, images)
    inputs, outputs = restate_mixed(torch, method, variables, images)
    means = outputs.mean(dim=(2, 3))
    values = means[[0, 1], [0, 2]]
    seed = values.detach() if method == "deconvnet" else torch.ones(2)
    (expected,) = torch.autograd.grad(values, inputs, seed)
    expected = expected.numpy().transpose(0, 2, 3, 1)
    channels = np.array([0, 2])
    found = run(method, model, variables, images, "mean", channels)
    assert np.abs(expected).max(axis=(1, 2, 3)).min() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


class Unpooled(nn.Module):
    """A pool whose indices place the values of another map."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Conv(4, 3, padding=1, name="conv1")(x))
        pooled, indices = max_pool_with_indices(x, 2, 2)
        y = nn.relu(Conv(4, 3, padding=1, name="conv2")(pooled))
        x = max_unpool(y, indices, x.shape[1:3], stride=2)
        return {"last": nn.relu(Conv(3, 3, padding=1, name="conv3")(x))}


@pytest.mark.parametrize("method", METHODS)
def test_unpooling_by_indices(method):
    torch = pytest.importorskip("torch")
    F, rectify = torch.nn.functional, make_rectify(torch, method)
    images = random_images(2, 8, 8, 3)
    model = Classifier(Unpooled(), None)
    variables = random_variables(model, images)

    def conv(x, name):
        layer = variables["params"]["backbone"][name]
        kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy())
        return rectify(F.conv2d(x, kernel, torch.tensor(layer["bias"]), padding=1))

    inputs = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    pooled, indices = F.max_pool2d(conv(inputs, "conv1"), 2, return_indices=True)
    last = conv(F.max_unpool2d(conv(pooled, "conv2"), indices, 2), "conv3")
    values = last[[0, 1], [1, 2]].flatten(1).max(dim=1).values
    assert (values > 0).all()
    seed = values.detach() if method == "deconvnet" else torch.ones(2)
    (expected,) = torch.autograd.grad(values, inputs, seed)
    expected = expected.numpy().transpose(0, 2, 3, 1)
    found = run(method, model, variables, images, "last", np.array([1, 2]))
    assert np.abs(expected).max(axis=(1, 2, 3)).min() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


class Line(nn.Module):
    """A rectifier between two layers, of two numbers a pixel."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(Conv(2, 1, name="conv1")(x))
        return {"first": x, "second": Conv(1, 1, name="conv2")(x)}


def test_the_methods_differ_where_the_literature_says():
    """At a rectifier: by the sign below (gradient), above (deconvnet), or both."""
    model, image = Classifier(Line(), None), np.ones((1, 1, 1, 4), np.float32)
    filters = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    # The second filter's input is positive or negative, and so is its weight above.
    for sign, above in ((1, [3.0, 5.0]), (-1, [3.0, 5.0]), (1, [3.0, -1.0])):
        kernel = (filters * [[1], [sign]]).astype(np.float32).T.reshape(1, 1, 4, 2)
        params = {
            "conv1": {"kernel": kernel, "bias": np.zeros(2, np.float32)},
            "conv2": {
                "kernel": np.array(above, np.float32).reshape(1, 1, 2, 1),
                "bias": np.zeros(1, np.float32),
            },
        }
        variables = {"params": {"backbone": params}}
        value = above[0] * 10 + above[1] * max(0, 10 * sign)
        alive, passed = np.array([True, sign > 0]), np.array(above) > 0
        gates = {
            "saliency": alive,
            "deconvnet": np.array(above) * value > 0,
            "guided_backprop": alive & passed,
        }
        for method, gate in gates.items():
            scale = value if method == "deconvnet" else 1.0
            weights = np.where(gate, above, 0) * scale
            expected = kernel.reshape(4, 2) @ weights
            found = run(method, model, variables, image, "second")
            np.testing.assert_allclose(found.reshape(4), expected, rtol=1e-6)


def test_without_a_rectifier_above_all_are_the_gradient(columns):
    """The endpoint's own rectifier is passed: what is projected is positive."""
    model, variables, images = columns
    gradient = run("saliency", model, variables, images, "conv1", 2)
    guided = run("guided_backprop", model, variables, images, "conv1", 2)
    projected = run("deconvnet", model, variables, images, "conv1", 2)
    activations = model.apply(variables, images, method="endpoints")["conv1"]
    value = np.asarray(activations)[..., 2].max(axis=(1, 2)).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(gradient, guided)
    np.testing.assert_allclose(projected, value * gradient, rtol=1e-5)


def test_one_position_and_channel_of_each_image(columns):
    model, variables, images = columns
    channels, places = np.array([1, 5]), np.array([[0, 3], [2, 1]])
    found = run("saliency", model, variables, images, "pool1", channels, places)

    def value(images):
        out = model.apply(variables, images, method="endpoints")["pool1"]
        return out[0, 0, 3, 1] + out[1, 2, 1, 5]

    expected = jax.grad(value)(jnp.asarray(images))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one = run("saliency", model, variables, images[:1], "pool1", 1, places[:1])
    np.testing.assert_allclose(one, found[:1], atol=1e-6)


def test_under_jit_and_vmap(columns):
    model, variables, images = columns
    deconvnet = partial(zoo.explain.deconvnet, model, variables, endpoint="pool2")
    expected = deconvnet(images)
    each = jax.jit(jax.vmap(lambda image: deconvnet(image[None])[0]))(images)
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-3)


def test_two_threads_do_not_disturb_each_other(columns):
    model, variables, images = columns
    calls = [method for _ in range(4) for method in METHODS]

    def project(method):
        return run(method, model, variables, images, "pool2", 3)

    expected = dict(zip(METHODS, map(project, METHODS), strict=True))
    jax.clear_caches()  # Or they would not be traced at once.
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(project, calls))
    for method, maps in zip(calls, found, strict=True):
        np.testing.assert_array_equal(maps, expected[method])
    assert np.abs(expected["deconvnet"] - expected["guided_backprop"]).max() > 0


@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}], ids=str)
def test_scanned_and_recomputed_networks(options):
    images = random_images(1, 16, 16, 3)
    plain, variables = zoo.create("cifar_resnet20")
    expected = run("guided_backprop", plain, variables, images, "stage2")
    model, same = zoo.create("cifar_resnet20", **options)
    found = run("guided_backprop", model, same, images, "stage2")
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_bfloat16(columns):
    images = random_images(1, 16, 16, 3)
    model, variables = zoo.create("cifar_resnet20")
    half, _ = zoo.create("cifar_resnet20", dtype=jnp.bfloat16)
    place = np.array([[2, 3]])
    expected = run("deconvnet", model, variables, images, "stage1", 1, place)
    found = run("deconvnet", half, variables, images, "stage1", 1, place)
    assert found.dtype == np.float32
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.98


@pytest.mark.parametrize(
    ("name", "count"),
    [("lenet5", 0), ("lenet5_modern", 1), ("alexnet", 7), ("vgg16", 15)],
)
def test_rectifiers_are_found(name, count):
    assert count_of(name) == count


@pytest.mark.apart
@pytest.mark.parametrize("name", zoo.list_models())
def test_every_network_but_lenet5_has_rectifiers(name):
    assert (count_of(name) > 0) == (name != "lenet5")


def count_of(name):
    from zoo.summary import abstract_variables

    model, shape = zoo.build(name), zoo.get_spec(name).preprocess.shape
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # The endpoints and the call: each rectifier is met twice.
    found = count_rectifiers(model, abstract_variables(model, shape), images)
    assert found % 2 == 0
    return found // 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(endpoint="pool3"), r"endpoint 'pool3'.*pool[12]"),
        (dict(channels=8), r"channels of endpoint 'pool2'.*\[8\].*0 to 7"),
        (dict(channels=-1), r"\[-1\] out of range"),
        (dict(channels=[1, 2, 3]), r"channels.*int \[2\]"),
        (dict(channels=1.0), "channels.*whole number"),
        (dict(positions=[[0, 2], [0, 0]]), r"positions\[:, 1\].*0 to 1"),
        (dict(positions=[0, 0]), r"positions.*\[2, 2\]"),
        (dict(images=np.zeros((2, 24, 16, 3), np.float32)), "kernel"),
        (dict(images=np.zeros((0, 16, 16, 3), np.float32)), "without images"),
        (dict(images=np.zeros((2, 16, 16, 3), np.uint8)), "normalize"),
        (dict(images=np.zeros((16, 16, 3), np.float32)), r"\[B, H, W, C\]"),
    ],
)
def test_bad_input(columns, change, words):
    model, variables, images = columns
    given = dict(images=images, endpoint="pool2", channels=1, positions=None) | change
    with pytest.raises(ValueError, match=words):
        zoo.explain.deconvnet(model, variables, **given)


def test_a_network_without_rectifiers():
    model, variables = zoo.create("lenet5")
    images = random_images(1, 32, 32, 1)
    for method in ("deconvnet", "guided_backprop"):
        with pytest.raises(ValueError, match=f"{method}.*none of"):
            run(method, model, variables, images, "logits")
    assert np.abs(run("saliency", model, variables, images, "logits")).max() > 0


ON_A_MESH = """
import jax, numpy as np, zoo
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_explained import make_tiny
model, variables, images = make_tiny(batch=4)
mesh = Mesh(np.array(jax.devices()), ("data",))
spread = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
methods = ("deconvnet", "guided_backprop", "saliency", "integrated_gradients")
for method in methods:
    explain = getattr(zoo.explain, method)
    expected = np.asarray(explain(model, variables, images, "conv2"))
    found = explain(model, variables, spread, "conv2")
    assert len(found.sharding.device_set) == 4, found.sharding
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected).max() > 0
"""


def test_on_a_mesh():
    folder = Path(__file__).parents[2] / "reference"
    environment = os.environ | {
        "XLA_FLAGS": forced_devices(4),
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])]),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "ignore", "-c", ON_A_MESH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
