"""ZFNet against a PyTorch restatement of the paper's figure 3."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import TorchNet, check_endpoints

import zoo
from zoo.paths import flatten
from zoo.summary import abstract_variables, list_endpoints
from zoo.weights.torch_format import list_torch_shapes

SHAPE = (224, 224, 3)


class TorchZFNet(TorchNet):
    """Figure 3: convolve, rectify, pool, and only then normalize."""

    conv2 = (2, 0)  # stride and padding

    def conv(self, x, path, stride=1, padding=0):
        kernel = self.leaves[f"params/{path}/kernel"].permute(3, 2, 0, 1)
        bias = self.leaves[f"params/{path}/bias"]
        return self.f.conv2d(x, kernel, bias, stride, padding).relu()

    def pool(self, x):
        return self.f.max_pool2d(x, 3, 2, ceil_mode=True)

    def contrast(self, x):
        # torch divides alpha by the size.
        return self.f.local_response_norm(x, 5, alpha=5 * 1e-4, beta=0.75, k=2.0)

    def endpoints(self, images):
        out = {}
        x = self.images(images)
        x = out["conv1"] = self.conv(x, "backbone/conv1", 2, 1)
        x = out["pool1"] = self.pool(x)
        x = out["norm1"] = self.contrast(x)
        x = out["conv2"] = self.conv(x, "backbone/conv2", *self.conv2)
        x = out["pool2"] = self.pool(x)
        x = out["norm2"] = self.contrast(x)
        for layer in ("conv3", "conv4", "conv5"):
            x = out[layer] = self.conv(x, f"backbone/{layer}", 1, 1)
        x = out["pool5"] = self.pool(x)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = out["fc6"] = self.dense(x, "backbone/fc6").relu()
        x = out["fc7"] = self.dense(x, "backbone/fc7").relu()
        out["logits"] = self.dense(x, "head/fc8")
        return out


class TorchSmallZFNet(TorchZFNet):
    """The same, but that conv2 keeps the size of its map."""

    conv2 = (1, 2)


NARROW = dict(widths=(4, 5, 6, 7, 3), dense=64)


def test_every_endpoint_is_what_torch_computes(cheap_jit):
    # As large as an image of 0 to 255, so that the normalization does something.
    rng = np.random.default_rng(0)
    images = rng.normal(scale=70, size=(1, *SHAPE)).astype(np.float32)
    model = zoo.build("zfnet", num_classes=5, **NARROW)
    check_endpoints(model, TorchZFNet, images, jit=cheap_jit)


def test_every_endpoint_of_the_small_network_is_what_torch_computes(cheap_jit):
    rng = np.random.default_rng(0)
    images = rng.normal(scale=70, size=(2, 64, 64, 3)).astype(np.float32)
    model = zoo.build("zfnet64_small", num_classes=5, **NARROW)
    check_endpoints(model, TorchSmallZFNet, images, jit=cheap_jit)
    shapes = list_endpoints(zoo.build("zfnet64_small"), (64, 64, 3))
    assert [shapes[f"pool{i}"] for i in (1, 2, 5)] == [
        *((15, 15, 32), (7, 7, 96), (3, 3, 96))
    ]


def test_sizes_are_those_of_figure_3():
    shapes = list_endpoints(zoo.build("zfnet"), SHAPE)
    assert shapes == {
        "conv1": (110, 110, 96),
        "pool1": (55, 55, 96),
        "norm1": (55, 55, 96),
        "conv2": (26, 26, 256),
        "pool2": (13, 13, 256),
        "norm2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "logits": (1000,),
    }


def test_the_smallest_images():
    model = zoo.build("zfnet", fully_convolutional=True)
    shapes = list_endpoints(model, (207, 280, 3))
    assert shapes["pool5"] == (6, 8, 256)
    assert shapes["fc6"] == (1, 3, 4096)
    assert shapes["logits"] == (1000,)
    words = r"zfnet takes images of 207 x 207 pixels or more, got \[1, 206, 300, 3\]"
    with pytest.raises(ValueError, match=words):
        list_endpoints(model, (206, 300, 3))
    with pytest.raises(ValueError, match=r"zfnet takes images \[B, 224, 224, "):
        list_endpoints(zoo.build("zfnet"), (256, 256, 3))
    # Nothing smaller fits: the message does not ask for too much.
    side = (206 + 2 - 7) // 2 + 1  # conv1
    side = (-(-(side - 3) // 2) + 1 - 5) // 2 + 1  # pool1, conv2
    for _ in ("pool2", "pool5"):
        side = -(-(side - 3) // 2) + 1
    assert side == 5  # and fc6 reads 6 x 6


def test_names_in_a_state_dict():
    shapes = list_torch_shapes("zfnet")
    assert {key.partition(".")[0] for key in shapes} == {
        *("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    }
    assert shapes["fc6.weight"] == (4096, 256 * 6 * 6)
    rules = {r.module: r for r in zoo.get_spec("zfnet").torch_rules(zoo.build("zfnet"))}
    assert rules["backbone/fc6"].flatten == (256, 6, 6)


def test_dropout_is_active_in_training_alone():
    model = zoo.build("zfnet")
    variables = abstract_variables(model, SHAPE)
    images = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)

    def count(train, **options):
        model = zoo.build("zfnet", **options)
        run = partial(model.apply, train=train, rngs={"dropout": jax.random.key(0)})
        return str(jax.make_jaxpr(run)(variables, images)).count("random_bits")

    assert count(False) == 0
    assert count(True) > 0
    assert count(True, dropout=0.0) == 0
    assert model.backbone.config.dropout == 0.5


@pytest.mark.parametrize(("init", "std"), [(None, 0.01), ("gaussian_0.1", 0.1)])
def test_initialization(init, std, cheap_jit):
    model = zoo.build("zfnet", num_classes=300, init=init, dense=64)

    @cheap_jit
    def draw(key):
        flat = flatten(model.init(key, jnp.zeros((1, *SHAPE)))["params"])
        kernels, biases = (
            {path: leaf for path, leaf in flat.items() if path.endswith(kind)}
            for kind in ("kernel", "bias")
        )
        return {path: jnp.std(leaf) for path, leaf in kernels.items()}, biases

    found, biases = draw(jax.random.key(0))
    assert len(found) == 8
    assert found == pytest.approx(dict.fromkeys(found, std), rel=0.05)
    assert not any(bias.any() for bias in biases.values())
