"""GoogLeNet and its auxiliary heads, narrow, against a PyTorch restatement."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import TorchNet, assert_near, check_endpoints

import zoo
from zoo.classification.googlenet import AuxiliaryHead
from zoo.paths import flatten
from zoo.spec import Card, plain_options
from zoo.summary import abstract_variables, list_endpoints
from zoo.transfer import replace_head
from zoo.weights import from_torch, save_safetensors, to_torch

RNG = np.random.default_rng(0)
NAMES = ["googlenet", "googlenet_tv"]
# Few modules, and of other widths in every place, so that no two can be exchanged.
MODULES = {
    module: tuple(2 + (3 * i + 5 * j) % 7 for j in range(6))
    for i, module in enumerate(["3a", "4a", "4d", "5a"])
}
NARROW = dict(stem=(4, 5, 6), modules=MODULES)
build = partial(zoo.build, **NARROW)


class TorchGoogLeNet(TorchNet):
    """Table 1 and figure 3 of the paper, or torchvision's variant of them."""

    epsilon = 1e-3

    def __init__(self, variables, tv):
        super().__init__(variables)
        self.tv = tv

    def unit(self, x, path, stride=1):
        x = self.conv(x, path, stride)
        return self.relu(self.norm(x, f"{path}_bn", train=False) if self.tv else x)

    def pool(self, x, window=3):
        return self.f.max_pool2d(x, window, 2, ceil_mode=True)

    def lrn(self, x):
        return self.f.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def inception(self, x, path):
        branches = [
            self.unit(x, f"{path}/1x1"),
            self.unit(self.unit(x, f"{path}/3x3_reduce"), f"{path}/3x3"),
            self.unit(self.unit(x, f"{path}/5x5_reduce"), f"{path}/5x5"),
            self.unit(self.f.max_pool2d(x, 3, 1, padding=1), f"{path}/pool_proj"),
        ]
        return self.torch.cat(branches, 1)

    def aux(self, x, path):
        # 14 x 14 to 4 x 4, by windows that torchvision has of another size.
        x = self.f.adaptive_avg_pool2d(x, 4) if self.tv else self.f.avg_pool2d(x, 5, 3)
        x = self.unit(x, f"{path}/conv").permute(0, 2, 3, 1)
        x = self.relu(self.dense(x.reshape(len(x), -1), f"{path}/fc1"))
        return self.dense(x, f"{path}/fc2")

    def endpoints(self, images):
        out = {}
        x = out["conv1"] = self.unit(self.images(images), "backbone/conv1", 2)
        x = out["pool1"] = self.pool(x)
        if not self.tv:
            x = out["norm1"] = self.lrn(x)
        x = out["conv2_reduce"] = self.unit(x, "backbone/conv2_reduce")
        x = out["conv2"] = self.unit(x, "backbone/conv2")
        if not self.tv:
            x = out["norm2"] = self.lrn(x)
        x = out["pool2"] = self.pool(x)
        for module in "3a pool3 4a 4d pool4 5a".split():
            if "pool" in module:
                window = 2 if self.tv and module == "pool4" else 3
                x = out[module] = self.pool(x, window)
            else:
                path = f"inception_{module}"
                x = out[path] = self.inception(x, f"backbone/{path}")
        out["pool"] = x.mean((2, 3))
        out["logits"] = self.dense(out["pool"], "head/fc")
        return out


@pytest.mark.parametrize("name", NAMES)
def test_every_endpoint_is_what_torch_computes(name, cheap_jit):
    # Pools round up at each of these sizes.
    images = RNG.normal(size=(2, 82, 68, 3)).astype(np.float32)
    model = build(name, num_classes=5)
    make_net = partial(TorchGoogLeNet, tv=name == "googlenet_tv")
    check_endpoints(model, make_net, images, jit=cheap_jit)


