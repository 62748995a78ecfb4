"""Faces on the command line: are two of one person, and how often is that right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import zoo
from train.config import load_config
from train.data import Source, align_source, decode_image, fit_source, load_dataset
from train.data.faces import LANDMARKS_FILE, align_face, read_landmarks
from train.data.files import Files
from train.data.landmarks import make_detector
from train.evaluate import Evaluator
from train.history import read_history
from train.protocols import evaluate_pairs, weighted_chi_squared
from train.steps import make_mesh, put_replicated
from train.tasks import Verified, make_task
from train.tasks.verification import average_templates, probability
from zoo.figures.pictures import beside, enlarge
from zoo.preprocess import fit_image
from zoo.spec import Card

PROTOCOLS = ("center_crop", "lfw")


def evaluate_faces(
    model: str,
    weights: str,
    source: Source,
    *,
    align: str,
    mirror: bool,
    batch_size: int,
    options: dict,
) -> tuple[Verified, Card]:
    """Evaluates a face network on a set of people.

    Args:
      model: Registered name of a network.
      weights: Path of its weights.
      source: The set.
      align: How faces are aligned, see `align_source`.
      mirror: Whether faces are described together with their mirror images.
      batch_size: Images per step.
      options: Options of the model.

    Returns:
      What was found, and the card of the weights.
    """
    module, variables, card = zoo.create_with_card(model, weights=weights, **options)
    task = make_task(zoo.get_spec(model), faces=source.face_set(), mirror=mirror)
    aligned = fit_source(align_source(source, align, card.preprocess), card.preprocess)
    mesh = make_mesh()
    evaluate = Evaluator(
        module, task, aligned, card.preprocess, mesh, batch_size, progress=True
    )
    found = evaluate(put_replicated(variables, mesh))
    return found, card


def open_faces(
    dataset: str, split: str, *, data_dir: str | None, color: str | None, protocol: str
) -> Source:
    """Opens a set of people for an evaluation.

    Raises:
      ValueError: The protocol is "lfw" and the set has no pairs of its own.
    """
    source = load_dataset(
        dataset, split, data_dir=data_dir, color=color, task="verification"
    )
    if protocol == "lfw" and source.pairs is None:
        raise ValueError(
            f"--protocol lfw needs the pairs of a list, and {dataset}, split {split}, "
            "has none; open lfw:PATH with its pairs.txt, split test."
        )
    return source


def print_verified(found: Verified, *, protocol: str = "center_crop") -> None:
    """Prints the measures of an evaluation, and those of each group.

    With the protocol "lfw" also those of its restricted setting: chi-squared with
    weights that are fitted to the other folds' pairs.
    """
    for name, value in found.metrics.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        print(f"  {name.replace('_', ' '):<22}  {shown}")
    if protocol == "lfw" and len(np.unique(found.faces.pairs.fold)) > 1:
        values, templates = found.descriptors, found.faces.templates
        if templates is not None:
            values = average_templates(values, templates)
        learned = evaluate_pairs(weighted_chi_squared, values, found.faces.pairs)
        print(
            f"  weighted chi-squared    {learned['accuracy']:.4f} +- "
            f"{learned['standard_error']:.4f}, auc {learned['auc']:.4f} (restricted)"
        )
    for name, pairs, accuracy in found.groups:
        print(f"  group {name:<16}  {accuracy:.4f} of {pairs:,} pairs")


def predict_pair(run_dir: Path, images: Sequence[Path], out: Path) -> None:
    """Says whether two photographs are of one person, and shows both aligned.

    Landmarks come from `landmarks.csv` in the folder of a photograph, or else of dlib.

    Args:
      run_dir: Folder of a run.
      images: Two files.
      out: Folder for the picture.

    Raises:
      ValueError: There are not two images, a run that has not been evaluated, or a face
        without landmarks.
    """
    if len(images) != 2:
        raise ValueError(f"name two photographs to compare, got {len(images)}.")
    config = load_config(run_dir / "config.json")
    name = zoo.weights.read_checkpoint(run_dir)[1].model
    model, variables, card = zoo.create_with_card(name, weights=str(run_dir))
    rows = [row for row in read_history(run_dir) if "threshold" in row]
    if not rows:
        raise ValueError(f"{run_dir} has no evaluation, and so no threshold yet.")
    measured = rows[-1]
    color = {1: "grey", 3: "rgb"}[card.preprocess.channels]
    crops = []
    for path in images:
        image = decode_image(path.read_bytes(), str(path), color=color, upright=True)
        crops.append(_crop(image, path, config.data.align, card))
    describe = zoo.make_describer(model, card.preprocess, flip=config.data.mirror)
    first, second = np.asarray(describe(variables, np.stack(crops)), np.float64)
    score = float(first @ second)
    chance = probability(score, measured)
    same = score > measured["threshold"]
    pictures: list[Image.Image] = [enlarge(crop, 256) for crop in crops]
    picture = beside(pictures, [path.name[:28] for path in images])
    file = out / f"{images[0].stem}-{images[1].stem}.png"
    picture.save(file)
    print(
        f"{images[0]} and {images[1]}: {'the same person' if same else 'two people'}, "
        f"probability of the same {chance:.1%} (score {score:.3f}, threshold "
        f"{measured['threshold']:.3f})  ({file})"
    )


def _crop(image: np.ndarray, path: Path, align: str, card: Card) -> np.ndarray:
    size = card.preprocess.size
    landmarks = read_landmarks(Files(path.parent)).get(path.name)
    if align == "none":
        return fit_image(image, card.preprocess)
    if landmarks is None:
        try:
            landmarks = make_detector()(image)
        except ImportError as error:
            raise ValueError(
                f"{path} has no landmarks: {path.parent / LANDMARKS_FILE} must have a "
                f"line for it, or {error}"
            ) from error
        if landmarks is None:
            raise ValueError(f"{path}: no face was found.")
    return align_face(image, landmarks, align, size)
