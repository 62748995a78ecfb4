"""The commands other than training, one function each."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro
from flax import linen as nn
from tyro.conf import Positional

import zoo
from train.alignment import measure_alignment
from train.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    load_config,
    long,
    parse_options,
)
from train.data import Source, find_problems, fit_source
from train.data.faces.landmarks import LANDMARKS_FILE, fill_landmarks
from train.evaluate import Evaluator
from train.experiment import check_task_options, open_split
from train.history import format_rate
from train.multi_crop import evaluate_multi_crop
from train.steps import make_mesh, put_replicated
from train.task import Evaluated, Task
from train.tasks import TASKS, make_task
from train.visualize import Network, read_steps, write_visualization
from zoo.predictions import unused_path
from zoo.registry import get_spec
from zoo.spec import Card


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """A trained network, and a data set to run it on."""

    run_dir: Positional[Path | None] = None
    """Folder of a run; else give --model and --weights."""
    model: str | None = None
    """Registered name of a model."""
    weights: str | None = None
    """Path or registered name of its weights."""
    option: tuple[str, ...] = ()
    """Options of the model as name=value."""
    dataset: str | None = None
    """digits, cifar10, digits_canvas, a TFDS name, or FORMAT:PATH, such as
    imagefolder:PATH; the run's if not given."""
    split: str | None = None
    """Split of the data set; the run's, or test with --dataset."""
    data_dir: str | None = None
    """Where TFDS keeps prepared data sets."""
    color: str | None = None
    """rgb, gray or as_stored; the run's, or what the network takes with --dataset."""

    def model_name(self) -> str:
        """Returns the name of the model.

        Raises:
          ValueError: There is neither a run nor all of model, weights and data set, or
            there are both.
        """
        if self.run_dir is not None:
            for flag, value in (("model", self.model), ("weights", self.weights)):
                if value is not None:
                    raise ValueError(
                        f"give a run folder or --{flag}, got {self.run_dir} and "
                        f"--{flag} {value}."
                    )
            return zoo.weights.read_card(self.run_dir).model
        if None in (self.model, self.weights, self.dataset):
            raise ValueError("give a run folder, or --model, --weights and --dataset.")
        return self.model


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(NetworkOptions):
    """Evaluates a run, or any model with weights, on a data set."""

    classes: tuple[str, ...] = ()
    """Names of the classes to keep; for masks, the names of their values."""
    ignored: Annotated[tuple[int, ...], long("ignored")] = ()
    """Pixel values of masks to ignore, besides 255."""
    values: Annotated[tuple[int, ...], long("values")] = ()
    """Pixel value of each class in masks; 0, 1, .. if not given."""
    orientation: Annotated[str | None, long("orientation")] = None
    """auto, stored or upright: how EXIF orientations are treated; the run's, else
    auto."""
    max_boxes: Annotated[int | None, long("max-boxes")] = None
    """Slots for the objects of an image; the run's, else 100."""
    protocol: str = "center_crop"
    """Views of each image whose probabilities a classifier averages: center_crop,
    ten_crop, googlenet_144, dense, dense_vgg, dense_vgg_256 or dense_vgg_384. For face
    networks: lfw, which needs a set with a list of pairs, and chi_squared, siamese and
    ensemble, which are fitted to all folds but one."""
    ensemble: tuple[Path, ...] = ()
    """Folders of other runs, which --protocol ensemble joins with this one; each has
    its own alignment, such as none or 2d."""
    scales: tuple[int, ...] = ()
    """Lengths of an image's shorter side, in pixels, instead of the protocol's."""
    align: str | None = None
    """Alignment of faces: auto, none, 2d or 3d; the run's, else auto."""
    landmark_noise: float | None = None
    """Standard deviation of an error that is added to the landmarks of faces, in pixels
    of the photographs; the run's, else 0."""
    mirror: bool = False
    """Average the descriptors of each face and of its mirror image; the run's, else
    not."""
    batch_size: int | None = None
    """Images per step, or views if the protocol has several per image; the run's, else
    512 for classifiers, 64 for face networks and 8 for others."""
    on_bad_image: str | None = None
    """stop, or skip, which counts and names unreadable images; the run's, else
    stop."""


