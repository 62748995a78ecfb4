"""The types that every detector takes and returns.

A detector is a Linen module with the fields `preprocess` (`zoo.spec.Preprocess`) and
`postprocess` (`Postprocess`), and these methods:

- `apply(variables, images, sizes=None, train=False, targets=None) -> outputs`: computes
  a dict of arrays from preprocessed images float32 [B, H, W, C]. `sizes` float32 [B, 2]
  are the height and width in pixels of the part of [H, W] that each image fills,
  starting at the upper left corner; None if it fills all of it. Only two-stage
  detectors need `targets`, and only in training, together with `rngs={"sample": key}`.
  The rngs are named "sample" and "dropout".
- `losses(outputs, targets) -> {name: float32 []}`: computes the losses, whose sum is
  minimized. It is pure and needs no variables.
- `loss_sums(outputs, targets) -> {name: LossSum}`: computes the same losses as pairs of
  a sum and its divisor, which can be added over the parts of a batch.
- `decode(outputs, sizes=None) -> Candidates`: converts outputs to boxes and scores. It
  is pure and needs no variables.
- `endpoints(images, train=False)`: returns a dict of named activations.
- `heads()`: returns the submodules whose outputs depend on the classes, by field name.
  Each has `num_classes` and `class_outputs()`, which returns a dict from layer names to
  `ClassOutputs`.

`zoo.make_detector` combines them into one jitted function from uint8 images to
`Detections`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.layers import NetworkConfig, initializer

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig(NetworkConfig):
    """Options of every detector; the configs of families add their own.

    Attributes:
      init: Initializer of the backbone, a key of `zoo.layers.INITIALIZERS`.
      remat: Whether to recompute activations in the backward pass, to save memory.
    """

    init: str = "he_fan_out"
    remat: bool = False

    @property
    def kernel_init(self) -> Callable:
        """The initializer of the backbone's kernels."""
        return initializer(self.init)


class Targets(NamedTuple):
    """The ground truth of a batch of images.

    Attributes:
      boxes: float32 [B, N, 4], xyxy in pixels of the network's input.
      classes: int32 [B, N], 0 to K-1, without background.
      valid: bool [B, N]; False for padding, whose boxes and classes are ignored.
      keys: Random keys [B] used to sample anchors and proposals of each image; None to
        draw them from the rng "sample".
    """

    boxes: Array
    classes: Array
    valid: Array
    keys: Array | None = None


class LossSum(NamedTuple):
    """A loss as a sum and its divisor.

    Attributes:
      total: float32 [], the sum of the loss over the images of a batch.
      count: float32 [], the divisor, such as the number of matched anchors. No gradient
        flows through it.
    """

    total: Array
    count: Array


def divide_losses(sums: Mapping[str, LossSum]) -> dict[str, Array]:
    """Divides each sum by its count, or by 1 if the count is 0."""
    return {k: s.total / jnp.maximum(s.count, 1) for k, s in sums.items()}


class Candidates(NamedTuple):
    """The boxes predicted by a network, before non-maximum suppression.

    Attributes:
      boxes: float32 [B, R, 4], or [B, R, K, 4] with a box for each class; xyxy in
        pixels of the network's input, clipped to the image.
      scores: float32 [B, R, K], 0 to 1, without background.
      valid: bool [B, R]; False for padding.
    """

    boxes: Array
    scores: Array
    valid: Array


class Detections(NamedTuple):
    """The detected objects of each image, sorted by descending score.

    Attributes:
      boxes: float32 [B, D, 4], xyxy in pixels of the original image.
      scores: float32 [B, D], 0 to 1.
      classes: int32 [B, D], 0 to K-1.
      valid: bool [B, D]; False for padding.
    """

    boxes: Array
    scores: Array
    classes: Array
    valid: Array


class Postprocess(NamedTuple):
    """The parameters of the conversion from candidates to detections.

    Attributes:
      score_threshold: Candidates with this score or a lower one are removed.
      iou_threshold: IoU threshold of non-maximum suppression within a class.
      max_detections: Maximum number of detections of an image, over all classes.
      max_candidates: Maximum number of candidates of each class of an image that enter
        non-maximum suppression; None for all.
      min_size: Minimum width and height of a box, in pixels of the network's input.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    max_candidates: int | None = None
    min_size: float = 0.0
