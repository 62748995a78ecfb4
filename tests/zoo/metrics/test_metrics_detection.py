"""Average precision of boxes, against the official rules restated slowly."""

import builtins

import numpy as np
import pytest

from zoo.detection.types import Detections
from zoo.metrics import coco
from zoo.metrics import detection as voc
from zoo.metrics.detection import Objects

CLASSES = 3


def iou(a, b, one=0):
    a, b = np.float64(a), np.float64(b)
    wide = min(a[2], b[2]) - max(a[0], b[0]) + one
    high = min(a[3], b[3]) - max(a[1], b[1]) + one
    if wide <= 0 or high <= 0:
        return 0
    areas = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def random_images(seed, images=6):
    """Objects, and detections some of which are near them; scores have ties."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 60, (images, 5, 2))
    boxes = np.concatenate([low, low + rng.integers(3, 40, (images, 5, 2))], -1)
    classes = rng.integers(0, CLASSES - (seed % 3 == 0), (images, 5))
    valid = rng.random((images, 5)) < (0.0 if seed % 10 == 9 else 0.7)
    difficult = rng.random((images, 5)) < 0.25
    copies = rng.integers(0, 5, (images, 8))
    found = np.take_along_axis(boxes, copies[..., None], 1)
    found = found + rng.integers(-4, 5, found.shape)
    found[..., 2:] = np.maximum(found[..., 2:], found[..., :2] + 1)
    kinds = np.take_along_axis(classes, copies, 1)
    kinds = np.where(rng.random(kinds.shape) < 0.2, 2 - kinds.clip(0, 2), kinds)
    scores = rng.integers(1, 30 if seed % 2 else 8, (images, 8)) / 30
    there = rng.random((images, 8)) < (0.0 if seed % 10 == 8 else 0.8)
    return (
        Detections(np.float32(found), np.float32(scores), kinds, there),
        Objects(np.float32(boxes), classes, valid, difficult),
    )


def slow_voc(detections, objects, number, one, eleven):
    """`voc_eval` of Faster R-CNN's code, of one class, in plain numbers."""
    lines = []
    for i, valid in enumerate(detections.valid):
        mine = [
            d
            for d in range(len(valid))
            if valid[d] and detections.classes[i][d] == number
        ]
        mine.sort(key=lambda d, i=i: -detections.scores[i][d])
        lines += [(detections.scores[i][d], i, detections.boxes[i][d]) for d in mine]
    lines.sort(key=lambda line: -line[0])
    targets = {
        i: [
            n
            for n in range(len(objects.valid[i]))
            if objects.valid[i][n] and objects.classes[i][n] == number
        ]
        for i in range(len(objects.valid))
    }
    count = sum(not objects.difficult[i][n] for i in targets for n in targets[i])
    if not count:
        return None
    used, right, wrong, recalls, precisions = set(), 0, 0, [0.0], [1.0]
    for _, i, box in lines:
        best, where = -1, None
        for n in targets[i]:
            share = iou(box, objects.boxes[i][n], one)
            if share > best:
                best, where = share, n
        if best > 0.5 and objects.difficult[i][where]:
            continue
        if best > 0.5 and (i, where) not in used:
            used.add((i, where))
            right += 1
        else:
            wrong += 1
        recalls.append(right / count)
        precisions.append(right / (right + wrong))
    points = list(zip(recalls, precisions, strict=True))[1:]
    if eleven:
        steps = np.arange(0.0, 1.1, 0.1)
        return sum(max([p for r, p in points if r >= t], default=0) for t in steps) / 11
    total, last = 0, 0
    for r in sorted({r for r, _ in points}):
        total += (r - last) * max(p for s, p in points if s >= r)
        last = r
    return total


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_voc_is_the_official_rule(seed, inclusive):
    detections, objects = random_images(seed)
    state = voc.update(voc.empty(CLASSES), detections, objects, inclusive=inclusive)
    found = voc.compute(state)
    for eleven, suffix in ((False, ""), (True, "_voc07")):
        each = [
            slow_voc(detections, objects, k, int(inclusive), eleven)
            for k in range(CLASSES)
        ]
        for got, expected in zip(found[f"by_class{suffix}"], each, strict=True):
            assert (got is None) == (expected is None)
            assert got is None or got == pytest.approx(expected, abs=1e-12)
        counted = [ap for ap in each if ap is not None]
        mean = np.mean(counted) if counted else np.nan
        assert found[f"ap50{suffix}"] == pytest.approx(mean, nan_ok=True)
    assert found["images"] == 6
    assert found["objects"] == (objects.valid & ~objects.difficult).sum()
    assert found["detections"] == detections.valid.sum()


