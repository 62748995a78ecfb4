"""SegNet: switches, sizes, and VGG-16's weights in its encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.segmentation.segmenter import Segmenter
from zoo.segmentation.segnet import (
    ConvSpec,
    SegNetDecoder,
    SegNetEncoder,
    SegNetLayers,
)
from zoo.summary import abstract_variables, list_endpoints
from zoo.transfer import graft

TINY = SegNetLayers(
    encoder=((ConvSpec("conv1", "bn1", 4),), (ConvSpec("conv2", "bn2", 5),)),
    decoder=((ConvSpec("back2", "bn_back2", 4),), (ConvSpec("back1", "bn_back1", 3),)),
    kernel=3,
    decoder_relu=True,
    classifier=("score", 1),
    normalized=False,
)


def make_tiny(**options):
    decoder = SegNetDecoder(2, TINY, **options)
    return Segmenter(SegNetEncoder(TINY, **options), decoder)


@pytest.fixture(scope="module")
def tiny(cheap_jit):
    images = jax.random.normal(jax.random.key(0), (2, 12, 16, 3))
    variables = cheap_jit(make_tiny().init)(jax.random.key(1), images)
    return variables, images


@pytest.mark.parametrize("size", [(11, 14), (12, 16), (9, 13)])
def test_values_go_back_to_where_they_were(size, tiny, cheap_jit):
    variables, images = tiny
    images = images[:, : size[0], : size[1]]
    apply = cheap_jit(lambda v, x: make_tiny().apply(v, x, method="endpoints"))
    out = apply(variables, images)
    assert out["logits"].shape[1:3] == images.shape[1:3]
    # Of the lowest pool, which is unpooled as it is: each value at its pixel.
    there, pooled, back = out["conv2"], out["pool2"], out["pool2_D"]
    assert back.shape == there.shape
    flat = there.reshape(2, -1, 5)
    taken = jnp.take_along_axis(flat, out["pool2_mask"].reshape(2, -1, 5), axis=1)
    np.testing.assert_array_equal(taken.reshape(pooled.shape), pooled)
    kept = back != 0
    np.testing.assert_array_equal(back[kept], there[kept])
    np.testing.assert_allclose(back.sum((1, 2)), pooled.sum((1, 2)), rtol=1e-5)
    # A pool that rounds up has no pixel without a window.
    assert pooled.shape[1:3] == tuple(-(-n // 2) for n in there.shape[1:3])


@pytest.mark.parametrize("switches", [True, False])
def test_only_switches_read_where_the_maxima_were(switches, tiny, cheap_jit):
    model = Segmenter(SegNetEncoder(TINY), SegNetDecoder(2, TINY, switches=switches))
    variables, images = tiny
    features = cheap_jit(lambda v, x: model.backbone.apply(v, x))(
        {k: v["backbone"] for k, v in variables.items()}, images
    )
    decode = cheap_jit(lambda v, f: model.head.apply(v, f, images.shape[1:3]))
    head = {k: v["head"] for k, v in variables.items() if "head" in v}
    moved = {**features, "pool2_mask": features["pool2_mask"][:, ::-1]}
    logits, others = (decode(head, f)["logits"] for f in (features, moved))
    assert logits.shape == (*images.shape[:3], 2)
    assert bool(jnp.all(logits == others)) != switches


def test_a_moved_image_has_moved_logits(tiny, cheap_jit):
    """Switches of odd sizes would tilt the map, were they read at another width."""
    variables, images = tiny
    apply = cheap_jit(make_tiny().apply)
    # By four pixels, so that the windows of both pools are the same ones.
    wide = jnp.pad(images, ((0, 0), (8, 9), (8, 9), (0, 0)))
    moved = jnp.pad(images, ((0, 0), (12, 5), (12, 5), (0, 0)))
    a = apply(variables, wide)[:, 4:-9, 4:-9]
    b = apply(variables, moved)[:, 8:-5, 8:-5]
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert float(jnp.ptp(a)) > 0.1


@pytest.mark.apart
def test_remat_changes_nothing(tiny, cheap_jit):
    variables, images = tiny

    def run(remat):
        def loss(params):
            logits, new = make_tiny(remat=remat).apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return jnp.square(logits).sum(), new

        return cheap_jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(np.testing.assert_array_equal, run(False), run(True))


def test_maps_at_the_papers_size():
    found = list_endpoints(zoo.build("segnet"), (360, 480, 3))
    assert [found[f"pool{i}"][:2] for i in (1, 2, 3, 4, 5)] == [
        (180, 240),
        (90, 120),
        (45, 60),
        (23, 30),
        (12, 15),
    ]
    assert [found[f"pool{i}_D"] for i in (5, 4, 3, 2, 1)] == [
        (23, 30, 512),
        (45, 60, 512),
        (90, 120, 256),
        (180, 240, 128),
        (360, 480, 64),
    ]
    assert found["logits"] == (360, 480, 11)
    found = list_endpoints(zoo.build("segnet_basic", num_classes=3), (37, 53, 3))
    assert found["logits"] == (37, 53, 3)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_weights_of_a_classifier_go_into_the_encoder(name):
    ours = abstract_variables(zoo.build("segnet"), (64, 64, 3))
    theirs = abstract_variables(zoo.build(name), (224, 224, 3))
    ours = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), ours)
    theirs = jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), theirs)
    keep = ("head/**",) if name == "vgg16_bn" else ("head/**", "backbone/bn*/*")
    dense = ("backbone/fc6/*", "backbone/fc7/*", "head/fc8/*")
    filled = graft(ours, theirs, keep=keep, ignore=dense)
    backbone = filled["params"]["backbone"]
    layers = [k for k in backbone if k.startswith("conv") or name == "vgg16_bn"]
    assert len(layers) == (26 if name == "vgg16_bn" else 13)
    assert all((leaf == 1).all() for k in layers for leaf in backbone[k].values())


def test_bad_input():
    with pytest.raises(ValueError, match="num_classes must be 0"):
        zoo.build("segnet", num_classes=-2)
    with pytest.raises(ValueError, match="unknown"):
        zoo.build("segnet", init="he")


@pytest.mark.parametrize("name", ["segnet", "segnet_basic"])
def test_switches_are_an_option_of_the_registered_networks(name):
    assert zoo.build(name, switches=False).head.switches is False
    assert zoo.build(name).head.switches is True
