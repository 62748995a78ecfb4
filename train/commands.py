"""What the command line does, one function a command."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
from tyro.conf import Positional

import zoo
from train import transfer_study
from train.config import TrainConfig, load_config, long, parse_options
from train.data import find_problems, fit_source, load_dataset
from train.data.faces import LANDMARKS_FILE
from train.data.landmarks import fill_landmarks
from train.evaluate import Evaluator
from train.fit import resume_run
from train.history import format_rate
from train.predict import load_predictor
from train.report import confidence_interval
from train.runs import new_run_dir, next_steps, report, run
from train.steps import make_mesh, put_replicated
from train.tasks import Detected, make_task
from train.verify import (
    PROTOCOLS,
    evaluate_faces,
    open_faces,
    predict_pair,
    print_verified,
)
from train.views import evaluate_views
from train.visualize import Network, read_steps, write_visualization
from zoo.metrics import coco
from zoo.protocols import get_protocol
from zoo.spec import Card


def train(config: TrainConfig, name: str) -> None:
    """Trains, writes the report, and says what can be done next."""
    print(f"{name}: {config.model.name} on {config.data.dataset}, {_devices()}.")
    print(next_steps(run(config, name)))


def resume(
    run_dir: Path, step: int | None, config: TrainConfig, changed_data: bool = False
) -> None:
    """Goes on with an interrupted run, to the bit as if nothing had happened.

    Args:
      run_dir: Folder of the run.
      step: Step of the checkpoint to go on from; None for the last undamaged one.
      config: What to do from there on.
      changed_data: Go on even where the images are not those the run began with.
    """
    result = resume_run(run_dir, step=step, config=config, changed_data=changed_data)
    report(result)
    print(next_steps(result))


def evaluate(
    run_dir: Positional[Path | None] = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    option: tuple[str, ...] = (),
    dataset: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    color: str | None = None,
    classes: tuple[str, ...] = (),
    ignored: Annotated[tuple[int, ...], long("ignored")] = (),
    values: Annotated[tuple[int, ...], long("values")] = (),
    orientation: Annotated[str | None, long("orientation")] = None,
    max_boxes: Annotated[int | None, long("max-boxes")] = None,
    protocol: str = "center_crop",
    scales: tuple[int, ...] = (),
    align: str | None = None,
    mirror: bool = False,
    batch_size: int | None = None,
    on_bad_image: str = "stop",
) -> None:
    """Evaluates a run, or any model with weights, on a data set.

    Args:
      run_dir: Folder of a run; else give --model and --weights.
      model: Registered name of a model.
      weights: Path or registered name of its weights.
      option: Options of the model as name=value.
      dataset: digits, cifar10, digits_canvas, a TFDS name, or FORMAT:PATH, such as
        imagefolder:PATH; the run's if not given.
      split: Of the data set; the run's, else test.
      data_dir: Where TFDS keeps prepared data sets.
      color: rgb, grey or as_stored; the run's, else that which the network takes.
      classes: Names of the classes to keep; of masks, what their values stand for.
      ignored: Pixel values of masks to ignore, besides 255.
      values: Pixel value of each class in masks; 0, 1, .. if not given.
      orientation: auto, stored or upright: how EXIF orientations are treated; the
        run's, else auto.
      max_boxes: Slots for the objects of an image; the run's, else 100.
      protocol: Of classifiers: views of each image whose probabilities are averaged:
        center_crop, ten_crop, googlenet_144, dense, dense_vgg, dense_vgg_256 or
        dense_vgg_384. Of faces: lfw, which demands a set with folds of pairs.
      align: Of faces: auto, none, 2d or 3d; the run's, else auto.
      mirror: Of faces: describe each with its mirror image; so a run's are if it did.
      scales: Lengths of an image's shorter side, in pixels, instead of the protocol's.
      batch_size: Images per step; views, where the protocol has several of an image.
        If not given the run's, else 512, and 8 of detectors and segmentation networks.
      on_bad_image: stop, or skip, which counts and names unreadable images.
    """
    usual = get_protocol("center_crop")
    chosen = usual if protocol == "lfw" else get_protocol(protocol, scales)
    if run_dir is not None:
        data = load_config(run_dir / "config.json").data
        max_boxes = max_boxes or data.max_boxes
        batch_size = batch_size or data.eval_batch_size
        align, mirror = align or data.align, mirror or data.mirror
        card = zoo.weights.read_card(run_dir)
        model, weights = card.model, str(run_dir)
        if dataset is None:
            dataset, split = data.dataset, split or data.eval_split
            data_dir, color = data_dir or data.data_dir, color or data.color
            classes, ignored = classes or data.classes, ignored or data.ignored
            values = values or data.values
            orientation = orientation or data.orientation
    split, max_boxes = split or "test", max_boxes or 100
    if model is None or weights is None or dataset is None:
        raise ValueError("give a run folder, or --model, --weights and --dataset.")
    spec = zoo.get_spec(model)
    if (spec.task != "verification") and (
        protocol == "lfw" or align not in (None, "auto")
    ):
        raise ValueError(f"--protocol lfw and --align are for faces; {model} is not.")
    if spec.task == "verification":
        if protocol not in PROTOCOLS or scales:
            raise ValueError(
                f"--protocol must be one of {PROTOCOLS} for {model}, without --scales."
            )
        color = color or {1: "grey", 3: "rgb"}[spec.preprocess.channels]
        opened = open_faces(
            dataset,
            split,
            data_dir=data_dir,
            color=None if color == "as_stored" else color,
            protocol=protocol,
        )
        found, card = evaluate_faces(
            model,
            weights,
            opened,
            align=align or "auto",
            mirror=mirror,
            batch_size=batch_size or 64,
            options=parse_options(option),
        )
        print(f"{model} ({card.source}) on {dataset}, split {split}:")
        print_verified(found, protocol=protocol)
        return
    # Which weights the classes had in training does not matter here.
    weighted = spec.loss == "median_frequency"
    task = make_task(spec, loss="softmax_cross_entropy" if weighted else "")
    if task.name != "classification" and chosen != usual:
        raise ValueError(
            f"--protocol and --scales are for classifiers; {model} is for {task.name}."
        )
    options = parse_options(option)
    if not chosen.cropped and "fully_convolutional" in zoo.list_options(model):
        options = {"fully_convolutional": True} | options
    module, variables, card = zoo.create_with_card(model, weights=weights, **options)
    color = color or {1: "grey", 3: "rgb"}.get(card.preprocess.channels)
    source = load_dataset(
        dataset,
        split,
        data_dir=data_dir,
        classes=classes or None,
        color=None if color == "as_stored" else color,
        task=task.name,
        ignored=ignored,
        values=values,
        orientation=orientation or "auto",
    )
    if source.task != task.name:
        raise ValueError(
            f"{dataset} is for {source.task}, and {model} for {task.name}."
        )
    _check_classes(source.class_names, card, f"{dataset}, split {split},", weights)
    started = time.perf_counter()
    source = fit_source(
        source, card.preprocess, on_bad_image=on_bad_image, max_boxes=max_boxes
    )
    problems = find_problems(source, skip=on_bad_image == "skip")
    if problems:
        raise ValueError(" ".join(problems))
    batch_size = batch_size or (512 if task.name == "classification" else 8)
    if chosen == usual:
        mesh = make_mesh()
        evaluator = Evaluator(
            module,
            task,
            source,
            card.preprocess,
            mesh,
            batch_size,
            max_boxes=max_boxes,
            progress=True,
        )
        variables = put_replicated(variables, mesh)
        evaluated = evaluator(variables)
        found = evaluated.metrics
        if task.name == "detection":
            found = {**found, **measure_coco(evaluated, card.num_classes)}
    else:
        found = evaluate_views(
            module,
            variables,
            source.source,
            card.preprocess,
            chosen,
            batch_size=batch_size,
        )
    seconds = time.perf_counter() - started
    print(f"{model} ({card.source}) on {dataset}, split {split}:")
    if task.name == "classification":
        views = "one view" if chosen.count == 1 else f"{chosen.count} views"
        print(f"  protocol  {chosen.name}, {views} of each image")
        print(f"  top-1     {_share(found['correct'], found['count'])}")
        if "top5" in found:
            hits = round(found["top5"] * found["count"])
            print(f"  top-5     {_share(hits, found['count'])}")
        print(f"  loss      {found['loss']:.4f}")
    else:
        for name, value in found.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"  {name.replace('_', ' '):<22}  {shown}")
    speed = len(source) / seconds
    print(f"  speed     {format_rate(speed)} images per second, compilation included")


def visualize(
    run_dir: Positional[Path | None] = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    option: tuple[str, ...] = (),
    dataset: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    color: str | None = None,
    layers: tuple[str, ...] = (),
    channels: int = 16,
    images: int = 1000,
    out: Path | None = None,
) -> None:
    """Writes a page of what a run's network, or any other, sees.

    Args:
      run_dir: Folder of a run; else give --model and --weights.
      model: Registered name of a model.
      weights: Path or registered name of its weights.
      option: Options of the model as name=value.
      dataset: As for evaluate; the run's if not given.
      split: Of the data set; the run's, else test.
      data_dir: Where TFDS keeps prepared data sets.
      color: rgb, grey or as_stored; the run's, else that which the network takes.
      layers: Names of endpoints; four of the network's maps if not given.
      channels: How many channels to show of each layer.
      images: Most images to look for the strongest activations in.
      out: The page; RUN/visualization.html if not given, or visualization-MODEL.html in
        the current folder.
    """
    classes, ignored = None, ()
    if run_dir is not None:
        data = load_config(run_dir / "config.json").data
        model = zoo.weights.read_checkpoint(run_dir)[1].model
        weights = str(run_dir)
        if dataset is None:
            dataset, classes, ignored = data.dataset, data.classes or None, data.ignored
            data_dir, color = data_dir or data.data_dir, color or data.color
            split = split or data.eval_split
        out = out or run_dir / "visualization.html"
    if model is None or weights is None or dataset is None:
        raise ValueError("give a run folder, or --model, --weights and --dataset.")
    started = time.perf_counter()
    module, variables, card = zoo.create_with_card(
        model, weights=weights, **parse_options(option)
    )
    color = color or {1: "grey", 3: "rgb"}.get(card.preprocess.channels)
    source = load_dataset(
        dataset,
        split or "test",
        data_dir=data_dir,
        classes=classes,
        color=None if color == "as_stored" else color,
        task=zoo.get_spec(model).task,
        ignored=ignored,
    )
    history = read_steps(run_dir) if run_dir is not None else {}
    path = write_visualization(
        Network(module, variables, card),
        fit_source(source, card.preprocess),
        out or Path(f"visualization-{model}.html"),
        title=f"What {model} sees",
        layers=layers,
        channels=channels,
        limit=images,
        history=history if len(history) > 1 else None,
    )
    seconds = time.perf_counter() - started
    print(f"Open {path} in a browser; it took {seconds:.0f} s.")


def measure_coco(evaluated: Detected, num_classes: int) -> dict[str, float]:
    """Computes what COCO adds to the average precision at an IoU of 0.5."""
    state = coco.empty(num_classes)
    state = coco.update(state, evaluated.detections, evaluated.objects)
    found = coco.compute(state)
    return {f"coco_{name}": found[name] for name in coco.NAMES}


def _check_classes(
    names: tuple[str, ...], card: Card, where: str, weights: str
) -> None:
    """Raises, or says so, where a set's classes are not those of the weights."""
    if len(names) != card.num_classes:
        raise ValueError(
            f"{where} has {len(names)} classes, and {weights} was trained on "
            f"{card.num_classes}."
        )
    known = card.class_names
    if not known or names == known:
        return
    for number, name in enumerate(names):
        if name in known and known[number] != name:
            raise ValueError(
                f"{where} has the classes in another order: {name!r} is number "
                f"{number}, and in {weights} number {known.index(name)}."
            )
    print(f"Classes are matched by number: class 0 is {names[0]!r} in the data set")
    print(f"and {known[0]!r} in {weights}, the last {names[-1]!r} and {known[-1]!r}.")