def test_parts_and_padding_make_the_same_state():
    detections, objects = random_images(1)
    whole = voc.compute(voc.update(voc.empty(CLASSES), detections, objects))
    real = np.array([True] * 4 + [False] * 2)
    first = voc.update(voc.empty(CLASSES), detections, objects, real)
    assert first.images == 4
    second = voc.update(voc.empty(CLASSES), detections, objects, ~real)
    again = voc.update(first, detections, objects, ~real)
    for state in (voc.merge(first, second), again):
        parts = voc.compute(state)
        for name in ("ap50", "ap50_voc07", "images", "objects", "detections"):
            assert parts[name] == whole[name]


def test_a_known_curve():
    """Two objects: right, wrong, a second time right (so wrong), right."""
    boxes = np.float32(
        [[[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9], [20, 0, 30, 10]]]
    )
    detections = Detections(
        boxes,
        np.float32([[0.9, 0.8, 0.7, 0.6]]),
        np.zeros((1, 4), int),
        boxes[..., 0] >= 0,
    )
    objects = Objects(
        boxes[:, [0, 3]],
        np.zeros((1, 2), int),
        *np.array([[[1] * 2]] * 2) > [[[0]], [[1]]],
    )
    state = voc.update(voc.empty(1), detections, objects)
    assert state.hits.tolist() == [1, 0, 0, 1]
    found = voc.compute(state)
    recall, precision = found["curves"][0]
    np.testing.assert_allclose(recall, [0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(precision, [1, 1 / 2, 1 / 3, 1 / 2])
    assert found["ap50"] == pytest.approx(0.75)
    assert found["ap50_voc07"] == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def test_half_is_not_enough_where_it_is_half():
    boxes = np.float32([[[0, 0, 10, 10]]])
    objects = Objects(boxes, np.zeros((1, 1), int), *np.array([[[True]], [[False]]]))
    for height, hit in ((5, 0), (5.01, 1)):
        found = Detections(
            np.float32([[[0, 0, 10, height]]]),
            np.ones((1, 1)),
            np.zeros((1, 1), int),
            boxes[..., 2] > 0,
        )
        assert voc.update(voc.empty(1), found, objects).hits.tolist() == [hit]


def test_unknown_classes_are_said():
    detections, objects = random_images(1)
    with pytest.raises(ValueError, match=r"of image 0: classes .* must be 0 to 0"):
        voc.update(voc.empty(1), detections, objects)


def slow_coco(detections, objects, number):
    """COCO's average precision of one class, for objects of all sizes."""
    aps = []
    for threshold in np.linspace(0.5, 0.95, 10):
        lines, count = [], 0
        for i in range(len(objects.valid)):
            mine = [
                n
                for n in np.flatnonzero(objects.valid[i])
                if objects.classes[i][n] == number
            ]
            mine.sort(key=lambda n, i=i: bool(objects.difficult[i][n]))
            count += sum(not objects.difficult[i][n] for n in mine)
            places = [
                d
                for d in np.flatnonzero(detections.valid[i])
                if detections.classes[i][d] == number
            ]
            used = set()
            for d in sorted(places, key=lambda d, i=i: -detections.scores[i][d]):
                box, best, where = detections.boxes[i][d], threshold, None
                for n in mine:
                    crowd = objects.difficult[i][n]
                    if crowd and where is not None and not objects.difficult[i][where]:
                        break
                    share = iou(box, objects.boxes[i][n])
                    if crowd:
                        other = objects.boxes[i][n]
                        area = (box[2] - box[0]) * (box[3] - box[1])
                        both = (other[2] - other[0]) * (other[3] - other[1]) + area
                        share = share / (1 + share) * both / area
                    if share >= best and (crowd or n not in used):
                        best, where = share, n
                if where is None:
                    lines.append((detections.scores[i][d], False))
                elif not objects.difficult[i][where]:
                    used.add(where)
                    lines.append((detections.scores[i][d], True))
        if not count:
            return None
        lines.sort(key=lambda line: -line[0])
        right = np.cumsum([hit for _, hit in lines])
        precision = right / np.arange(1, len(lines) + 1)
        recall = right / count
        steps = np.linspace(0, 1, 101)
        aps.append(np.mean([max(precision[recall >= s], default=0) for s in steps]))
    return float(np.mean(aps))


@pytest.mark.parametrize("seed", range(10))
def test_coco_is_the_official_rule(seed, capsys):
    pytest.importorskip("pycocotools")
    detections, objects = random_images(seed)
    found = coco.compute(coco.update(coco.empty(CLASSES), detections, objects))
    assert capsys.readouterr().out == ""
    each = [slow_coco(detections, objects, k) for k in range(CLASSES)]
    for got, expected in zip(found["by_class"], each, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or got == pytest.approx(expected, abs=1e-9)
    counted = [ap for ap in each if ap is not None]
    mean = np.mean(counted) if counted else np.nan
    assert found["ap"] == pytest.approx(mean, nan_ok=True)


def test_coco_by_sizes_and_in_parts():
    pytest.importorskip("pycocotools")
    sides = np.array([[10, 31, 33, 95, 97, 200]])
    low = np.cumsum(np.r_[0, sides[0, :-1]])[None]
    boxes = np.stack([low, low, low + sides, low + sides], -1).astype(np.float32)
    kinds, all_ = np.zeros((1, 6), int), np.ones((1, 6), bool)
    objects = Objects(boxes, kinds, all_, ~all_)
    # Of small, medium and large ones one is missed, two are found, one is found.
    seen = np.array([[True, False, True, True, False, True]])
    detections = Detections(boxes, np.ones((1, 6)), kinds, seen)
    state = coco.update(coco.empty(1), detections, objects)
    found = coco.compute(state)
    sizes = [found[f"ar_{size}"] for size in ("small", "medium", "large")]
    assert sizes == pytest.approx([0.5, 1, 0.5])
    assert found["ar_100"] == pytest.approx(4 / 6)
    assert found["ar_1"] == pytest.approx(1 / 6)
    two = coco.merge(state, coco.update(coco.empty(1), detections, objects))
    assert two.images == 2
    assert coco.compute(two)["ap"] == pytest.approx(found["ap"])
    padded = coco.update(state, detections, objects, np.array([False]))
    assert padded.images == 1
    assert len(padded.objects) == 6


def test_outlines_tell_the_size_where_they_are_known():
    pytest.importorskip("pycocotools")

    class WithArea(Objects):
        area = np.array([[100.0]])

    boxes, one = np.float32([[[0, 0, 50, 50]]]), np.ones((1, 1), bool)
    objects = WithArea(boxes, np.zeros((1, 1), int), one, ~one)
    found = Detections(boxes, np.ones((1, 1)), np.zeros((1, 1), int), one)
    out = coco.compute(coco.update(coco.empty(1), found, objects))
    assert out["ar_small"] == 1
    assert np.isnan(out["ar_medium"])


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'canon-zoo\[train\]'"):
        coco.compute(coco.empty(2))
