"""YOLO against loops over Darknet's flat outputs, and a PyTorch restatement."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from torch_nets import TorchNet, check_endpoints, random_variables

import zoo
from zoo.detection import yolo
from zoo.detection.types import Targets
from zoo.paths import flatten
from zoo.transfer import replace_head
from zoo.weights import from_torch, to_torch

MODEL = zoo.build("yolo_v1", num_classes=3)
SIDE, CLASSES = 448, 3
NARROW_FULL = tuple(
    tuple((window, 2 + i % 3, *stride) for i, (window, _, *stride) in enumerate(stage))
    for stage in yolo.FULL
)
NARROW_TINY = tuple(
    tuple((window, 3 + i) for window, _ in stage) for i, stage in enumerate(yolo.TINY)
)


NARROW = {
    "yolo_v1": dict(stages=NARROW_FULL, hidden=(6,)),
    "yolo_v1_tiny": dict(stages=NARROW_TINY, hidden=(4, 6)),
    "yolo_v1_tiny_bn": dict(stages=(*NARROW_TINY[:6], NARROW_TINY[6][:2])),
    "yolo96_small": dict(widths=(3, 4, 5)),
}


class TorchYOLO(TorchNet):
    """Darknet's file, layer by layer; the outputs are one row."""

    def __init__(self, variables, stages, hidden, normed):
        super().__init__(variables)
        self.stages, self.hidden, self.normed = stages, hidden, normed

    def leaky(self, x):
        return self.torch.where(x > 0, x, 0.1 * x)

    def endpoints(self, images, train=False):
        x, out, number = self.images(images), {}, 0
        for i, stage in enumerate(self.stages, start=1):
            for _, _, *stride in stage:
                number += 1
                path = f"backbone/conv{number}"
                x = self.conv(x, path, stride[0] if stride else 1)
                if self.normed:
                    x = self.norm(x, f"backbone/bn{number}", train)
                x = out[f"conv{number}"] = self.leaky(x)
            if i < len(self.stages):
                x = out[f"pool{i}"] = self.f.max_pool2d(x, 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(1, len(self.hidden) + 1):
            x = self.dense(x, f"head/fc{i}")
            x = out[f"fc{i}"] = self.leaky(x) if i == len(self.hidden) else x
        flat = self.dense(x, f"head/fc{len(self.hidden) + 1}")
        classes, confidences = flat[:, : 49 * CLASSES], flat[:, 49 * CLASSES :]
        # 4 axes are a map to what compares; here they are in our order.
        out["classes"] = classes.reshape(-1, 7, 7, CLASSES).permute(0, 3, 1, 2)
        confidences, boxes = confidences[:, :98], confidences[:, 98:]
        out["confidences"] = confidences.reshape(-1, 7, 7, 2).permute(0, 3, 1, 2)
        out["boxes"] = boxes.reshape(-1, 7, 7, 2, 4)
        return out


def make_outputs(batch=2, seed=0):
    """Random outputs, of which some sides are negative: the outputs and flat rows."""
    rng = np.random.default_rng(seed)
    outputs = {
        "classes": rng.normal(0.3, 0.5, (batch, 7, 7, CLASSES)),
        "confidences": rng.normal(0.3, 0.5, (batch, 7, 7, 2)),
        "boxes": rng.normal(0.5, 0.4, (batch, 7, 7, 2, 4)),
    }
    rows = [outputs[k].reshape(batch, -1) for k in ("classes", "confidences", "boxes")]
    outputs = {k: jnp.asarray(v, jnp.float32) for k, v in outputs.items()}
    return outputs, np.concatenate(rows, axis=1)


def make_targets():
    """Objects: two in a cell, one at the corner, one too small to be overlapped."""
    boxes = np.zeros((2, 5, 4), np.float32)
    boxes[0] = [
        [30, 40, 150, 200],
        [50, 60, 140, 170],
        [440, 430, 448, 448],
        [300, 100, 300.5, 100.5],
        [0, 0, 448, 448],
    ]
    boxes[1] = [[1e4, 0, 2e4, 5], [100, 300, 260, 420], [0] * 4, [0] * 4, [5, 5, 5, 5]]
    classes = np.array([[0, 1, 2, 1, 0], [0, 2, 0, 0, 1]], np.int32)
    valid = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 0, 1]], bool)
    return Targets(*map(jnp.asarray, (boxes, classes, valid)))


