"""Random augmentation of training images on the device.

Each function takes a random key and one image [height, width, channels] of any numeric
type; use `jax.vmap` with a key for each image of a batch. The functions of this module
are geometric and return an image of the same shape and type. Pixels from outside of the
image are `fill`, in units of the image. Those of `zoo.ops.colors` change colors and
return float32.
"""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from zoo.ops.colors import color_jitter, pca_color, photometric, ssd_photometric

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def pad_crop(
    key: jax.Array, image: jax.Array, *, padding: int, fill: float = 0
) -> jax.Array:
    """Pads all sides and crops the size of the image at a random position.

    Args:
      key: Random key.
      image: [height, width, channels].
      padding: Number of pixels on each side.
      fill: Value of the padding.

    Returns:
      [height, width, channels].

    Reference: He et al., Deep Residual Learning for Image Recognition, 2016, 4.2.
    """
    if padding < 0:
        raise ValueError(f"pad_crop: padding={padding}, expected 0 or more.")
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(image, sides, constant_values=fill)
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(key: jax.Array, image: jax.Array, *, p: float = 0.5) -> jax.Array:
    """Flips an image horizontally with probability `p`.

    Args:
      key: Random key.
      image: [height, width, channels].
      p: Probability, 0 to 1.

    Returns:
      [height, width, channels].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"flip: p={p}, expected 0 to 1.")
    return jnp.where(jax.random.bernoulli(key, p), image[:, ::-1], image)


def affine(
    key: jax.Array,
    image: jax.Array,
    *,
    degrees: float = 10,
    shift: float = 0.1,
    scale: float = 0.1,
    fill: float = 0,
) -> jax.Array:
    """Rotates, scales and translates an image with bilinear interpolation.

    All amounts are uniform: the angle from -degrees to degrees, the scale from
    1 - scale to 1 + scale, and each translation from -shift to shift times the side.

    Args:
      key: Random key.
      image: [height, width, channels].
      degrees: Maximum angle of the rotation about the center.
      shift: Maximum translation as a fraction of height and width.
      scale: Maximum change of the scale, below 1.
      fill: Value outside of the image.

    Returns:
      [height, width, channels]; integers are rounded.
    """
    if min(degrees, shift, scale) < 0 or scale >= 1:
        raise ValueError(
            f"affine: degrees={degrees}, shift={shift}, scale={scale}; expected 0 or "
            "more, and scale below 1."
        )
    turn, grow, down, right = jax.random.uniform(key, (4,), minval=-1.0)
    angle, factor = jnp.deg2rad(turn * degrees), 1 + grow * scale
    height, width, _ = image.shape
    offset = jnp.array([down * height, right * width]) * shift
    center = jnp.array([(height - 1) / 2, (width - 1) / 2])
    return _resample(image, angle, factor, center, offset, fill)


def _resample(image, angle, factor, center, offset, fill):
    """Resamples an image by the inverse of the affine map."""
    rows, columns = jnp.indices(image.shape[:2])
    y, x = rows - center[0] - offset[0], columns - center[1] - offset[1]
    cos, sin = jnp.cos(angle) / factor, jnp.sin(angle) / factor
    places = [cos * y + sin * x + center[0], cos * x - sin * y + center[1]]

    def channel(values):
        return map_coordinates(values, places, order=1, cval=fill)

    out = jax.vmap(channel, -1, -1)(image.astype(jnp.float32))
    if jnp.issubdtype(image.dtype, jnp.integer):
        out = jnp.round(out)
    return out.astype(image.dtype)


GEOMETRIC: dict[str, Callable] = {f.__name__: f for f in (pad_crop, flip, affine)}
AUGMENTS: dict[str, Callable] = GEOMETRIC | {
    f.__name__: f for f in (pca_color, color_jitter, photometric, ssd_photometric)
}


def parse_augment(text: str) -> Augment:
    """Parses an augmentation and its options, such as "pad_crop:4" or "flip".

    Args:
      text: A key of `AUGMENTS`, then its options in order, separated by colons:
        "affine:15:0.1:0" stands for 15 degrees, shift 0.1 and scale 0.

    Returns:
      A function of a key and an image, which raises ValueError for options that are out
      of range.

    Raises:
      ValueError: The name is unknown, or an option is no number or too much.
    """
    return parse_call("augmentation", text, AUGMENTS)


def parse_call(
    kind: str, text: str, functions: Mapping[str, Callable]
) -> Callable[..., Any]:
    """Parses the name of a function and values of its keyword-only options.

    Args:
      kind: Kind of the function, for error messages.
      text: The name, then the options in order, separated by colons.
      functions: Functions by name.

    Returns:
      The function with these options, which can be pickled.

    Raises:
      ValueError: The name is unknown, or an option is invalid.
    """
    name, *values = text.split(":")
    if name not in functions:
        close = difflib.get_close_matches(name, functions, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"unknown {kind} {name!r}{hint} There are {', '.join(functions)}."
        )
    parameters = inspect.signature(functions[name]).parameters.values()
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    usage = ":".join(
        [name]
        + [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in options]
    )
    required = sum(p.default is p.empty for p in options)
    if not required <= len(values) <= len(options):
        raise ValueError(
            f"{kind} {text!r} has {len(values)} number(s); expected {usage}."
        )
    chosen = {}
    for option, value in zip(options, values, strict=False):
        # The type of a value that may be None, such as `float | None`, is float.
        convert, *_ = typing.get_args(option.annotation) or (option.annotation,)
        try:
            chosen[option.name] = convert(value)
        except ValueError as error:
            raise ValueError(
                f"{kind} {text!r}: {option.name} cannot be {value!r}, expected "
                f"{convert.__name__}, as in {usage}."
            ) from error
    return functools.partial(functions[name], **chosen)


def compose(augments: Sequence[str]) -> Augment:
    """Returns a function that applies augmentations in order, each with its own key.

    Args:
      augments: Arguments of `parse_augment`, such as ("pad_crop:4", "flip"); empty to
        return images unchanged.

    Returns:
      A function of a key and an image [height, width, channels].

    Raises:
      ValueError: See `parse_augment`.
    """
    functions = [parse_augment(text) for text in augments]

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        for i, function in enumerate(functions):
            image = function(jax.random.fold_in(key, i), image)
        return image

    return apply
