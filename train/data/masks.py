"""Masks: the class of every pixel of an image."""

import numpy as np

from train.data.decode import BadImage
from train.data.source import Example

IGNORED = 255


def make_values(num_classes: int, ignored: tuple[int, ...] = ()) -> np.ndarray:
    """Says what the values of a mask's file stand for: they are the classes themselves.

    Args:
      num_classes: Number of classes, at most 255.
      ignored: Values of pixels to be ignored, besides 255.

    Returns:
      int16 [256]: for each value its class, 255 if ignored, or -1 if it stands for
      nothing.

    Raises:
      ValueError: A number is not as above.
    """
    if not 1 <= num_classes <= IGNORED:
        raise ValueError(f"{num_classes} classes: masks have 1 to {IGNORED}.")
    if any(not 0 <= value <= IGNORED for value in ignored):
        raise ValueError(f"ignored={ignored}: values of masks are 0 to {IGNORED}.")
    values = np.full(256, -1, np.int16)
    values[:num_classes] = np.arange(num_classes)
    values[[*ignored, IGNORED]] = IGNORED
    return values


def segmentation_example(
    image: np.ndarray, mask: np.ndarray, values: np.ndarray, provenance: str
) -> Example:
    """Puts an image and its mask together as `Source.example` returns them.

    Args:
      image: uint8 [height, width, C].
      mask: uint8 [height, width], as in its file.
      values: int16 [256], see `make_values`.
      provenance: What to call the mask in errors.

    Returns:
      The image and the mask uint8 [height, width] of classes.

    Raises:
      BadImage: The mask is of another size than the image, or has a value that stands
        for nothing.
    """
    if mask.shape != image.shape[:2]:
        raise BadImage(
            f"{provenance}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its "
            f"image {image.shape[1]} x {image.shape[0]}."
        )
    classes = values[mask]
    if classes.min() < 0:
        wrong = classes < 0
        known = np.flatnonzero((values >= 0) & (values < IGNORED))
        raise BadImage(
            f"{provenance}: {wrong.sum()} pixel(s) have values such as "
            f"{mask[wrong][0]}, expected {known[0]} .. {known[-1]} ({len(known)} "
            f"classes) or {IGNORED} (ignored); another value for pixels to be ignored "
            "is named as ignored=."
        )
    return {"image": image, "mask": classes.astype(np.uint8)}
