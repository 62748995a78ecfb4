"""Anchors, proposals, samples and pooling by the papers' rules, restated in numpy."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

import zoo
from zoo.detection.fast_rcnn import roi_pool
from zoo.detection.faster_rcnn import pyramid_anchors
from zoo.detection.fpn import upsample_nearest
from zoo.detection.roi_heads import RoIHeadConfig, sample_regions
from zoo.detection.rpn import RPN, filter_proposals, grid_anchors, sample_anchors
from zoo.detection.types import Targets

RNG = np.random.default_rng(0)
SIZE = (120, 150)


def random_boxes(count, size=SIZE):
    corner = RNG.uniform(0, 0.8, (count, 2)) * size[::-1]
    side = RNG.uniform(0.1, 0.5, (count, 2)) * size[::-1]
    boxes = np.concatenate([corner, np.minimum(corner + side, size[::-1])], axis=1)
    return boxes.astype(np.float32)


def inclusive_iou(a, b):
    """As the authors' code has it: the last pixel belongs to a box."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.maximum(high - low + 1, 0))
    areas = [np.prod(box[2:] - box[:2] + 1) for box in (a, b)]
    return shared / (sum(areas) - shared)


def place(anchors):
    """The configuration of the paper's network, and its anchors on a map of 8 x 10."""
    config = zoo.build("faster_rcnn_vgg16", anchors=anchors).rpn_config
    (placed,) = grid_anchors([np.zeros((1, 8, 10, 1))], (128, 160), config)
    return config, placed


def test_the_paper_has_nine_anchors_at_each_position():
    _, anchors = place("voc")
    # The authors' list counts pixels from 1 and has the last one in a box.
    assert anchors[:9].astype(int).tolist() == [
        [-84, -40, 100, 56],
        [-176, -88, 192, 104],
        [-360, -184, 376, 200],
        [-56, -56, 72, 72],
        [-120, -120, 136, 136],
        [-248, -248, 264, 264],
        [-36, -80, 52, 96],
        [-80, -168, 96, 184],
        [-168, -344, 184, 360],
    ]
    assert anchors.shape == (8 * 10 * 9, 4)
    # Row by row, and all of a position together.
    np.testing.assert_array_equal(anchors[9] - anchors[0], [16, 0, 16, 0])
    np.testing.assert_array_equal(anchors[90] - anchors[0], [0, 16, 0, 16])
    _, twelve = place("coco")
    assert twelve[:12, 2].astype(int).tolist()[4:6] == [40, 72]
    assert len(twelve) == 8 * 10 * 12
    with pytest.raises(ValueError, match=r"anchors='x' must be one of \['voc', 'coco'"):
        zoo.build("faster_rcnn_vgg16", anchors="x")