def overlap(a, b):
    """IoU of boxes (center x, center y, width, height)."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
        - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        for i in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def restate(row, boxes, classes, valid):
    """Darknet's loops over one image: the losses, and half of their gradient."""
    delta, cells = np.zeros_like(row), {}
    losses = dict.fromkeys(
        ("coordinates", "confidence_object", "confidence_no_object", "class"), 0.0
    )
    for box, kind, real in zip(boxes / SIDE, classes, valid, strict=True):
        center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        column, line = (min(int(7 * c), 6) for c in center)
        if real and (line, column) not in cells:
            cells[line, column] = [*center, *(box[2:] - box[:2])], kind
    for line in range(7):
        for column in range(7):
            cell = 7 * line + column
            first = 49 * CLASSES + 2 * cell
            for p in range(first, first + 2):
                delta[p] = 0.5 * row[p]
                losses["confidence_no_object"] += 0.5 * row[p] ** 2
            if (line, column) not in cells:
                continue
            truth, kind = cells[line, column]
            for k in range(CLASSES):
                p = CLASSES * cell + k
                delta[p] = row[p] - (k == kind)
                losses["class"] += delta[p] ** 2
            best, most, nearest = -1, 0.0, math.inf
            for j in range(2):
                p = 49 * (CLASSES + 2) + 4 * (2 * cell + j)
                x, y, w, h = row[p : p + 4]
                out = [(x + column) / 7, (y + line) / 7, w * w, h * h]
                away = math.dist(out, truth)
                iou = overlap(out, truth)
                if iou > most or (most == 0 and iou == 0 and away < nearest):
                    best, most, nearest = j, iou, min(away, nearest)
            p = first + best
            losses["confidence_no_object"] -= 0.5 * row[p] ** 2
            losses["confidence_object"] += (row[p] - most) ** 2
            delta[p] = row[p] - most
            p = 49 * (CLASSES + 2) + 4 * (2 * cell + best)
            goal = [
                *(7 * truth[0] - column, 7 * truth[1] - line),
                *(math.sqrt(truth[2]), math.sqrt(truth[3])),
            ]
            delta[p : p + 4] = 5 * (row[p : p + 4] - goal)
            losses["coordinates"] += 5 * ((row[p : p + 4] - goal) ** 2).sum()
    return losses, delta


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_darknets(seed, cheap_jit):
    outputs, rows = make_outputs(seed=seed)
    targets = make_targets()

    def compute(outputs):
        total = lambda o: sum(MODEL.losses(o, targets).values())  # noqa: E731
        return MODEL.losses(outputs, targets), jax.grad(total)(outputs)

    found, gradient = cheap_jit(compute)(outputs)
    expected = [
        restate(row, *(np.asarray(t[i]) for t in targets[:3]))
        for i, row in enumerate(rows)
    ]
    for name, value in found.items():
        wanted = np.mean([losses[name] for losses, _ in expected])
        np.testing.assert_allclose(value, wanted, rtol=1e-5, err_msg=name)
    for i, (_, delta) in enumerate(expected):
        parts = [gradient[k][i] for k in ("classes", "confidences", "boxes")]
        flat = np.concatenate([np.asarray(p).reshape(-1) for p in parts])
        # A mean over two images.
        np.testing.assert_allclose(flat, 2 * delta / 2, rtol=1e-4, atol=1e-5)


