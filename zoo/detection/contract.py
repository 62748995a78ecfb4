"""What every detector of the zoo takes and gives.

A detector is a Linen module with the fields `preprocess` (`zoo.spec.Preprocess`) and
`postprocess` (`Postprocess`), and

- `apply(variables, images, sizes=None, train=False, targets=None) -> outputs`: from
  preprocessed images float32 [B, H, W, C] to a dict of arrays. `sizes` float32 [B, 2],
  height and width in pixels of what the image fills of [H, W], from the upper left
  corner on; None where it fills all. `targets` are needed by two-stage detectors in
  training alone, with `rngs={"sample": key}`. What is random takes the rngs "sample"
  and "dropout".
- `losses(outputs, targets) -> {name: float32 []}`: pure, without variables; training
  minimises their sum.
- `loss_sums(outputs, targets) -> {name: LossSum}`: the same as sums over the images and
  what they are divided by, so that the parts of a batch add up to the whole.
- `decode(outputs, sizes=None) -> Candidates`: pure, without variables.
- `endpoints(images, train=False)`: dict of named activations, as of all networks.
- `heads()`: the parts that have classes, by the names of their fields; each has
  `num_classes` and `class_outputs()`, a dict of `ClassOutputs` by its layers' names.

`zoo.make_detector` makes one jitted function of it, from uint8 images to `Detections`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Targets(NamedTuple):
    """The objects of a batch of images.

    Attributes:
      boxes: float32 [B, N, 4], xyxy in pixels of the network's input.
      classes: int32 [B, N], 0 to K-1: there is no background among them.
      valid: bool [B, N]; False for padding, whose boxes and classes mean nothing.
      keys: Random keys [B] that decide what is sampled in each image; None to draw them
        from the rng "sample".
    """

    boxes: Array
    classes: Array
    valid: Array
    keys: Array | None = None


class LossSum(NamedTuple):
    """A loss before it is divided.

    Attributes:
      total: float32 [], the sum over the images of a batch.
      count: float32 [], what it is divided by, such as the number of matched anchors;
        no gradient flows through it.
    """

    total: Array
    count: Array


def divide_losses(sums: Mapping[str, LossSum]) -> dict[str, Array]:
    """Divides the sums by their counts; a count of 0 is 1."""
    return {k: s.total / jnp.maximum(s.count, 1) for k, s in sums.items()}


class Candidates(NamedTuple):
    """What a network says, before non-maximum suppression.

    Attributes:
      boxes: float32 [B, R, 4], or [B, R, K, 4] where each class has its own; xyxy in
        pixels of the network's input, clipped to the image.
      scores: float32 [B, R, K], 0 to 1, of the classes without background.
      valid: bool [B, R].
    """

    boxes: Array
    scores: Array
    valid: Array


class Detections(NamedTuple):
    """The objects found in each image, best first.

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
    """How candidates become detections; the paper's values are the network's own.

    Attributes:
      score_threshold: Candidates must have a higher score.
      iou_threshold: Of non-maximum suppression within a class.
      max_detections: Of an image, of all classes together.
      max_candidates: Of an image, the best of each class that enter suppression (None:
        all).
      min_size: Smallest width and height of a box, in pixels of the network's input.
    """

    score_threshold: float
    iou_threshold: float
    max_detections: int
    max_candidates: int | None = None
    min_size: float = 0.0


class ClassOutputs(NamedTuple):
    """Which outputs of a layer are whose, for `zoo.transfer.replace_head`.

    Attributes:
      classes: int [outputs], 0 to K-1, or -1 for what has no class of its own, such as
        background.
      kernel_init: Initialiser of the layer's kernel.
    """

    classes: np.ndarray
    kernel_init: Callable
