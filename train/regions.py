"""The command `canon-zoo train rcnn`: from a classifier and boxes to an R-CNN."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from tqdm import tqdm

import zoo
from train.config import long
from train.data import Source, load_dataset
from train.data.proposals import remember, selective_search
from train.experiment import versions
from train.rcnn import Propose, fit_head
from train.run_dir import new_run_dir
from zoo.detection.rcnn import RCNN
from zoo.figures.boxes import draw_detections
from zoo.metrics import detection as metrics
from zoo.spec import Card, Preprocess
from zoo.transfer import graft

PICTURES = 12


def rcnn(
    model: str = "rcnn_vgg16",
    *,
    weights: str = "imagenet",
    dataset: str,
    train_split: str = "trainval",
    eval_split: str = "test",
    data_dir: str | None = None,
    classes: tuple[str, ...] = (),
    orientation: Annotated[str, long("orientation")] = "auto",
    run_dir: Path | None = None,
    search: str = "fast",
    max_proposals: int = 2000,
    batch_size: int = 64,
) -> None:
    """Fits R-CNN's machines and box regressors on a trained classifier's features.

    Proposals are found once and kept in the run's folder. It ends with the mean average
    precision of the evaluation split, weights.safetensors, metrics.json and pictures of
    detections.

    Args:
      model: rcnn_vgg16 or rcnn_alexnet.
      weights: Weights of its classifier, vgg16 or alexnet: a registered name, a run's
        folder,
        or a file.
      dataset: Images with boxes, such as voc:PATH or coco:DIR.
      train_split: Split to fit on.
      eval_split: Split to evaluate on.
      data_dir: Where TFDS keeps prepared data sets.
      classes: Names of the classes to keep; none for all.
      orientation: auto, stored or upright: how EXIF orientations are treated.
      run_dir: Folder of the run; runs/NAME-TIME if not given.
      search: Mode of selective search, fast or quality.
      max_proposals: Largest number of proposals of an image.
      batch_size: Regions in a call of the network.
    """
    spec = zoo.get_spec(model)
    if not isinstance(spec.build(num_classes=1), RCNN):
        raise ValueError(f"{model} is no R-CNN; give rcnn_vgg16 or rcnn_alexnet.")
    sources = [
        load_dataset(
            dataset,
            split,
            data_dir=data_dir,
            classes=classes or None,
            color="rgb",
            task="detection",
            orientation=orientation,
        )
        for split in (train_split, eval_split)
    ]
    names = sources[0].class_names
    if names != sources[1].class_names:
        raise ValueError(
            f"the splits {train_split} and {eval_split} of {dataset} differ in "
            f"classes: {names}, {sources[1].class_names}."
        )
    run_dir = run_dir or new_run_dir(model)
    if (run_dir / "weights.safetensors").exists():
        raise ValueError(f"{run_dir} has weights already; choose another --run-dir.")
    network, variables, card = create_from_classifier(model, weights, names)
    find = partial(selective_search, mode=search, max_proposals=max_proposals)
    propose = remember(find, run_dir / f"proposals-{search}-{max_proposals}")
    variables = fit_head(
        network,
        variables,
        sources[0],
        propose,
        preprocess=card.preprocess,
        batch=batch_size,
        progress=True,
    )
    card = dataclasses.replace(
        card, source=f"head fitted on {dataset}, split {train_split}", accuracy=""
    )
    zoo.weights.save_safetensors(run_dir / "weights.safetensors", variables, card)
    found = evaluate_regions(
        network,
        variables,
        sources[1],
        propose,
        preprocess=card.preprocess,
        batch=batch_size,
        max_proposals=max_proposals,
        pictures=run_dir / "detections",
    )
    found.pop("curves")
    (run_dir / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{eval_split}: mean AP {found['ap50']:.2%}, {found['ap50_voc07']:.2%} (VOC07)"
    )
    for name, precision in zip(names, found["by_class"], strict=True):
        print(f"  {name}: {'no object' if precision is None else f'{precision:.2%}'}")
    print(f"Weights, metrics and pictures are in {run_dir}.")


def create_from_classifier(
    model: str, weights: str, class_names: tuple[str, ...]
) -> tuple[RCNN, dict[str, Any], Card]:
    """Creates an R-CNN on the layers of a trained classifier.

    Args:
      model: Registered name, "rcnn_" and the classifier's.
      weights: The weights of the classifier.
      class_names: The names of the objects' classes.

    Returns:
      The network, its variables, with a head that is not fitted, and their card.
    """
    classifier = model.removeprefix("rcnn_")
    _, trained, theirs = zoo.create_with_card(
        classifier, weights=weights, num_classes=0
    )
    shared = zoo.list_options(model)
    options = {k: v for k, v in theirs.overrides.items() if k in shared}
    network, fresh, card = zoo.create_with_card(
        model, num_classes=len(class_names), **options
    )
    variables = graft(fresh, trained, keep=["head/**"])
    preprocess = dataclasses.replace(
        theirs.preprocess, resize=None, fit="stretch", antialias=False
    )
    card = dataclasses.replace(
        card,
        preprocess=preprocess,
        class_names=class_names,
        licence=theirs.licence,
        versions=versions(),
    )
    return network, variables, card


def evaluate_regions(
    network: RCNN,
    variables: Mapping[str, Any],
    source: Source,
    propose: Propose,
    *,
    preprocess: Preprocess | None = None,
    batch: int = 64,
    max_proposals: int = 2000,
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Detects the objects of every image of a set, and measures how well.

    Args:
      network: An R-CNN.
      variables: The network's variables.
      source: Images with boxes.
      propose: A function from an image to proposals.
      preprocess: The network's input; its own if None.
      batch: Regions in a call of the network.
      max_proposals: Largest number of proposals of an image.
      pictures: Folder for pictures of the first images, of which each shows as many
        detections as there are objects, the surest; None for none.

    Returns:
      What `zoo.metrics.detection.compute` returns.
    """
    detect = zoo.make_region_detector(
        network, preprocess, batch=batch, max_proposals=max_proposals
    )
    state = metrics.empty(len(source.class_names))
    for index in tqdm(range(len(source)), "evaluating"):
        example = source[index]
        found = jax.device_get(
            detect(variables, example["image"], propose(example["image"]))
        )
        count = len(example["boxes"])
        objects = metrics.Objects(
            example["boxes"][None],
            example["classes"][None],
            np.ones((1, count), bool),
            example["difficult"][None],
        )
        state = metrics.update(state, found, objects)
        if pictures is not None and index < PICTURES:
            # As many as there are objects: margins have no level at which one is sure.
            shown = surest(found, count)
            picture = draw_detections(example["image"], *shown, source.class_names)
            pictures.mkdir(parents=True, exist_ok=True)
            picture.save(pictures / f"{index:06d}.png")
    return metrics.compute(state)


def surest(
    found: zoo.Detections, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the boxes, classes and scores of an image's `count` best detections.

    They are fewer where not so many are valid.
    """
    best = np.flatnonzero(found.valid[0])[:count]
    return found.boxes[0][best], found.classes[0][best], found.scores[0][best]
