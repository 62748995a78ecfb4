"""Checks of the inputs and options of networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Array = jax.Array


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError unless the number of classes is 0, for no head, or more."""
    whole = isinstance(num_classes, int | np.integer)
    if not whole or num_classes < 0:
        raise ValueError(
            f"num_classes must be 0 (no head) or more, got {num_classes!r} "
            f"({type(num_classes).__name__})."
        )


def check_widths(widths: tuple[int, ...], count: int, name: str = "widths") -> None:
    """Raises ValueError unless an option has a width for each of `count` parts."""
    if len(widths) != count:
        raise ValueError(f"{name}={widths} must be {count} numbers.")


def check_detector_classes(name: str, num_classes: int) -> None:
    """Raises ValueError if a detector has no classes."""
    if num_classes < 1:
        raise ValueError(
            f"{name}: num_classes must be 1 or more, got {num_classes}; background is "
            "not counted."
        )


def check_kernel(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises ValueError if the input of a layer does not fit its existing kernel."""
    if not module.has_variable("params", "kernel"):
        return
    path, found = "/".join(module.path), module.get_variable("params", "kernel").shape
    given, taken = (s[-2] * getattr(module, "groups", 1) for s in (shape, found))
    if given != taken and taken <= 4:  # Nothing but images has so few.
        raise ValueError(
            f"{path}: the images have {given} channel(s) and the network takes {taken} "
            "(zoo.transfer.change_input_channels adapts it)."
        )
    if found != shape:
        raise ValueError(
            f"{path}: the kernel is {list(found)}, and its input wants {list(shape)}; "
            "look at the images' size and channels, and whether the variables are this "
            "network's."
        )


def check_floating(images: Array) -> None:
    """Raises ValueError if images are not preprocessed."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be preprocessed floating point, got {images.dtype}; "
            "zoo.normalize makes them of uint8, and zoo.make_detector, for example, "
            "takes uint8."
        )


def check_images(
    images: Array, name: str, *, size: int | None = None, min_size: int = 1
) -> None:
    """Raises ValueError if a network cannot take images of this type or shape.

    Args:
      images: The images.
      name: Name of the network, for the error.
      size: The only height and width that it takes; None for any.
      min_size: Smallest height and width that it takes.
    """
    check_floating(images)
    shape, hint = images.shape, ""
    if len(shape) == 3:
        hint = " images[None] is a batch of one."
    if len(shape) == 4 and 0 < shape[1] <= 4 < min(shape[2:]):
        hint = " Channels come last: images.transpose(0, 2, 3, 1)."
    fits = len(shape) == 4 and (size is None or shape[1:3] == (size, size))
    if hint or not fits:
        raise ValueError(
            f"{name} takes images [B, {size or 'H'}, {size or 'W'}, C], got "
            f"{list(shape)}.{hint}"
        )
    if min(shape[1:3]) < min_size:
        raise ValueError(
            f"{name} takes images of {min_size} x {min_size} pixels or more, got "
            f"{list(shape)}."
        )
