"""Facts about networks: names, inputs, counts, published weights, deviations."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

FITS = ("crop", "stretch", "sides", "keep")
# The metric of each task by which checkpoints are compared.
PRIMARY_METRICS = {
    "classification": "accuracy",
    "detection": "ap50",
    "segmentation": "mean_iou",
    "verification": "verification_accuracy",
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a uint8 image for a network.

    `fit` selects how the image is resized, and each channel becomes
    `(value / 255 - mean) / std`. Networks from Caffe take values of 0 to 255 minus a
    mean, which is `std=1/255`, and channels in the order blue, green, red.

    `fit` is one of

    - "crop", for classification: the shorter side is resized to `resize` pixels, and
      the center crop of `size` x `size` is taken.
    - "stretch", for SSD and YOLO: height and width are resized to those of the input;
      the aspect ratio changes.
    - "sides", for Faster R-CNN: the shorter side is resized to `resize` pixels, or to
      less if the longer side would exceed `longest`; the image is padded at the right
      and the bottom. `size` and `width` are those of an example, for the counts.
    - "keep", for segmentation: the image is not resized, but padded at the right and
      the bottom. `size` and `width` are those of an example, for the counts.

    Attributes:
      size: Height of the network's input, in pixels.
      channels: Number of channels: 3 for RGB, 1 for gray.
      mean: Mean of each channel, on a scale of 0 to 1, in the order red, green, blue.
      std: Standard deviation of each channel, on the same scale and in the same order.
      resize: Length of the shorter side before the crop, in pixels; None for `size`.
      interpolation: Name of the Pillow filter, "bilinear" or "bicubic".
      channel_order: Order of the network's channels, "rgb" or "bgr".
      width: Width of the network's input, in pixels; None for `size`.
      fit: Resizing: "crop", "stretch", "sides" or "keep".
      longest: Largest length of the longer side for "sides", in pixels.
      antialias: Whether the filter is widened for downsampling, as in Pillow.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"
    channel_order: str = "rgb"
    width: int | None = None
    fit: str = "crop"
    longest: int | None = None
    antialias: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input."""
        return self.size, self.width or self.size, self.channels

    @property
    def color(self) -> str | None:
        """Colors of the network's images: "gray", "rgb", or None for neither."""
        return {1: "gray", 3: "rgb"}.get(self.channels)

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"Preprocess: mean {self.mean} and std {self.std} must have one value "
                f"for each of the {self.channels} channels."
            )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"Preprocess: std must be positive, got {self.std}.")
        if self.fit not in FITS:
            raise ValueError(f"Preprocess: fit={self.fit!r} must be one of {FITS}.")
        if self.fit == "sides" and not (self.resize and self.longest):
            raise ValueError(
                f"Preprocess: fit='sides' needs resize and longest, got {self.resize} "
                f"and {self.longest}."
            )
        if self.fit == "crop" and self.width not in (None, self.size):
            raise ValueError(
                f"Preprocess: fit='crop' cuts out squares; width={self.width} must be "
                f"size={self.size}."
            )
        if self.fit == "crop" and self.resize is not None and self.resize < self.size:
            raise ValueError(
                f"Preprocess: resize={self.resize} must be at least size={self.size}, "
                "which is cut out of the resized image."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                "Preprocess: interpolation must be 'bilinear' or 'bicubic', got "
                f"{self.interpolation!r}."
            )
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(
                "Preprocess: channel_order must be 'rgb' or 'bgr', got "
                f"{self.channel_order!r}."
            )


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published set of weights for one network.

    Attributes:
      name: Name of the weights, the value of `weights=` of `zoo.create`.
      url: URL of the publisher's file.
      sha256: Hash of the file in hexadecimal digits, or the prefix of it that the
        publisher states.
      preprocess: Preprocessing that the weights expect; None for the model's.
      accuracy: Published top-1 accuracy in percent, and its data set.
      source: Name of the publisher.
      licence: SPDX identifier of the license.
      class_names: Names of the classes, in the order of the logits.
      file: Name of the cached file; empty for the URL's.
      copies: Prefixes of the hashes of other files with the same arrays.
      options: Options of the model that these weights need, as pairs.
    """

    name: str
    url: str
    sha256: str
    accuracy: str
    source: str
    licence: str
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] = ()
    file: str = ""
    copies: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class TorchRule:
    """The name of a module in a PyTorch state dict.

    Attributes:
      module: Path of the Linen module, such as "backbone/stage1/block1/conv1"; None for
        a torch module that is not part of the network, such as an auxiliary head.
      key: Path of the torch module, such as "layer1.0.conv1".
      flatten: `(channels, height, width)` of the map that a dense layer reads: torch
        flattens it in this order, the zoo in the order height, width, channels.
      alias: Another path of the torch module in public files, where a dense layer may
        be a convolution.
      outputs: `(a, b)` for a layer with a * K + b outputs for K classes. None for other
        layers; those of a module called "head" have K outputs.
      transposed: Whether it is a transposed convolution, whose torch kernels have the
        input channels first.
    """

    module: str | None
    key: str
    flatten: tuple[int, int, int] | None = None
    alias: str | None = None
    outputs: tuple[int, int] | None = None
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One network of the zoo: its builder and its facts.

    Attributes:
      name: The name under which `zoo.create` finds it.
      task: "classification", "detection", "segmentation" or "verification".
      build: Called with `num_classes=` and overrides; returns the Linen module.
      paper: Authors, title, year, and the section or table that was followed.
      num_classes: The paper's number of classes.
      preprocess: The paper's preprocessing.
      params: Exact number of trainable parameters at `num_classes` classes.
      macs: Exact number of multiply-adds of convolutions and dense layers for one
        image of `preprocess.size`, biases excluded.
      torch_rules: Called with the module; returns the `TorchRule`s of its weights.
      config: Frozen dataclass whose fields are the options of `build`, which takes them
        as `**options`; None if the options are arguments of `build`.
      weights: Published weights.
      loss: Name of the paper's loss.
      aux_losses: Names of the auxiliary heads' endpoints and the factors of their
        losses, for a network that is built with these heads.
      torchvision: Name in `torchvision.models` of the builder of the same network, for
        `zoo.verify`; None if there is none.
      reads_regions: Whether a detector takes region proposals as an input.
      from_classifier: Function from a classifier's variables and card to the variables
        of this network and their preprocessing; None if the paths are the same.
      init: The paper's initialization, in words.
      published: Published results, each with its protocol.
      deviations: Differences between this network and its paper.
    """

    name: str
    task: str
    build: Callable[..., Any]
    paper: str
    num_classes: int
    preprocess: Preprocess
    params: int
    macs: int
    torch_rules: Callable[[Any], tuple[TorchRule, ...]]
    config: type | None = None
    weights: tuple[Weights, ...] = ()
    loss: str = "softmax_cross_entropy"
    aux_losses: tuple[tuple[str, float], ...] = ()
    torchvision: str | None = None
    reads_regions: bool = False
    from_classifier: Callable[[Any, "Card"], tuple[Any, Preprocess]] | None = None
    init: str = ""
    published: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


