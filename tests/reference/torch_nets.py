"""Networks written from their papers in PyTorch, in float64, for tests.

They read the leaves of Flax variables by path, and share no code with the zoo.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.paths import flatten


class TorchNet:
    """The leaves of Flax variables as tensors, and the layers that read them."""

    epsilon = 1e-5

    def __init__(self, variables):
        self.torch = pytest.importorskip("torch")
        self.f = self.torch.nn.functional
        self.nearest = np.inf  # to zero, of all that was rectified
        self.leaves = {
            path: self.torch.tensor(np.array(leaf, np.float64))
            for path, leaf in flatten(variables).items()
        }
        for path, leaf in self.leaves.items():
            leaf.requires_grad_(path.startswith("params/"))

    def images(self, images):
        return self.torch.tensor(images.astype(np.float64)).permute(0, 3, 1, 2)

    def conv(self, x, path, stride=1, dilation=1):
        kernel = self.leaves[f"params/{path}/kernel"].permute(3, 2, 0, 1)
        bias = self.leaves.get(f"params/{path}/bias")
        padding = (kernel.shape[-1] - 1) // 2 * dilation
        options = dict(stride=stride, padding=padding, dilation=dilation)
        options["groups"] = x.shape[1] // kernel.shape[1]
        return self.f.conv2d(x, kernel, bias, **options)

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
            eps=self.epsilon,
        )

    def relu(self, x):
        self.nearest = min(self.nearest, x.detach().abs().min().item())
        return x.relu()

    def dense(self, x, path):
        path = f"params/{path}"
        return x @ self.leaves[f"{path}/kernel"] + self.leaves[f"{path}/bias"]


class TorchResNet(TorchNet):
    """Residual networks of both papers.

    Args:
      blocks: In each stage.
      kind: "basic", "bottleneck" or "preact" (a bottleneck of the second paper).
      small: Whether the stem is that for 32 x 32 pixels.
      shortcut: "A", "B", "C" or None.
      early_stride: Whether a bottleneck's first 1x1 convolution has its stride.
      dilations: Of each stage; its stride is 1 where it is above 1.
    """

    def __init__(
        self,
        variables,
        *,
        blocks,
        kind="basic",
        small=True,
        shortcut="A",
        early_stride=False,
        dilations=(1, 1, 1, 1),
    ):
        super().__init__(variables)
        self.blocks, self.kind, self.small = blocks, kind, small
        self.shortcut, self.early_stride = shortcut, early_stride
        self.dilations = dilations

    def project(self, x, channels, path, stride, train):
        if self.shortcut == "A" and (stride > 1 or channels != x.shape[1]):
            extra = (channels - x.shape[1]) // 2
            return self.f.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra))
        if self.shortcut == "C" or channels != x.shape[1]:
            x = self.conv(x, f"{path}/shortcut_conv", stride)
            return self.norm(x, f"{path}/shortcut_bn", train)
        return x

    def block(self, x, path, stride, dilation, train):
        strides = (stride, 1) if self.early_stride else (1, stride)
        if self.kind == "basic":
            y = self.conv(x, f"{path}/conv1", stride, dilation)
            y = self.relu(self.norm(y, f"{path}/bn1", train))
            y = self.conv(y, f"{path}/conv2", 1, dilation)
            y = self.norm(y, f"{path}/bn2", train)
        else:
            y = self.conv(x, f"{path}/conv1", strides[0])
            y = self.relu(self.norm(y, f"{path}/bn1", train))
            y = self.conv(y, f"{path}/conv2", strides[1], dilation)
            y = self.relu(self.norm(y, f"{path}/bn2", train))
            y = self.norm(self.conv(y, f"{path}/conv3"), f"{path}/bn3", train)
        if self.shortcut is not None:
            y = y + self.project(x, y.shape[1], path, stride, train)
        return self.relu(y)

    def preact_block(self, x, path, stride, train, first):
        # Figure 4e; the first block's input is activated before it splits, and so is
        # that of every block that changes the shape.
        strides = (stride, 1) if self.early_stride else (1, stride)
        active = x if first else self.relu(self.norm(x, f"{path}/bn1", train))
        y = self.conv(active, f"{path}/conv1", strides[0])
        y = self.relu(self.norm(y, f"{path}/bn2", train))
        y = self.conv(y, f"{path}/conv2", strides[1])
        y = self.relu(self.norm(y, f"{path}/bn3", train))
        y = self.conv(y, f"{path}/conv3")
        if y.shape != x.shape:
            x = self.conv(active, f"{path}/shortcut_conv", stride)
        return x + y

    def endpoints(self, images, train=False):
        x = self.conv(self.images(images), "backbone/stem/conv", 1 if self.small else 2)
        x = self.relu(self.norm(x, "backbone/stem/bn", train))
        out = {"stem": x}
        if not self.small:
            x = out["stem_pool"] = self.f.max_pool2d(x, 3, 2, padding=1)
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(1, blocks + 1):
                stride, dilation = 1, self.dilations[stage - 1]
                if stage > 1 and block == 1:
                    stride = 2 if dilation == 1 else 1
                    dilation = self.dilations[stage - 2]
                path = f"backbone/stage{stage}/block{block}"
                if self.kind == "preact":
                    first = stage == block == 1
                    x = self.preact_block(x, path, stride, train, first)
                else:
                    x = self.block(x, path, stride, dilation, train)
            out[f"stage{stage}"] = x
        if self.kind == "preact":
            x = out["final"] = self.relu(self.norm(x, "backbone/final_bn", train))
        out["pool"] = x.mean((2, 3))
        out["logits"] = self.dense(out["pool"], "head/fc")
        return out


def assert_near(got, expected, tolerance, name):
    """Compares relative to the largest magnitude."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: relative error {error}"