@dataclasses.dataclass(frozen=True)
class VisualizeOptions(NetworkOptions):
    """Writes a page that shows what the network of a run, or any other, sees."""

    layers: tuple[str, ...] = ()
    """Names of the endpoints to show; four feature maps if not given."""
    channels: int = 16
    """Number of channels to show of each layer."""
    images: int = 1000
    """Largest number of images to search for the strongest activations."""
    out: Path | None = None
    """The page; RUN/visualization.html if not given, or visualization-MODEL.html in the
    current folder."""


class Opened(NamedTuple):
    """The network and the split of a data set that `NetworkOptions` name.

    Attributes:
      model: The network.
      variables: The network's variables.
      card: The card of the variables.
      weights: The name of the weights.
      data: The options of the examples.
      optim: The losses of the run; the defaults if there is no run.
      source: The examples.
    """

    model: nn.Module
    variables: Any
    card: Card
    weights: str
    data: DataConfig
    optim: OptimConfig
    source: Source

    @property
    def where(self) -> str:
        """The data set and its split, for messages."""
        return f"{self.data.dataset}, split {self.data.eval_split}"


# Options of a run's data that also hold for another data set.
KEPT = (
    *("eval_batch_size", "max_boxes", "align", "mirror"),
    *("landmark_noise", "orientation", "on_bad_image"),
)


def open_network(
    options: NetworkOptions, model_options: Mapping[str, Any] | None = None
) -> Opened:
    """Opens a network and a data set.

    Args:
      options: The network and the data set. Unset options default to those of the run,
        if there is one.
      model_options: Options of the network, which those in `options` override.

    Raises:
      ValueError: There is neither a run nor all of model, weights and data set, they
        are unknown, or an option is out of range.
    """
    name, weights = options.model_name(), options.run_dir or options.weights
    data = DataConfig("", eval_batch_size=TASKS[get_spec(name).task].eval_batch_size)
    optim = OptimConfig()
    if options.run_dir is not None:
        config = load_config(options.run_dir / "config.json")
        data, optim = config.data, config.optim
    own_data = options.dataset is None
    if not own_data:
        kept = {name: getattr(data, name) for name in KEPT}
        data = DataConfig(options.dataset, **kept)
    model_options = {**(model_options or {}), **parse_options(options.option)}
    model, variables, card = zoo.create_with_card(
        name, weights=str(weights), **model_options
    )
    names = {"split": "eval_split", "batch_size": "eval_batch_size"}
    fields = {field.name for field in dataclasses.fields(DataConfig)} - {"dataset"}
    given = {
        names.get(name, name): value
        for name, value in vars(options).items()
        if names.get(name, name) in fields
        if value is not None and value is not False and value != ()
    }
    if not own_data and options.color is None:
        given["color"] = card.preprocess.color or "as_stored"
    data = dataclasses.replace(data, **given, per_class=0)
    TrainConfig(ModelConfig(name), data)  # Checks the values.
    source = open_split(data, data.eval_split, get_spec(name).task)
    return Opened(model, variables, card, str(weights), data, optim, source)


class _Metrics(NamedTuple):
    metrics: dict[str, float]


