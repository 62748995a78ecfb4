"""Whole functions: from uint8 images to the objects in them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from zoo.cpu import jit_inference
from zoo.detection.types import Candidates, Detections, Postprocess
from zoo.fitting import canvas_size, fit_batch, scale_boxes
from zoo.ops.nms import nms
from zoo.preprocess import check_batch
from zoo.spec import Preprocess

Array = jax.Array

# The best candidates of an image, among which suppression is tried first.
FEW = 2048


def make_detector(
    model: nn.Module,
    preprocess: Preprocess | None = None,
    *,
    max_detections: int | None = None,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    canvas: tuple[int, int] | None = None,
) -> Callable[..., Detections]:
    """Makes the jitted function from uint8 images to the objects in them.

    detect = zoo.make_detector(model, max_detections=100)
    boxes, scores, classes, valid = detect(variables, images)

    Fitting and normalising the images, the network, decoding, suppression and the way
    back to the images' pixels are one program. It is compiled for each shape of the
    arrays and each canvas, and not for the sizes of the images: `zoo.pad_images` makes
    few shapes of many sizes. It can be called under `jit` and `vmap`, and on a batch
    that is spread over devices.

    Args:
      model: A detector, see `zoo.detection.types`.
      preprocess: What its variables expect; what the model says where None.
      max_detections: D, most objects of an image.
      score_threshold: Scores must be higher, 0 to 1.
      iou_threshold: Of two objects of a class with a larger IoU, the one with the lower
        score goes; 0 to 1.
      canvas: Height and width of the network's input, where images keep their
        proportions; see `zoo.fit_batch`. None: as large as the largest of a batch's
        images needs, in steps of 32 pixels, so that no image is made smaller because
        of the others; within `jit`, where sizes are unknown, a square of the longest
        side that the network takes.

    Returns:
      `detect(variables, images, sizes=None, proposals=None) -> Detections`. Images are
      uint8 [B, h, w, channels]; sizes int [B, 2] are height and width in pixels of what
      each image fills of its array, from the upper left corner on, or None where all
      fill all of it. Boxes are in the images' own pixels. Proposals, `boxes` and
      `valid`, are for networks that are given regions, in the images' own pixels.

    Raises:
      ValueError: The model is no detector, or a number is out of range. The function
        raises it where images or sizes are not as above.
    """
    if not hasattr(model, "decode") or not hasattr(model, "postprocess"):
        raise ValueError(
            f"make_detector takes a detector, got {type(model).__name__}, which has no "
            "decode and postprocess; zoo.list_models(task='detection') names detectors "
            "(and zoo.make_region_detector takes R-CNN)."
        )
    preprocess = preprocess or model.preprocess
    given = {
        "max_detections": max_detections,
        "score_threshold": score_threshold,
        "iou_threshold": iou_threshold,
    }
    given = {name: value for name, value in given.items() if value is not None}
    postprocess = _check(model.postprocess._replace(**given))

    @partial(jit_inference, static_argnames="room")
    def run(variables, images, sizes, proposals, room) -> Detections:
        chosen = {"canvas": canvas or room, "shrink": canvas is not None}
        fitted = fit_batch(images, preprocess, sizes, **chosen)
        original = jnp.int32(images.shape[1:3])[None] if sizes is None else sizes
        options = {}
        if proposals is not None:
            boxes = scale_boxes(proposals.boxes, original, fitted.sizes)
            options["proposals"] = proposals._replace(boxes=boxes)
        # What is stretched fills all.
        filled = fitted.sizes.astype(jnp.float32)
        filled = None if preprocess.fit == "stretch" else filled
        outputs = model.apply(variables, fitted.images, filled, **options)
        found = choose_detections(model.decode(outputs, filled), postprocess)
        return found._replace(boxes=scale_boxes(found.boxes, fitted.sizes, original))

    def detect(
        variables: Mapping[str, Any],
        images: Array,
        sizes: Array | None = None,
        proposals: Any = None,
    ) -> Detections:
        check_batch(images, preprocess)
        sizes, room = check_sizes(sizes, images), None
        if canvas is None:
            room = canvas_size(*images.shape[1:3], preprocess, sizes=sizes)
        return run(variables, images, sizes, proposals, room=room)

    return detect


def choose_detections(
    candidates: Candidates, postprocess: Postprocess, *, few: int = FEW
) -> Detections:
    """Suppresses candidates within each class, and keeps the best of all.

    Args:
      candidates: Of a batch of images.
      postprocess: By which rules.
      few: How many of an image's best candidates are suppressed first. All are only
        where these do not suffice; the result is the same.

    Returns:
      `Detections`, with boxes in the pixels of the candidates. Of equal scores the
      lower class, then the earlier candidate comes first.
    """
    boxes = candidates.boxes
    scores = jax.vmap(lambda *image: _rank(*image, postprocess))(*candidates)

    def over_images(function: Callable, *options: Any) -> Callable:
        return jax.vmap(lambda *image: function(*image, postprocess, *options))

    found = over_images(_suppress_few, few)(boxes, scores)
    if scores[0].size > few:
        # The best few say it all, where they fill the result or no others are left.
        left = (scores > -jnp.inf).sum(axis=(1, 2)) > few
        enough = (found[1].all(axis=1) | ~left).all()
        every = over_images(_suppress_each_class)
        found = lax.cond(enough, lambda *images: found, every, boxes, scores)
    return jax.vmap(_take)(boxes, scores, *found)


def _rank(boxes: Array, scores: Array, valid: Array, postprocess: Postprocess) -> Array:
    """One image's scores float32 [K, R], -inf where a candidate does not count."""
    sides = boxes[..., 2:] - boxes[..., :2]
    large = (sides >= postprocess.min_size).all(axis=-1)
    usable = valid[:, None] & (scores > postprocess.score_threshold)
    usable &= large[:, None] if boxes.ndim == 2 else large
    return jnp.where(usable, scores, -jnp.inf).T


