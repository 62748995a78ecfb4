"""Layers, endpoints and counts of networks, derived from shapes alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.features import collect, features
from zoo.initialization import abstract_variables
from zoo.paths import flatten
from zoo.registry import build, get_spec, list_options
from zoo.segmentation.segmenter import ConvTransposed
from zoo.spec import Preprocess, Weights
from zoo.weights.trained import list_trained


class Layer(NamedTuple):
    """One row of the table of layers.

    Attributes:
      path: Path of the module, such as "backbone/stage1/block1/conv1".
      kind: Name of the module's class.
      shape: Shape of the output for one image.
      params: Number of trainable parameters.
      macs: Multiply-adds of a convolution or dense layer for one image.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int


def list_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """Lists the layers in the order in which they run.

    Args:
      model: A network of the zoo.
      image_shape: (H, W, C).
    """
    variables = abstract_variables(model, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = flatten(variables["params"])
    layers = []

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        module, path = context.module, "/".join(context.module.path)
        own = {k: v for k, v in params.items() if k.rsplit("/", 1)[0] == path}
        is_call = context.method_name == "__call__"
        if is_call and (own or hasattr(module, "macs")):
            # A module that runs on several maps counts its parameters once.
            seen = any(layer.path == path for layer in layers)
            count = 0 if seen else sum(v.size for v in own.values())
            # A transposed convolution uses the whole kernel at each input pixel.
            places = args[0] if isinstance(module, ConvTransposed) else out
            macs = _macs(module, own.get(f"{path}/kernel"), places.shape)
            layers.append(
                Layer(path, type(module).__name__, out.shape[1:], count, macs)
            )
        return out

    def run(images):
        # While a network is initialized, it runs all blocks of a loop one by one.
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), images)

    jax.eval_shape(run, images)
    return layers


def _macs(module: nn.Module, kernel: Any, shape: tuple[int, ...]) -> int:
    if hasattr(module, "macs"):
        return module.macs()
    # The batch is one image; a head that runs on each region has more rows than that.
    return kernel.size * math.prod(shape[:-1]) if kernel is not None else 0


def list_endpoints(
    model: str | nn.Module,
    image_shape: Sequence[int] | None = None,
    *,
    names: str | Sequence[str] | None = None,
    **overrides: Any,
) -> dict[str, tuple[int, ...]]:
    """Lists the endpoints' names and their shapes for one image, in order.

    Args:
      model: Name of a model, or a network of the zoo.
      image_shape: (H, W) or (H, W, C) of the images; None for the shape of the model's
        preprocessing, which a classifier given as a module does not have.
      names: Patterns of what to list, as `zoo.features` takes them, such as
        "stage3/block*", or "**" for the outputs of all modules; None for the endpoints
        alone.
      **overrides: Options of a model that is given by name, such as `num_classes=0`.

    Raises:
      ValueError: The model, an option or a name is unknown, or the network does not
        take images of this shape.
    """
    model, shape = _resolve(model, image_shape, overrides)
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes: dict[str, tuple[int, ...]] = {}

    def run(variables, images):
        if names is None:
            out = collect(model, variables, images, [])
        else:
            out = features(model, variables, images, names)
        # Recorded while tracing, as jax sorts the returned dict by name.
        shapes.update({name: value.shape[1:] for name, value in out.items()})
        return out

    jax.eval_shape(run, variables, images)
    return shapes


class Level(NamedTuple):
    """One map of a feature pyramid.

    Attributes:
      name: Name of the endpoint, for `zoo.features`.
      stride: Image pixels per pixel of the map, from the ratio of their sizes.
      channels: Number of channels of the map.
      shape: Height and width of the map for the image it was listed for.
    """

    name: str
    stride: int
    channels: int
    shape: tuple[int, int]


def list_pyramid(
    model: str | nn.Module,
    image_shape: Sequence[int] | None = None,
    **overrides: Any,
) -> list[Level]:
    """Lists the feature pyramid of a network: its last map at each stride.

        levels = zoo.list_pyramid("resnet50")
        maps = zoo.features(model, variables, images, [level.name for level in levels])

    It has the maps of the backbone only, not those of a neck or decoder.

    Args:
      model: Name of a model, or a network of the zoo.
      image_shape: (H, W) or (H, W, C) of the images; see `list_endpoints`.
      **overrides: Options of a model that is given by name.

    Returns:
      The levels, the finest first.

    Raises:
      ValueError: The model or an option is unknown, or the network does not take images
        of this shape.
    """
    model, shape = _resolve(model, image_shape, overrides)
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    maps: dict[str, tuple[int, ...]] = {}

    def run(variables, images):
        out = model.apply(
            variables, images, method=lambda m, x: m.backbone(x, train=False)
        )
        floats = {k: v for k, v in out.items() if jnp.issubdtype(v.dtype, jnp.floating)}
        maps.update({name: value.shape[1:] for name, value in floats.items()})
        return out

    jax.eval_shape(run, variables, images)
    levels = [Level("", 1, shape[2], shape[:2])]
    for name, (*size, channels) in maps.items():
        # By the ratio to the previous map, so that the borders that convolutions
        # without padding cut off do not count as stride.
        ratio = round(levels[-1].shape[0] / size[0]) if len(size) == 2 else 0
        if ratio < 1 or min(size) < 2:
            continue
        level = Level(name, ratio * levels[-1].stride, channels, (size[0], size[1]))
        if ratio == 1:
            levels.pop()
        levels.append(level)
    return [level for level in levels if level.name]


