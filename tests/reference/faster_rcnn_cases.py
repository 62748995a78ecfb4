"""What torchvision's Faster R-CNN and ours are both given, in numpy alone."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

import zoo
from zoo.verify.deterministic import BRANCH_GAIN, make_images, random_bytes
from zoo.verify.parity import deterministic_state

NAME = "faster_rcnn_resnet50_fpn"
GOLDEN = Path(__file__).with_name("golden") / f"{NAME}.npz"
# Height and width of a batch, and of what each image fills of them.
CASES = {
    "landscape": ((128, 160), ((128, 160), (101, 133))),
    "portrait": ((224, 96), ((224, 96),)),
    "full": ((800, 1088), ((800, 1066),)),
}
# A photograph for the whole detector, and the sides that it is resized to.
PHOTOGRAPH = (75, 110)
SIDES = (128, 170)
# Deltas of the size that training gives, and scores that differ.
SCALES = {
    "rpn.head.bbox_pred.weight": 0.02,
    "rpn.head.cls_logits.weight": 0.2,
    "roi_heads.box_predictor.bbox_pred.weight": 0.1,
    "roi_heads.box_predictor.cls_score.weight": 0.2,
}


def make_state():
    """The deterministic weights by torchvision's names, some layers scaled."""
    return dict(_make_state())


@functools.cache
def _make_state():
    state = deterministic_state(NAME, branch_gain=BRANCH_GAIN)
    return {k: v * np.float32(SCALES.get(k, 1)) for k, v in state.items()}


def make_batch(case):
    """Preprocessed images [B, H, W, 3] with zeros around them, and their sizes."""
    (height, width), sizes = CASES[case]
    pre = dataclasses.replace(zoo.get_spec(NAME).preprocess, size=height, width=width)
    images = make_images(pre, len(sizes))
    for image, (h, w) in zip(images, sizes, strict=True):
        image[h:] = 0
        image[:, w:] = 0
    return images, np.array(sizes, np.float32)


def make_photograph():
    """A uint8 image [h, w, 3]."""
    height, width = PHOTOGRAPH
    y, x, c = np.ogrid[:height, :width, :3]
    waves = np.abs((7 * y + 5 * x + 60 * c) % 510 - 255)
    noise = random_bytes("photograph", waves.size).reshape(waves.shape)
    return ((waves.astype(np.int64) + noise) // 2).astype(np.uint8)


def make_targets():
    """Boxes [2, 3, 4], classes and validity of the case "landscape"; one has none."""
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0] = [[10, 20, 74, 100], [60.5, 8, 150, 70], [100, 90, 121, 118]]
    classes = np.array([[16, 0, 89], [0, 0, 0]], np.int32)
    return boxes, classes, np.array([[True] * 3, [False] * 3])


def pair(found, expected):
    """Which of the found (boxes, scores, classes) is which of the expected ones.

    Detections of nearly the same score may have changed places.
    """
    boxes, scores, classes = (
        np.abs(a[None] - b[:, None]) for a, b in zip(found, expected, strict=True)
    )
    other = (scores > 1e-3) | (classes > 0)
    order = np.where(other, np.inf, boxes.max(axis=-1)).argmin(axis=1)
    assert len({*order.tolist()}) == len(found[0])
    return order


def uniform(name, *shape, scale=1.0):
    """Always the same float32 within -scale and scale."""
    raw = random_bytes(name, int(np.prod(shape))).reshape(shape)
    return ((raw.astype(np.float32) + 0.5) / 128 - 1) * np.float32(scale)


def make_outputs(anchors=60, rois=12, classes=5):
    """Outputs of two images, with samples, for the losses alone: no network's.

    Returns:
      The outputs as `TwoStage.losses` takes them, and targets (boxes, classes, valid).
    """
    boxes, _, valid = make_targets()
    labels = random_bytes("labels", 2 * anchors).reshape(2, anchors) % 3 - 1.0
    kinds = random_bytes("kinds", 2 * rois).reshape(2, rois) % (classes + 1)
    objects = random_bytes("objects", 2 * (anchors + rois)).reshape(2, -1) % 3
    labels[1] = np.minimum(labels[1], 0)
    kinds[1] = 0
    outputs = {
        "anchors": _boxes("anchors", 2, anchors),
        "rpn_logits": uniform("rpn_logits", 2, anchors, scale=4),
        "rpn_deltas": uniform("rpn_deltas", 2, anchors, 4),
        "rpn_labels": labels.astype(np.int32),
        "rpn_matches": objects[:, :anchors].astype(np.int32),
        "rois": _boxes("rois", 2, rois),
        "roi_valid": np.arange(rois)[None] < np.array([[rois], [rois - 4]]),
        "roi_classes": kinds.astype(np.int32),
        "roi_matches": objects[:, anchors:].astype(np.int32),
        "class_logits": uniform("class_logits", 2, rois, classes + 1, scale=3),
        "box_deltas": uniform("box_deltas", 2, rois, classes + 1, 4),
    }
    numbers = np.array([[1, 0, 4], [0, 0, 0]], np.int32)
    return outputs, (boxes, numbers, valid)


def _boxes(name, *shape):
    corner = 50 + uniform(f"{name} corner", *shape, 2, scale=50)
    side = 40 + uniform(f"{name} side", *shape, 2, scale=30)
    return np.concatenate([corner, corner + side], axis=-1)
