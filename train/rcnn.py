"""R-CNN on a trained classifier: the command `canon-zoo train rcnn`.

The head is linear: for each class a support vector machine (SVM), fitted with mined
hard negatives, and a ridge regressor of the boxes. Mining reads each image once. Memory
holds the features of the objects, the hard negatives, and a sample of near proposals.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from tqdm import tqdm

import zoo
from train.config import long
from train.data import Source, load_dataset
from train.data.proposals import remember, selective_search
from train.experiment import versions
from train.run_dir import new_run_dir
from zoo.detection.rcnn import RCNN
from zoo.figures.boxes import draw_detections
from zoo.metrics import detection as metrics
from zoo.metrics.detection import overlaps
from zoo.ops import box_coding
from zoo.regions import make_region_reader
from zoo.spec import Card, Preprocess
from zoo.transfer import graft

PICTURES = 12
Propose = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The paper's settings (appendices B and C, and its code)."""

    feature_norm: float = 20.0
    """Mean norm to which the features are scaled."""
    negative_iou: float = 0.3
    """IoU with every object of a class below which a proposal is a negative of it."""
    cost: float = 1e-3
    """Penalty C of the SVMs."""
    positive_weight: float = 2.0
    """Factor of the penalty C for objects, the positives."""
    bias_scale: float = 10.0
    """Scale of the constant feature; a large one regularizes the bias less."""
    hard_above: float = -1.0001
    """Margin above which a negative is hard, and kept."""
    easy_below: float = -1.2
    """Margin below which a kept negative is dropped after fitting."""
    retrain_every: int = 2000
    """New hard negatives after which an SVM is fitted again."""
    near_iou: float = 0.6
    """IoU with an object above which the box regressor is fitted to a proposal."""
    ridge: float = 1000.0
    """Penalty of the box regressor."""
    max_near: int = 2000
    """Largest number of a class's proposals, drawn uniformly, for its regressor."""
    norm_images: int = 200
    """Images from which the features' norm is estimated."""


class LinearSVM:
    """The SVM of one class, with its positives and hard negatives."""

    def __init__(self, positives: np.ndarray, config: FitConfig):
        self.config, self.positives = config, positives
        self.negatives = np.zeros((0, positives.shape[1]), np.float32)
        self.kernel, self.bias = np.zeros(positives.shape[1], np.float32), 0.0
        self._new, self.fitted = 0, False

    def margins(self, features: np.ndarray) -> np.ndarray:
        """Returns the signed distances [R] of features [R, F]."""
        return features @ self.kernel + self.bias

    def mine(self, features: np.ndarray) -> None:
        """Keeps the hard negatives among `features` [R, F], and refits at times."""
        if self.fitted:
            features = features[self.margins(features) > self.config.hard_above]
        if not len(features):
            return
        self.negatives = np.concatenate([self.negatives, features])
        self._new += len(features)
        # All negatives of the first image are kept, to fit a first SVM to mine with.
        if not self.fitted or self._new > self.config.retrain_every:
            self.fit()

    def fit(self) -> None:
        """Fits the SVM, then drops the negatives that have become easy."""
        if not len(self.positives) or not len(self.negatives):
            return
        config = self.config
        features = np.concatenate([self.positives, self.negatives])
        labels = np.arange(len(features)) < len(self.positives)
        fitted = LinearSVC(
            C=config.cost,
            loss="hinge",
            intercept_scaling=config.bias_scale,
            class_weight={True: config.positive_weight},
            random_state=0,
            max_iter=10_000,
        ).fit(features, labels)
        self.kernel = fitted.coef_[0].astype(np.float32)
        self.bias, self.fitted, self._new = float(fitted.intercept_[0]), True, 0
        easy = self.margins(self.negatives) < config.easy_below
        self.negatives = self.negatives[~easy]


class _Reservoir:
    """A uniform random sample of a stream of unknown length."""

    def __init__(self, size: int, seed: int):
        self._size, self._rng = size, np.random.default_rng(seed)
        self.items: list[Any] = []
        self._seen = 0

    def add(self, item: Any) -> None:
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := self._rng.integers(self._seen)) < self._size:
            self.items[place] = item


