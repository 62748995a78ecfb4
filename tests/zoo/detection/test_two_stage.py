"""Fast and Faster R-CNN as whole networks: shapes, losses, gradients, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from zoo.detection.fast_rcnn import VGGTrunk
from zoo.detection.roi_heads import DenseHead
from zoo.detection.two_stage import Proposals
from zoo.detection.types import Targets

RNG = np.random.default_rng(0)


def random_boxes(count, size):
    corner = RNG.uniform(0, 0.8, (count, 2)) * size[::-1]
    side = RNG.uniform(0.1, 0.5, (count, 2)) * size[::-1]
    boxes = np.concatenate([corner, np.minimum(corner + side, size[::-1])], axis=1)
    return boxes.astype(np.float32)


class Tiny(nn.Module):
    """A map of stride 16 without a network of millions of parameters."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(8, (16, 16), strides=16, padding="VALID", name="conv")(images)
        return {"conv5_3": nn.relu(x)}


def tiny(name):
    # Smaller anchors than VOC's, of which none is within so small an image.
    options = {"anchors": "coco"} if name == "faster_rcnn_vgg16" else {}
    model = zoo.build(name, num_classes=3, **options)
    head = DenseHead(16, dropout=0.5)
    return model.clone(backbone=Tiny(), box_head=head)


IMAGES = RNG.normal(size=(2, 128, 160, 3)).astype(np.float32)
SIZES = np.float32([[128, 160], [100, 120]])
TARGETS = Targets(
    np.stack([random_boxes(3, (100, 120)), np.zeros((3, 4), np.float32)]),
    np.int32([[0, 2, 1], [0, 0, 0]]),
    np.array([[True, True, True], [False] * 3]),
)


def test_outputs_have_fixed_shapes_and_stay_within_the_image(cheap_jit):
    model = tiny("faster_rcnn_vgg16")
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    out = cheap_jit(model.apply)(variables, IMAGES, SIZES)
    assert out["rois"].shape == (2, 300, 4)
    assert out["class_logits"].shape == (2, 300, 4)
    assert out["box_deltas"].shape == (2, 300, 4, 4)
    assert out["rpn_logits"].shape == (2, 8 * 10 * 12)
    boxes, scores, valid = model.decode(out)
    assert (boxes.shape, scores.shape, valid.shape) == (
        *((2, 300, 3, 4), (2, 300, 3), (2, 300)),
    )
    for one, size in ((boxes, SIZES), (out["rois"][:, :, None], SIZES)):
        assert (one >= 0).all()
        limits = np.tile(size[:, ::-1], 2)[:, None, None]
        assert (one <= limits).all()
    assert np.ptp(np.asarray(boxes[1]), axis=(0, 1)).max() > 50
    whole = model.decode(cheap_jit(model.apply)(variables, IMAGES))
    assert whole.boxes[1, ..., 2].max() > 120


def train(model, variables, targets, cheap_jit, **options):
    """Gradients, losses and outputs of a step on each of the targets."""

    def loss(params, targets):
        out, _ = model.apply(
            {**variables, "params": params},
            IMAGES,
            SIZES,
            train=True,
            targets=targets,
            rngs={"sample": jax.random.key(0), "dropout": jax.random.key(1)},
            mutable=["batch_stats"],
            **options,
        )
        losses = model.losses(out, targets)
        return sum(losses.values()), (losses, out)

    step = cheap_jit(jax.grad(loss, has_aux=True))
    return [step(variables["params"], t) for t in targets]