@pytest.mark.parametrize("tv", [False, True])
def test_an_auxiliary_head_is_what_torch_computes(tv, cheap_jit):
    x = RNG.normal(size=(2, 14, 14, 6)).astype(np.float32)
    head = AuxiliaryHead(5, batch_norm=tv)
    call = partial(head.init, train=False)
    variables = {
        kind: {"aux1": tree}
        for kind, tree in cheap_jit(call)(jax.random.key(0), x).items()
    }
    got = head.apply({kind: tree["aux1"] for kind, tree in variables.items()}, x, False)
    net = TorchGoogLeNet(variables, tv)
    assert_near(got, net.aux(net.images(x), "aux1").detach().numpy(), 1e-5, "aux1")


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_heads_are_an_option(name):
    bare, full = (
        list_endpoints(build(name, aux=aux), (224, 224, 3)) for aux in (False, True)
    )
    assert [*full] == [*[*bare][:-1], "aux1", "aux2", "logits"]
    assert full["aux1"] == full["aux2"] == full["logits"] == (1000,)
    losses = zoo.get_spec(name).aux_losses
    assert losses == (("aux1", 0.3), ("aux2", 0.3))
    params = abstract_variables(build(name, aux=True), (224, 224, 3))["params"]
    assert {*params} == {"backbone", "head", "aux1", "aux2"}
    layers = {"conv", "fc1", "fc2"} | ({"conv_bn"} if name == "googlenet_tv" else set())
    assert {*params["aux1"]} == {*params["aux2"]} == layers
    for part, module in (("aux1", "4a"), ("aux2", "4d")):
        channels = full[f"inception_{module}"][-1]
        assert params[part]["conv"]["kernel"].shape == (1, 1, channels, 128)


def test_the_type_of_the_output_does_not_change_in_training():
    model = build("googlenet_tv", aux=True, num_classes=7)
    images = jnp.zeros((2, 40, 40, 3))
    variables = abstract_variables(model, (40, 40, 3))

    def run(variables, images):
        apply = partial(model.apply, variables, images)
        rngs = {"dropout": jax.random.key(0)}
        new, _ = apply(train=True, rngs=rngs, mutable=["batch_stats"])
        return apply(), new

    kept, new = jax.eval_shape(run, variables, images)
    assert kept.shape == new.shape == (2, 7)


def test_dropout_is_active_in_training_alone(cheap_jit):
    x = jnp.ones((2, 14, 14, 3))
    head = AuxiliaryHead(5)
    variables = cheap_jit(partial(head.init, train=False))(jax.random.key(0), x)

    def run(seed, train=True):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(head.apply(variables, x, train, rngs=rngs))

    assert np.abs(run(0) - run(1)).max() > 0
    np.testing.assert_array_equal(run(0, train=False), run(1, train=False))
    assert zoo.build("googlenet", aux=True).aux1.dropout == 0.7
    rates = [zoo.build(name).backbone.config.dropout for name in NAMES]
    assert rates == [0.4, 0.2]
    without = zoo.build("googlenet", aux=True, dropout=0.0)
    assert without.backbone.config.dropout == 0.0
    assert (without.aux1.dropout, without.aux2.dropout) == (0.0, 0.0)
    assert zoo.build("googlenet", aux=True, dropout=0.3).aux2.dropout == 0.7


def test_batch_norm_and_the_activation_are_options(cheap_jit):
    for name, norm in (("googlenet_tv", False), ("googlenet", True)):
        variables = abstract_variables(build(name, batch_norm=norm), (64, 64, 3))
        assert ("batch_stats" in variables) == norm
        assert ("bias" in variables["params"]["backbone"]["conv1"]) != norm
    model = build("googlenet_tv", activation="sigmoid")
    images = jnp.asarray(RNG.normal(size=(1, 64, 64, 3)), jnp.float32)
    variables = cheap_jit(model.init)(jax.random.key(0), images)
    found = cheap_jit(partial(model.apply, method="endpoints"))(variables, images)
    assert 0 < found["conv1"].min() < 0.5 < found["conv1"].max() < 1
    with pytest.raises(ValueError, match=r"activation='tanh'.*relu.*sigmoid"):
        build("googlenet", activation="tanh")