def primary_metric(metrics: Mapping[str, Any] | None) -> float | None:
    """Returns the metric by which checkpoints of any task are compared."""
    metrics = metrics or {}
    found = [metrics[name] for name in PRIMARY_METRICS.values() if name in metrics]
    return found[0] if found else None


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a model's options to JSON values: a dtype to its name, "bfloat16"."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(each) for each in value]
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        known = isinstance(value, str | int | float | bool | None)
        return value if known else np.dtype(value).name

    return {name: plain(value) for name, value in options.items()}


@dataclasses.dataclass(frozen=True)
class Card:
    """The facts that are needed to use a set of variables.

    A card is stored in every checkpoint and exported file.

    Attributes:
      model: Registered name.
      num_classes: Number of classes of the head.
      overrides: Options of the model by name, as JSON values.
      preprocess: Preprocessing that the variables expect.
      class_names: Names of the classes, in the order of the logits; empty if unknown.
      source: Origin of the variables, in words.
      licence: SPDX identifier of the license; empty if unknown.
      accuracy: Published accuracy, and its data set; empty if unknown.
      versions: Versions of the packages that wrote them.
    """

    model: str
    num_classes: int
    overrides: dict[str, Any]
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    accuracy: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the card as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Card":
        """Makes a card from the values that `to_json` returned.

        Raises:
          ValueError: A field is missing or unknown.
        """
        try:
            preprocess = dict(values["preprocess"])
            preprocess["mean"] = tuple(preprocess["mean"])
            preprocess["std"] = tuple(preprocess["std"])
            names = values.get("class_names", ())
            if not isinstance(names, list | tuple):
                raise TypeError(f"class_names must be a list, got {names!r}")
            names = tuple(names)
            _check_types(Preprocess, preprocess, "preprocess.")
            _check_types(cls, {**values, "preprocess": None, "class_names": names})
            rest = {**values, "preprocess": Preprocess(**preprocess)}
            return cls(**{**rest, "class_names": names})
        except (KeyError, TypeError, AttributeError) as error:
            shown = str(values)[:400]
            raise ValueError(f"not a model card: {error}; got {shown}.") from error


def _check_types(cls: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises a TypeError if the value of a field does not have the field's type."""

    def is_number(value: Any, kinds: type) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool)

    def is_texts(value: Any) -> bool:
        return all(isinstance(each, str) for each in value)

    checks = {
        "str": lambda v: isinstance(v, str),
        "int": lambda v: is_number(v, int) and 0 <= v < 1 << 24,
        "int | None": lambda v: v is None or (is_number(v, int) and 0 < v < 1 << 24),
        "bool": lambda v: isinstance(v, bool),
        "tuple[float, ...]": lambda v: all(
            is_number(each, int | float) and abs(each) < 1e9 for each in v
        ),
        "tuple[str, ...]": is_texts,
        "dict[str, Any]": lambda v: isinstance(v, dict) and is_texts(v),
        "dict[str, str]": lambda v: isinstance(v, dict) and is_texts([*v, *v.values()]),
    }
    for field in dataclasses.fields(cls):
        plain = not typing.get_args(field.type)
        kind = field.type.__name__ if plain else str(field.type)
        kind = kind.replace("typing.", "")
        fits = checks.get(kind, lambda value: True)
        if field.name in values and not fits(values[field.name]):
            shown = str(values[field.name])[:60]
            raise TypeError(f"{prefix}{field.name} must be {kind}, got {shown}")