def _suppress_few(
    boxes: Array, scores: Array, postprocess: Postprocess, few: int
) -> tuple[Array, Array]:
    """Suppresses among the best `few` of one image, of all classes together.

    Returns:
      Places int32 [D] in the flattened scores, best first, and whether they are valid.
    """
    num_classes, count = scores.shape
    best, places = lax.top_k(scores.ravel(), min(few, scores.size))
    classes, rows = places // count, places % count
    usable = best > -jnp.inf
    most = postprocess.max_candidates
    if most is not None and most < len(best):
        mine = classes[:, None] == jnp.arange(num_classes)[None]
        before = (jnp.cumsum(mine, axis=0, dtype=jnp.int32) * mine).sum(axis=1) - 1
        usable &= before < most
    kept, valid = nms(
        boxes[rows] if boxes.ndim == 2 else boxes[rows, classes],
        best,
        iou_threshold=postprocess.iou_threshold,
        max_outputs=postprocess.max_detections,
        classes=classes,
        valid=usable,
    )
    return places[kept], valid


def _suppress_each_class(
    boxes: Array, scores: Array, postprocess: Postprocess
) -> tuple[Array, Array]:
    """As `_suppress_few`, among all candidates of one image, one class at a time."""
    num_classes, count = scores.shape
    most = min(postprocess.max_candidates or count, count)

    def suppress(each: tuple[Array, Array]) -> tuple[Array, Array]:
        number, scores = each
        scores, rows = lax.top_k(scores, most)
        kept, valid = nms(
            boxes[rows] if boxes.ndim == 2 else boxes[rows, number],
            scores,
            iou_threshold=postprocess.iou_threshold,
            max_outputs=min(postprocess.max_detections, most),
            valid=scores > -jnp.inf,
        )
        # Best first is lowest first.
        return jnp.where(valid, -scores[kept], jnp.inf), number * count + rows[kept]

    numbers = jnp.arange(num_classes, dtype=jnp.int32)
    found = lax.map(suppress, (numbers, scores))
    losses, places = lax.sort([x.ravel() for x in found], num_keys=2)
    rest = (0, max(0, postprocess.max_detections - len(places)))
    places = jnp.pad(places, rest)[: postprocess.max_detections]
    losses = jnp.pad(losses, rest, constant_values=jnp.inf)
    return places, losses[: postprocess.max_detections] < jnp.inf


def _take(boxes: Array, scores: Array, places: Array, valid: Array) -> Detections:
    """One image's detections from their places in the flattened scores."""
    classes, rows = places // scores.shape[1], places % scores.shape[1]
    boxes = boxes[rows] if boxes.ndim == 2 else boxes[rows, classes]
    return Detections(
        jnp.where(valid[:, None], boxes, 0),
        jnp.where(valid, scores.ravel()[places], 0),
        jnp.where(valid, classes, 0),
        valid,
    )


def check_sizes(sizes: Array | None, images: Array) -> Array | None:
    """Returns sizes as int32, or raises where they cannot be those of the images.

    The values are looked at where they are on the host.

    Raises:
      ValueError: Names the image.
    """
    if sizes is None or images.ndim != 4:
        return sizes
    if not hasattr(sizes, "dtype"):
        sizes = np.asarray(sizes)
    expected = (images.shape[0], 2)
    if sizes.shape != expected or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes must be integers {list(expected)}, height and width of each image, "
            f"got {sizes.dtype} {list(sizes.shape)}."
        )
    if isinstance(sizes, np.ndarray):
        most = np.array(images.shape[1:3])
        wrong = ((sizes < 1) | (sizes > most)).any(axis=1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(
                f"sizes[{i}]={sizes[i].tolist()}: height and width of an image must be "
                f"1 or more, and at most its array's {most.tolist()}."
            )
    return sizes.astype(np.int32)


def _check(postprocess: Postprocess) -> Postprocess:
    thresholds = (postprocess.score_threshold, postprocess.iou_threshold)
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(
            f"score_threshold={thresholds[0]} and iou_threshold={thresholds[1]} must "
            "be 0 to 1."
        )
    if postprocess.max_detections < 1:
        raise ValueError(
            f"max_detections={postprocess.max_detections} must be 1 or more."
        )
    return postprocess
