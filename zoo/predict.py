"""Whole functions: from uint8 images to what is in them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.typing import ArrayLike

from zoo.cpu import jit_inference
from zoo.preprocess import check_batch, fit_images, normalize
from zoo.segmentation.segmenter import Segmenter
from zoo.spec import Preprocess


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
) -> Callable[[Mapping[str, Any], ArrayLike], Classification]:
    """Makes the jitted function from uint8 images to classes.

    Args:
      model: A classification network.
      preprocess: What its variables expect.
      top: How many classes to name; all, where there are fewer.

    Returns:
      `classify(variables, images) -> Classification`. Images are uint8 [B, h, w,
      channels] of any one size; it is compiled for each size.

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

    @jit_inference
    def run(variables: Mapping[str, Any], images: jax.Array) -> Classification:
        images = normalize(fit_images(images, preprocess), preprocess)
        probabilities = jax.nn.softmax(model.apply(variables, images))
        k = min(top, probabilities.shape[-1])
        scores, classes = jax.lax.top_k(probabilities, k)
        return Classification(classes, scores)

    def classify(variables: Mapping[str, Any], images: ArrayLike) -> Classification:
        check_batch(images, preprocess)
        return run(variables, images)

    return classify
