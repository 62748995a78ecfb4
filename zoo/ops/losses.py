"""Losses that optax lacks: element-wise over examples, not reduced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def lenet_map_loss(logits: jax.Array, labels: jax.Array, j: float = 10.0) -> jax.Array:
    """LeNet-5's discriminative criterion, against a constant "rubbish" class.

    With penalties `y = -logits` it is `y[label] + log(exp(-j) + sum_i exp(-y[i]))`:
    the right class's penalty falls, and wrong ones rise where they are below `j`.

    Args:
      logits: float32 [..., K], the negative RBF outputs.
      labels: int32 [...], 0 to K - 1.
      j: Penalty of the rubbish class, positive. The paper prints no value; of 1, 10 and
        30, 10 gives the best accuracy on small digits.

    Returns:
      float32 [...].

    Reference:
      LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998,
      equation 9.
    """
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    normalizer = jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
    right = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return normalizer - right


def smooth_l1(error: jax.Array, beta: float = 1.0) -> jax.Array:
    """Half the square of an error near 0, and its magnitude less a constant beyond.

    Args:
      error: float [...].
      beta: Where the one becomes the other. Faster R-CNN writes 1 / sigma ** 2.

    Returns:
      float [...]; its derivative is within -1 and 1.

    Reference:
      Girshick, Fast R-CNN, 2015, equation 3.
    """
    size = jnp.abs(error)
    return jnp.where(size < beta, size * size / (2 * beta), size - beta / 2)


def segmentation_cross_entropy(
    logits: jax.Array,
    mask: jax.Array,
    *,
    class_weights: Sequence[float] | None = None,
    pixel_weights: jax.Array | None = None,
    ignore: int = 255,
) -> jax.Array:
    """The mean cross-entropy of each image's valid pixels.

    Weights multiply the pixels' losses, and the sum is divided by the number of valid
    pixels, as in SegNet's code (PyTorch divides by the sum of the weights).

    Args:
      logits: float32 [B, H, W, K].
      mask: uint8 or int32 [B, H, W], 0 to K - 1 or `ignore`. Any other value makes the
        image's loss NaN.
      class_weights: [K], by the true class, see `median_frequency_weights`.
      pixel_weights: float32 [B, H, W], such as U-Net's, which are larger at borders.
      ignore: Marks pixels that do not count.

    Returns:
      float32 [B]; 0 for an image without a valid pixel.

    Raises:
      ValueError: Logits, mask or weights do not fit one another.
    """
    losses, valid = _pixel_losses(logits, mask, ignore)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, losses.dtype)
        if weights.shape != logits.shape[-1:]:
            raise ValueError(
                f"class_weights are {list(weights.shape)}; logits have "
                f"{logits.shape[-1]} classes."
            )
        # Of what is ignored the loss is 0, whatever is taken.
        losses = losses * jnp.take(weights, mask.astype(jnp.int32), mode="clip")
    if pixel_weights is not None:
        if pixel_weights.shape != mask.shape:
            raise ValueError(
                f"pixel_weights are {list(pixel_weights.shape)} and the mask is "
                f"{list(mask.shape)}."
            )
        losses = losses * pixel_weights
    count = valid.sum((1, 2))
    return losses.sum((1, 2)) / jnp.maximum(count, 1)


def bootstrapped_cross_entropy(
    logits: jax.Array, mask: jax.Array, *, count: int, ignore: int = 255
) -> jax.Array:
    """The mean cross-entropy of the pixels of highest loss, apart for each image.

    Args:
      logits: float32 [B, H, W, K].
      mask: As in `segmentation_cross_entropy`.
      count: How many pixels; all valid ones where an image has less.
      ignore: Marks pixels that do not count.

    Returns:
      float32 [B]; 0 for an image without a valid pixel. Where pixels share the lowest
      loss that counts, the gradient is shared among them.

    Raises:
      ValueError: Logits and mask do not fit one another, or `count` is not positive.

    Reference:
      Pohlen et al., Full-Resolution Residual Networks for Semantic Segmentation in
      Street Scenes, 2017, section 4; Wu et al., Bridging Category-level and
      Instance-level Semantic Image Segmentation, 2016.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    losses, valid = _pixel_losses(logits, mask, ignore)
    losses, valid = (x.reshape(len(x), -1) for x in (losses, valid))
    # Of sorting only the threshold is taken: the gradient is one of products.
    fixed = jax.lax.stop_gradient(jnp.where(valid, losses, -jnp.inf))
    taken = jnp.minimum(valid.sum(1, keepdims=True), count)
    last = fixed.shape[1] - jnp.maximum(taken, 1)
    threshold = jnp.take_along_axis(jnp.sort(fixed, axis=1), last, axis=1)
    above, equal = fixed > threshold, (fixed == threshold) & valid
    rest = taken - above.sum(1, keepdims=True)
    share = rest / jnp.maximum(equal.sum(1, keepdims=True), 1)
    weights = jnp.where(above, 1.0, jnp.where(equal, share, 0.0))
    total = (losses * weights.astype(losses.dtype)).sum(1)
    return total / jnp.maximum(taken[:, 0], 1)


