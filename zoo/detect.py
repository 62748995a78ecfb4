"""Detection as one function, from uint8 images to the objects in them."""

import inspect
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
from zoo.ops.nms import nms
from zoo.preprocess import canvas_size, check_batch, resize_and_pad, resize_boxes
from zoo.spec import Preprocess

Array = jax.Array

# Number of the best candidates of an image that suppression tries first.
TOP_N = 2048


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

    Preprocessing, the network, decoding, non-maximum suppression and the conversion of
    boxes to the pixels of the original images form one program. It is compiled for each
    shape of the arrays and each canvas, but not for each size of images:
    `zoo.pad_images` pads images of many sizes to arrays of few shapes. It can be called
    under `jit` and `vmap`, and on a batch that is sharded over devices.

    Args:
      model: A detector, see `zoo.detection.types`.
      preprocess: The preprocessing of the variables; None for the model's.
      max_detections: Maximum number of detections D of an image.
      score_threshold: Detections with this score or a lower one are removed, 0 to 1.
      iou_threshold: IoU threshold of non-maximum suppression within a class, 0 to 1.
      canvas: Height and width of the network's input, for networks that keep the aspect
        ratio of images; see `zoo.resize_and_pad`. None for the size that the largest
        image of a batch needs, in steps of 32 pixels, so that no image is made smaller
        because of the others; under `jit`, where sizes are unknown, for a square of the
        maximum longer side.

    Returns:
      `detect(variables, images, sizes=None, proposals=None) -> Detections`. Images are
      uint8 [B, h, w, channels]. Sizes int [B, 2] are the height and width in pixels of
      each image within its array, starting at the upper left corner; None if all images
      fill their arrays. Proposals, with `boxes` and `valid`, are for networks without a
      region proposal network. Boxes are in pixels of the original images.

    Raises:
      ValueError: The model is not a detector, or an option is out of range. `detect`
        raises it for invalid images or sizes.
    """
    if not hasattr(model, "decode") or not hasattr(model, "postprocess"):
        raise ValueError(
            f"make_detector takes a detector, got {type(model).__name__}, which has no "
            "decode and postprocess; zoo.list_models(task='detection') names detectors "
            "(and zoo.make_region_detector takes R-CNN)."
        )
    preprocess = preprocess or model.preprocess
    postprocess = replace_postprocess(
        model,
        max_detections=max_detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )

    @partial(jit_inference, static_argnames="padded_size")
    def run(variables, images, sizes, proposals, padded_size) -> Detections:
        candidates, inside, original = find_candidates(
            model,
            preprocess,
            variables,
            images,
            sizes,
            proposals,
            canvas=canvas or padded_size,
            shrink=canvas is not None,
        )
        found = select_detections(candidates, postprocess)
        return found._replace(boxes=resize_boxes(found.boxes, inside, original))

    def detect(
        variables: Mapping[str, Any],
        images: Array,
        sizes: Array | None = None,
        proposals: Any = None,
    ) -> Detections:
        check_batch(images, preprocess)
        if proposals is not None:
            taken = inspect.signature(type(model).__call__).parameters
            if "proposals" not in taken:
                name = type(model).__name__
                raise ValueError(f"{name} takes no proposals; give None.")
        sizes, padded_size = check_sizes(sizes, images), None
        if canvas is None:
            padded_size = canvas_size(*images.shape[1:3], preprocess, sizes=sizes)
        return run(variables, images, sizes, proposals, padded_size=padded_size)

    return detect


def replace_postprocess(model: nn.Module, **options: Any) -> Postprocess:
    """Returns a detector's `Postprocess` with some fields replaced.

    Args:
      model: A detector, see `zoo.detection.types`.
      **options: Fields of `Postprocess`; None for the model's.

    Raises:
      ValueError: A value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    postprocess = model.postprocess._replace(**given)
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


def find_candidates(
    model: nn.Module,
    preprocess: Preprocess,
    variables: Mapping[str, Any],
    images: Array,
    sizes: Array | None,
    proposals: Any = None,
    *,
    canvas: tuple[int, int] | None,
    shrink: bool = False,
) -> tuple[Candidates, Array, Array]:
    """Computes a detector's candidates, before non-maximum suppression.

    Args:
      model: A detector, see `zoo.detection.types`.
      preprocess: The preprocessing of the variables.
      variables: The variables of the model.
      images: uint8 [B, h, w, channels].
      sizes: int32 [B, 2], height and width of each image within its array, or None.
      proposals: See `make_detector`.
      canvas: Height and width of the network's input, see `zoo.resize_and_pad`.
      shrink: Whether images may be shrunk to fit the canvas.

    Returns:
      The candidates, in pixels of the network's input; the sizes of the images in that
      input; and their original sizes, int32 [B or 1, 2] each.
    """
    batch = resize_and_pad(images, preprocess, sizes, canvas=canvas, shrink=shrink)
    original = jnp.int32(images.shape[1:3])[None] if sizes is None else sizes
    options = {}
    if proposals is not None:
        boxes = resize_boxes(proposals.boxes, original, batch.sizes)
        options["proposals"] = proposals._replace(boxes=boxes)
    # Stretched images fill the network's input.
    stretched = preprocess.fit == "stretch"
    inside = None if stretched else batch.sizes.astype(jnp.float32)
    outputs = model.apply(variables, batch.images, inside, **options)
    return model.decode(outputs, inside), batch.sizes, original