def evaluate(options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]) -> None:
    """Evaluates a run, or any model with weights, on a data set."""
    name = options.model_name()
    spec = get_spec(name)
    kind = TASKS[spec.task]
    check_task_options(options, kind, name)
    protocol = kind.choose_protocol(options.protocol, options.scales, name)
    if (options.protocol == "ensemble") != bool(options.ensemble):
        raise ValueError(
            f"--protocol ensemble and --ensemble RUN go together, got --protocol "
            f"{options.protocol} and {len(options.ensemble)} other runs."
        )
    whole = protocol is not None and not protocol.cropped
    whole = whole and "fully_convolutional" in zoo.list_options(name)
    opened = open_network(options, {"fully_convolutional": True} if whole else {})
    card, data = opened.card, opened.data
    _check_source(opened, options.protocol)
    others = [_evaluate_member(run, options, data) for run in options.ensemble]
    started = time.perf_counter()
    task = make_task(spec, opened.optim, data, [opened.source])
    task = task.prepare_protocol(options.protocol, opened.variables, card, others)
    source = _prepare_source(opened)
    if protocol is None:
        evaluated = _evaluate_whole(opened, task, source)
    else:
        evaluated = _Metrics(
            evaluate_multi_crop(
                opened.model,
                opened.variables,
                source.source,
                card.preprocess,
                protocol,
                batch_size=data.eval_batch_size,
            )
        )
    seconds = time.perf_counter() - started
    print(f"{name} ({card.source}) on {opened.where}:")
    for line in task.summarize(evaluated, options.protocol):
        print(line)
    speed = format_rate(len(source) / seconds)
    print(f"  speed     {speed} images per second, compilation included")


def _check_source(opened: Opened, protocol: str) -> None:
    """Checks that the examples have the network's classes."""
    TASKS[opened.source.task].check_source(
        opened.source, opened.card, protocol, f"{opened.where},", opened.weights
    )


def _prepare_source(opened: Opened) -> Source:
    """Fits the images to the network, and checks them."""
    preprocess, kind = opened.card.preprocess, TASKS[opened.source.task]
    data, (source,) = kind.prepare_sources(opened.data, [opened.source], [preprocess])
    source = fit_source(source, preprocess, data.on_bad_image, max_boxes=data.max_boxes)
    problems = find_problems(source, skip=data.on_bad_image == "skip")
    if problems:
        raise ValueError(" ".join(problems))
    return source


def _evaluate_whole(opened: Opened, task: Task, source: Source) -> Evaluated:
    """Evaluates a network on whole images, as in training."""
    mesh = make_mesh()
    run = Evaluator(
        opened.model,
        task,
        source,
        opened.card.preprocess,
        mesh,
        opened.data.eval_batch_size,
        max_boxes=opened.data.max_boxes,
        progress=True,
    )
    return run(put_replicated(opened.variables, mesh))


def _evaluate_member(
    run_dir: Path, options: EvaluateOptions, data: DataConfig
) -> Evaluated:
    """Evaluates another run of an ensemble on the same images."""
    opened = open_network(
        EvaluateOptions(
            run_dir,
            dataset=data.dataset,
            split=data.eval_split,
            data_dir=data.data_dir,
            color=options.color,
            classes=data.classes,
            orientation=data.orientation,
            landmark_noise=data.landmark_noise,
            on_bad_image=data.on_bad_image,
        )
    )
    spec = get_spec(opened.card.model)
    task = make_task(spec, opened.optim, opened.data, [opened.source])
    return _evaluate_whole(opened, task, _prepare_source(opened))


def visualize(options: Annotated[VisualizeOptions, tyro.conf.arg(name="")]) -> None:
    """Writes a page that shows what the network of a run, or any other, sees."""
    started = time.perf_counter()
    opened, run_dir = open_network(options), options.run_dir
    name = opened.card.model
    _check_source(opened, "center_crop")
    out, history = Path(f"visualization-{name}.html"), {}
    if run_dir is not None:
        out, history = run_dir / "visualization.html", read_steps(run_dir)
    path = write_visualization(
        Network(opened.model, opened.variables, opened.card),
        _prepare_source(opened),
        options.out or out,
        title=f"What {name} sees",
        layers=options.layers,
        channels=options.channels,
        limit=options.images,
        history=history if len(history) > 1 else None,
    )
    seconds = time.perf_counter() - started
    print(f"Open {path} in a browser; it took {seconds:.0f} s.")


