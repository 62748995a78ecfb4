"""Average precision and recall of COCO, computed on the host by `pycocotools`.

`pip install canon-zoo[train]` installs the package. The functions take the arguments of
those of `zoo.metrics.detection`.
"""

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


class State(NamedTuple):
    """The images seen so far.

    Attributes:
      objects: Rows of (image, class, x, y, width, height, area, crowd), float64 [N, 8].
      detections: Rows of (image, class, x, y, width, height, score), float64 [M, 7].
      images: Number of images.
      num_classes: Number of classes K.
    """

    objects: np.ndarray
    detections: np.ndarray
    images: int
    num_classes: int


def empty(num_classes: int) -> State:
    """Returns the state before any image."""
    return State(np.zeros((0, 8)), np.zeros((0, 7)), 0, num_classes)


def update(
    state: State, detections: Any, objects: Any, valid: np.ndarray | None = None
) -> State:
    """Adds a batch of images.

    Args:
      state: The images seen so far.
      detections: `zoo.Detections`.
      objects: `zoo.metrics.detection.Objects`, or an object with the same attributes.
        Difficult objects are COCO's crowds: regions of many objects, in which
        detections are ignored. An optional attribute "area", float [B, N], is the area
        of the objects' outlines, by which COCO separates small and large objects;
        without it the areas of the boxes are used.
      valid: bool [B]; False for padding, which is not counted. None if all are valid.
    """
    chosen = np.ones(len(objects.valid), bool) if valid is None else np.asarray(valid)
    numbers = state.images + np.cumsum(chosen) - 1

    def rows(found: Any, *columns: Any) -> np.ndarray:
        counted = np.asarray(found.valid) & chosen[:, None]
        boxes = np.asarray(found.boxes, np.float64)
        x, y = np.moveaxis(boxes[..., :2], -1, 0)
        width, height = np.moveaxis(boxes[..., 2:] - boxes[..., :2], -1, 0)
        image = np.broadcast_to(numbers[:, None], counted.shape)
        columns = (image, found.classes, x, y, width, height, *columns)
        return np.stack([np.asarray(c, np.float64)[counted] for c in columns], axis=-1)

    boxes = np.asarray(objects.boxes, np.float64)
    area = getattr(objects, "area", None)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1) if area is None else area
    return State(
        np.concatenate([state.objects, rows(objects, area, objects.difficult)]),
        np.concatenate([state.detections, rows(detections, detections.scores)]),
        state.images + int(chosen.sum()),
        state.num_classes,
    )


def merge(a: State, b: State) -> State:
    """Merges the states of two disjoint sets of images."""

    def join(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        second = second.copy()
        second[:, 0] += a.images
        return np.concatenate([first, second])

    return State(
        join(a.objects, b.objects),
        join(a.detections, b.detections),
        a.images + b.images,
        a.num_classes,
    )


def compute(state: State) -> dict[str, Any]:
    """Computes the metrics of COCO's leaderboard.

    Returns:
      `NAMES`, 0 to 1, for at most 100 detections of an image, and NaN if there is no
      object: "ap" is the mean over the IoU thresholds 0.5, 0.55, ..., 0.95, "ap50" and
      "ap75" are for one threshold; "ar_1", "ar_10" and "ar_100" are for that many
      detections. Objects are small up to 32 x 32 pixels and large from 96 x 96 on.
      "by_class" is "ap" of each class, None if it has no object.

    Raises:
      ImportError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "COCO's metrics are computed by pycocotools, which is not installed: "
            "pip install 'canon-zoo[train]'."
        ) from error

    def index(rows: np.ndarray, names: tuple[str, ...]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(state.images)],
            "categories": [{"id": k} for k in range(state.num_classes)],
            "annotations": [
                {
                    # The package uses 0 for "no match".
                    "id": n + 1,
                    "image_id": int(row[0]),
                    "category_id": int(row[1]),
                    "bbox": row[2:6].tolist(),
                    "area": row[4] * row[5],
                    "iscrowd": 0,
                    **dict(zip(names, row[6:].tolist(), strict=True)),
                }
                for n, row in enumerate(rows)
            ],
        }
        coco.createIndex()
        return coco

    # The package prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        objects = index(state.objects, ("area", "iscrowd"))
        evaluation = COCOeval(objects, index(state.detections, ("score",)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # [IoU, recall, class, area, detections]; -1 if there is no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = [
        float(each[each > -1].mean()) if (each > -1).any() else None
        for each in np.moveaxis(precision, 2, 0)
    ]
    stats = [float(s) if s > -1 else float("nan") for s in evaluation.stats]
    return {**dict(zip(NAMES, stats, strict=True)), "by_class": by_class}
