"""The config of a run, as frozen dataclasses.

Each field is an option of the command line, whose help is the field's docstring.
"""

import ast
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import cattrs
import tyro
from cattrs.gen import make_dict_structure_fn


def _short(name: str) -> Any:
    """Gives an option a second name, without the name of its section."""
    return tyro.conf.arg(aliases=(f"--{name}",))


def long(name: str) -> Any:
    """Gives a command's option a second name, the one it has in training."""
    return tyro.conf.arg(aliases=(f"--data.{name}",))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, and the weights that it starts from."""

    name: str
    """Registered name; `canon-zoo list` has them."""
    weights: Annotated[str | None, _short("from")] = None
    """Path or registered name of weights to start from; None for a new network."""
    layers: tuple[str, ...] = ()
    """Path patterns of the layers to copy from another network, such as
    'backbone/conv1_1/**', if weights is a run or MODEL:WEIGHTS; none if the weights
    are this network's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and statistics stay float32."""
    options: tuple[str, ...] = ()
    """More options of the model as name=value, such as shortcut=B or remat=True."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, their batches and their transforms."""

    dataset: Annotated[str, _short("dataset")]
    """digits, cifar10, digits_canvas, any TFDS name, or FORMAT:PATH, such as
    imagefolder:PATH (folder or zip), voc:PATH, voc_masks:PATH and masks:PATH."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "test"
    """Split to evaluate on."""
    data_dir: Annotated[str | None, _short("data-dir")] = None
    """Where TFDS keeps prepared data sets; None for its own default."""
    classes: Annotated[tuple[str, ...], _short("classes")] = ()
    """Names of the classes to keep; none for all. For folders with masks: names of the
    values 0, 1, .."""
    ignored: tuple[int, ...] = ()
    """Values of pixels to be ignored in folders with masks, besides 255."""
    values: tuple[int, ...] = ()
    """Value of each class in folders with masks, such as 0 255; none for the numbers
    0, 1, .."""
    orientation: Literal["auto", "stored", "upright"] = "auto"
    """Whether to apply the EXIF orientation of images: upright applies it, stored does
    not. auto applies it for classification; otherwise it logs how many have one."""
    per_class: Annotated[int, _short("per-class")] = 0
    """Training images of each class to keep; 0 for all."""
    color: Annotated[Literal["as_stored", "rgb", "gray", "grey"], _short("color")] = (
        "as_stored"
    )
    """Color conversion of every image."""
    batch_size: Annotated[int, _short("batch-size")] = 128
    """Images per step, over all devices."""
    eval_batch_size: int = 512
    """Images per evaluation step, over all devices."""
    crop: Annotated[str, _short("crop")] = "center"
    """Crop for training: center, square:256, scale_jitter:256:480 or area:0.08:1."""
    align: Annotated[Literal["auto", "none", "2d", "3d"], _short("align")] = "auto"
    """Alignment of faces by landmarks; auto for the best that the landmarks allow."""
    landmark_noise: Annotated[float, _short("landmark-noise")] = 0.0
    """Standard deviation of an error that is added to the landmarks of faces, in pixels
    of the photographs."""
    mirror: Annotated[bool, _short("mirror")] = False
    """Average the descriptors of each face and of its mirror image."""
    augment: Annotated[tuple[str, ...], _short("augment")] = ()
    """Augmentations in their order, such as pad_crop:4 flip, or pca_color:0.1."""
    geometry: Annotated[tuple[str, ...], _short("geometry")] = ()
    """Augmentations that also move boxes and masks, such as flip iou_crop."""
    fit: Literal["", "crop", "stretch", "sides", "keep"] = ""
    """How images are fitted to the network's input; the network's own way if empty."""
    size: Annotated[tuple[int, ...], _short("size")] = ()
    """Height and width of the network's input in pixels; none for its own."""
    eval_size: tuple[int, ...] = ()
    """Height and width of the input in evaluation; none for those of training."""
    max_boxes: int = 100
    """Largest number of objects in an image; an image with more is an error."""
    difficult: bool = False
    """Train on objects that are marked difficult, too."""
    placement: Literal["auto", "device", "stream"] = "auto"
    """Keep the whole set on the device, or stream it; auto: by its size."""
    device_megabytes: int = 1024
    """Largest training set, in megabytes, that auto keeps on the device."""
    workers: int = 0
    """Processes that read images when streaming; 0 for threads only."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do about an unreadable image; skip counts and names them."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer, the loss and the trained parameters."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd has coupled weight decay, as in the papers; adamw decoupled."""
    learning_rate: Annotated[float, _short("learning-rate")] = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; decay of the first moment of adamw."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: Annotated[float, _short("weight-decay")] = 1e-4
    """Factor of the weights that is added to the gradient (adamw: to the update)."""
    decay: Literal["all", "kernels"] = "all"
    """Which parameters are decayed: all, or those with more than one dimension."""
    decay_also: tuple[str, ...] = ()
    """Path patterns of more parameters to decay with the kernels, such as **/scale."""
    schedule: Annotated[
        Literal["constant", "step", "cosine", "polynomial", "inverse"],
        _short("schedule"),
    ] = "constant"
    """How the learning rate falls after warm-up."""
    boundaries: tuple[float, ...] = (0.5, 0.75)
    """Boundaries of the step schedule, as fractions of the whole training."""
    factor: float = 0.1
    """Factor of the rate at each boundary of the step schedule."""
    power: float = 0.9
    """Exponent of the polynomial and the inverse schedule."""
    gamma: float = 1e-4
    """Slope of the inverse schedule: rate / (1 + gamma * step) ** power."""
    warmup_steps: int = 0
    """Length of the warm-up, in steps."""
    warmup_rate: float = 0.0
    """Learning rate at the first step of the warm-up; it rises linearly."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None for no clipping."""
    filter_rms: float | None = None
    """Largest root mean square of a convolution's filter, to which it is scaled down
    after an update; None for no such limit."""
    accumulate: int = 1
    """Parts into which a batch is split to save memory; they are processed one after
    the other. The gradient is that of the whole batch, but batch norm normalizes each
    part by its own statistics, and dropout is drawn anew for each part."""
    loss: str = ""
    """Loss of classifiers and segmentation networks: softmax_cross_entropy, or for
    segmentation median_frequency, background:WEIGHT (the weight of class 0) or
    bootstrapped_cross_entropy:COUNT (of the COUNT worst pixels of each image); the
    network's own if empty."""
    aux_loss: str = ""
    """Loss of a segmentation network's auxiliary scores; the same loss if empty."""
    label_smoothing: float = 0.0
    """Probability that is spread evenly over all classes."""
    ema_decay: float | None = None
    """Decay of the moving average of weights that is evaluated; None for none."""
    freeze: Annotated[tuple[str, ...], _short("freeze")] = ()
    """Path patterns of parameters to freeze, such as 'backbone/**'."""
    unfreeze: Annotated[tuple[str, ...], _short("unfreeze")] = ()
    """EPOCH:PATTERN to train from an epoch on, such as 5:backbone/stage3/**."""
    rates: Annotated[tuple[str, ...], _short("rates")] = ()
    """PATTERN=FACTOR for the learning rate of matching paths: 'backbone/**=0.1'."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole experiment."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    epochs: int = 10
    """Length in epochs, if steps is 0."""
    steps: int = 0
    """Length in steps; 0 for epochs."""
    seed: int = 0
    """Seed of the initialization, the order of the images and the augmentation."""
    eval_every: int = 1
    """Epochs between evaluations."""
    save_every: int = 1
    """Epochs between checkpoints."""
    keep: int = 2
    """Number of the last checkpoints to keep, besides the best one."""
    log_every: int = 20
    """Steps between logged training metrics, each of which is that of one step."""
    run_dir: str = ""
    """Run folder; empty for runs/NAME-TIME below the current folder."""

    def __post_init__(self):
        data, optim = self.data, self.optim
        for name in ("batch_size", "eval_batch_size"):
            _check(getattr(data, name) > 0, f"data.{name}", getattr(data, name), "> 0")
        for name in ("size", "eval_size"):
            value = getattr(data, name)
            fits = len(value) in (0, 2) and all(n > 0 for n in value)
            _check(fits, f"data.{name}", value, "HEIGHT WIDTH, both > 0")
        for name in ("ignored", "values"):
            value = getattr(data, name)
            good = all(0 <= n <= 255 for n in value) and len({*value}) == len(value)
            _check(good, f"data.{name}", value, "different numbers from 0 to 255")
        _check(data.max_boxes > 0, "data.max_boxes", data.max_boxes, "> 0")
        for name in ("per_class", "workers", "device_megabytes"):
            value = getattr(data, name)
            _check(value >= 0, f"data.{name}", value, ">= 0")
        _check(
            optim.accumulate > 0 and data.batch_size % optim.accumulate == 0,
            "optim.accumulate",
            optim.accumulate,
            f"a divisor of data.batch_size={data.batch_size}",
        )
        for name in (
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "warmup_rate",
            "gamma",
        ):
            value = getattr(optim, name)
            _check(value >= 0, f"optim.{name}", value, ">= 0")
        for name in ("momentum", "label_smoothing"):
            value = getattr(optim, name)
            _check(0 <= value < 1, f"optim.{name}", value, "in [0, 1)")
        for name in ("clip_norm", "filter_rms"):
            value = getattr(optim, name)
            _check(value is None or value > 0, f"optim.{name}", value, "> 0 or None")
        ema = optim.ema_decay
        _check(ema is None or 0 < ema < 1, "optim.ema_decay", ema, "in (0, 1) or None")
        _check(
            all(0 < b < 1 for b in optim.boundaries)
            and list(optim.boundaries) == sorted(optim.boundaries),
            "optim.boundaries",
            optim.boundaries,
            "rising fractions between 0 and 1",
        )
        for name in ("epochs", "eval_every", "save_every", "keep", "log_every"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        for name in ("steps", "seed"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")

    def total_steps(self, count: int) -> int:
        """Returns the number of steps of a training on `count` images."""
        return self.steps or self.epochs * max(count // self.data.batch_size, 1)


def _check(fits: bool, name: str, value: Any, expected: str):
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value}.")


_converter = cattrs.Converter(forbid_extra_keys=True)


def _exactly(kind: type, *accepted: type) -> Any:
    """Makes a hook that accepts values of the given types and rejects all others."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"{_show(value)} is no {kind.__name__}")
        return kind(value)

    return structure