def test_a_pyramids_anchors_are_torchvisions():
    config = zoo.build("faster_rcnn_resnet50_fpn").rpn_config
    maps = [np.zeros((1, 200 // s, 272 // s, 1)) for s in (1, 2, 4, 8)]
    maps.append(np.zeros((1, 13, 17, 1)))
    levels = grid_anchors(maps, (800, 1088), config)
    assert levels[0][:3].astype(int).tolist() == [
        [-23, -11, 23, 11],
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
    ]
    # 800 / 13 and 1088 / 17, rounded down.
    np.testing.assert_array_equal(levels[4][3] - levels[4][0], [64, 0, 64, 0])
    np.testing.assert_array_equal(levels[4][51] - levels[4][0], [0, 61, 0, 61])
    assert pyramid_anchors([32])[0][1] == (-16, -16, 16, 16)


def test_labels_of_anchors_follow_the_paper():
    config, anchors = place("coco")
    config = dataclasses.replace(
        config, batch_size_per_image=10**4, positive_fraction=1
    )  # all
    size = np.float32([128, 160])
    boxes = np.float32([[10, 12, 130, 100], [60, 30, 158, 126], [5, 5, 9, 9], [0] * 4])
    valid = np.array([True, True, True, False])
    labels, matches = jax.jit(partial(sample_anchors, config=config))(
        jax.random.key(0), anchors, boxes, valid, size
    )
    last = anchors - np.float32([0, 0, 1, 1])
    inside = (last[:, :2] >= 0).all(1) & (last[:, 2:] < size[::-1]).all(1)
    overlaps = np.array(
        [[inclusive_iou(a, b - [0, 0, 1, 1]) for b in boxes[valid]] for a in last]
    )
    overlaps[~inside] = -1
    expected = np.where(overlaps.max(1) < 0.3, 0, -1)
    for number in range(3):
        best = overlaps[:, number].max()
        if best > 0:
            expected[overlaps[:, number] == best] = 1
    expected[overlaps.max(1) >= 0.7] = 1
    expected[~inside] = -1
    np.testing.assert_array_equal(labels, expected)
    positive = expected == 1
    np.testing.assert_array_equal(matches[positive], overlaps.argmax(1)[positive])
    assert 0 < positive.sum() < inside.sum() < len(anchors) / 2


def test_a_sample_is_256_anchors_half_of_them_positive_at_most():
    config = zoo.build("faster_rcnn_vgg16").rpn_config
    config = dataclasses.replace(config, ignore_cross_boundary=False)
    anchors = random_boxes(2000)
    boxes = anchors[:5]
    sample = jax.jit(partial(sample_anchors, config=config))
    key, size = jax.random.key(0), np.float32(SIZE)
    labels, _ = sample(key, anchors, boxes, np.ones(5, bool), size)
    assert (labels == 1).sum() <= 128
    assert (labels >= 0).sum() == 256
    none, _ = sample(key, anchors, boxes, np.zeros(5, bool), size)
    assert (none == 0).sum() == 256
    assert not (none == 1).any()


def greedy(boxes, scores, threshold):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if all(inclusive_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def test_proposals_follow_the_authors_code():
    """Boxes that include their last pixel, decoded as by the authors' MATLAB."""
    config, anchors = place("voc")
    pre_nms, post_nms = {False: 60, True: 90}, {False: 12, True: 70}
    config = dataclasses.replace(
        config,
        pre_nms_top_n_test=pre_nms[False],
        pre_nms_top_n_train=pre_nms[True],
        post_nms_top_n_test=post_nms[False],
        post_nms_top_n_train=post_nms[True],
    )
    size = np.float32([120, 150])
    logits = RNG.normal(size=len(anchors)).astype(np.float32)
    deltas = RNG.normal(scale=0.3, size=(len(anchors), 4)).astype(np.float32)
    run = jax.jit(
        lambda s, d, z, train: filter_proposals([s], [d], [anchors], z, config, train),
        static_argnums=3,
    )
    for train in (False, True):
        boxes, valid = run(logits, deltas, size, train)
        assert boxes.shape == (post_nms[train], 4)
        best = np.argsort(-logits, kind="stable")[: pre_nms[train]]
        a, d = anchors[best] - np.float32([0, 0, 1, 1]), deltas[best]
        side = a[:, 2:] - a[:, :2] + 1
        center = a[:, :2] + 0.5 * (side - 1)
        center, side = d[:, :2] * side + center, np.exp(d[:, 2:]) * side
        last = np.concatenate([center - (side - 1) / 2, center + (side - 1) / 2], 1)
        last = np.clip(last, 0, np.tile(size[::-1], 2) - 1)
        large = (last[:, 2:] - last[:, :2] + 1 >= 16).all(1)
        last, scores = last[large], logits[best][large]
        kept = greedy(last, scores, 0.7)[: post_nms[train]]
        assert valid.sum() == len(kept)
        expected = last[kept] + np.float32([0, 0, 1, 1])
        np.testing.assert_allclose(boxes[valid], expected, rtol=0, atol=2e-4)
    assert not valid.all()


def test_regions_are_sampled_as_in_the_papers():
    boxes, valid = random_boxes(4), np.array([True, True, True, False])
    targets = Targets(boxes, np.int32([7, 0, 4, 9]), valid)
    regions = np.concatenate([random_boxes(300), boxes[:3] + np.float32(1)])
    usable = np.arange(len(regions)) % 7 > 0
    config = RoIHeadConfig(bg_iou_thresh=(0.1, 0.5), batch_size_per_image=64)
    sample = jax.jit(partial(sample_regions, config=config))
    out = sample(jax.random.key(1), regions, usable, targets)
    assert out["rois"].shape == (64, 4)
    pool = np.concatenate([regions, boxes])
    allowed = np.concatenate([usable, valid])
    names = ("rois", "roi_valid", "roi_classes", "roi_matches")
    columns = (np.asarray(out[name]) for name in names)
    for box, fine, kind, match in zip(*columns, strict=True):
        if not fine:
            assert kind == 0
            continue
        (place,) = np.flatnonzero((pool == box).all(1) & allowed)[:1]
        overlaps = [float(zoo_iou(pool[place], b)) for b in boxes[:3]]
        if kind:
            assert max(overlaps) >= 0.5
            assert match == np.argmax(overlaps)
            assert kind == targets.classes[match] + 1
        else:
            assert 0.1 <= max(overlaps) < 0.5
    positive = (out["roi_classes"] > 0) & out["roi_valid"]
    assert 3 <= positive.sum() <= 16
    nothing = targets._replace(valid=valid & False)
    none = sample(jax.random.key(1), regions, usable, nothing)
    # Nothing overlaps anything by 0.1, and so nothing is trained.
    assert not none["roi_valid"].any()


def zoo_iou(a, b):
    return inclusive_iou(a - [0, 0, 1, 1], b - [0, 0, 1, 1])


def test_regions_are_pooled_as_by_the_authors():
    features = RNG.normal(size=(8, 10, 3)).astype(np.float32)
    boxes = np.float32([[0, 0, 160, 128], [24, 40, 72, 104], [150, 120, 160, 128]])
    pooled = jax.jit(partial(roi_pool, size=7))([features], boxes)
    for box, found in zip(boxes, np.asarray(pooled), strict=True):
        x1, y1, x2, y2 = np.floor((box - [0, 0, 1, 1]) / 16 + 0.5).astype(int)
        height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(7):
            for j in range(7):
                rows = slice(
                    min(max(y1 + i * height // 7, 0), 8),
                    min(max(y1 - (-(i + 1) * height // 7), 0), 8),
                )
                columns = slice(
                    min(max(x1 + j * width // 7, 0), 10),
                    min(max(x1 - (-(j + 1) * width // 7), 0), 10),
                )
                cut = features[rows, columns]
                expected = cut.max(axis=(0, 1)) if cut.size else np.zeros(3)
                np.testing.assert_array_equal(found[i, j], expected)


def test_pairs_of_scores_are_one_difference(cheap_jit):
    """All of "background", then all of "object", as in the authors' files."""
    maps = [RNG.normal(size=(2, 3, 4, 8)).astype(np.float32)]
    model = RPN(5, 6, two_scores=True)
    variables = cheap_jit(model.init)(jax.random.key(0), maps)
    assert variables["params"]["cls_logits"]["kernel"].shape == (1, 1, 6, 10)
    (logits,), (deltas,) = model.apply(variables, maps)
    plain = RPN(10, 6)
    params = {**variables["params"]}
    params["bbox_pred"] = plain.init(jax.random.key(0), maps)["params"]["bbox_pred"]
    (scores,), _ = plain.apply({"params": params}, maps)
    scores = scores.reshape(2, 12, 10)
    np.testing.assert_allclose(
        logits, (scores[..., 5:] - scores[..., :5]).reshape(2, -1), rtol=1e-6, atol=1e-7
    )
    assert deltas.shape == (2, 60, 4)


@pytest.mark.parametrize(("small", "large"), [((3, 4), (6, 8)), ((3, 3), (5, 6))])
def test_enlarging_takes_the_nearest_pixel(small, large):
    x = RNG.normal(size=(1, *small, 2)).astype(np.float32)
    rows, columns = (np.arange(n) * m // n for m, n in zip(small, large, strict=True))
    np.testing.assert_array_equal(upsample_nearest(x, large), x[:, rows][:, :, columns])
