"""Fitting of R-CNN's linear head: machines with mined negatives, ridge regressors.

One pass over the images, which are read once; what is kept in memory are the features
of the objects, of the negatives that were hard, and of a sample of near proposals.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from tqdm import tqdm

from train.data import Source
from zoo.detection.rcnn import RCNN
from zoo.metrics.detection import overlaps
from zoo.ops import box_coding
from zoo.regions import make_region_reader
from zoo.spec import Preprocess

Propose = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The paper's settings (appendices B and C, and its code)."""

    feature_norm: float = 20.0
    """To which the features' mean norm is scaled."""
    negative_iou: float = 0.3
    """A proposal that overlaps every object of a class by less is its negative."""
    cost: float = 1e-3
    """C of the machines."""
    positive_weight: float = 2.0
    """By which an object's cost is multiplied."""
    bias_scale: float = 10.0
    """Scale of the constant feature, which regularizes the bias less."""
    hard_above: float = -1.0001
    """Margin from which a negative is hard, and kept."""
    easy_below: float = -1.2
    """Margin below which a kept negative is dropped after fitting."""
    retrain_every: int = 2000
    """New hard negatives after which a machine is fitted again."""
    near_iou: float = 0.6
    """Overlap from which a proposal teaches the box regressor."""
    ridge: float = 1000.0
    """Penalty of the box regressor."""
    max_near: int = 2000
    """Proposals of a class, drawn evenly, that teach its regressor."""
    norm_images: int = 200
    """Images from which the features' norm is estimated."""


class Machine:
    """The support vector machine of one class, and its cache of examples."""

    def __init__(self, positives: np.ndarray, config: FitConfig):
        self.config, self.positives = config, positives
        self.negatives = np.zeros((0, positives.shape[1]), np.float32)
        self.kernel, self.bias = np.zeros(positives.shape[1], np.float32), 0.0
        self._new, self.fitted = 0, False

    def margins(self, features: np.ndarray) -> np.ndarray:
        """Returns the signed distances [R] of features [R, F]."""
        return features @ self.kernel + self.bias

    def mine(self, features: np.ndarray) -> None:
        """Keeps the negatives [R, F] that are hard, and fits again at times."""
        if self.fitted:
            features = features[self.margins(features) > self.config.hard_above]
        if not len(features):
            return
        self.negatives = np.concatenate([self.negatives, features])
        self._new += len(features)
        # The first image's are all kept, so that there is a machine to mine with.
        if not self.fitted or self._new > self.config.retrain_every:
            self.fit()

    def fit(self) -> None:
        """Fits the machine, then forgets the negatives that have become easy."""
        if not len(self.positives) or not len(self.negatives):
            return
        config = self.config
        features = np.concatenate([self.positives, self.negatives])
        labels = np.arange(len(features)) < len(self.positives)
        machine = LinearSVC(
            C=config.cost,
            loss="hinge",
            intercept_scaling=config.bias_scale,
            class_weight={True: config.positive_weight},
            random_state=0,
            max_iter=10_000,
        ).fit(features, labels)
        self.kernel = machine.coef_[0].astype(np.float32)
        self.bias, self.fitted, self._new = float(machine.intercept_[0]), True, 0
        easy = self.margins(self.negatives) < config.easy_below
        self.negatives = self.negatives[~easy]


class _Reservoir:
    """An even sample of a stream of unknown length."""

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
    progress: bool = False,
) -> dict[str, Any]:
    """Fits the head of an R-CNN whose backbone is trained.

    Args:
      model: The network, with a head for the source's classes.
      variables: The model's variables; those of the head are replaced.
      source: Images with boxes.
      propose: A function from an image uint8 [h, w, 3] to proposals [R, 4].
      preprocess: The backbone's input; the model's own if None.
      config: The settings.
      batch: The number of regions in a call of the network.
      progress: Whether to show bars.

    Returns:
      New variables, with the same backbone.

    Raises:
      ValueError: A class has no object, or no proposal that is none, or no feature
        differs from 0.
    """
    count = len(source.class_names)
    read = make_region_reader(model, preprocess, batch=batch)
    scale = config.feature_norm / _mean_norm(
        read, variables, source, propose, config, progress
    )
    objects = _object_features(read, variables, source, progress)
    for name, features in zip(source.class_names, objects, strict=True):
        if not len(features):
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has no object that is "
                "not difficult, and a machine needs some."
            )
    machines = [Machine(scale * features, config) for features in objects]
    near = [_Reservoir(config.max_near, seed=k) for k in range(count)]
    for index in tqdm(range(len(source)), "mining", disable=not progress):
        example = source[index]
        proposals = propose(example["image"])
        if not len(proposals):
            continue
        found = read(variables, example["image"], proposals, ("pool5", "fc7"))
        features = scale * found["fc7"]
        usable = ~example["difficult"]
        boxes, classes = example["boxes"][usable], example["classes"][usable]
        iou = overlaps(proposals, boxes)
        for k, machine in enumerate(machines):
            own = iou[:, classes == k]
            machine.mine(features[own.max(axis=1, initial=0) < config.negative_iou])
        for r in np.flatnonzero(iou.max(axis=1, initial=0) > config.near_iou):
            n = int(iou[r].argmax())
            pool5 = found["pool5"][r].ravel()
            near[classes[n]].add((pool5, proposals[r], boxes[n]))
    for name, machine in zip(source.class_names, machines, strict=True):
        machine.fit()
        if not machine.fitted:
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has no proposal "
                f"that overlaps its objects by less than {config.negative_iou}, and a "
                "machine needs some."
            )
    head = {
        "svm": {
            "kernel": scale * np.stack([m.kernel for m in machines], axis=1),
            "bias": np.array([m.bias for m in machines], np.float32),
        },
        "box": _fit_boxes([r.items for r in near], config, objects, model, variables),
    }
    return {**variables, "params": {**variables["params"], "head": head}}


def _mean_norm(read, variables, source, propose, config, progress) -> float:
    norms = []
    images = min(len(source), config.norm_images)
    order = np.random.default_rng(0).permutation(len(source))[:images]
    for index in tqdm(order, "norm of the features", disable=not progress):
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


def _object_features(read, variables, source, progress) -> list[np.ndarray]:
    """Returns the features [N, F] of the objects of each class."""
    found = [[] for _ in source.class_names]
    width = 0
    for index in tqdm(range(len(source)), "objects", disable=not progress):
        example = source[index]
        usable = ~example["difficult"]
        boxes, classes = example["boxes"][usable], example["classes"][usable]
        if len(boxes):
            features = read(variables, example["image"], boxes, ("fc7",))["fc7"]
            width = features.shape[1]
            for feature, k in zip(features, classes, strict=True):
                found[k].append(feature)
    return [np.array(f, np.float32).reshape(len(f), width) for f in found]


def _fit_boxes(near, config, objects, model, variables) -> dict[str, np.ndarray]:
    """Fits the regressors. A class without near proposals moves no box.

    Whitening the targets, as the paper's code does, changes nothing in ridge
    regression, which is the same map in any coordinates of its outputs.
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
