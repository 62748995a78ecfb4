"""What torchvision's SSD300 and ours are both given, in numpy alone."""

from pathlib import Path

import numpy as np

from zoo.verify.deterministic import random_bytes
from zoo.verify.parity import deterministic_state

NAME = "ssd300_vgg16"
GOLDEN = Path(__file__).with_name("golden") / f"{NAME}.npz"
# Heights and widths of photographs; the canvas is as large as the largest.
SIZES = ((128, 150), (97, 150), (128, 60))
# Deltas of the size that training gives, and scores that differ: of the first level,
# whose features are normalized, and of the others. And the background's advantage.
SCALES = {"regression_head": (0.3, 0.009), "classification_head": (1.2, 0.0165)}
BACKGROUND = 9
# Of the losses alone.
NUM_CLASSES = 5


def make_state():
    """The deterministic weights by torchvision's names, some layers scaled."""
    state = deterministic_state(NAME)
    for key, array in state.items():
        for part, (first, others) in SCALES.items():
            if part in key:
                scale = first if ".module_list.0." in key else others
                state[key] = array * np.float32(scale)
        if "classification_head" in key and key.endswith("bias"):
            state[key][::91] += BACKGROUND
    key = "backbone.scale_weight"
    return {**state, key: 20 + 50 * state[key]}


def make_photographs():
    """uint8 images [h, w, 3] of `SIZES`."""
    photographs = []
    for i, (height, width) in enumerate(SIZES):
        y, x, c = np.ogrid[:height, :width, :3]
        waves = np.abs(((7 + i) * y + 5 * x + 60 * c) % 510 - 255)
        noise = random_bytes(f"photograph {i}", waves.size).reshape(waves.shape)
        mixed = (waves.astype(np.int64) + noise) // 2
        photographs.append(mixed.astype(np.uint8))
    return photographs


def make_outputs(boxes=8732):
    """Outputs of three images, no network's: class_logits and deltas."""
    return {
        "class_logits": _uniform("logits", 3, boxes, NUM_CLASSES + 1) * 4,
        "deltas": _uniform("deltas", 3, boxes, 4) * 3,
    }


def make_targets():
    """Boxes [3, 4, 4], classes and validity; the second image has no object.

    One box overlaps no default box by half; the best ones of all are different.
    """
    boxes = np.zeros((3, 4, 4), np.float32)
    boxes[0] = [[10, 20, 160, 200], [170.5, 8, 290, 70], [200, 190, 221, 228], [0] * 4]
    boxes[2] = [[36, 17, 63, 209], [0] * 4, [50, 50, 250, 250], [117, 126, 130, 145]]
    classes = np.array([[4, 0, 2, 0], [0] * 4, [1, 0, 4, 3]], np.int32)
    valid = np.array([[1, 1, 1, 0], [0] * 4, [1, 0, 1, 1]], bool)
    return boxes, classes, valid


def _uniform(name, *shape):
    """Always the same float32 within -1 and 1."""
    raw = random_bytes(name, 2 * int(np.prod(shape))).view("<u2").reshape(shape)
    return (raw.astype(np.float32) + 0.5) / 32768 - 1
