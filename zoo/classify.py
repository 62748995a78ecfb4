"""From uint8 images of any size to the most probable classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from PIL import Image

from zoo.cpu import jit_inference
from zoo.preprocess import check_batch, fit_image, fit_images, normalize
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess

Images = ArrayLike | Sequence[np.ndarray | Image.Image]


class Classification(NamedTuple):
    """The most probable classes of each image.

    Attributes:
      classes: int32 [B, top], the most probable first.
      scores: float32 [B, top], their probabilities.
    """

    classes: jax.Array
    scores: jax.Array


def make_classifier(
    model: nn.Module, preprocess: Preprocess, *, top: int = 5
) -> Callable[[Mapping[str, Any], Images], Classification]:
    """Makes the jitted function from uint8 images to classes.

    Args:
      model: A classification network.
      preprocess: What its variables expect.
      top: How many classes to name; all, where there are fewer.

    Returns:
      `classify(variables, images) -> Classification`. Images are uint8 [B, h, w,
      channels] of any one size, or a list of images of any sizes, uint8 [h, w,
      channels] or Pillow's. Those of numpy and Pillow are fitted on the host by
      `zoo.fit_image`, so that it is compiled once for each number of images, whatever
      their sizes. Within `jit`, and of jax's arrays, they are fitted on the device,
      and it is compiled for each size.

    Raises:
      ValueError: The model is no classifier, or `top` is not positive. The function
        raises it where images are not as above.
    """
    if hasattr(model, "decode") or isinstance(model, Segmenter):
        task = "detector" if hasattr(model, "decode") else "segmenter"
        raise ValueError(
            f"make_classifier takes a classification network, got "
            f"{type(model).__name__}, which zoo.make_{task} takes; "
            "zoo.list_models(task='classification') names classifiers."
        )
    if top < 1:
        raise ValueError(f"top={top} must be 1 or more.")

    def infer(variables: Mapping[str, Any], images: jax.Array) -> Classification:
        images = normalize(images, preprocess)
        probabilities = jax.nn.softmax(model.apply(variables, images))
        k = min(top, probabilities.shape[-1])
        scores, classes = jax.lax.top_k(probabilities, k)
        return Classification(classes, scores)

    def fit_and_infer(variables: Mapping[str, Any], images: jax.Array):
        return infer(variables, fit_images(images, preprocess))

    run, run_on_device = jit_inference(infer), jit_inference(fit_and_infer)

    def classify(variables: Mapping[str, Any], images: Images) -> Classification:
        if not isinstance(images, list | tuple):
            check_batch(images, preprocess)
        elif not images:
            raise ValueError("images must be one or more, got an empty list.")
        if isinstance(images, jax.Array):
            return run_on_device(variables, images)
        fitted = np.stack([fit_image(image, preprocess) for image in images])
        return run(variables, fitted)

    return classify
