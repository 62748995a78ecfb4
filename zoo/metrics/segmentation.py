"""Metrics of segmentation: accuracy, intersection over union, boundary F1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Number of pixels that is carried over from `State.low` to `State.high` as 1.
_LIMB = 2**30


class State(NamedTuple):
    """Sums over the images seen so far.

    Attributes:
      low: int32 [K, K], confusion matrix of pixels modulo 2**30; rows are the true
        classes.
      high: int32 [K, K], the rest of the confusion matrix in units of 2**30 pixels.
      loss: float32, sum of the losses of the images.
      images: int32, number of images.
    """

    low: Array
    high: Array
    loss: Array
    images: Array


def empty(num_classes: int) -> State:
    """Returns the state before any image."""
    matrix = jnp.zeros((num_classes, num_classes), jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return State(matrix, matrix, jnp.zeros((), jnp.float32), zero)


def update(
    state: State,
    predicted: Array,
    mask: Array,
    losses: Array | None = None,
    valid: Array | None = None,
    *,
    ignore: int = 255,
) -> State:
    """Adds a batch.

    Args:
      state: Sums so far.
      predicted: uint8 or int32 [B, H, W], 0 to K - 1, such as `logits.argmax(-1)`.
      mask: uint8 or int32 [B, H, W], 0 to K - 1 or `ignore`. Larger values are ignored
        too.
      losses: float32 [B].
      valid: bool [B]; False for padding, which is not counted. None if all are valid.
      ignore: Value of the mask for pixels that are ignored.

    Raises:
      ValueError: The sizes of the masks differ.
    """
    if predicted.shape != mask.shape:
        raise ValueError(
            f"predicted and mask must be of one size [B, H, W], got "
            f"{list(predicted.shape)} and {list(mask.shape)}."
        )
    if valid is None:
        valid = jnp.ones(mask.shape[:1], bool)
    if losses is None:
        losses = jnp.zeros(mask.shape[:1], jnp.float32)
    classes = len(state.low)
    predicted, mask = predicted.astype(jnp.int32), mask.astype(jnp.int32)
    counts = valid.reshape(-1, 1, 1) & (mask != ignore)
    counts &= (mask >= 0) & (mask < classes)
    # Ignored pixels are counted in an additional cell, which is dropped.
    cells = jnp.where(counts, mask * classes + predicted, classes**2)
    found = jnp.bincount(cells.reshape(-1), length=classes**2 + 1)[:-1]
    batch = State(
        found.reshape(classes, classes).astype(jnp.int32),
        jnp.zeros_like(state.high),
        jnp.where(valid, losses, 0).sum(),
        valid.sum(dtype=jnp.int32),
    )
    return merge(state, batch)


def merge(a: State, b: State) -> State:
    """Merges the sums of two disjoint sets of images."""
    # Both are below 2**30, or one is a batch of fewer pixels: the sum is below 2**31.
    low, high, loss, images = jax.tree.map(jnp.add, a, b)
    return State(low % _LIMB, high + low // _LIMB, loss, images)


def compute(state: State) -> dict[str, Any]:
    """Computes the metrics, as fractions.

    Means over classes exclude undefined values: the accuracy of a class that is in no
    mask, and the intersection over union of a class that is neither in a mask nor in a
    prediction.

    Returns:
      `pixels` and `images`, their numbers; `loss`, the mean over images;
      `pixel_accuracy`; `class_accuracy`, the mean over classes of the recall of pixels;
      `mean_iou`; `frequency_weighted_iou`; and lists over classes, with None where
      undefined, `accuracies` and `iou`.

    Raises:
      ValueError: There are no pixels.
    """
    confusion = confusion_matrix(state).astype(np.float64)
    total = confusion.sum()
    if not total:
        raise ValueError(
            f"no pixel was evaluated: {int(state.images)} image(s) were seen, and all "
            "of their pixels are ignored."
        )
    right, true = np.diag(confusion), confusion.sum(1)
    union = true + confusion.sum(0) - right
    # NaN for missing classes.
    accuracies = np.divide(right, true, out=np.full_like(true, np.nan), where=true > 0)
    iou = np.divide(right, union, out=np.full_like(true, np.nan), where=union > 0)
    return {
        "images": int(state.images),
        "pixels": int(total),
        "loss": float(state.loss) / int(state.images),
        "pixel_accuracy": float(right.sum() / total),
        "class_accuracy": float(np.nanmean(accuracies)),
        "mean_iou": float(np.nanmean(iou)),
        "frequency_weighted_iou": float(np.nansum(true * iou) / total),
        "accuracies": _listed(accuracies),
        "iou": _listed(iou),
    }


def confusion_matrix(state: State) -> np.ndarray:
    """Returns the confusion matrix of pixels, int64 [K, K]; rows are true classes."""
    low, high = np.asarray(state.low), np.asarray(state.high)
    return low.astype(np.int64) + high.astype(np.int64) * _LIMB


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def boundary_f1(
    predicted: np.ndarray,
    mask: np.ndarray,
    *,
    tolerance: float = 0.0075,
    ignore: int = 255,
) -> float | None:
    """Computes the boundary F1 measure of an image, BF in SegNet.

    A pixel is on the boundary of its class if one of its four neighbors has another
    class. Precision is the fraction of the predicted boundary of a class that is within
    the tolerance of its true boundary, recall the fraction of the true boundary that is
    within the tolerance of the predicted one, and F1 their harmonic mean. It is 0 for a
    class that is not predicted, and 1 if there is neither boundary.

    Published values are means over the images of a data set.

    Args:
      predicted: int [H, W], classes.
      mask: int [H, W], classes or `ignore`.
      tolerance: Fraction of the diagonal of the image.
      ignore: Value of the mask for pixels that are ignored, also as neighbors.

    Returns:
      The mean of F1 over the classes of the mask; None if all pixels are ignored.

    Raises:
      ValueError: The shapes of the masks differ or are not [H, W].

    Reference:
      Badrinarayanan, Kendall, Cipolla, SegNet, 2015, section 4; Csurka et al., What is
      a good evaluation measure for semantic segmentation?, 2013.
    """
    predicted, mask = np.asarray(predicted), np.asarray(mask)
    if predicted.shape != mask.shape or mask.ndim != 2:
        raise ValueError(
            f"predicted and mask must be of one size [H, W], got "
            f"{list(predicted.shape)} and {list(mask.shape)}."
        )
    valid = mask != ignore
    limit = tolerance * np.hypot(*mask.shape)
    edges = _boundary(mask, valid), _boundary(predicted, valid)
    scores = []
    for number in np.unique(mask[valid]):
        if not (valid & (predicted == number)).any():
            scores.append(0.0)
            continue
        true = edges[0] & (mask == number)
        found = edges[1] & (predicted == number)
        precision, recall = _near(found, true, limit), _near(true, found, limit)
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    return float(np.mean(scores)) if scores else None


def _boundary(classes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns the valid pixels [H, W] with a valid neighbor of another class."""
    out = np.zeros(classes.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (classes[a] != classes[b]) & valid[a] & valid[b]
        out[a] |= differ
        out[b] |= differ
    return out


def _near(pixels: np.ndarray, others: np.ndarray, limit: float) -> float:
    """Returns the fraction of pixels [H, W] within a distance of other pixels."""
    if not pixels.any() or not others.any():
        return float(pixels.any() == others.any())
    from scipy.ndimage import distance_transform_edt  # A dependency of jax.

    return float((distance_transform_edt(~others)[pixels] <= limit).mean())
