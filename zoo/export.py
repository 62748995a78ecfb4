"""Shipping: a network as one StableHLO artifact, which runs with jax alone.

artifact = zoo.export("resnet50", variables, preprocess=card.preprocess)
logits = jax.export.deserialize(artifact).call(images)  # also where there is no zoo
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from zoo.paths import flatten
from zoo.preprocess import normalize
from zoo.registry import build, get_spec
from zoo.spec import Preprocess
from zoo.weights.fit import expected_shapes, require_fit
from zoo.weights.torch_format import count_classes

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    name: str,
    variables: Mapping[str, Any],
    *,
    batch: int | str = "b",
    size: int | None = None,
    preprocess: Preprocess | None = None,
    constants: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    num_classes: int | None = None,
    **overrides: Any,
) -> bytes:
    """Writes a network's inference as a StableHLO artifact.

    Whoever runs it needs `jax` and `flatbuffers`, and not this package:

        exported = jax.export.deserialize(artifact)
        logits = jax.jit(exported.call)(images)

    It has the program for each platform and is compiled where it runs; jax documents
    for how long its later versions read it. Resizing and cropping stay outside, as
    `zoo.fit_image` does them. `jax.default_matmul_precision`, where it is set around
    this call, holds for the artifact.

    Args:
      name: Of the model.
      variables: Of the model; where `constants` is False, shapes and types suffice.
      batch: Images in a call: a number, or a name such as "b" for any number.
      size: Height and width of the images, in pixels; the preprocessing's, or else the
        model's own, where None.
      preprocess: None to take float32 images that are preprocessed already; else what
        to do with uint8 images, such as `card.preprocess`.
      constants: Whether the variables are in the artifact, which then is a file as
        large as they are (VGG-16: 550 MB) that lacks nothing. Otherwise it takes some
        kilobytes, compiles faster, and is called with `(variables, images)`.
      platforms: Where it is to run, of "cpu", "cuda", "rocm" and "tpu".
      num_classes: Of the head: as many as the variables have where None, 0 for none.
      **overrides: Options of the model, such as `dtype=jnp.bfloat16`.

    Returns:
      The serialised `jax.export.Exported` from images [batch, size, size, channels] to
      float32 logits [batch, num_classes].

    Raises:
      ValueError: The model, an option, the batch or a platform is unknown, or the
        variables do not fit.
    """
    if not platforms or not {*platforms} <= {*PLATFORMS}:
        raise ValueError(
            f"platforms must be some of {[*PLATFORMS]}, got {[*platforms]}."
        )
    if num_classes is None:
        num_classes = count_classes(name, variables, **overrides)
    model = build(name, num_classes=num_classes, **overrides)
    require_fit(
        f"the variables do not fit {name}",
        expected_shapes(name, model),
        flatten(variables),
    )
    own = preprocess or get_spec(name).preprocess
    images = jax.ShapeDtypeStruct(
        _shape(batch, size or own.size, own.channels),
        jnp.float32 if preprocess is None else jnp.uint8,
    )

    def infer(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        if preprocess is not None:
            images = normalize(images, preprocess)
        return model.apply(variables, images)

    def infer_by_constants(images: jax.Array) -> jax.Array:
        return infer(variables, images)

    function = jax.jit(infer_by_constants if constants else infer)
    arguments = (images,) if constants else (variables, images)
    exported = jax.export.export(function, platforms=[*platforms])(*arguments)
    return bytes(exported.serialize())


def _shape(batch: int | str, size: int, channels: int) -> tuple:
    text = str(batch)
    if not text.isidentifier() and (not text.isdecimal() or int(text) < 1):
        raise ValueError(
            "batch must be a positive number, or a name such as 'b' for any number, "
            f"got {batch!r}."
        )
    return jax.export.symbolic_shape(f"{text}, {size}, {size}, {channels}")
