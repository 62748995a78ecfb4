"""Exports a network as one StableHLO artifact, which runs with jax alone.

artifact = zoo.export("resnet50", variables, preprocess=card.preprocess)
logits = jax.export.deserialize(artifact).call(images)  # without the zoo
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn

from zoo.detect import (
    find_candidates,
    make_detector,
    mask_scores,
    replace_postprocess,
)
from zoo.detection.types import Postprocess
from zoo.onnx import CANDIDATES, to_onnx
from zoo.paths import flatten
from zoo.preprocess import canvas_size, normalize, resize_boxes
from zoo.registry import get_spec
from zoo.spec import Preprocess
from zoo.weights.fit import expected_shapes, require_fit
from zoo.weights.torch_format import build_for

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    name: str,
    variables: Mapping[str, Any],
    *,
    batch: int | str = "b",
    size: int | tuple[int, int] | None = None,
    preprocess: Preprocess | None = None,
    format: str = "stablehlo",
    constants: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    num_classes: int | None = None,
    detector: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> bytes:
    """Exports a network for inference, as a StableHLO artifact or an ONNX model.

    To run it, `jax` and `flatbuffers` are needed, but not this package:

        exported = jax.export.deserialize(artifact)
        logits = jax.jit(exported.call)(images)

    It has the program for each platform and is compiled where it runs; jax documents
    how long its later versions can read it. Resizing and cropping are not included; use
    `zoo.resize_center_crop`. A `jax.default_matmul_precision` that is set around this
    call applies to the artifact.

    For a detector, it is the whole function of `zoo.make_detector`, including resizing:

        found = exported.call(images, sizes)  # "boxes", "scores", "classes", "valid"

    With `format="onnx"`, which needs `canon-zoo[onnx]`, it is a model for ONNX
    runtimes. `tests/benchmarks/README.md` lists the networks that were checked. Only
    detectors with one stage can be translated, with ONNX's own NonMaxSuppression:

        session = onnxruntime.InferenceSession(artifact)
        (logits,) = session.run(None, {"images": images})
        found = session.run(None, {"images": images, "sizes": sizes})  # for a detector

    Args:
      name: Name of the model.
      variables: Variables of the model; their shapes and dtypes without `constants`.
      batch: Batch size: a number, or a name such as "b" for any number.
      size: Height and width of the images in pixels, as one number or a pair; None for
        those of the preprocessing or, without one, of the model.
      preprocess: None to take preprocessed float32 images; else the preprocessing of
        uint8 images, such as `card.preprocess`. Detectors always take uint8 images.
      format: "stablehlo" or "onnx".
      constants: Whether the artifact contains the variables, which makes it complete,
        and as large as they are (VGG-16: 550 MB). Otherwise it takes some kilobytes,
        compiles faster, and is called with `(variables, images)`.
      platforms: Platforms to export for, of "cpu", "cuda", "rocm" and "tpu"; an ONNX
        model runs on all.
      num_classes: Number of classes; None for that of the variables, 0 for no head.
      detector: Options of `zoo.make_detector`, for a detector.
      **overrides: Options of the model, such as `dtype=jnp.bfloat16`.

    Returns:
      The serialized `jax.export.Exported` from images [batch, height, width, channels]
      to float32 logits [batch, num_classes]. For a detector, it maps these and int32
      sizes [batch, 2], see `zoo.resize_and_pad`, to a dict with the fields of
      `zoo.Detections`. With `format="onnx"` the serialized `onnx.ModelProto` with the
      inputs "images" and "sizes", and the outputs "logits" or those of
      `zoo.Detections`.

    Raises:
      ImportError: The format needs a library that is not installed.
      NotImplementedError: The network has an operation that has no translation to ONNX.
      ValueError: The model, an option, the batch or a platform is unknown, the
        variables do not fit, or the model reads regions.
    """
    spec = get_spec(name)
    if spec.reads_regions:
        raise ValueError(f"{name} reads regions, which an artifact is not given.")
    detects = spec.task == "detection"
    if detector is not None and not detects:
        raise ValueError(f"detector={detector} is for detectors, and {name} is none.")
    if not platforms or not {*platforms} <= {*PLATFORMS}:
        raise ValueError(
            f"platforms must be some of {[*PLATFORMS]}, got {[*platforms]}."
        )
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {[*FORMATS]}.")
    if format == "onnx" and not constants:
        raise ValueError("constants=False: an ONNX model has its variables in it.")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    model = build_for(name, variables, **overrides)
    require_fit(
        f"the variables do not fit {name}",
        expected_shapes(name, model),
        flatten(variables),
    )
    own = preprocess or getattr(model, "preprocess", spec.preprocess)
    shape = _shape(batch, size or own.shape[:2], own.channels)
    takes = jnp.float32 if preprocess is None and not detects else jnp.uint8
    inputs = [jax.ShapeDtypeStruct(shape, takes)]
    infer = _give_logits(model, preprocess)
    if detects:
        inputs.append(jax.ShapeDtypeStruct((shape[0], 2), jnp.int32))
        infer = _give_objects(make_detector(model, own, **(detector or {})))

    def infer_by_constants(*inputs: jax.Array) -> Any:
        return infer(variables, *inputs)

    if format == "onnx":
        postprocess = None
        if detects:
            options = dict(detector or {})
            canvas = options.pop("canvas", None)
            postprocess = replace_postprocess(model, **options)
            infer = _give_candidates(model, own, postprocess, canvas)
        return to_onnx(
            infer_by_constants,
            inputs,
            input_names=("images", "sizes")[: len(inputs)],
            output_names=CANDIDATES if detects else ("logits",),
            name=name,
            postprocess=postprocess,
        )
    function = jax.jit(infer_by_constants if constants else infer)
    arguments = inputs if constants else (variables, *inputs)
    exported = jax.export.export(function, platforms=[*platforms])(*arguments)
    return bytes(exported.serialize())


def _give_logits(model: nn.Module, preprocess: Preprocess | None) -> Callable:
    def infer(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        if preprocess is not None:
            images = normalize(images, preprocess)
        return model.apply(variables, images)

    return infer


def _give_objects(detect: Callable) -> Callable:
    """Returns detections as a dict, as reading `Detections` would need the zoo."""

    def infer(variables: Mapping[str, Any], images: jax.Array, sizes: jax.Array):
        return detect(variables, images, sizes)._asdict()

    return infer


def _give_candidates(
    model: nn.Module,
    preprocess: Preprocess,
    postprocess: Postprocess,
    canvas: tuple[int, int] | None,
) -> Callable:
    """Makes the function up to suppression, which is an operation of ONNX."""

    def infer(variables: Mapping[str, Any], images: jax.Array, sizes: jax.Array):
        padded = canvas_size(*images.shape[1:3], preprocess, sizes=sizes)
        candidates, inside, original = find_candidates(
            model,
            preprocess,
            variables,
            images,
            sizes,
            canvas=canvas or padded,
            shrink=canvas is not None,
        )
        if candidates.boxes.ndim != 3:
            raise NotImplementedError(
                "networks of two stages have no translation to ONNX: boxes for each "
                "class, and the suppression of proposals within."
            )
        resized = resize_boxes(candidates.boxes, inside, original)
        return candidates.boxes, mask_scores(candidates, postprocess), resized

    return infer


def _shape(batch: int | str, size: int | tuple[int, int], channels: int) -> tuple:
    text = str(batch)
    if not text.isidentifier() and (not text.isdecimal() or int(text) < 1):
        raise ValueError(
            "batch must be a positive number, or a name such as 'b' for any number, "
            f"got {batch!r}."
        )
    height, width = (size, size) if isinstance(size, int) else size
    return jax.export.symbolic_shape(f"{text}, {height}, {width}, {channels}")
