"""Residual networks against an independent PyTorch restatement, and their details."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.classification.cifar_resnet import cifar_resnet
from zoo.paths import flatten

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
LABELS = np.array([3, 7])
NETWORKS = {
    "resnet20": {"depth": 20},
    "resnet20 B": {"depth": 20, "shortcut": "B"},
    # A deep plain network is chaotic: one activation on the other side of zero by
    # rounding, and its gradients differ in the third digit.
    "plain8": {"depth": 8, "shortcut": None},
}


class TorchNet:
    """The network of the paper's section 4.2, written from the paper in PyTorch.

    It reads the leaves of the Flax variables as float64 tensors, by path.
    """

    def __init__(self, variables, depth, shortcut="A"):
        import torch

        self.torch, self.f = torch, torch.nn.functional
        self.blocks = {8: 1, 20: 3}[depth]
        self.shortcut = shortcut
        self.leaves = {
            path: torch.tensor(np.array(leaf, np.float64))
            for path, leaf in flatten(variables).items()
        }
        for path, leaf in self.leaves.items():
            leaf.requires_grad_(path.startswith("params/"))

    def conv(self, x, path, stride=1):
        kernel = self.leaves[f"params/{path}/kernel"].permute(3, 2, 0, 1)
        padding = (kernel.shape[-1] - 1) // 2
        return self.f.conv2d(x, kernel, stride=stride, padding=padding)

    def norm(self, x, path, train):
        p, s = f"params/{path}", f"batch_stats/{path}"
        # torch keeps 1 - 0.1 of the running statistics, and the unbiased variance.
        return self.f.batch_norm(
            x,
            self.leaves[f"{s}/mean"],
            self.leaves[f"{s}/var"],
            self.leaves[f"{p}/scale"],
            self.leaves[f"{p}/bias"],
            training=train,
            momentum=0.1,
            eps=1e-5,
        )

    def block(self, x, path, channels, stride, train):
        y = self.conv(x, f"{path}/conv1", stride)
        y = self.norm(y, f"{path}/bn1", train).relu()
        y = self.norm(self.conv(y, f"{path}/conv2"), f"{path}/bn2", train)
        if self.shortcut is not None:
            if stride > 1 and self.shortcut == "A":
                extra = (channels - x.shape[1]) // 2
                x = self.f.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
            elif stride > 1:
                x = self.conv(x, f"{path}/shortcut_conv", stride)
                x = self.norm(x, f"{path}/shortcut_bn", train)
            y = y + x
        return y.relu()

    def endpoints(self, images, train=False):
        x = self.torch.tensor(images.astype(np.float64)).permute(0, 3, 1, 2)
        x = self.conv(x, "backbone/stem/conv")
        x = self.norm(x, "backbone/stem/bn", train).relu()
        out = {"stem": x}
        for stage, channels in enumerate((16, 32, 64), start=1):
            for block in range(1, self.blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                path = f"backbone/stage{stage}/block{block}"
                x = self.block(x, path, channels, stride, train)
            out[f"stage{stage}"] = x
        out["pool"] = x.mean((2, 3))
        head = "params/head/fc"
        out["logits"] = (
            out["pool"] @ self.leaves[f"{head}/kernel"] + self.leaves[f"{head}/bias"]
        )
        return out


def numpy_of(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def assert_near(got, expected, tolerance, name):
    """Compares relative to the largest magnitude."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: relative error {error}"


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, cheap_jit):
    """A network whose batch norm has nothing that is 0 or 1, in both frameworks."""
    pytest.importorskip("torch")
    options = NETWORKS[request.param]
    model = cifar_resnet(**options)
    variables = cheap_jit(model.init)(jax.random.key(5), IMAGES)
    rng = np.random.default_rng(1)

    def scatter(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.float32(rng.uniform(0.5, 1.5, leaf.shape))
        if kind in ("bias", "mean"):
            return jnp.float32(rng.normal(0, 0.2, leaf.shape))
        return leaf * (10 if "head" in str(path) else 1)

    variables = jax.tree_util.tree_map_with_path(scatter, variables)
    return model, variables, partial(TorchNet, variables, **options)


def test_every_endpoint_is_what_torch_computes(network):
    model, variables, make_torch = network
    found = jax.jit(lambda v, x: model.apply(v, x, method="endpoints"))(
        variables, IMAGES
    )
    expected = make_torch().endpoints(IMAGES)
    assert {*found} == {*expected}
    for name, value in expected.items():
        assert_near(found[name], numpy_of(value), 1e-5, name)


def test_one_training_step_is_what_torch_computes(network):
    model, variables, make_torch = network
    tx = optax.sgd(0.1)

    @jax.jit
    def step(variables):
        def loss(params):
            logits, new = model.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
            return losses.mean(), new

        params = variables["params"]
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return value, grads, {"params": optax.apply_updates(params, updates), **new}

    value, grads, after = step(variables)

    net = make_torch()
    logits = net.endpoints(IMAGES, train=True)["logits"]
    expected = net.f.cross_entropy(logits, net.torch.tensor(LABELS))
    expected.backward()
    assert_near(value, expected.item(), 1e-5, "loss")
    for path, grad in flatten(grads).items():
        assert_near(grad, net.leaves[f"params/{path}"].grad.numpy(), 1e-5, path)
    for path, leaf in flatten(after).items():
        theirs = net.leaves[path]
        if path.startswith("params/"):
            theirs = theirs - 0.1 * theirs.grad
        assert_near(leaf, theirs.detach().numpy(), 1e-5, path)
    moved = flatten(after["batch_stats"])
    for path, leaf in flatten(variables["batch_stats"]).items():
        assert np.abs(leaf - moved[path]).max() > 0, path


@pytest.mark.quick
def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides(cheap_jit):
    model = cifar_resnet(depth=8)
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    # With the residual branch at zero a block passes on its shortcut.
    block = variables["params"]["backbone"]["stage2"]["block1"]
    block["bn2"]["scale"] = jnp.zeros_like(block["bn2"]["scale"])
    found = cheap_jit(partial(model.apply, method="endpoints"))(variables, IMAGES)
    before, after = np.asarray(found["stage1"]), np.asarray(found["stage2"])
    np.testing.assert_array_equal(after[..., 8:24], before[:, ::2, ::2])
    assert not after[..., :8].any()
    assert not after[..., 24:].any()


@pytest.mark.quick
def test_convolutions_start_as_he_et_al_say(cheap_jit):
    model = cifar_resnet(depth=8, num_classes=100)
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    flat = flatten(variables["params"])
    for path, kernel in flat.items():
        if not path.endswith("conv1/kernel"):
            continue
        expected = (2 / (9 * kernel.shape[-1])) ** 0.5
        deviations = np.ravel(kernel) / expected
        assert np.std(deviations) == pytest.approx(1, rel=0.05), path
        assert np.mean(deviations) == pytest.approx(0, abs=0.05), path
    # 37,000 normal numbers go beyond three deviations; a truncated normal stops at two.
    wide = np.ravel(flat["backbone/stage3/block1/conv2/kernel"]) / (2 / 576) ** 0.5
    assert np.mean(np.abs(wide) > 2) == pytest.approx(0.0455, rel=0.1)
    assert np.abs(wide).max() > 3.5
    assert np.std(flat["head/fc/kernel"]) == pytest.approx(0.01, rel=0.05)
    assert not flat["head/fc/bias"].any()


@pytest.mark.quick
def test_fan_in_and_fan_out_are_not_the_same(cheap_jit):
    """Between 16 and 32 channels fan-in and fan-out differ by a factor of two."""
    images = jnp.zeros((1, 8, 8, 3))
    std = {}
    for init in ("he_fan_out", "he_fan_in"):
        model = cifar_resnet(depth=8, init=init)
        params = cheap_jit(model.init)(jax.random.key(0), images)
        kernel = flatten(params)["params/backbone/stage2/block1/conv1/kernel"]
        std[init] = float(np.std(kernel))
    assert std["he_fan_in"] / std["he_fan_out"] == pytest.approx(2**0.5, rel=0.02)


@pytest.mark.quick
@pytest.mark.parametrize("depth", [2, 7, 9, 18, 34])
def test_depths_of_other_forms_are_refused(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 2 with n >= 1, got {depth}"):
        cifar_resnet(depth=depth)


@pytest.mark.quick
def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="shortcut must be 'A', 'B' or 'C', got 'D'"):
        cifar_resnet(depth=8, shortcut="D")
    with pytest.raises(ValueError, match="init='he' is unknown; choose from"):
        cifar_resnet(depth=8, init="he")
    with pytest.raises(ValueError, match=r"0 \(no head\) or more, got -1"):
        cifar_resnet(depth=8, num_classes=-1)


@pytest.mark.quick
@pytest.mark.parametrize("side", [24, 31])
def test_other_sizes_of_images_are_fine(side):
    model = cifar_resnet(depth=8)
    images = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert shapes[0].shape == (1, 10)