def predict(
    run_dir: Positional[Path],
    images: Positional[tuple[Path, ...]],
    out: Path | None = None,
    score_threshold: float = 0.3,
) -> None:
    """Predicts with the network of a run, and draws the predictions.

    A classifier predicts a class, a detector boxes with classes and scores. The masks
    of a segmentation network are written, too, in the colors of its data set. A face
    network compares two photographs and says whether they show the same person.

    Args:
      run_dir: Folder of a run.
      images: Image files.
      out: Folder for the pictures; RUN/predictions if not given.
      score_threshold: Lowest score of the detections that are drawn, 0 to 1.
    """
    if not images:
        raise ValueError("name at least one image.")
    task = TASKS[get_spec(zoo.weights.read_card(run_dir).model).task]
    out = out or run_dir / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    # Two folders may have a file of the same name, and none of the images is replaced.
    taken = {path.resolve() for path in images}
    for found in task.predict(run_dir, images, score_threshold=score_threshold):
        files = []
        for ending, picture in found.pictures.items():
            files.append(unused_path(out / f"{found.stem}{ending}.png", taken))
            picture.save(files[-1])
        print(f"{found.title}: {found.words}  ({', '.join(map(str, files))})")


def landmarks(folder: Positional[Path]) -> None:
    """Finds the landmarks of faces in a folder's pictures, and writes landmarks.csv.

    Args:
      folder: Folder of the pictures, or a parent of it; the file is written there.
    """
    count, missing = fill_landmarks(folder)
    print(f"{folder / LANDMARKS_FILE} has landmarks of {count} pictures.")
    if missing:
        print(f"No face was found in {len(missing)}: {', '.join(missing[:10])}")


def alignment(
    *,
    noise: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0),
    pictures: int = 400,
    size: int = 152,
) -> None:
    """Measures the alignment of drawn faces, with noise on their landmarks.

    Prints the mean distance of the landmarks in the crop from their positions in a
    frontal view, and the mean errors of the pose.

    Args:
      noise: Standard deviations of the landmarks' errors, in pixels of photographs in
        which heads are about 52 pixels wide.
      pictures: Number of pictures.
      size: Height and width of the crops, in pixels.
    """
    print(f"Landmarks in crops of {size} x {size} pixels, {pictures} drawn faces:")
    print("noise (pixels)  2D (pixels)  3D (pixels)  yaw, pitch, roll (degrees)")
    for deviation in noise:
        found = measure_alignment(noise=deviation, pictures=pictures, size=size)
        degrees = ", ".join(f"{value:.2f}" for value in found.degrees)
        print(
            f"{deviation:14g}  {found.pixels_2d:11.2f}  {found.pixels_3d:11.2f}  "
            f"{degrees}"
        )


def study(
    name: Positional[str] = "",
    *,
    scale: Literal["quick", "medium", "full"] = "quick",
    dataset: str | None = None,
    steps: int | None = None,
    run_dir: Path | None = None,
    list: bool = False,
) -> None:
    """Measures a claim of the lecture, and writes a page and the result.

    Args:
      name: Name of the study, or "all" for one page of all.
      scale: quick: embedded data, at most five minutes on two cores; medium: real data,
        hours on a CPU; full: the paper's data and sizes.
      dataset: Data set in place of the study's own, such as imagefolder:PATH.
      steps: Length of the training runs in place of the study's own.
      run_dir: Folder of the study; runs/study-NAME-SCALE if not given. Measurements
        that are already in it are not repeated.
      list: Only list the studies.
    """
    from train import studies

    if list or not name:
        for each in studies.STUDIES.values():
            print(f"{each.name:<20}{', '.join(each.changes):<20}{each.claim}")
        return
    folder = run_dir or Path("runs") / f"study-{name}-{scale}"
    if name == "all":
        if dataset or steps is not None:
            raise ValueError("--dataset and --steps are for one study, not for all.")
        reports = studies.run_studies(folder, scale=scale)
    else:
        found = studies.get_study(name)
        options = dict(scale=scale, dataset=dataset, steps=steps)
        reports = [studies.run_study(found, folder, **options)]
    for done in reports:
        print(f"{done.study.name}: {done.study.claim}")
        for band in done.outcome.bands:
            mark = "holds" if band.holds else "DOES NOT HOLD"
            print(f"  {band.value:<10.4g} {band.bounds():<16} {mark:<14}{band.what}")
    print(f"The page is {folder / 'report.html'}.")