def _pixel_losses(
    logits: jax.Array, mask: jax.Array, ignore: int
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy [B, H, W], 0 where ignored, and which pixels are valid."""
    if logits.ndim != 4 or logits.shape[:3] != mask.shape:
        raise ValueError(
            f"logits [B, H, W, K] and mask [B, H, W] must be of one size, got "
            f"{list(logits.shape)} and {list(mask.shape)}. (A network without padding "
            "gives logits for the middle of its image: crop the mask.)"
        )
    if not jnp.issubdtype(mask.dtype, jnp.integer):
        raise ValueError(f"the mask must be of integers, got {mask.dtype}.")
    mask = mask.astype(jnp.int32)
    valid, known = mask != ignore, (mask >= 0) & (mask < logits.shape[-1])
    # Not a gather, whose gradient is a scatter: this fuses with what is around it.
    right = jnp.where(_one_hot(mask, logits.shape[-1]), logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - right
    return jnp.where(valid, jnp.where(known, losses, jnp.nan), 0), valid


def _one_hot(mask: jax.Array, num_classes: int) -> jax.Array:
    return jax.nn.one_hot(mask, num_classes, dtype=bool)


def median_frequency_weights(
    pixels_per_class: Sequence[int], pixels_of_images_with_class: Sequence[int]
) -> np.ndarray:
    """Weighs classes such that rare ones count as much as frequent ones.

    A class's frequency is the part of it in the images in which it occurs, and its
    weight is the median frequency divided by its own.

    Args:
      pixels_per_class: [K], valid pixels of each class, over the training set.
      pixels_of_images_with_class: [K], valid pixels of the images that have the class.

    Returns:
      float32 [K]; 0 for a class that does not occur.

    Raises:
      ValueError: The two do not fit one another, or no class occurs.

    Reference:
      Eigen and Fergus, Predicting Depth, Surface Normals and Semantic Labels, 2015,
      section 6.3.2; Badrinarayanan et al., SegNet, 2015, section 3.2.
    """
    own = np.asarray(pixels_per_class, np.float64)
    all_pixels = np.asarray(pixels_of_images_with_class, np.float64)
    if own.ndim != 1 or own.shape != all_pixels.shape or (own > all_pixels).any():
        raise ValueError(
            "median_frequency_weights: a class has no more pixels than the images in "
            f"which it occurs, got {own.tolist()} and {all_pixels.tolist()}."
        )
    if not own.any():
        raise ValueError("median_frequency_weights: no class has a pixel.")
    occurs = own > 0
    frequency = own[occurs] / all_pixels[occurs]
    weights = np.zeros(len(own), np.float32)
    weights[occurs] = np.median(frequency) / frequency
    return weights
