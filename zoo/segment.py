"""Segmentation as one function, from uint8 images to the class of each pixel."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.cpu import jit_inference
from zoo.ops.resize import resize
from zoo.ops.sliding_window import Size, crop_or_pad, sliding_window, zero_padding
from zoo.preprocess import check_batch, normalize
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess

Array = jax.Array


class Segmentation(NamedTuple):
    """The most probable class of each pixel.

    Attributes:
      classes: uint8 [B, h, w].
      scores: float32 [B, h, w], the probabilities.
    """

    classes: Array | np.ndarray
    scores: Array | np.ndarray


def make_segmenter(
    model: Segmenter,
    preprocess: Preprocess | None = None,
    *,
    classes: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | Size | None = None,
    overlap: float = 1 / 3,
    bucket: int = 64,
) -> Callable[[Mapping[str, Any], Any], Segmentation]:
    """Makes the function from uint8 images to classes, at the images' own size.

    Images are padded at the bottom and on the right, with the mean color or, for
    networks without padding, by reflection, to sizes in steps of `bucket` pixels. The
    program is compiled once for each of these sizes, not for each size of images. With
    several scales or `flip`, the probabilities are averaged over all of them; with
    `window`, over the windows that cover a pixel.
    Images are not resized by the preprocessing, only by `scales`.

    Args:
      model: A segmentation network.
      preprocess: The preprocessing of the variables, such as `card.preprocess`; None
        for the model's.
      classes: The classes that are predicted; None for all.
      scales: Factors by which images are resized before the network.
      flip: Whether to average over the horizontally flipped images, too.
      window: Height and width of sliding windows in pixels of a scaled image, for
        images that are too large for the memory; None for the whole image.
      overlap: Fraction of a window that it shares with its neighbor, 0 to below 1.
      bucket: Step of the padded sizes; 1 to pad only to the stride of the network.

    Returns:
      `segment(variables, images) -> Segmentation`. Images are uint8 [B, h, w,
      channels]. It returns numpy arrays for numpy arrays; under `jit` and on a mesh it
      takes jax arrays. For `jax.export`, return its `_asdict()`, which can be read
      without this package.

    Raises:
      ValueError: The model is not a segmentation network, or an option is out of range.
        `segment` raises it for images of another type, size or number of channels than
        the network takes.

    Reference:
      Zhao et al., Pyramid Scene Parsing Network, 2017, section 5.1 and the released
      code, for sliding windows, scales and flipping.
    """
    if not isinstance(model, Segmenter):
        raise ValueError(
            f"make_segmenter takes a segmentation network, got {type(model).__name__}; "
            "zoo.list_models(task='segmentation') names them."
        )
    preprocess = preprocess or model.preprocess
    scales = tuple(scales)
    window = (window, window) if isinstance(window, int) else window
    chosen = _choose_classes(model, classes)
    _check_options(model, preprocess, scales, window, overlap, bucket)

    def probabilities(variables: Mapping[str, Any], images: Array) -> Array:
        return jax.nn.softmax(model.apply(variables, images))

    def predict(function: Callable, images: Array, filled: Array, flip: bool) -> Array:
        """Computes probabilities for images that fill a part of [B, H, W, C]."""
        margin, size = model.margin, images.shape[1:3]
        least = window or (model.min_size, model.min_size)
        padded = [max(n + 2 * margin, m) for n, m in zip(size, least, strict=True)]
        padded = [_round_up(n, model.stride, model.remainder) for n in padded]
        x = crop_or_pad(images, filled, padded, margin=margin, flip=flip)
        if not margin:
            # The mean color, which is zero, as in the padding of convolutions.
            x = zero_padding(x, filled)
        if window is None:
            y = function(x)
        else:
            y = sliding_window(
                function, x, filled, window, overlap=overlap, margin=margin
            )
        return crop_or_pad(y, filled, size, flip=flip)

    @jit_inference
    def core(variables: Mapping[str, Any], images: Array, filled: Array):
        size = images.shape[1:3]
        images = normalize(images, preprocess)
        function = partial(probabilities, variables)
        views, total = [*product(scales, (False, True)[: 1 + flip])], 0.0
        for scale, flipped in views:
            x, part = images, filled
            if scale != 1:
                target = [max(round(n * scale), 1) for n in size]
                x = resize(crop_or_pad(x, filled, size), target, antialias=False)
                part = _scale(filled, size, target)
            y = predict(function, x, part, flipped)
            total = total + resize(y, size, antialias=False)
        total = jnp.take(total / len(views), chosen, axis=-1, mode="clip")
        best = jnp.take(chosen, total.argmax(axis=-1), mode="clip")
        return Segmentation(best, total.max(axis=-1))

    def segment(variables: Mapping[str, Any], images: Any) -> Segmentation:
        on_host = not isinstance(images, jax.Array)
        check_batch(images, preprocess)
        images = np.asarray(images) if on_host else images
        size = height, width = images.shape[1:3]
        least = max(model.min_size - 2 * model.margin, 1)
        if min(size) < least:
            raise ValueError(
                f"{model.label} takes images of {least} x {least} pixels or more, got "
                f"{list(images.shape)}."
            )
        # Sizes that the stride of the network does not enlarge further.
        rest = (model.remainder - 2 * model.margin) % model.stride
        more = [_round_up(n, bucket, rest) - n for n in size]
        if any(more):
            pad = np.pad if on_host else jnp.pad
            images = pad(images, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)))
        found = core(variables, images, np.array(size, np.int32))
        if on_host:
            found = Segmentation(*map(np.asarray, found))
        if any(more):
            found = Segmentation(*(x[:, :height, :width] for x in found))
        return found

    return segment


def _scale(filled: Array, size: Size, target: Sequence[int]) -> Array:
    """Scales the filled size of an array by the array's scale, and rounds it."""
    size, target = np.array(size, np.int32), np.array(target, np.int32)
    return jnp.maximum((2 * filled * target + size) // (2 * size), 1)


def _round_up(length: int, step: int, rest: int = 0) -> int:
    """Rounds a length up to the form `step * n + rest`."""
    return -(-(length - rest) // step) * step + rest


def _choose_classes(model: Segmenter, classes: Sequence[int] | None) -> np.ndarray:
    if "head" not in model.heads():
        raise ValueError(f"make_segmenter: {model.label} has no head.")
    count = model.heads()["head"].num_classes
    if count > 255:
        raise ValueError(f"masks have up to 255 classes, {model.label} has {count}.")
    chosen = range(count) if classes is None else classes
    if not len(chosen) or not {*chosen} <= {*range(count)}:
        raise ValueError(f"classes={classes} must be some of 0 to {count - 1}.")
    return np.array(chosen, np.uint8)


def _check_options(model, preprocess, scales, window, overlap, bucket) -> None:
    if preprocess is None:
        raise ValueError(f"make_segmenter: {model.label} needs a preprocess.")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={scales} must be one or more positive numbers.")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than 1.")
    if bucket < 1:
        raise ValueError(f"bucket={bucket} must be 1 pixel or more.")
    for length in window or ():
        least = max(model.min_size, 2 * model.margin + 1)
        fits = _round_up(max(length, least), model.stride, model.remainder)
        if length != fits:
            raise ValueError(
                f"window={window}: {model.label} takes {least} pixels or more, and "
                f"{model.stride} n + {model.remainder} of them; the next is {fits}."
            )
