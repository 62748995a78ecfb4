"""torchvision's Faster R-CNN: the same boxes, classes, scores, losses and names."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from faster_rcnn_cases import (
    GOLDEN,
    NAME,
    PHOTOGRAPH,
    SIDES,
    make_batch,
    make_outputs,
    make_photograph,
    make_state,
    make_targets,
    pair,
)

import zoo
from zoo.detect import select_detections
from zoo.detection.types import Targets
from zoo.paths import flatten
from zoo.registry import registered
from zoo.summary import list_layers
from zoo.verify import parity
from zoo.verify.summaries import Summaries, measure
from zoo.verify.verification import TIES, verify
from zoo.weights import from_torch, to_torch
from zoo.weights.torch_format import list_torch_shapes, to_numpy

LOSSES = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def variables():
    return from_torch(NAME, make_state())


def compare(found, golden, case, image):
    """Boxes to 1e-3 pixels, scores to 1e-4, and the same classes."""
    *found, valid = (np.asarray(x) for x in found)
    expected = [golden[f"{case}/{image}/{k}"] for k in ("boxes", "scores", "classes")]
    assert valid.sum() == len(expected[0]) == 100
    assert len({*expected[2].tolist()}) > 2
    assert np.all(np.diff(found[1]) <= 0)
    order = pair([x[valid] for x in found], expected)
    boxes, scores, classes = (x[valid][order] for x in found)
    np.testing.assert_allclose(boxes, expected[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, expected[1], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(classes, expected[2])


@pytest.mark.parametrize(
    "case",
    [
        "landscape",
        pytest.param("portrait", marks=pytest.mark.apart),
        pytest.param("full", marks=pytest.mark.apart),
    ],
)
@pytest.mark.apart
def test_detections_are_torchvisions(case, golden, variables, cheap_jit):
    model = zoo.build(NAME)
    images, sizes = make_batch(case)
    jit = jax.jit if case == "full" else cheap_jit

    @jit
    def detect(variables, images, sizes):
        candidates = model.decode(model.apply(variables, images, sizes))
        return select_detections(candidates, model.postprocess)

    found = detect(variables, images, sizes)
    for i in range(len(images)):
        compare([x[i] for x in found], golden, case, i)


def as_targets():
    return Targets(*map(jnp.asarray, make_targets()))


def test_losses_are_torchvisions(golden, cheap_jit):
    outputs, targets = make_outputs()
    targets = Targets(*map(jnp.asarray, targets))
    model = zoo.build(NAME)

    def total(floats, rest):
        losses = model.losses({**rest, **floats}, targets)
        return sum(losses.values()), losses

    outputs = {k: jnp.asarray(v) for k, v in outputs.items()}
    floats = {k: v for k, v in outputs.items() if v.dtype == jnp.float32}
    gradients, losses = cheap_jit(jax.grad(total, has_aux=True))(floats, outputs)
    assert {*losses} == {*LOSSES}
    found = [losses[name] for name in LOSSES]
    np.testing.assert_allclose(found, golden["losses"], rtol=2e-6)
    for name, leaf in gradients.items():
        assert np.isfinite(leaf).all(), name
    # What is not sampled, and deltas of what has no object, teach nothing.
    rest = outputs["rpn_labels"] < 0
    assert not gradients["rpn_logits"][rest].any()
    assert not gradients["rpn_deltas"][outputs["rpn_labels"] < 1].any()
    assert not gradients["class_logits"][~outputs["roi_valid"]].any()


@pytest.mark.apart
def test_a_training_step_is_torchvisions(golden, variables):
    """Everything is sampled, so that no chance is in it."""
    model = zoo.build(NAME)
    # As many as there may be: 100 proposals and 3 objects of an image.
    model = model.clone(
        rpn_config=dataclasses.replace(
            model.rpn_config,
            post_nms_top_n_train=100,
            post_nms_top_n_test=100,
            batch_size_per_image=6000,
            positive_fraction=1,
        ),
        roi_config=dataclasses.replace(
            model.roi_config, batch_size_per_image=103, positive_fraction=1
        ),
    )
    images, sizes = make_batch("landscape")
    targets = as_targets()

    def loss(params):
        out, updated = model.apply(
            {**variables, "params": params},
            images,
            sizes,
            train=True,
            targets=targets,
            rngs={"sample": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        losses = model.losses(out, targets)
        return sum(losses.values()), (losses, updated)

    gradients, (losses, updated) = jax.jit(jax.grad(loss, has_aux=True))(
        variables["params"]
    )
    found = [losses[name] for name in LOSSES]
    np.testing.assert_allclose(found, golden["training/losses"], rtol=1e-4)
    flat, before = flatten(updated), flatten({"batch_stats": variables["batch_stats"]})
    assert all(np.array_equal(flat[k], before[k]) for k in before)
    state = to_torch(NAME, {"params": gradients, **updated})
    names = [str(n) for n in golden["training/names"]]
    norms = {k for k in state if ".bn" in k or ".downsample.1" in k}
    assert {*state} - norms == {*names}
    assert not any(state[k].any() for k in norms if "running" not in k)
    found = parity.summarize_parameters({k: np.asarray(state[k]) for k in names})
    fields = (golden[f"training/{k}"] for k in ("largest", "norms", "samples", "sums"))
    expected = Summaries(found.names, found.shapes, *fields)
    errors = measure(found, expected, by_layer=True)
    assert max(errors.values()) < TIES, sorted(errors.items(), key=lambda e: -e[1])[:5]


def test_weights_convert_both_ways(variables):
    state = make_state()
    back = to_torch(NAME, variables)
    assert {*back} == {*state} == {*list_torch_shapes(NAME)}
    assert all(np.array_equal(back[k], state[k]) for k in state)
    assert back["roi_heads.box_predictor.cls_score.weight"].shape == (91, 1024)
    assert back["backbone.fpn.inner_blocks.3.0.weight"].shape == (256, 2048, 1, 1)


def test_names_of_the_first_files_are_taken(variables):
    first = {}
    for key, array in make_state().items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "fpn" in key:
            key = key.replace("_blocks.", "_blocks_").replace(".0.", ".")
            key = key.replace("_blocks_", "_blocks.")
        first[key] = array
    assert "backbone.fpn.inner_blocks.0.weight" in first
    again = flatten(from_torch(NAME, first))
    assert all(np.array_equal(v, again[k]) for k, v in flatten(variables).items())


def test_classes_follow_from_the_weights():
    state = make_state()
    for name, rows in (("cls_score", 4), ("bbox_pred", 16)):
        for kind in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{name}.{kind}"
            state[key] = state[key][:rows]
    three = from_torch(NAME, state)
    assert three["params"]["predictor"]["cls_score"]["kernel"].shape == (1024, 4)
    with pytest.raises(ValueError, match=r"cls_score.weight is \[4, 1024\], the netw"):
        from_torch(NAME, state, num_classes=90)
    del state["rpn.head.cls_logits.bias"]
    with pytest.raises(ValueError, match=r"missing \(1\): rpn.head.cls_logits.bias"):
        from_torch(NAME, state)


@pytest.mark.apart
def test_a_photograph_is_detected_as_by_torchvision(golden, variables, cheap_jit):
    model = zoo.build(NAME)
    preprocess = dataclasses.replace(
        model.preprocess, resize=SIDES[0], longest=SIDES[1]
    )
    detect = zoo.make_detector(model, preprocess)
    found = detect(variables, make_photograph()[None], None)
    compare([x[0] for x in found], golden, "photograph", 0)
    assert make_photograph().shape == (*PHOTOGRAPH, 3)
    assert to_numpy(found.boxes, "boxes").max() <= max(PHOTOGRAPH)


def test_endpoints_are_torchvisions(cheap_jit):
    certificate = verify(NAME, jit=cheap_jit)
    assert certificate.passed, f"\n{certificate}"
    assert [check.name for check in certificate.checks][-3:] == [
        *("p6", "rpn_logits", "rpn_deltas")
    ]
    with pytest.raises(ValueError, match="training steps are compared of classifiers"):
        verify(NAME, training="float32")


def test_published_weights_say_which_epsilon_they_need(tmp_path):
    path = tmp_path / "coco.safetensors"
    safetensors.numpy.save_file(make_state(), path)
    spec = zoo.get_spec(NAME)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = dataclasses.replace(spec.weights[0], sha256=digest[:8])
    with registered(dataclasses.replace(spec, weights=(weights,))):
        model, _, card = zoo.create_with_card(NAME, weights=str(path))
    assert (model.backbone.epsilon, card.overrides) == (0.0, {"epsilon": 0.0})
    assert card.class_names[:2] == ("person", "bicycle")
    model, _, card = zoo.create_with_card(NAME, weights=str(path))
    assert (model.backbone.epsilon, card.overrides) == (1e-5, {})


def test_another_number_of_classes_gives_a_new_predictor(variables):
    model = zoo.build(NAME)
    predictor = {"params": {"predictor": variables["params"]["predictor"]}}
    few, new = zoo.transfer.replace_head(
        model, predictor, 2, key=jax.random.key(0), shared={1: 15}
    )
    assert few.predictor.num_classes == 2
    for name, each in (("cls_score", 1), ("bbox_pred", 4)):
        for kind in ("kernel", "bias"):
            old = predictor["params"]["predictor"][name][kind]
            found = np.asarray(new["params"]["predictor"][name][kind])
            assert found.shape == (*old.shape[:-1], 3 * each)
            # Background stays, and what was class 15 is class 1.
            np.testing.assert_array_equal(found[..., :each], old[..., :each])
            kept = old[..., 16 * each : 17 * each]
            np.testing.assert_array_equal(found[..., 2 * each :], kept)
    spread = new["params"]["predictor"]["cls_score"]["kernel"][:, 1].std()
    np.testing.assert_allclose(spread, (1 / 3 / 1024) ** 0.5, rtol=0.1)


def test_weights_of_another_detector_are_refused(tmp_path):
    path = tmp_path / "ssd.safetensors"
    state = {"backbone.features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    safetensors.numpy.save_file(state, path)
    with pytest.raises(ValueError, match=r"faster_rcnn_small: the state dict does not"):
        zoo.create("faster_rcnn_small", weights=str(path))


def test_multiply_adds_are_those_that_torchvision_states():
    layers = list_layers(zoo.build(NAME), (800, 800, 3))
    assert round(sum(layer.macs for layer in layers) / 1e9, 2) == 134.38
    norms = [r for r in layers if r.kind == "BatchNorm"]
    trained = sum(r.params for r in layers) - sum(r.params for r in norms)
    assert trained == 41_755_286
