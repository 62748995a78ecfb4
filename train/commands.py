"""What the command line does, one function a command."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from tyro.conf import Positional

import zoo
from train import transfer_study
from train.config import TrainConfig, load_config, parse_options
from train.data import decode_image, fit_source, open_source
from train.evaluate import Evaluator
from train.figures import draw_prediction
from train.loop import resume_run
from train.report import confidence_interval
from train.runs import new_run_dir, next_steps, report, run
from train.steps import make_mesh
from train.tasks import make_loss


def train(config: TrainConfig, name: str) -> None:
    """Trains, writes the report, and says what can be done next."""
    print(f"{name}: {config.model.name} on {config.data.dataset}, {_devices()}.")
    print(next_steps(run(config, name)))


def resume(run_dir: Positional[Path], step: int | None = None) -> None:
    """Goes on with an interrupted run, to the bit as if nothing had happened.

    Args:
      run_dir: Folder of the run.
      step: Of the checkpoint to go on from; the last complete one if not given.
    """
    result = resume_run(run_dir, step=step)
    report(result)
    print(next_steps(result))


def evaluate(
    run_dir: Positional[Path | None] = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    option: tuple[str, ...] = (),
    dataset: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    color: str | None = None,
    batch_size: int = 512,
    on_bad_image: str = "stop",
) -> None:
    """Evaluates a run, or any model with weights, on a data set.

    Args:
      run_dir: Folder of a run; else give --model and --weights.
      model: Registered name of a model.
      weights: Path or registered name of its weights.
      option: Options of the model as name=value.
      dataset: digits, cifar10, a TFDS name or imagefolder:PATH; the run's if not given.
      split: Of the data set.
      data_dir: Where TFDS keeps prepared data sets.
      color: rgb or grey, to convert every image.
      batch_size: Images per step.
      on_bad_image: stop, or skip, which counts and names unreadable images.
    """
    classes = None
    if run_dir is not None:
        data = load_config(run_dir / "config.json").data
        card = zoo.weights.read_checkpoint(run_dir)[1]
        model, weights = card.model, str(run_dir)
        if dataset is None:
            dataset, classes = data.dataset, data.classes or None
            data_dir, color = data_dir or data.data_dir, color or data.color
    if model is None or weights is None or dataset is None:
        raise ValueError("give a run folder, or --model, --weights and --dataset.")
    module, variables, card = zoo.create_with_card(
        model, weights=weights, **parse_options(option)
    )
    source = open_source(
        dataset,
        split,
        data_dir=data_dir,
        classes=classes,
        color=None if color == "as_stored" else color,
    )
    if len(source.class_names) != card.num_classes:
        raise ValueError(
            f"{dataset} has {len(source.class_names)} classes, and {weights} was "
            f"trained on {card.num_classes}."
        )
    if card.class_names and source.class_names != card.class_names:
        if set(source.class_names) == set(card.class_names):
            raise ValueError(
                f"{dataset} has the classes in another order, {source.class_names}, "
                f"than {weights}, {card.class_names}."
            )
        print(f"Classes are matched by number: {source.class_names} are not called")
        print(f"as those that {weights} was trained on, {card.class_names}.")
    evaluator = Evaluator(
        module,
        make_loss(zoo.get_spec(model).loss),
        fit_source(source, card.preprocess, on_bad_image=on_bad_image),
        card.preprocess,
        make_mesh(),
        batch_size,
    )
    found, _, _ = evaluator(variables)
    low, high = confidence_interval(found["correct"], found["count"])
    print(f"{model} ({card.source}) on {dataset}, split {split}:")
    right = f"{found['correct']} of {found['count']}"
    print(f"  accuracy  {found['accuracy']:.2%} ({right})")
    print(f"  interval  {low:.2%} to {high:.2%} at 95 %")
    if "top5" in found:
        print(f"  top-5     {found['top5']:.2%}")
    print(f"  loss      {found['loss']:.4f}")


def predict(
    run_dir: Positional[Path],
    images: Positional[tuple[Path, ...]],
    out: Path | None = None,
) -> None:
    """Classifies images with the network of a run, and draws what it says.

    Args:
      run_dir: Folder of a run.
      images: Files to classify.
      out: Folder for the pictures; RUN/predictions if not given.
    """
    if not images:
        raise ValueError("name at least one image.")
    card = zoo.weights.read_checkpoint(run_dir)[1]
    model, variables = zoo.create(card.model, weights=str(run_dir))
    apply = jax.jit(model.apply)
    names = card.class_names or tuple(map(str, range(card.num_classes)))
    out = out or run_dir / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    color = {1: "grey", 3: "rgb"}[card.preprocess.channels]
    for i, path in enumerate(images):
        image = decode_image(path.read_bytes(), str(path), color=color)
        fitted = zoo.fit_image(image, card.preprocess)[None]
        logits = apply(
            variables, zoo.normalize(jax.numpy.asarray(fitted), card.preprocess)
        )
        probabilities = np.asarray(jax.nn.softmax(logits)[0])
        # Two folders may have a file of the same name.
        number = sum(other.stem == path.stem for other in images[:i])
        picture = out / f"{path.stem}{f'-{number}' if number else ''}.png"
        draw_prediction(image, names, probabilities).save(picture)
        best = int(probabilities.argmax())
        print(f"{path}: {names[best]} {probabilities[best]:.1%}  ({picture})")


def transfer(config: TrainConfig) -> None:
    """Trains a network that starts from other weights: --from, --dataset, --freeze."""
    source = config.model.weights
    if source is None:
        raise ValueError("transfer needs --from RUN_OR_WEIGHTS.")
    if not config.model.name:
        if not Path(source).is_dir():
            raise ValueError(f"{source} is no run folder: say --model.name too.")
        card = zoo.weights.read_checkpoint(Path(source))[1]
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


def _devices() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