@pytest.mark.parametrize(("name", "size"), [("googlenet", 47), ("googlenet_tv", 31)])
def test_the_smallest_images(name, size):
    model = build(name)
    assert list_endpoints(model, (size, size + 9, 3))["pool4"][0] == 1
    words = rf"^{name} takes images of {size} x {size} pixels or more, got \[1, 99, "
    with pytest.raises(ValueError, match=words):
        list_endpoints(model, (99, size - 1, 3))
    # Nothing smaller fits: the message does not ask for too much.
    variant = model.backbone.variant._replace(min_size=1)
    model = model.clone(backbone=model.backbone.clone(variant=variant))
    with pytest.raises(ValueError, match="window with padding 0 does not fit into W"):
        list_endpoints(model, (99, size - 1, 3))


def test_auxiliary_heads_and_other_sizes():
    with pytest.raises(ValueError, match=r"googlenet with aux=True takes images .*224"):
        list_endpoints(build("googlenet", aux=True), (256, 256, 3))
    shapes = list_endpoints(build("googlenet_tv", aux=True), (50, 70, 3))
    assert shapes["aux2"] == (1000,)


@pytest.mark.apart
@pytest.mark.parametrize("name", NAMES)
def test_initializations(name, cheap_jit):
    model = zoo.build(name, aux=True, modules=MODULES)

    def init(key):
        flat = flatten(model.init(key, jnp.zeros((1, 224, 224, 3)))["params"])
        layers = ("backbone/conv2", "backbone/inception_4d/5x5", "head/fc", "aux2/fc1")
        # What is not returned is not computed.
        return {k: v for k, v in flat.items() if k.rsplit("/", 1)[0] in layers}

    params = cheap_jit(init)(jax.random.key(0))
    conv2 = np.ravel(params["backbone/conv2/kernel"])
    biases = {k: {*np.ravel(v)} for k, v in params.items() if k.endswith("/bias")}
    if name == "googlenet":
        # Uniform by fan-in, 9 * 64.
        assert np.abs(conv2).max() == pytest.approx((3 / 576) ** 0.5, rel=0.01)
        assert biases.pop("head/fc/bias") == {0}
        assert len(biases) == 3
        assert all(values == {np.float32(0.2)} for values in biases.values())
    else:
        for layer in ("backbone/conv2", "aux2/fc1", "head/fc"):
            assert np.std(params[f"{layer}/kernel"]) == pytest.approx(0.01, rel=0.05)
        assert np.abs(conv2).max() > 0.03
        assert biases == {"head/fc/bias": {0}, "aux2/fc1/bias": {0}}


def filled(name, **options):
    """Random variables of a network, without its initialization."""
    shapes = abstract_variables(zoo.build(name, **options), (224, 224, 3))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda v: rng.random(v.shape, np.float32), shapes)


@pytest.mark.parametrize(
    ("name", "aux"), [("googlenet", "loss1/fc"), ("googlenet_tv", "aux1.fc1")]
)
def test_a_file_with_auxiliary_heads_fits_with_and_without_them(name, aux):
    variables = filled(name, aux=True, **NARROW)
    state = to_torch(name, variables, aux=True, **NARROW)
    assert state[f"{aux}.weight"].shape == (1024, 2048)
    back = from_torch(name, state, aux=True, **NARROW)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    bare = {
        kind: {part: v for part, v in tree.items() if not part.startswith("aux")}
        for kind, tree in variables.items()
    }
    back = from_torch(name, state, **NARROW)
    jax.tree.map(np.testing.assert_array_equal, back, bare)
    # PyTorch flattens by channel, row, column: its 17th input is channel 1's first.
    column = state[f"{aux}.weight"][:, 16]
    np.testing.assert_array_equal(
        column, variables["params"]["aux1"]["fc1"]["kernel"][1]
    )
    with pytest.raises(ValueError, match="aux3"):
        from_torch(name, {**state, "aux3.weight": np.zeros(1)}, **NARROW)