def random_variables(model, images, seed=1):
    """Variables in which no batch norm has anything that is 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.float32(rng.uniform(0.5, 1.5, leaf.shape))
        if kind in ("bias", "mean"):
            return jnp.float32(rng.normal(0, 0.2, leaf.shape))
        # He et al. 2015, which keeps the size of a signal.
        std = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.float32(rng.normal(0, std, leaf.shape))

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def check_endpoints(model, make_net, images, *, tolerance=1e-5, jit):
    """Every endpoint is what torch computes."""
    variables = random_variables(model, images)
    net = make_net(variables)
    run = jit(partial(model.apply, method="endpoints"))
    found, expected = run(variables, images), net.endpoints(images)
    assert {*found} == {*expected}
    for name, value in expected.items():
        array = value.detach().numpy()
        array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        assert_near(found[name], array, tolerance, name)


def check_training_step(model, make_net, images, labels, *, tolerance=2e-5, jit):
    """Loss, gradients, parameters and statistics of a step are what torch computes."""
    for seed in range(50):
        variables = random_variables(model, images, seed)
        net = make_net(variables)
        logits = net.endpoints(images, train=True)["logits"]
        # Else rounding would decide whether a value passes, and the gradients differ.
        if net.nearest > 1e-5:
            break
    else:
        raise AssertionError("at every seed a value is all but zero")
    tx = optax.sgd(0.1)

    @jit
    def step(variables):
        def loss(params):
            logits, new = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new

        params = variables["params"]
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, _ = tx.update(grads, tx.init(params), params)
        return value, grads, {"params": optax.apply_updates(params, updates), **new}

    value, grads, after = step(variables)
    expected = net.f.cross_entropy(logits, net.torch.tensor(labels))
    expected.backward()
    assert_near(value, expected.item(), tolerance, "loss")
    for path, grad in flatten(grads).items():
        assert_near(grad, net.leaves[f"params/{path}"].grad.numpy(), tolerance, path)
    for path, leaf in flatten(after).items():
        theirs = net.leaves[path]
        if path.startswith("params/"):
            theirs = theirs - 0.1 * theirs.grad
        assert_near(leaf, theirs.detach().numpy(), tolerance, path)
    moved = flatten(after["batch_stats"])
    for path, leaf in flatten(variables["batch_stats"]).items():
        assert np.abs(leaf - moved[path]).max() > 0, path