def test_losses_without_objects(cheap_jit):
    outputs, rows = make_outputs()
    losses = cheap_jit(jax.value_and_grad(lambda o, t: sum_of(MODEL.losses(o, t))))
    targets = make_targets()
    for slots in (0, 5):
        empty = Targets(*(t[:, :slots] for t in targets[:3]))
        empty = empty._replace(valid=jnp.zeros((2, slots), bool))
        value, gradient = losses(outputs, empty)
        confidences = rows[:, 49 * CLASSES : 49 * (CLASSES + 2)]
        np.testing.assert_allclose(value, (confidences**2).sum() / 4, rtol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert not gradient["boxes"].any()


def sum_of(losses):
    return sum(losses.values())


def test_padding_in_losses(cheap_jit):
    outputs, _ = make_outputs()
    targets, losses = make_targets(), cheap_jit(MODEL.losses)
    expected, rest = losses(outputs, targets), ((0, 0), (0, 3000))
    padded = Targets(
        jnp.pad(targets.boxes, (*rest, (0, 0)), constant_values=np.nan),
        jnp.pad(targets.classes, rest, constant_values=99),
        jnp.pad(targets.valid, rest),
    )
    found = losses(outputs, padded)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_decoding_is_darknets():
    outputs, rows = make_outputs()
    found = MODEL.decode(outputs)
    assert found.boxes.shape == (2, 98, 4)
    assert found.valid.all()
    for i, row in enumerate(rows):
        for cell in range(49):
            line, column = divmod(cell, 7)
            for j in range(2):
                p = 49 * (CLASSES + 2) + 4 * (2 * cell + j)
                x, y = (row[p] + column) / 7, (row[p + 1] + line) / 7
                w, h = row[p + 2] ** 2, row[p + 3] ** 2
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                box = np.clip(SIDE * np.array(box), 0, SIDE)
                place = i, 2 * cell + j
                np.testing.assert_allclose(
                    found.boxes[place], box, rtol=1e-5, atol=1e-3
                )
                confidence = row[49 * CLASSES + 2 * cell + j]
                scores = confidence * row[CLASSES * cell :][:CLASSES]
                np.testing.assert_allclose(
                    found.scores[place], np.clip(scores, 0, 1), rtol=1e-5, atol=1e-6
                )
    small = MODEL.decode(outputs, jnp.array([[448.0, 100.0]] * 2))
    assert small.boxes[..., [0, 2]].max() == 100


def test_cells_have_the_first_object_in_them():
    centers = jnp.array([[0.9, 0.1], [0.2, 0.3], [0.25, 0.4], [1.0, 1.0], [-3.0, 9.0]])
    valid = jnp.array([True, True, True, True, False])
    found = yolo.assign_cells(centers, valid, 2)
    np.testing.assert_array_equal(found, [[1, 0], [5, 3]])


@pytest.mark.parametrize("name", ["yolo_v1", "yolo_v1_tiny", "yolo_v1_tiny_bn"])
def test_every_endpoint_is_what_torch_computes(name, cheap_jit):
    images = np.random.default_rng(0).random((1, SIDE, SIDE, 3), np.float32)
    model = zoo.build(name, num_classes=CLASSES, **NARROW[name])
    stages, hidden = model.backbone.stages, model.head.hidden

    def net(variables):
        return TorchYOLO(variables, stages, hidden, model.backbone.batch_norm)

    check_endpoints(model, net, images, jit=cheap_jit)


@pytest.mark.parametrize("name", ["yolo_v1", "yolo_v1_tiny_bn", "yolo96_small"])
def test_a_state_dict_comes_back_bit_by_bit(name):
    pre = zoo.get_spec(name).preprocess
    images = jax.ShapeDtypeStruct((1, *pre.shape), jnp.float32)
    options = NARROW[name]
    variables = random_variables(zoo.build(name, num_classes=7, **options), images)
    after = flatten(from_torch(name, to_torch(name, variables, **options), **options))
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(after[path], leaf)


@pytest.mark.parametrize("name", ["yolo_v1_tiny", "yolo96_small"])
def test_a_head_for_other_classes(name, cheap_jit):
    pre = zoo.get_spec(name).preprocess
    images = np.random.default_rng(0).random((1, *pre.shape), np.float32)
    model = zoo.build(name, num_classes=3, **NARROW[name])
    before = random_variables(model, images)
    expected = cheap_jit(model.apply)(before, images)
    model, after = replace_head(model, before, 2, key=jax.random.key(0), shared={1: 2})
    found = cheap_jit(model.apply)(after, images)
    for output in ("confidences", "boxes"):
        np.testing.assert_allclose(found[output], expected[output], rtol=1e-5)
    kept = expected["classes"][..., 2]
    np.testing.assert_allclose(found["classes"][..., 1], kept, rtol=1e-5)
    assert not np.isclose(found["classes"][..., :1], expected["classes"]).any()


def test_bad_input():
    with pytest.raises(ValueError, match=r"yolo_v1 takes images \[B, 448, 448, C"):
        jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 416, 416, 3)))
    with pytest.raises(ValueError, match="yolo_v1_tiny: num_classes must be 1 or more"):
        zoo.build("yolo_v1_tiny", num_classes=0)


@pytest.mark.parametrize("name", ["yolo_v1", "yolo_v1_tiny"])
def test_a_batch_may_be_symbolic(name):
    model = zoo.build(name)
    shape = zoo.get_spec(name).preprocess.shape
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    variables = zoo.summary.abstract_variables(model, shape)
    for out in jax.tree.leaves(jax.eval_shape(model.apply, variables, images)):
        assert out.shape[0] == batch
