"""SSD against torchvision's golden files, and its parts by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ssd_cases import (
    GOLDEN,
    NAME,
    NUM_CLASSES,
    SIZES,
    make_outputs,
    make_photographs,
    make_state,
    make_targets,
)
from torch_nets import TorchNet, check_endpoints, random_variables

import zoo
from zoo.classification.imagenet import IMAGENET
from zoo.detection import ssd, ssd_vgg
from zoo.detection.types import Targets
from zoo.paths import flatten
from zoo.transfer import graft, replace_head
from zoo.verify import verify
from zoo.weights import from_torch, to_torch
from zoo.weights.torch_format import list_torch_shapes

MODEL = zoo.build(NAME, num_classes=NUM_CLASSES)
TARGETS = Targets(*map(jnp.asarray, make_targets()))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def outputs():
    return jax.tree.map(jnp.asarray, make_outputs())


NARROW = dict(widths=(4, 5, 6, 7, 3), dense=8)


class TorchSSD512(TorchNet):
    """The paper's SSD512; the names of its layers behind fc7 are the paper's."""

    def endpoints(self, images, train=False):
        x, out = self.images(images), {}
        for block, layers in enumerate((2, 2, 3, 3, 3), start=1):
            for layer in range(1, layers + 1):
                name = f"conv{block}_{layer}"
                x = out[name] = self.conv(x, f"backbone/{name}").relu()
            pool = dict(kernel_size=2) if block < 5 else dict(kernel_size=3, stride=1)
            x = self.f.max_pool2d(x, **pool, padding=int(block == 5), ceil_mode=True)
            out[f"pool{block}"] = x
        length = out["conv4_3"].norm(dim=1, keepdim=True).clamp(min=1e-12)
        scale = self.leaves["params/backbone/conv4_3_norm/scale_weight"]
        out["conv4_3_norm"] = out["conv4_3"] / length * scale[None, :, None, None]
        x = out["fc6"] = self.conv(x, "backbone/fc6", dilation=6).relu()
        x = out["fc7"] = self.conv(x, "backbone/fc7").relu()
        for i in range(8, 12):
            x = out[f"conv{i}_1"] = self.conv(x, f"backbone/conv{i}_1").relu()
            x = out[f"conv{i}_2"] = self.conv(x, f"backbone/conv{i}_2", 2).relu()
        x = out["conv12_1"] = self.conv(x, "backbone/conv12_1").relu()
        # The window of 4 x 4 fits once into 2 x 2 pixels with zeros around them.
        out["conv12_2"] = self.conv(x, "backbone/conv12_2").relu()
        sources = ["conv4_3_norm", "fc7", *(f"conv{i}_2" for i in range(8, 13))]
        for name, part, columns in (("deltas", "loc", 4), ("class_logits", "conf", 6)):
            maps = (self.conv(out[s], f"head/{s}_{part}") for s in sources)
            flat = [m.permute(0, 2, 3, 1).reshape(len(m), -1, columns) for m in maps]
            out[name] = self.torch.cat(flat, dim=1)
        return out


def test_every_endpoint_is_torchvisions():
    certificate = verify(NAME)
    assert certificate.passed, f"\n{certificate}"
    assert certificate.checks[-1].name == "class_logits"


@pytest.mark.apart
def test_detections_are_torchvisions(golden, cheap_jit):
    model = zoo.build(NAME)
    variables = from_torch(NAME, make_state())
    canvas = np.zeros((len(SIZES), 128, 150, 3), np.uint8)
    for row, photograph in zip(canvas, make_photographs(), strict=True):
        row[: photograph.shape[0], : photograph.shape[1]] = photograph
    detect = zoo.make_detector(model)
    found = jax.device_get(detect(variables, canvas, np.array(SIZES, np.int32)))
    for i in range(len(SIZES)):
        wanted = {k: golden[f"detections/{i}/{k}"] for k in found._fields[:3]}
        count = len(wanted["scores"])
        assert found.valid[i].sum() == count == 200
        for key, array in wanted.items():
            tolerance = {"boxes": 1e-3, "scores": 1e-4, "classes": 0}[key]
            got = getattr(found, key)[i, :count]
            np.testing.assert_allclose(got, array, rtol=0, atol=tolerance)


def test_losses_are_torchvisions(golden, outputs, cheap_jit):
    def compute(outputs):
        losses = MODEL.losses(outputs, TARGETS)
        return losses, {
            name: jax.grad(lambda o, n=name: MODEL.losses(o, TARGETS)[n])(outputs)
            for name in losses
        }

    losses, gradients = cheap_jit(compute)(outputs)
    assert {*losses} == {"classification", "box"}
    for name, value in losses.items():
        np.testing.assert_allclose(value, golden[f"losses/{name}"], rtol=1e-5)
        for output, gradient in gradients[name].items():
            wanted = golden.get(f"losses/{name}/{output}", np.float32(0))
            flat = np.asarray(gradient, np.float64).reshape(-1)
            along = flat @ np.sin(np.arange(flat.size))
            np.testing.assert_allclose(along, wanted, atol=2e-6)


def test_losses_without_objects(outputs, cheap_jit):
    def compute(outputs, targets):
        total = lambda o: sum(MODEL.losses(o, targets).values())  # noqa: E731
        return jax.value_and_grad(total)(outputs)

    for slots in (0, 4):
        empty = Targets(*(x[:, :slots] for x in TARGETS[:3]))
        empty = empty._replace(valid=jnp.zeros((3, slots), bool))
        value, gradient = cheap_jit(compute)(outputs, empty)
        assert value == 0
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_padding_and_degenerate_boxes_in_losses(outputs, cheap_jit):
    losses = cheap_jit(MODEL.losses)
    expected = losses(outputs, TARGETS)
    # Two thousand slots more, of what is no number.
    rest = ((0, 0), (0, 2000))
    padded = Targets(
        jnp.pad(TARGETS.boxes, (*rest, (0, 0)), constant_values=np.nan),
        jnp.pad(TARGETS.classes, rest, constant_values=99),
        jnp.pad(TARGETS.valid, rest),
    )
    found = losses(outputs, padded)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    flat = TARGETS.boxes.at[0, 0, 2].set(TARGETS.boxes[0, 0, 0])
    assert all(np.isfinite([*losses(outputs, TARGETS._replace(boxes=flat)).values()]))


def test_default_boxes(golden):
    boxes = MODEL.default_boxes()
    assert boxes.shape == (8732, 4)
    np.testing.assert_allclose(boxes[::97], golden["losses/anchors"], atol=2e-5)
    first = {
        "torchvision": 21,
        "coco": 21,
        "voc": 30,
    }
    for option, size in first.items():
        boxes = zoo.build(NAME, boxes=option).default_boxes()
        low, high = 4 - size / 2, 4 + size / 2
        np.testing.assert_allclose(boxes[0], [low, low, high, high], rtol=1e-6)
        # The last cell's box that is twice as wide as high.
        widest = (boxes[-2, 2] - boxes[-2, 0], boxes[-2, 3] - boxes[-2, 1])
        side = 264 if option == "voc" else 261
        wanted = [side * 2**0.5, side / 2**0.5]
        if option == "torchvision":
            wanted[0] = 300
        np.testing.assert_allclose(widest, wanted, rtol=1e-5)
    assert zoo.build("ssd512_vgg16").default_boxes().shape == (24564, 4)
    with pytest.raises(ValueError, match=r"ssd512_vgg16: boxes='paper' must be one"):
        zoo.build("ssd512_vgg16", boxes="paper")


@pytest.mark.parametrize("size", [300, 512])
def test_sizes_are_those_of_the_paper(size):
    """Section 2.2's scales, which the authors' code rounds to whole percents."""
    levels = 6 if size == 300 else 7
    least = 0.2 if size == 300 else 0.15
    step = int((90 - 100 * least) / (levels - 2)) / 100
    if size == 300:
        # Equation 4 without its first level, which section 3.1 sets to 0.1.
        scales = [0.1, *(least + step * k for k in range(levels))]
    else:
        scales = [0.07, *(least + step * k for k in range(levels))]
    model = zoo.build(f"ssd{size}_vgg16", boxes="voc")
    sizes = [*(level.size for level in model.head.levels), model.last_size]
    np.testing.assert_allclose(sizes, np.array(scales) * size, rtol=1e-6)


def test_decoding_by_hand():
    # One delta of the first default box, and a logit for each class.
    deltas = np.zeros((1, 8732, 4), np.float32)
    deltas[0, 8731] = [1, -2, 5 * np.log(2), 0]
    logits = np.zeros((1, 8732, NUM_CLASSES + 1), np.float32)
    logits[0, 0] = np.log([4, 1, 2, 1, 1, 1])
    outputs = {"deltas": jnp.asarray(deltas), "class_logits": jnp.asarray(logits)}
    found = MODEL.decode(outputs)
    np.testing.assert_allclose(found.scores[0, 0], np.array([1, 2, 1, 1, 1]) / 10)
    assert found.valid.all()
    # Of a cell of 300 pixels, 1 to sqrt(2) as wide as high: clipped to the image.
    x1, y1, x2, y2 = MODEL.default_boxes()[8731]
    center, width = (x1 + x2) / 2 + 0.1 * (x2 - x1), 2 * (x2 - x1)
    height = y2 - y1
    top = (y1 + y2) / 2 - 0.2 * height - height / 2
    wanted = [center - width / 2, top, center + width / 2, top + height]
    np.testing.assert_allclose(found.boxes[0, 8731], np.clip(wanted, 0, 300), rtol=1e-5)
    small = MODEL.decode(outputs, jnp.array([[100.0, 200.0]]))
    assert small.boxes[0, :, [0, 2]].max() == 200
    assert small.boxes[0, :, [1, 3]].max() == 100


@pytest.mark.apart
def test_ssd512_is_what_torch_computes(cheap_jit):
    images = np.random.default_rng(0).normal(size=(1, 512, 512, 3)).astype(np.float32)
    model = zoo.build("ssd512_vgg16", num_classes=5, **NARROW)
    check_endpoints(model, TorchSSD512, images, jit=cheap_jit)


def test_names_in_a_state_dict():
    shapes = list_torch_shapes(NAME, num_classes=90)
    assert len(shapes) == 2 * (13 + 2 + 8 + 12) + 1
    for key, shape in {
        "backbone.features.0.weight": (64, 3, 3, 3),
        "backbone.features.21.bias": (512,),
        "backbone.scale_weight": (512,),
        "backbone.extra.0.1.weight": (512, 512, 3, 3),
        "backbone.extra.0.5.weight": (512, 512, 3, 3),
        "backbone.extra.0.7.1.weight": (1024, 512, 3, 3),
        "backbone.extra.0.7.3.weight": (1024, 1024, 1, 1),
        "backbone.extra.1.2.weight": (512, 256, 3, 3),
        "backbone.extra.4.0.weight": (128, 256, 1, 1),
        "head.classification_head.module_list.0.weight": (364, 512, 3, 3),
        "head.regression_head.module_list.5.bias": (16,),
    }.items():
        assert shapes[key] == shape, key


@pytest.mark.parametrize("name", [NAME, "ssd512_vgg16", "ssd96_small"])
def test_a_state_dict_comes_back_bit_by_bit(name):
    options = NARROW if "vgg" in name else {}
    pre = zoo.get_spec(name).preprocess
    images = jax.ShapeDtypeStruct((1, *pre.shape), jnp.float32)
    variables = random_variables(zoo.build(name, num_classes=7, **options), images)
    state = to_torch(name, variables, **options)
    after = flatten(from_torch(name, state, **options))  # finds the number of classes
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(after[path], leaf)


def test_a_classifier_becomes_the_backbone():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    classifier = random_variables(
        zoo.build("vgg16", num_classes=5, widths=NARROW["widths"], dense=32), images
    )
    images = jax.ShapeDtypeStruct((1, 300, 300, 3), jnp.float32)
    model = zoo.build(NAME, num_classes=5, **NARROW)
    ours = random_variables(model, images, seed=2)
    source = ssd_vgg.reduce_vgg16(classifier, IMAGENET, dense=8)
    keep = ["head/**", "backbone/conv4_3_norm/**", "backbone/conv{8,9,10,11}_*/**"]
    found = graft(ours, source, keep=keep)["params"]["backbone"]
    given = classifier["params"]["backbone"]
    np.testing.assert_array_equal(
        found["conv5_3"]["kernel"], given["conv5_3"]["kernel"]
    )
    # Row 3, column 6, channel 2 of the window, and output 4 * 5.
    wanted = given["fc6"]["kernel"][(3 * 7 + 6) * 3 + 2, 20]
    assert found["fc6"]["kernel"][1, 2, 2, 5] == wanted
    assert found["fc7"]["kernel"][0, 0, 3, 2] == given["fc7"]["kernel"][12, 8]
    assert found["fc7"]["bias"][7] == given["fc7"]["bias"][28]
    # A pixel's color gives the same by either preprocessing.
    color = np.array([10.0, 130, 250]) / 255

    def respond(layer, mean, std):
        x = (color - mean) / std
        return np.asarray(layer["kernel"]).sum((0, 1)).T @ x + layer["bias"]

    theirs = respond(given["conv1_1"], np.array(IMAGENET.mean), np.array(IMAGENET.std))
    mine = respond(found["conv1_1"], np.array(ssd_vgg.MEAN), 1 / 255)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    for wrong, dense in ((ours, 8), (classifier, 7)):
        with pytest.raises(ValueError, match=rf"vgg16, .*dense={dense} .* got \[\("):
            ssd_vgg.reduce_vgg16(wrong, IMAGENET, dense=dense)


@pytest.mark.parametrize(
    "name", [pytest.param(NAME, marks=pytest.mark.apart), "ssd96_small"]
)
def test_a_head_for_other_classes(name):
    options = NARROW if name == NAME else {}
    pre = zoo.get_spec(name).preprocess
    images = jax.ShapeDtypeStruct((1, *pre.shape), jnp.float32)
    model = zoo.build(name, num_classes=3, **options)
    before = random_variables(model, images)
    model, after = replace_head(model, before, 2, key=jax.random.key(0), shared={1: 2})
    assert model.head.num_classes == 2
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), after, shapes)
    old, new = (flatten(v["params"]) for v in (before, after))
    for path, leaf in new.items():
        if not path.split("/")[1].endswith("_conf"):
            np.testing.assert_array_equal(leaf, old[path])
            continue
        # Background, new class, class 2 of the old ones.
        x, y = (v.reshape(*v.shape[:-1], -1, n) for v, n in ((old[path], 4), (leaf, 3)))
        np.testing.assert_array_equal(y[..., [0, 2]], x[..., [0, 3]])
        assert not (y[..., 1] == x[..., 2]).any()


def test_scaled_lengths():
    norm = ssd_vgg.L2Norm()
    x = jnp.array([3.0, 4.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    variables = norm.init(jax.random.key(0), x)
    y, back = jax.vjp(partial(norm.apply, variables), x)
    np.testing.assert_allclose(y.reshape(-1), [12, 16, 0, 0], rtol=1e-6)
    assert np.isfinite(back(y)[0]).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"ssd300_vgg16 takes images \[B, 300, 300, C"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 299, 300, 3)))
    with pytest.raises(ValueError, match="must be 1 or more, got 0"):
        zoo.build(NAME, num_classes=0)
    level = ssd.Level("fc7", 19, 16, 45, (2, 3))
    assert level.boxes_per_cell == 6