def test_losses_are_finite_without_objects_and_proposals_have_no_gradient(cheap_jit):
    model = tiny("faster_rcnn_vgg16")
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    empty = TARGETS._replace(valid=TARGETS.valid & False)
    (gradients, (losses, out)), (at_rest, (nothing, _)) = train(
        model, variables, [TARGETS, empty], cheap_jit
    )
    names = {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
    assert {*losses} == names
    assert all(losses[name] > 0 for name in names)
    assert nothing["rpn_box"] == nothing["roi_box"] == 0
    assert nothing["rpn_objectness"] > 0
    for leaf in jax.tree.leaves((gradients, at_rest)):
        assert np.isfinite(leaf).all()
    assert np.abs(gradients["rpn"]["bbox_pred"]["kernel"]).max() > 0
    assert not np.abs(at_rest["rpn"]["bbox_pred"]["kernel"]).any()
    assert out["rois"].shape == (2, 128, 4)
    # The objects' own boxes are among the regions.
    rois = np.asarray(out["rois"][0])
    assert all((rois == box).all(1).any() for box in TARGETS.boxes[0])

    # The second stage alone teaches the first nothing but its features.
    def second(rpn):
        params = {**variables["params"], "rpn": rpn}
        rngs = {"sample": jax.random.key(0)}
        out = model.apply({"params": params}, IMAGES, SIZES, targets=TARGETS, rngs=rngs)
        losses = model.losses(out, TARGETS)
        return losses["roi_class"] + losses["roi_box"]

    for leaf in jax.tree.leaves(
        cheap_jit(jax.grad(second))(variables["params"]["rpn"])
    ):
        assert not leaf.any()


def test_fast_rcnn_looks_at_the_given_proposals(cheap_jit):
    model = tiny("fast_rcnn_vgg16")
    variables = cheap_jit(model.init)(jax.random.key(0), IMAGES)
    boxes = np.stack([random_boxes(9, (100, 120)) for _ in range(2)])
    valid = np.array([[True] * 9, [True] * 6 + [False] * 3])
    proposals = Proposals(jnp.asarray(boxes), jnp.asarray(valid))
    out = cheap_jit(model.apply)(variables, IMAGES, SIZES, proposals=proposals)
    np.testing.assert_array_equal(out["rois"], boxes)
    np.testing.assert_array_equal(model.decode(out).valid, valid)
    assert "rpn_logits" not in out
    ((gradients, (losses, out)),) = train(
        model, variables, [TARGETS], cheap_jit, proposals=proposals
    )
    assert {*losses} == {"roi_class", "roi_box"}
    assert np.abs(gradients["backbone"]["conv"]["kernel"]).max() > 0
    assert out["rois"].shape == (2, 64, 4)
    alone = model.apply(variables, IMAGES, SIZES)
    np.testing.assert_array_equal(
        alone["rois"], [[[0, 0, 160, 128]], [[0, 0, 120, 100]]]
    )


def test_mistakes_are_named(cheap_jit):
    model = tiny("faster_rcnn_vgg16")
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)

    def call(images=IMAGES, **options):
        return jax.eval_shape(
            lambda: model.apply(variables, images, **options, rngs=options.pop("r", {}))
        )

    with pytest.raises(ValueError, match="train=True needs targets"):
        call(train=True)
    with pytest.raises(ValueError, match=r"targets need rngs=\{'sample': key\}"):
        model.apply(variables, IMAGES, targets=TARGETS)
    with pytest.raises(ValueError, match="network proposes regions itself"):
        call(proposals=Proposals(jnp.zeros((2, 1, 4)), jnp.ones((2, 1), bool)))
    with pytest.raises(
        ValueError, match="must be preprocessed floating point, got uin"
    ):
        call(images=IMAGES.astype(np.uint8))
    with pytest.raises(ValueError, match=r"losses need the outputs of a call with tar"):
        model.losses(call(), TARGETS)
    trunk = VGGTrunk("fast_rcnn_vgg16")
    with pytest.raises(ValueError, match="fast_rcnn_vgg16 takes images of 16 x 16"):
        jax.eval_shape(trunk.init, jax.random.key(0), IMAGES[:, :8])


@pytest.mark.parametrize("name", ["faster_rcnn_vgg16", "faster_rcnn_resnet101_c4"])
def test_graft_takes_a_classifiers_backbone(name):
    """Shapes alone: paths are those of the classifier."""
    source = "vgg16" if "vgg" in name else "resnet101_v1"
    shapes = [
        jax.eval_shape(zoo.build(n).init, jax.random.key(0), np.zeros((1, 224, 224, 3)))
        for n in (name, source)
    ]
    ours, theirs = (zoo.paths.flatten(s) for s in shapes)
    moved = {
        "backbone/fc": "box_head/fc",
        "backbone/stage4": "box_head/stage4",
    }
    shared = 0
    for path, leaf in theirs.items():
        for old, new in moved.items():
            path = path.replace(old, new)
        if "/head/" not in path:
            assert ours.pop(path).shape == leaf.shape
            shared += 1
    assert shared > 20
    assert {path.split("/")[1] for path in ours} == {"rpn", "predictor"}