def select_detections(
    candidates: Candidates, postprocess: Postprocess, *, top_n: int = TOP_N
) -> Detections:
    """Applies non-maximum suppression within each class, and selects the best boxes.

    Args:
      candidates: The candidates of a batch of images.
      postprocess: The parameters of the selection.
      top_n: Number of the best candidates of an image that suppression tries first. If
        these are not enough, it takes all; the result does not depend on it.

    Returns:
      `Detections`, with boxes in the pixels of the candidates. Equal scores are sorted
      by class, then by the order of the candidates.
    """
    boxes, options = candidates.boxes, {"postprocess": postprocess}
    scores = mask_scores(candidates, postprocess)
    found = jax.vmap(partial(_suppress_top_n, top_n=top_n, **options))(boxes, scores)
    if scores[0].size > top_n:
        # The best candidates are enough if they fill the result or there are no more.
        more = (scores > -jnp.inf).sum(axis=(1, 2)) > top_n
        enough = (found[1].all(axis=1) | ~more).all()
        all_candidates = jax.vmap(partial(_suppress_each_class, **options))
        found = lax.cond(enough, lambda *images: found, all_candidates, boxes, scores)
    return jax.vmap(_gather)(boxes, scores, *found)


def mask_scores(candidates: Candidates, postprocess: Postprocess) -> Array:
    """Returns the scores, float32 [B, K, R], -inf for removed candidates."""
    boxes, scores, valid = candidates
    sides = boxes[..., 2:] - boxes[..., :2]
    large = (sides >= postprocess.min_size).all(axis=-1)
    usable = valid[..., None] & (scores > postprocess.score_threshold)
    usable &= large[..., None] if boxes.ndim == 3 else large
    return jnp.where(usable, scores, -jnp.inf).swapaxes(1, 2)


def _suppress_top_n(
    boxes: Array, scores: Array, postprocess: Postprocess, top_n: int
) -> tuple[Array, Array]:
    """Suppresses among the best `top_n` candidates of one image, over all classes.

    Returns:
      Indices int32 [D] into the flattened scores, sorted by descending score, and
      whether they are valid.
    """
    num_classes, count = scores.shape
    best, indices = lax.top_k(scores.ravel(), min(top_n, scores.size))
    classes, rows = indices // count, indices % count
    usable = best > -jnp.inf
    limit = postprocess.max_candidates
    if limit is not None and limit < len(best):
        one_hot = classes[:, None] == jnp.arange(num_classes)[None]
        rank = (jnp.cumsum(one_hot, axis=0, dtype=jnp.int32) * one_hot).sum(axis=1) - 1
        usable &= rank < limit
    kept, valid = nms(
        boxes[rows] if boxes.ndim == 2 else boxes[rows, classes],
        best,
        iou_threshold=postprocess.iou_threshold,
        max_outputs=postprocess.max_detections,
        classes=classes,
        valid=usable,
    )
    return indices[kept], valid


def _suppress_each_class(
    boxes: Array, scores: Array, postprocess: Postprocess
) -> tuple[Array, Array]:
    """Suppresses among all candidates of one image, one class at a time."""
    num_classes, count = scores.shape
    limit = min(postprocess.max_candidates or count, count)

    def suppress(each: tuple[Array, Array]) -> tuple[Array, Array]:
        number, scores = each
        scores, rows = lax.top_k(scores, limit)
        kept, valid = nms(
            boxes[rows] if boxes.ndim == 2 else boxes[rows, number],
            scores,
            iou_threshold=postprocess.iou_threshold,
            max_outputs=min(postprocess.max_detections, limit),
            valid=scores > -jnp.inf,
        )
        # Negated, as `lax.sort` sorts in ascending order.
        return jnp.where(valid, -scores[kept], jnp.inf), number * count + rows[kept]

    numbers = jnp.arange(num_classes, dtype=jnp.int32)
    found = lax.map(suppress, (numbers, scores))
    negated, indices = lax.sort([x.ravel() for x in found], num_keys=2)
    padding = (0, max(0, postprocess.max_detections - len(indices)))
    indices = jnp.pad(indices, padding)[: postprocess.max_detections]
    negated = jnp.pad(negated, padding, constant_values=jnp.inf)
    return indices, negated[: postprocess.max_detections] < jnp.inf


def _gather(boxes: Array, scores: Array, indices: Array, valid: Array) -> Detections:
    """Returns the detections of one image, given indices into the flattened scores."""
    classes, rows = indices // scores.shape[1], indices % scores.shape[1]
    boxes = boxes[rows] if boxes.ndim == 2 else boxes[rows, classes]
    return Detections(
        jnp.where(valid[:, None], boxes, 0),
        jnp.where(valid, scores.ravel()[indices], 0),
        jnp.where(valid, classes, 0),
        valid,
    )


def check_sizes(sizes: Array | None, images: Array) -> Array | None:
    """Returns the sizes of images within their arrays as int32.

    Raises:
      ValueError: The shape or the type is wrong, or a value is out of range, which is
        checked only for sizes on the host.
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
