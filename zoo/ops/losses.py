"""Losses that optax lacks, for each example or each element."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax


def lenet_map_loss(logits: jax.Array, labels: jax.Array, j: float = 10.0) -> jax.Array:
    """Computes LeNet-5's maximum a posteriori criterion with a "rubbish" class.

    With penalties `y = -logits` it is `y[label] + log(exp(-j) + sum_i exp(-y[i]))`. It
    lowers the penalty of the true class, and raises those of other classes below `j`.

    Args:
      logits: float32 [..., K], the negative outputs of the RBF units.
      labels: int32 [...], 0 to K - 1.
      j: Penalty of the rubbish class, positive. The paper states no value; among 1, 10
        and 30, 10 has the best accuracy on small digits.

    Returns:
      float32 [...].

    Reference:
      LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998,
      equation 9.
    """
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    normalizer = jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
    true_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return normalizer - true_logits


def smooth_l1(error: jax.Array, beta: float = 1.0) -> jax.Array:
    """Computes the smooth L1 loss, which is the Huber loss divided by `beta`.

    Args:
      error: float [...].
      beta: Error at which the loss becomes linear; 1 / sigma ** 2 in Faster R-CNN.

    Returns:
      float [...], with derivatives from -1 to 1.

    Reference:
      Girshick, Fast R-CNN, 2015, equation 3.
    """
    return optax.huber_loss(error, delta=beta) / beta


def segmentation_cross_entropy(
    logits: jax.Array,
    mask: jax.Array,
    *,
    class_weights: Sequence[float] | None = None,
    pixel_weights: jax.Array | None = None,
    ignore: int = 255,
) -> jax.Array:
    """Computes the mean cross-entropy of the valid pixels of each image.

    The losses of pixels are multiplied by the weights, and their sum is divided by the
    number of valid pixels, as in SegNet's code (PyTorch divides by the sum of the
    weights).

    Args:
      logits: float32 [B, H, W, K].
      mask: uint8 or int32 [B, H, W], 0 to K - 1 or `ignore`. Any other value makes the
        loss of the image NaN.
      class_weights: [K], weights of the true classes, see `median_frequency_weights`.
      pixel_weights: float32 [B, H, W], such as those of U-Net, larger at borders.
      ignore: Value of the mask for pixels that are ignored.

    Returns:
      float32 [B]; 0 for an image without a valid pixel.

    Raises:
      ValueError: The shapes of logits, mask or weights do not match.
    """
    losses, valid = _pixel_losses(logits, mask, ignore)
    if class_weights is not None:
        weights = jnp.asarray(class_weights, losses.dtype)
        if weights.shape != logits.shape[-1:]:
            raise ValueError(
                f"class_weights are {list(weights.shape)}; logits have "
                f"{logits.shape[-1]} classes."
            )
        # The loss of ignored pixels is 0, whatever their weight.
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
    """Computes the mean cross-entropy of each image's pixels with the highest loss.

    Args:
      logits: float32 [B, H, W, K].
      mask: See `segmentation_cross_entropy`.
      count: Number of pixels; if an image has fewer valid ones, all of them.
      ignore: Value of the mask for pixels that are ignored.

    Returns:
      float32 [B]; 0 for an image without a valid pixel. If several pixels have the
      lowest loss that is included, they share its gradient.

    Raises:
      ValueError: The shapes of logits and mask do not match, or `count` is not
        positive.

    Reference:
      Pohlen et al., Full-Resolution Residual Networks for Semantic Segmentation in
      Street Scenes, 2017, section 4; Wu et al., Bridging Category-level and
      Instance-level Semantic Image Segmentation, 2016.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    losses, valid = _pixel_losses(logits, mask, ignore)
    losses, valid = (x.reshape(len(x), -1) for x in (losses, valid))
    # Sorting yields only the threshold, so that the gradient is that of products.
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
    """Returns the cross-entropy [B, H, W], 0 where ignored, and the valid pixels."""
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
    # Not a gather, whose gradient is a scatter: XLA fuses this with its neighbors.
    is_true = jax.nn.one_hot(mask, logits.shape[-1], dtype=bool)
    true_logits = jnp.where(is_true, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - true_logits
    return jnp.where(valid, jnp.where(known, losses, jnp.nan), 0), valid


def median_frequency_weights(
    pixels_per_class: Sequence[int], pixels_of_images_with_class: Sequence[int]
) -> np.ndarray:
    """Computes class weights by median frequency balancing.

    The frequency of a class is its fraction of the pixels of images in which it occurs.
    Its weight is the median of all frequencies divided by its own.

    Args:
      pixels_per_class: [K], number of valid pixels of each class in the training set.
      pixels_of_images_with_class: [K], number of valid pixels of the images that
        contain the class.

    Returns:
      float32 [K]; 0 for a class that does not occur.

    Raises:
      ValueError: The arguments do not match, or no class occurs.

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