def _resolve(
    model: str | nn.Module,
    image_shape: Sequence[int] | None,
    overrides: Mapping[str, Any],
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Builds a model that is given by name, and completes the images' shape."""
    if isinstance(model, str):
        pre = get_spec(model).preprocess
        model = build(model, **overrides)
        pre = getattr(model, "preprocess", None) or pre
    elif overrides:
        raise ValueError(
            f"options {sorted(overrides)} are for a model given by name, and "
            f"{type(model).__name__} is a module."
        )
    else:
        pre = getattr(model, "preprocess", None)
    if image_shape is None:
        if pre is None:
            raise ValueError(
                f"image_shape=None: {type(model).__name__} has no preprocessing that "
                "says a size; give (H, W, C), or the model's name."
            )
        return model, pre.shape
    shape = tuple(image_shape)
    if len(shape) == 2 and pre is not None:
        shape = (*shape, pre.channels)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape={image_shape} must be (H, W, C), all positive.")
    return model, shape


def describe(name: str, *, num_classes: int | None = None, **overrides: Any) -> str:
    """Describes a model: paper, layers, parameters, MACs, endpoints, weights.

    Args:
      name: Name of the model.
      num_classes: Number of classes; None for the paper's.
      **overrides: Options as for `zoo.create`.

    Returns:
      Human-readable text, to be printed.

    Raises:
      ValueError: The model or an option is unknown.
    """
    spec = get_spec(name)
    model = build(name, num_classes=num_classes, **overrides)
    pre = spec.preprocess
    shape = pre.shape
    layers = list_layers(model, shape)
    endpoints = list_endpoints(model, shape)
    params, macs = (sum(getattr(r, f) for r in layers) for f in ("params", "macs"))
    rows = [("layer", "kind", "output", "parameters", "MACs")]
    rows += [
        (r.path, r.kind, _dims(r.shape), f"{r.params:,}", f"{r.macs:,}") for r in layers
    ]
    options = {k: getattr(v, "__name__", v) for k, v in list_options(name).items()}
    facts = {
        "paper": [spec.paper],
        "task": [f"{spec.task}, {spec.num_classes} classes"],
        "input": [_input(pre)],
        "parameters": [f"{params:,}"],
        "MACs": [f"{macs:,} for one image"],
        "init": [spec.init],
        "loss": [spec.loss],
        "endpoints": [", ".join(f"{k} {_dims(v)}" for k, v in endpoints.items())],
        "options": [", ".join(f"{k}={v}" for k, v in options.items())],
        "published": spec.published,
        "weights": [
            line
            for weights in (*spec.weights, *list_trained(name))
            for line in describe_weights(name, weights)
        ],
        "deviations": spec.deviations,
    }
    lines = [name, "=" * len(name)]
    for title, values in facts.items():
        for i, value in enumerate(values or ["none"]):
            lines.append(f"{title if i == 0 else '':<12}{value}")
    return "\n".join([*lines, "", *_table(rows)])


def describe_weights(name: str, weights: Weights) -> list[str]:
    """Describes weights of a model in several lines, the first with their name.

    Args:
      name: Name of the model.
      weights: Published weights, or weights that the package includes.
    """
    classes = weights.class_names
    digits = len(weights.sha256)
    short = "" if digits == 64 else f" (the first {digits} of 64 digits are published)"
    return [
        f"{weights.name}: {weights.accuracy}",
        f"  from   {weights.source}; license {weights.licence}",
        f"  input  {_input(weights.preprocess or get_spec(name).preprocess)}",
        f"  {len(classes)} classes, {classes[0]!r} to {classes[-1]!r}",
        *(f"  with   {option}={value!r}" for option, value in weights.options),
        f"  {weights.url or 'in this package: ' + weights.file}",
        f"  sha256 {weights.sha256}{short}",
    ]


def _input(pre: Preprocess) -> str:
    colors = "gray" if pre.channels == 1 else pre.channel_order.upper()
    size = {
        "crop": f" of a shorter side of {pre.resize or pre.size} ({pre.interpolation})",
        "stretch": f" of any proportions ({pre.interpolation})",
        "sides": f", or of another size: a shorter side of {pre.resize}, or less where "
        f"the longer one would exceed {pre.longest} ({pre.interpolation})",
        "keep": ", or of another size: the image's own",
    }[pre.fit]
    return (
        f"{_dims(pre.shape)} {colors}{size}, mean {_values(pre.mean)}, "
        f"std {_values(pre.std)} of the full range"
    )


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _values(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{n:.4g}" for n in numbers)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    # Names are left-aligned, numbers right-aligned.
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
