"""Receptive fields against the support of gradients, and published numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from zoo.explain import receptive_field
from zoo.layers import Classifier, Conv
from zoo.ops.pooling import adaptive_avg_pool, max_pool
from zoo.ops.resize import resize
from zoo.segmentation.segmenter import ConvTransposed
from zoo.summary import abstract_variables


def positive_variables(model, shape):
    """Variables with which no rectifier is closed and nothing cancels.

    A tap's weights sum up to 1/3, so that neither the activations nor the gradients of
    a deep network leave the range of its numbers.
    """

    def make(path, leaf):
        name = path[-1].key
        if name == "kernel":
            inputs = np.prod(leaf.shape[-2:-1])
            return np.full(leaf.shape, 1 / (3 * inputs), np.float32)
        return np.full(leaf.shape, name not in ("bias", "mean"), np.float32)

    return jax.tree_util.tree_map_with_path(make, abstract_variables(model, shape))


def gradient_boxes(model, shape, endpoint, units, images=24):
    """The box of the pixels on which each unit depends, of many images together.

    Where a pool takes the largest pixel, each image sees another part of the field.
    """
    variables = positive_variables(model, shape)
    drawn = np.random.default_rng(0).uniform(0.5, 1.5, (images, *shape))

    # As constants, equal weights would become sums that jaxlib 0.10's CPU gets wrong.
    @jax.jit
    def support(variables, image, row, column):
        def value(image):
            out = model.apply(variables, image[None], method="endpoints")[endpoint]
            return out[0, row, column].sum()

        return jnp.abs(jax.grad(value)(image)).sum(-1)

    boxes = []
    for row, column in units:
        total = sum(
            np.asarray(support(variables, image.astype(np.float32), row, column)) > 0
            for image in drawn
        )
        rows, columns = (np.flatnonzero(total.any(axis=axis)) for axis in (1, 0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return np.array(boxes)


def compare(model, shape, endpoint, images=24):
    found = receptive_field(model, endpoint, image_shape=shape)
    height, width = found.boxes.shape[:2]
    units = [(0, 0), (height // 2, width // 2), (height - 1, width // 3)]
    units = sorted(set(units))
    expected = gradient_boxes(model, shape, endpoint, units, images)
    np.testing.assert_array_equal([found.boxes[u] for u in units], expected)
    return found


class Layers(nn.Module):
    """What changes the field of a unit in other ways than a plain convolution."""

    @nn.compact
    def __call__(self, x, train=False):
        out = {}
        x = out["conv"] = nn.relu(Conv(2, 3, stride=2, name="conv")(x))
        x = out["padded"] = nn.relu(Conv(2, 3, padding=1, name="padded")(x))
        x = out["dilated"] = nn.relu(Conv(2, 3, padding=2, dilation=2, name="dil")(x))
        pool = out["pool"] = max_pool(x, 3, 2, padding=1, ceil=True)
        up = out["up"] = ConvTransposed(2, 4, 2, offset=1, name="up")(pool)
        size = (x.shape[1] + 2, x.shape[2] - 3)
        out["resized"] = resize(x, size, antialias=False)
        out["bins"] = adaptive_avg_pool(x, 3)
        height = min(x.shape[1], up.shape[1])
        width = min(x.shape[2], up.shape[2])
        out["joined"] = jnp.concatenate(
            [x[:, :height, :width], up[:, :height, :width]], axis=-1
        )
        out["mean"] = x + x.mean(axis=(1, 2), keepdims=True)
        out["flat"] = x.reshape(x.shape[0], 1, -1, x.shape[-1])
        out["turned"] = x[:, ::-1].transpose(0, 2, 1, 3)
        return out


SHAPE = (23, 31, 1)


@pytest.mark.parametrize(
    ("endpoint", "exact"),
    [
        ("conv", True),
        ("padded", True),
        ("dilated", True),
        ("pool", True),
        ("up", False),
        ("resized", False),
        ("bins", False),
        ("joined", False),
        ("mean", True),  # All units see all of the image.
        ("flat", False),
        ("turned", False),
    ],
)
def test_fields_are_the_support_of_a_gradient(endpoint, exact):
    found = compare(Classifier(Layers(), None), SHAPE, endpoint)
    assert found.exact == exact


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("lenet5_modern", "pool2"),
        ("cifar_resnet20", "stage1"),
        ("yolo96_small", "stage2"),
        ("unet_small", "down2"),
    ],
)
def test_fields_of_registered_networks(name, endpoint):
    images = 24 if name == "lenet5_modern" else 6  # Two pools hide many pixels.
    shape = zoo.get_spec(name).preprocess.shape
    compare(zoo.build(name), shape, endpoint, images=images)


@pytest.mark.apart
@pytest.mark.parametrize("name", zoo.list_models())
def test_fields_of_every_network(name):
    """The last of its maps that is not made by resizing the scores to the image."""
    model, shape = zoo.build(name), zoo.get_spec(name).preprocess.shape
    endpoints = zoo.list_endpoints(model, shape)
    # Most units of what is unpooled depend on nothing, as they are no maximum.
    unpooled = re.compile(r"pool\d_(mask|D)")
    maps = [
        e for e, s in endpoints.items() if len(s) == 3 and not unpooled.fullmatch(e)
    ]
    for endpoint in (maps[0], maps[len(maps) // 2]):
        found = receptive_field(model, endpoint, image_shape=shape)
        units = [(0, 0), tuple(n // 2 for n in found.boxes.shape[:2])]
        # FCN pads images so much that its first units see nothing of them.
        units = [unit for unit in units if found.boxes[unit].any()]
        supports = gradient_boxes(model, shape, endpoint, units, images=2)
        for unit, support in zip(units, supports, strict=True):
            box = found.boxes[unit]
            # Two images need not show every pixel that a pool may take.
            assert (support[:2] >= box[:2]).all()
            assert (support[2:] <= box[2:]).all()
            assert (np.abs(support - box) <= 0.1 * np.array(shape[1::-1] * 2)).all()


@pytest.mark.parametrize(
    ("name", "endpoint", "size", "stride", "offset"),
    [
        ("alexnet", "pool5", 195, 32, -64),
        ("vgg16", "pool5", 212, 32, -90),
        ("resnet50", "stage4", 427, 32, -213),
        ("cifar_resnet20", "stage1", 15, 1, -7),
    ],
)
def test_published_fields(name, endpoint, size, stride, offset):
    """Table 1 of Araujo et al. 2019; their ResNet-50 has its strides in 1x1: 483."""
    found = receptive_field(zoo.build(name), endpoint)
    assert found[:4] == ((size,) * 2, (stride,) * 2, (offset,) * 2, True)


def test_bad_input():
    with pytest.raises(ValueError, match=r"'conv3'.*conv"):
        receptive_field(zoo.build("lenet5_modern"), "conv3")
    with pytest.raises(ValueError, match="28"):
        receptive_field(zoo.build("lenet5_modern"), "conv2", image_shape=(9, 9, 1))


def test_fields_are_those_of_endpoints_that_see_the_image():
    model = zoo.build("faster_rcnn_small")
    with pytest.raises(ValueError, match="'anchors' does not depend on the image"):
        zoo.explain.receptive_field(model, "anchors")
    field = zoo.explain.receptive_field(model, "stage1")
    with pytest.raises(ValueError, match="read-only"):
        field.boxes[:] = 0