def fit_head(
    model: RCNN,
    variables: dict[str, Any],
    source: Source,
    propose: Propose,
    *,
    preprocess: Preprocess | None = None,
    config: FitConfig = FitConfig(),
    batch: int = 64,
) -> dict[str, Any]:
    """Fits the head of an R-CNN with a trained backbone.

    Args:
      model: The network, with a head for the source's classes.
      variables: The model's variables; those of the head are replaced.
      source: Images with boxes.
      propose: A function from an image uint8 [h, w, 3] to proposals [R, 4].
      preprocess: The backbone's input; the model's own if None.
      config: The settings.
      batch: The number of regions in a call of the network.

    Returns:
      New variables, with the same backbone.

    Raises:
      ValueError: A class has no objects or no negatives, or all features are 0.
    """
    count = len(source.class_names)
    read = make_region_reader(model, preprocess, batch=batch)
    scale = config.feature_norm / _mean_norm(read, variables, source, propose, config)
    objects = _object_features(read, variables, source)
    for name, features in zip(source.class_names, objects, strict=True):
        if not len(features):
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has no object that is "
                "not difficult, and an SVM needs some."
            )
    svms = [LinearSVM(scale * features, config) for features in objects]
    near = [_Reservoir(config.max_near, seed=k) for k in range(count)]
    for index in tqdm(range(len(source)), "mining"):
        example = source[index]
        proposals = propose(example["image"])
        if not len(proposals):
            continue
        found = read(variables, example["image"], proposals, ("pool5", "fc7"))
        features = scale * found["fc7"]
        usable = ~example["difficult"]
        boxes, classes = example["boxes"][usable], example["classes"][usable]
        iou = overlaps(proposals, boxes)
        for k, svm in enumerate(svms):
            own = iou[:, classes == k]
            svm.mine(features[own.max(axis=1, initial=0) < config.negative_iou])
        for r in np.flatnonzero(iou.max(axis=1, initial=0) > config.near_iou):
            n = int(iou[r].argmax())
            pool5 = found["pool5"][r].ravel()
            near[classes[n]].add((pool5, proposals[r], boxes[n]))
    for name, svm in zip(source.class_names, svms, strict=True):
        svm.fit()
        if not svm.fitted:
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has no proposal "
                f"that overlaps its objects by less than {config.negative_iou}, and a "
                "SVM needs some."
            )
    head = {
        "svm": {
            "kernel": scale * np.stack([svm.kernel for svm in svms], axis=1),
            "bias": np.array([svm.bias for svm in svms], np.float32),
        },
        "box": _fit_boxes([r.items for r in near], config, objects, variables),
    }
    return {**variables, "params": {**variables["params"], "head": head}}


def _mean_norm(read, variables, source, propose, config) -> float:
    norms = []
    images = min(len(source), config.norm_images)
    order = np.random.default_rng(0).permutation(len(source))[:images]
    for index in tqdm(order, "norm of the features"):
        image = source[int(index)]["image"]
        proposals = propose(image)[:200]
        if len(proposals):
            found = read(variables, image, proposals, ("fc7",))["fc7"]
            norms.append(np.linalg.norm(found, axis=1))
    mean = float(np.concatenate(norms).mean()) if norms else 0.0
    if mean <= 0:
        raise ValueError(
            f"{source.name} {source.split}: no proposal has a feature that is not 0; "
            "are these the weights of a trained network?"
        )
    return mean


def _object_features(read, variables, source) -> list[np.ndarray]:
    """Returns the features [N, F] of the objects of each class."""
    found = [[] for _ in source.class_names]
    width = 0
    for index in tqdm(range(len(source)), "objects"):
        example = source[index]
        usable = ~example["difficult"]
        boxes, classes = example["boxes"][usable], example["classes"][usable]
        if len(boxes):
            features = read(variables, example["image"], boxes, ("fc7",))["fc7"]
            width = features.shape[1]
            for feature, k in zip(features, classes, strict=True):
                found[k].append(feature)
    return [np.array(f, np.float32).reshape(len(f), width) for f in found]


def _fit_boxes(near, config, objects, variables) -> dict[str, np.ndarray]:
    """Fits the box regressors; that of a class without near proposals moves no box.

    The paper's code whitens the targets. This is omitted, since a linear map of the
    targets does not change the predictions of ridge regression.
    """
    kernel = np.asarray(variables["params"]["head"]["box"]["kernel"])
    kernel = np.zeros((len(kernel), len(objects), 4), np.float32)
    bias = np.zeros((len(objects), 4), np.float32)
    for k, samples in enumerate(near):
        if not samples:
            continue
        features, proposals, boxes = (np.stack(v) for v in zip(*samples, strict=True))
        targets = np.asarray(box_coding.encode(boxes, proposals))
        ridge = Ridge(alpha=config.ridge).fit(features, targets)
        kernel[:, k], bias[k] = ridge.coef_.T, ridge.intercept_
    return {"kernel": kernel.reshape(len(kernel), -1), "bias": bias.reshape(-1)}


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
    """Fits R-CNN's SVMs and box regressors on a trained classifier's features.

    Proposals are found once and kept in the run's folder. Prints the mean average
    precision on the evaluation split, and writes weights.safetensors, metrics.json and
    pictures of detections.

    Args:
      model: rcnn_vgg16 or rcnn_alexnet.
      weights: Weights of its classifier, vgg16 or alexnet: a registered name, the
        folder of a run, or a file.
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
      model: Registered name: "rcnn_" and the name of the classifier.
      weights: The weights of the classifier.
      class_names: The names of the objects' classes.

    Returns:
      The network, its variables, whose head is not fitted yet, and their card.
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
    """Detects the objects in all images of a set, and computes the metrics.

    Args:
      network: An R-CNN.
      variables: The network's variables.
      source: Images with boxes.
      propose: A function from an image to proposals.
      preprocess: The network's input; its own if None.
      batch: Regions in a call of the network.
      max_proposals: Largest number of proposals of an image.
      pictures: Folder for pictures of the first images, each with as many of its best
        detections as there are objects; None for no pictures.

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
            # As many as there are objects, since margins have no natural threshold.
            shown = surest(found, count)
            picture = draw_detections(example["image"], *shown, source.class_names)
            pictures.mkdir(parents=True, exist_ok=True)
            picture.save(pictures / f"{index:06d}.png")
    return metrics.compute(state)


def surest(
    found: zoo.Detections, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the boxes, classes and scores of an image's `count` best detections.

    There are fewer if fewer detections are valid.
    """
    best = np.flatnonzero(found.valid[0])[:count]
    return found.boxes[0][best], found.classes[0][best], found.scores[0][best]
