"""Detection with R-CNN as one function, from an image and proposals to objects."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.cpu import jit_inference
from zoo.detect import replace_postprocess, select_detections
from zoo.detection.rcnn import OUTPUTS, RCNN, warp
from zoo.detection.types import Detections
from zoo.preprocess import check_image, normalize
from zoo.spec import Preprocess

# Images are padded to multiples of this number of pixels, to compile for few sizes.
BUCKET = 128


def make_region_reader(
    model: RCNN, preprocess: Preprocess | None = None, *, batch: int = 64
) -> Callable[..., dict[str, np.ndarray]]:
    """Makes the function from an image and boxes to the network's endpoints.

    Args:
      model: An R-CNN, or another module that is called with warped regions.
      preprocess: The preprocessing of the variables; None for the model's.
      batch: Number of regions in a call of the network.

    Returns:
      `read(variables, image, boxes, endpoints=OUTPUTS)`, which takes uint8 [h, w, 3]
      and float [R, 4] and returns a dict of numpy arrays [R, ...], the endpoints of
      these names; by default the outputs of the head.

    Raises:
      ValueError: `batch` is not positive.
    """
    preprocess = preprocess or model.preprocess
    if batch < 1:
        raise ValueError(f"batch={batch} must be 1 or more.")

    @jax.jit
    def cut(image: jax.Array, boxes: jax.Array, extent: jax.Array) -> jax.Array:
        image = normalize(image, preprocess)
        return warp(image, boxes, extent, size=preprocess.size, context=model.context)

    @partial(jit_inference, static_argnums=2)
    def run(variables: Mapping[str, Any], regions: jax.Array, names: tuple[str, ...]):
        out = model.apply(variables, regions, method="endpoints")
        return {name: out[name] for name in names}

    def read(
        variables: Mapping[str, Any],
        image: np.ndarray,
        boxes: np.ndarray,
        endpoints: Sequence[str] = OUTPUTS,
    ) -> dict[str, np.ndarray]:
        image = check_image(image, preprocess)
        extent = np.asarray(image.shape[:2], np.int32)
        below, right = -extent % BUCKET
        image = jnp.asarray(np.pad(image, ((0, below), (0, right), (0, 0))))
        boxes = _check_boxes(boxes)
        parts = []
        for first in range(0, max(len(boxes), 1), batch):
            part = boxes[first : first + batch]
            padded = np.zeros((batch, 4), np.float32)
            padded[: len(part)] = part
            regions = cut(image, padded, extent)
            out = run(variables, regions, tuple(endpoints))
            parts.append({k: v[: len(part)] for k, v in jax.device_get(out).items()})
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    return read


def make_region_detector(
    model: RCNN,
    preprocess: Preprocess | None = None,
    *,
    batch: int = 64,
    max_proposals: int = 2048,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
) -> Callable[[Mapping[str, Any], np.ndarray, np.ndarray], Detections]:
    """Makes the function from an image and proposals to the objects in it.

    The network runs on batches of one size, so that it is compiled once for all sizes
    of images and all numbers of proposals. Only the cropping of regions is compiled for
    each multiple of 128 pixels.

    Args:
      model: An R-CNN.
      preprocess: The preprocessing of the variables; None for the model's.
      batch: Number of regions in a call of the network.
      max_proposals: Maximum number of proposals of an image; further ones are ignored.
      max_detections: Maximum number of detections of an image; None, here and below,
        for the model's value.
      score_threshold: Detections with this score or a lower one are removed.
      iou_threshold: IoU threshold of non-maximum suppression within a class.

    Returns:
      `detect(variables, image, proposals) -> Detections` of a batch of one image; the
      image is uint8 [h, w, 3], and proposals are float [R, 4], xyxy in its pixels.

    Raises:
      ValueError: The model is no R-CNN, or an option is out of range.
    """
    if not isinstance(model, RCNN):
        raise ValueError(
            f"make_region_detector takes an R-CNN, got {type(model).__name__}, which "
            "zoo.make_detector takes if it is another detector."
        )
    if max_proposals < 1:
        raise ValueError(f"max_proposals={max_proposals} must be 1 or more.")
    read = make_region_reader(model, preprocess, batch=batch)
    postprocess = replace_postprocess(
        model,
        max_detections=max_detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )

    @jax.jit
    def postprocess_regions(outputs, proposals, extent, count):
        candidates = model.decode_regions(outputs, proposals, extent)
        valid = jnp.arange(max_proposals)[None] < count
        return select_detections(candidates._replace(valid=valid), postprocess)

    def detect(
        variables: Mapping[str, Any], image: np.ndarray, proposals: np.ndarray
    ) -> Detections:
        proposals = _check_boxes(proposals)[:max_proposals]
        outputs = read(variables, image, proposals)
        count = len(proposals)

        def pad(values: np.ndarray) -> np.ndarray:
            rest = [(0, max_proposals - count)] + [(0, 0)] * (values.ndim - 1)
            return np.pad(values, rest)

        outputs = {k: pad(v) for k, v in outputs.items()}
        extent = np.asarray(np.shape(image)[:2], np.float32)
        return postprocess_regions(outputs, pad(proposals), extent, count)

    return detect


def _check_boxes(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes as float32 [R, 4]; an empty sequence is no boxes."""
    boxes = np.asarray(boxes, np.float32)
    if not boxes.size:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [R, 4], xyxy, got {list(boxes.shape)}.")
    return boxes
