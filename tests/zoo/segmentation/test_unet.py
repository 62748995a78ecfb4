"""U-Net: crops and sizes, and its path behind other networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.classification.imagenet import IMAGENET
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.unet import UNetEncoder, UNetHead
from zoo.segmentation.unet_resnet import unet_on
from zoo.summary import list_endpoints
from zoo.transfer import graft

WIDTHS = (2, 3, 4, 5, 6)


def make_images(size, channels=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (1, *size, channels))


@pytest.mark.parametrize("size", [(188, 188), (204, 252), (572, 572)])
def test_valid_padding_takes_184_pixels(size):
    found = list_endpoints(zoo.build("unet"), (*size, 1))
    assert found["logits"] == (size[0] - 184, size[1] - 184, 2)
    model = zoo.build("unet")
    assert (model.stride, model.remainder, model.margin) == (16, 12, 92)
    assert model.min_size == 188


def test_maps_of_figure_1():
    found = list_endpoints(zoo.build("unet"), (572, 572, 1))
    sizes = {name: shape[0] for name, shape in found.items()}
    names = "down1 pool1 down2 pool2 down3 pool3 down4 pool4 down5 up4 up3 up2 up1"
    assert [*sizes] == [*names.split(), "logits"]
    expected = [568, 284, 280, 140, 136, 68, 64, 32, 28, 52, 100, 196, 388, 388]
    assert [*sizes.values()] == expected


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_sizes_of_other_depths(levels):
    model = zoo.build("unet", widths=WIDTHS[:levels])
    size = model.min_size + 2 * model.stride
    assert size % model.stride == model.remainder
    found = list_endpoints(model, (size, size, 1))
    assert found["logits"][0] == size - 2 * model.margin
    found = list_endpoints(model, (model.min_size, model.min_size, 1))
    assert found["logits"][0] == 4


def test_without_padding_is_the_middle_of_with_padding(cheap_jit):
    """Each crop is in the right place, or what is joined would not fit."""
    valid = zoo.build("unet", widths=WIDTHS)
    padded = Segmenter(
        UNetEncoder("padded", WIDTHS, padding=1, batch_norm=False),
        UNetHead(2, valid.head.reads, WIDTHS[-2::-1], padding=1, batch_norm=False),
    )
    # Pools of the tile begin where those of the image do: 2 pixels in, 14 of 16 later.
    image, start, size = make_images((400, 400), 1), 98, 204
    tile = image[:, start : start + size, start + 16 : start + 16 + size]
    variables = cheap_jit(valid.init)(jax.random.key(0), tile)
    found = cheap_jit(valid.apply)(variables, tile)
    expected = cheap_jit(padded.apply)(variables, image)
    inner = slice(start + 92, start + size - 92)
    expected = expected[:, inner, inner.start + 16 : inner.stop + 16]
    assert found.shape == expected.shape == (1, 20, 20, 2)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name", [pytest.param("unet", marks=pytest.mark.apart), "unet_same"]
)
def test_dropout_and_batch_norm(name, cheap_jit):
    model = zoo.build(name, widths=(2, 3, 4), dropout=0.5)
    size = (model.min_size, model.min_size + model.stride)
    images = make_images(size, model.preprocess.channels)
    variables = cheap_jit(model.init)(jax.random.key(0), images)
    assert ("batch_stats" in variables) == (name != "unet")

    @cheap_jit
    def drop(seed):
        return model.apply(
            variables,
            images,
            True,
            method="endpoints",
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )[0]

    one, two = drop(0), drop(1)
    assert {name: bool((one[name] == two[name]).all()) for name in one} == {
        **{"down1": True, "pool1": True, "down2": False, "pool2": False},
        **{"down3": False, "up2": False, "up1": False, "logits": False},
    }


@pytest.mark.parametrize("skips", [True, False])
def test_skips_are_an_option(skips, cheap_jit):
    model = zoo.build("unet_same", widths=WIDTHS, skips=skips)
    images = make_images((16, 32))
    variables = cheap_jit(model.init)(jax.random.key(0), images)
    head = {k: v["head"] for k, v in variables.items()}
    shapes = list_endpoints(model, images.shape[1:])
    features = {
        name: jnp.ones((1, *shapes[name])) for name in shapes if name.startswith("down")
    }
    decode = cheap_jit(lambda v, f: model.head.apply(v, f, images.shape[1:3])["logits"])
    logits = decode(head, features)
    others = decode(head, {**features, "down1": features["down1"] + 1})
    assert bool(jnp.all(logits == others)) != skips


def test_small_one():
    model = zoo.build("unet_small", num_classes=4, aux=True)
    found = list_endpoints(model, (90, 104, 3))
    assert {name: shape[:2] for name, shape in found.items()} == {
        **{"down1": (45, 52), "pool1": (22, 26), "down2": (22, 26)},
        **{"pool2": (11, 13), "down3": (11, 13), "pool3": (5, 6), "down4": (5, 6)},
        **{"up3": (11, 13), "up2": (22, 26), "up1": (45, 52)},
        **{"score": (45, 52), "aux": (90, 104), "logits": (90, 104)},
    }
    assert "aux" not in list_endpoints(zoo.build("unet_small"), (96, 96, 3))
    bare = zoo.build("unet_small", num_classes=0, aux=True)
    assert [*list_endpoints(bare, (96, 96, 3))][-1] == "down4"
    assert not bare.heads()


@pytest.mark.parametrize("size", [(16, 16), (37, 50), (23, 40)])
def test_same_size_at_any_size(size):
    found = list_endpoints(zoo.build("unet_same", num_classes=3), (*size, 3))
    assert found["logits"] == (*size, 3)
    assert found["up2"] == (size[0] // 2, size[1] // 2, 128)


@pytest.mark.parametrize(
    ("name", "reads", "widths"),
    [
        ("resnet50", ("stage4", "stage3", "stage2", "stage1", "stem"), (9, 8, 7, 6, 5)),
        ("resnet18", ("stage3", "stage2", "stage1", "stem"), (8, 7, 6, 5)),
        ("cifar_resnet20", ("stage3", "stage2", "stage1"), (6, 5)),
        (
            "vgg11_bn",
            ("conv5_2", "conv4_2", "conv3_2", "conv2_1", "conv1_1"),
            WIDTHS[:4],
        ),
        pytest.param(
            "googlenet_tv",
            ("inception_5b", "inception_4e", "inception_3b", "conv2", "conv1"),
            WIDTHS,
            marks=pytest.mark.apart,
        ),
    ],
)
def test_any_classifiers_endpoints(name, reads, widths):
    pre = zoo.get_spec(name).preprocess
    classifier = zoo.build(name)
    model = unet_on(
        classifier,
        reads=reads,
        num_classes=7,
        label="mine",
        preprocess=pre,
        widths=widths,
    )
    found = list_endpoints(model, pre.shape)
    assert found["logits"] == (*pre.shape[:2], 7)
    assert found[f"up{len(widths)}"][-1] == widths[0]
    # The backbone's variables are the classifier's.
    images = jax.ShapeDtypeStruct((1, *pre.shape), jnp.float32)
    ours, theirs = (
        jax.eval_shape(m.init, jax.random.key(0), images) for m in (model, classifier)
    )
    assert ours["params"]["backbone"] == theirs["params"]["backbone"]


def test_resnet34_at_odd_sizes():
    found = list_endpoints(zoo.build("unet_resnet34", num_classes=4), (45, 70, 3))
    assert {name: shape[:2] for name, shape in found.items()} == {
        **{"stem": (23, 35), "stem_pool": (12, 18), "stage1": (12, 18)},
        **{"stage2": (6, 9), "stage3": (3, 5), "stage4": (2, 3)},
        **{"up5": (3, 5), "up4": (6, 9), "up3": (12, 18), "up2": (23, 35)},
        **{"up1": (45, 70), "logits": (45, 70)},
    }


@pytest.mark.apart
def test_a_classifiers_weights_go_in(cheap_jit):
    classifier = zoo.build("cifar_resnet20", num_classes=5)
    model = unet_on(
        classifier,
        reads=("stage3", "stage2", "stage1"),
        num_classes=4,
        label="mine",
        preprocess=zoo.get_spec("cifar_resnet20").preprocess,
        widths=(6, 5),
    )
    images = make_images((17, 22))
    trained = cheap_jit(classifier.init)(jax.random.key(1), images)
    variables = cheap_jit(model.init)(jax.random.key(0), images)
    variables = graft(variables, trained, keep=("head/**",))
    out, wanted = (
        cheap_jit(lambda v, x, m=m: m.apply(v, x, method="endpoints"))(v, images)
        for m, v in ((model, variables), (classifier, trained))
    )
    np.testing.assert_array_equal(out["stage3"], wanted["stage3"])
    assert out["logits"].shape == (1, 17, 22, 4)


@pytest.mark.apart
def test_remat_changes_nothing(cheap_jit):
    images = make_images((44, 44), 1)

    def run(remat):
        model = zoo.build("unet", widths=(2, 3), dropout=0.0, remat=remat)
        variables = cheap_jit(model.init)(jax.random.key(0), images)

        def loss(variables):
            return jnp.square(model.apply(variables, images, train=True)).sum()

        return cheap_jit(jax.grad(loss))(variables)

    jax.tree.map(np.testing.assert_array_equal, run(False), run(True))


def test_bad_input():
    with pytest.raises(ValueError, match=r"16 n \+ 12 pixels.*\[1, 572, 570, 1\]"):
        list_endpoints(zoo.build("unet"), (572, 570, 1))
    with pytest.raises(ValueError, match=r"188 x 188 pixels or more"):
        list_endpoints(zoo.build("unet"), (172, 172, 1))
    with pytest.raises(ValueError, match=r"widths must be of two levels.*\(4,\)"):
        zoo.build("unet", widths=(4,))
    with pytest.raises(ValueError, match="num_classes must be 0"):
        zoo.build("unet_resnet34", num_classes=-1)
    options = dict(num_classes=2, label="mine", preprocess=IMAGENET)
    resnet18, reads = zoo.build("resnet18"), ("stage4", "stage3", "stage2", "stage1")
    with pytest.raises(ValueError, match=r"3 steps between them.*got 5 widths"):
        unet_on(resnet18, reads=reads, **options)
    model = unet_on(resnet18, reads=reads, widths=(4, 4, 4, 4), **options)
    with pytest.raises(
        ValueError, match=r"up1 doubles .*\[112, 112\] pixels.*\[224, 224\]"
    ):
        list_endpoints(model, (224, 224, 3))