def _share(count: int, total: int) -> str:
    low, high = confidence_interval(count, total)
    return f"{count / total:.2%} ({count} of {total}), {low:.2%} to {high:.2%} at 95 %"


def predict(
    run_dir: Positional[Path],
    images: Positional[tuple[Path, ...]],
    out: Path | None = None,
    score_threshold: float = 0.3,
) -> None:
    """Shows a run's network images, and draws what it says.

    Of a classifier that is its classes, of a detector boxes with classes and scores. A
    segmentation network's masks are written, too, in the colours of its data set. A
    face network compares two photographs: are they of one person?

    Args:
      run_dir: Folder of a run.
      images: Files.
      out: Folder for the pictures; RUN/predictions if not given.
      score_threshold: Of detectors: what is drawn has a higher score, 0 to 1.
    """
    if not images:
        raise ValueError("name at least one image.")
    card = zoo.weights.read_checkpoint(run_dir)[1]
    if zoo.get_spec(card.model).task == "verification":
        out = out or run_dir / "predictions"
        out.mkdir(parents=True, exist_ok=True)
        predict_pair(run_dir, images, out)
        return
    predictor = load_predictor(run_dir, score_threshold=score_threshold)
    out = out or run_dir / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(images):
        predicted = predictor(predictor.read(path))
        # Two folders may have a file of the same name.
        number = sum(other.stem == path.stem for other in images[:i])
        files = []
        for ending, picture in predicted.pictures.items():
            files.append(
                out / f"{path.stem}{f'-{number}' if number else ''}{ending}.png"
            )
            picture.save(files[-1])
        print(f"{path}: {predicted.words}  ({', '.join(map(str, files))})")