def _structure_float(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise TypeError(f"{_show(value)} is no finite number")
    return float(value)


def _structure_tuple(value: Any, kind: Any) -> tuple:
    if not isinstance(value, list):
        raise TypeError(f"{_show(value)} is no list")
    (item, _), found = get_args(kind), []
    for element in value:
        found.append(_converter.structure(element, item))
    return tuple(found)


def _make_section_hook(kind: type) -> Any:
    structure = make_dict_structure_fn(kind, _converter, _cattrs_forbid_extra_keys=True)

    def checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"{_show(value)} is no object with fields")
        return structure(value, kind)

    return checked


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


# Otherwise cattrs would convert "false" to True, 3.9 to 3, a text to its letters.
for _kind in (bool, int, str):
    _converter.register_structure_hook(_kind, _exactly(_kind, _kind))
_converter.register_structure_hook(float, _structure_float)
_converter.register_structure_hook_func(
    lambda kind: get_origin(kind) is tuple, _structure_tuple
)
_converter.register_structure_hook_factory(dataclasses.is_dataclass, _make_section_hook)


def to_json(config: Any) -> dict[str, Any]:
    """Returns a config as plain JSON values."""
    return _converter.unstructure(config)


def write_json(path: Path, values: Any, **options: Any) -> None:
    """Writes plain JSON values atomically.

    Args:
      path: The path of the file.
      values: The values.
      **options: Options of `json.dumps`.
    """
    temporary = path.with_name(f"{path.name}.unfinished")
    temporary.write_text(json.dumps(values, **options) + "\n", encoding="utf-8")
    temporary.replace(path)


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes a config as JSON."""
    write_json(path, to_json(config), indent=2)


def load_config(path: Path) -> TrainConfig:
    """Reads a config that `save_config` wrote, or that was written by hand.

    Each value has the type of its field; nothing is converted.

    Raises:
      ValueError: The file is missing or not a config; the message says what is wrong.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_read_object)
        return _converter.structure(content, TrainConfig)
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} is no run folder: no {path.name}.") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}).") from error
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, format_exception=_reason)
        raise ValueError(f"{path}: {'; '.join(reasons)}") from error
    # Such as invalid or too deeply nested JSON, a wrong encoding, or a bad number.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return found


def _reason(error: BaseException, kind: type) -> str:
    # Messages for users: a ValueError is from `_check`, a TypeError from the hooks
    # above, and an Exception from a Literal.
    if type(error) in (TypeError, ValueError, Exception):
        return str(error)
    return cattrs.v.format_exception(error, kind)


def parse_options(options: tuple[str, ...]) -> dict[str, Any]:
    """Parses name=value pairs; values are Python literals, or else strings.

    Raises:
      ValueError: A pair has no equals sign.
    """
    out = {}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign:
            raise ValueError(f"model option {option!r} must be name=value.")
        try:
            out[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[name] = text
    return out
