"""Classification as one function, from uint8 images to classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from PIL import Image

from zoo.cpu import jit_inference
from zoo.layers import Classifier
from zoo.preprocess import (
    check_batch,
    normalize,
    resize_center_crop,
    resize_center_crop_batch,
)
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess

Images = ArrayLike | Sequence[np.ndarray | Image.Image]


class Classification(NamedTuple):
    """The most probable classes of each image.

    Attributes:
      classes: int32 [B, top], sorted by descending probability.
      scores: float32 [B, top], the probabilities.
    """

    classes: jax.Array
    scores: jax.Array


def make_classifier(
    model: nn.Module, preprocess: Preprocess, *, top: int = 5
) -> Callable[[Mapping[str, Any], Images], Classification]:
    """Makes the jitted function from uint8 images to classes.

    Args:
      model: A classification network.
      preprocess: The preprocessing of the variables.
      top: Number of classes to return, or all if there are fewer.

    Returns:
      `classify(variables, images) -> Classification`. Images are uint8 [B, h, w,
      channels], or a list of images of any sizes, uint8 [h, w, channels] or Pillow
      images. Numpy arrays and Pillow images are resized on the host by
      `zoo.resize_center_crop`, so the program is compiled once for each batch size. JAX
      arrays are resized on the device; the program is compiled for each image size.

    Raises:
      ValueError: The model is not a classifier, or `top` is not positive. `classify`
        raises it for invalid images.
    """
    if hasattr(model, "postprocess") or isinstance(model, Segmenter):
        task = "segmenter" if isinstance(model, Segmenter) else "detector"
        task = "region_detector" if hasattr(model, "decode_regions") else task
        raise ValueError(
            f"make_classifier takes a classification network, got "
            f"{type(model).__name__}, which zoo.make_{task} takes; "
            "zoo.list_models(task='classification') names classifiers."
        )
    if isinstance(model, Classifier) and model.head is None:
        raise ValueError(
            "make_classifier takes a network with a head, got one of num_classes=0, "
            "whose output are features."
        )
    if top < 1:
        raise ValueError(f"top={top} must be 1 or more.")

    def infer(variables: Mapping[str, Any], images: jax.Array) -> Classification:
        images = normalize(images, preprocess)
        probabilities = jax.nn.softmax(model.apply(variables, images))
        k = min(top, probabilities.shape[-1])
        scores, classes = jax.lax.top_k(probabilities, k)
        return Classification(classes, scores)

    def resize_and_infer(variables: Mapping[str, Any], images: jax.Array):
        return infer(variables, resize_center_crop_batch(images, preprocess))

    run, run_on_device = jit_inference(infer), jit_inference(resize_and_infer)

    def classify(variables: Mapping[str, Any], images: Images) -> Classification:
        if not isinstance(images, list | tuple):
            check_batch(images, preprocess)
        elif not images:
            raise ValueError("images must be one or more, got an empty list.")
        if isinstance(images, jax.Array):
            return run_on_device(variables, images)
        resized = np.stack([resize_center_crop(image, preprocess) for image in images])
        return run(variables, resized)

    return classify