def test_torchvisions_names():
    state = to_torch("googlenet_tv", filled("googlenet_tv"))
    # 57 convolutions, each with its batch norm, and the head.
    assert len(state) == 57 * 5 + 2
    expected = {
        "conv1.conv.weight": "conv1",
        "conv2.conv.weight": "conv2_reduce",
        "conv3.bn.weight": "conv2_bn",
        "inception4e.branch1.bn.running_mean": "inception_4e/1x1_bn",
        "inception4e.branch2.0.conv.weight": "inception_4e/3x3_reduce",
        "inception4e.branch3.1.conv.weight": "inception_4e/5x5",
        "inception5b.branch4.1.bn.bias": "inception_5b/pool_proj_bn",
    }
    rules = zoo.get_spec("googlenet_tv").torch_rules(zoo.build("googlenet_tv"))
    found = {rule.key: rule.module for rule in rules}
    for key, module in expected.items():
        assert key in state
        assert found[key.rsplit(".", 1)[0]] == f"backbone/{module}"


def test_other_classes_give_every_head_a_new_last_layer(tmp_path, caplog):
    name, path = "googlenet_tv", tmp_path / "weights.safetensors"
    variables = filled(name, aux=True, num_classes=9, **NARROW)
    options = plain_options({"aux": True, **NARROW})
    card = Card(name, 9, options, zoo.get_spec(name).preprocess)
    save_safetensors(path, variables, card)
    model, new = zoo.create(name, weights=str(path), num_classes=4)
    assert "the weights have 9 classes; the head for 4 is new" in caplog.text
    shapes = abstract_variables(model, (224, 224, 3))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, shapes)
    for part, layer in (("head", "fc"), ("aux1", "fc2"), ("aux2", "fc2")):
        assert getattr(model, part).num_classes == 4
        assert new["params"][part].pop(layer)["kernel"].shape[-1] == 4
        variables["params"][part].pop(layer)
    # All that is below the last layers is kept.
    jax.tree.map(np.testing.assert_array_equal, new, variables)

    model, new = zoo.create(name, weights=str(path), num_classes=0)
    assert {*new["params"]} == {*new["batch_stats"]} == {"backbone"}
    assert [*list_endpoints(model, (64, 64, 3))][-1] == "pool"


def test_shared_classes_are_kept_in_every_head():
    options = dict(aux=True, num_classes=5, **NARROW)
    variables, model = filled("googlenet", **options), zoo.build("googlenet", **options)
    _, new = replace_head(
        model, variables, 3, key=jax.random.key(0), shared={2: 0, 0: 4}
    )
    for part, layer in (("head", "fc"), ("aux1", "fc2"), ("aux2", "fc2")):
        for leaf in ("kernel", "bias"):
            old, now = (v["params"][part][layer][leaf] for v in (variables, new))
            np.testing.assert_array_equal(now[..., 2], old[..., 0])
            np.testing.assert_array_equal(now[..., 0], old[..., 4])
    kernels = [new["params"][part]["fc2"]["kernel"][:, 1] for part in ("aux1", "aux2")]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_published_weights_are_complete():
    (weights,) = zoo.get_spec("googlenet_tv").weights
    assert weights.name == "imagenet"
    assert weights.url.endswith("googlenet-1378be20.pth")
    assert weights.accuracy.startswith("69.78 % (top-5 89.53 %)")
    assert len(weights.class_names) == 1000
    # What torchvision makes inside the network of an input with ImageNet's colors.
    ours, theirs = weights.preprocess, zoo.get_spec("resnet18").preprocess
    value = 0.3
    for i, (mean, std) in enumerate(zip(theirs.mean, theirs.std, strict=True)):
        x = (value - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
        assert (value - ours.mean[i]) / ours.std[i] == pytest.approx(x)
    assert (ours.size, ours.resize) == (224, 256)
