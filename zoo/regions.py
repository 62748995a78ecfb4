"""Whole functions of networks that read regions: from proposals to detections."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.cpu import jit_inference
from zoo.detect import choose_detections
from zoo.detection.rcnn import OUTPUTS, RCNN, warp
from zoo.detection.types import Detections
from zoo.preprocess import check_image, normalize
from zoo.spec import Preprocess

# Images are padded to multiples of this many pixels, so that few sizes are compiled.
BUCKET = 128


def make_region_reader(
    model: RCNN, preprocess: Preprocess | None = None, *, batch: int = 64
) -> Callable[..., dict[str, np.ndarray]]:
    """Makes the function from an image and boxes to what the network says of them.

    Args:
      model: An R-CNN, or anything that is called with warped regions.
      preprocess: What its variables expect; the model's own if None.
      batch: Regions in a call of the network, which is compiled for this many alone.

    Returns:
      `read(variables, image, boxes, endpoints=OUTPUTS)` from uint8 [h, w, 3] and float
      [R, 4] to a dict of numpy arrays [R, ...], the endpoints of these names; those of
      the head are the network's outputs.

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
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
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
    """Makes the function from an image and proposals to its objects.

    Regions are read in batches of one size and decided together, so that an image of
    any size with any number of proposals compiles nothing anew, but the cutting of
    regions for each multiple of 128 pixels.

    Args:
      model: An R-CNN.
      preprocess: What its variables expect; the model's own if None.
      batch: Regions in a call of the network.
      max_proposals: Of an image; those beyond are left out.
      max_detections: Of an image; the model's own if None, as below.
      score_threshold: Detections have a higher score.
      iou_threshold: Of non-maximum suppression within a class.

    Returns:
      `detect(variables, image, proposals) -> Detections` of a batch of one image; the
      image is uint8 [h, w, 3], and proposals are float [R, 4], xyxy in its pixels.

    Raises:
      ValueError: An option is out of range.
    """
    read = make_region_reader(model, preprocess, batch=batch)
    given = dict(
        max_detections=max_detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )
    given = {k: v for k, v in given.items() if v is not None}
    postprocess = model.postprocess._replace(**given)

    @jax.jit
    def decide(outputs, proposals, extent, count):
        candidates = model.decode_regions(outputs, proposals, extent)
        valid = jnp.arange(max_proposals)[None] < count
        return choose_detections(candidates._replace(valid=valid), postprocess)

    def detect(
        variables: Mapping[str, Any], image: np.ndarray, proposals: np.ndarray
    ) -> Detections:
        proposals = np.asarray(proposals, np.float32).reshape(-1, 4)[:max_proposals]
        outputs = read(variables, image, proposals)
        count = len(proposals)

        def pad(values: np.ndarray) -> np.ndarray:
            rest = [(0, max_proposals - count)] + [(0, 0)] * (values.ndim - 1)
            return np.pad(values, rest)

        outputs = {k: pad(v) for k, v in outputs.items()}
        extent = np.asarray(np.shape(image)[:2], np.float32)
        return decide(outputs, pad(proposals), extent, count)

    return detect