def landmarks(folder: Positional[Path]) -> None:
    """Finds the landmarks of faces in a folder's pictures: landmarks.csv.

    Args:
      folder: With pictures in it or below; the file is written into it.
    """
    count, missing = fill_landmarks(folder)
    print(f"{folder / LANDMARKS_FILE} has landmarks of {count} pictures.")
    if missing:
        print(f"No face was found in {len(missing)}: {', '.join(missing[:10])}")


def transfer(config: TrainConfig) -> None:
    """Trains a network that starts from other weights: --from, --dataset, --freeze."""
    source = config.model.weights
    if source is None:
        raise ValueError("transfer needs --from RUN_OR_WEIGHTS.")
    if not config.model.name:
        if not Path(source).is_dir():
            raise ValueError(f"{source} is no run folder: say --model.name too.")
        card = zoo.weights.read_card(source)
        model = dataclasses.replace(config.model, name=card.model)
        config = dataclasses.replace(config, model=model)
    train(config, f"transfer-{config.model.name}")


def digits_transfer(run_dir: Path | None = None, *, seeds: int = 3) -> None:
    """Compares frozen, fine-tuned and untrained features on few images of new digits.

    Args:
      run_dir: Folder of the study; runs/digits_transfer-TIME if not given.
      seeds: Choices of training images for each point.
    """
    run_dir = run_dir or new_run_dir("digits_transfer")
    _, accuracy = transfer_study.digits_transfer(run_dir, seeds=seeds)
    print("images a class   " + "".join(f"{n:>8}" for n in transfer_study.PER_CLASS))
    for method, values in accuracy.items():
        print(f"{method:<17}" + "".join(f"{v:>8.1%}" for v in values.mean(axis=1)))
    print(f"The table and the plot are in {run_dir / 'report.html'}.")


def study(
    name: Positional[str] = "",
    *,
    scale: Literal["quick", "medium", "full"] = "quick",
    dataset: str | None = None,
    steps: int | None = None,
    run_dir: Path | None = None,
    list: bool = False,
) -> None:
    """Measures a claim of the lecture anew, and writes a page and a result.

    Args:
      name: Name of the study, or "all" for one page of all.
      scale: quick: embedded data, at most five minutes on two cores; medium: real data,
        hours on a CPU; full: the paper's data and sizes.
      dataset: Data set in place of the study's own, such as imagefolder:PATH.
      steps: Length of the trainer's runs in place of the study's own.
      run_dir: Folder of the study; runs/study-NAME-SCALE if not given. What has been
        measured in it already is not measured again.
      list: Only list the studies.
    """
    from train import studies

    if list or not name:
        for each in studies.STUDIES.values():
            print(f"{each.name:<20}{', '.join(each.changes):<20}{each.claim}")
        return
    folder = run_dir or Path("runs") / f"study-{name}-{scale}"
    if name == "all":
        if dataset or steps:
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


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
