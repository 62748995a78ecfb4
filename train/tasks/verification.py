"""Identification and verification of faces."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import zoo
from train.config import DataConfig, OptimConfig, load_config
from train.data import Source, align_source, choose_alignment
from train.data.faces.aligned import align_face
from train.data.faces.landmarks import LANDMARKS_FILE, make_detector, read_landmarks
from train.data.files import Files
from train.descriptors import (
    Verified,
    average_templates,
    evaluate_descriptors,
    probability,
)
from train.history import read_history
from train.report.verification import evaluate_verification
from train.task import Predicted, Task, apply_and_compare, format_rows
from train.tasks.classification import Loss, check_no_aux_loss, make_loss
from train.tasks.pair_protocols import (
    ensemble,
    evaluate_pairs,
    siamese,
    weighted_chi_squared,
)
from zoo.face.verification import UNKNOWN, FaceSet, feature_maximum, normalize_features
from zoo.figures.pictures import beside, enlarge
from zoo.paths import unknown
from zoo.preprocess import resize_center_crop
from zoo.spec import PRIMARY_METRICS, Card, ModelSpec, Preprocess

# Comparisons that are fitted to pairs: the printed name, and the function.
LEARNED = {
    "chi_squared": ("weighted chi-squared", weighted_chi_squared),
    "siamese": ("siamese", siamese),
    "ensemble": ("ensemble", ensemble),
}
PROTOCOLS = ("center_crop", "lfw", *LEARNED)


@dataclasses.dataclass(frozen=True, eq=False)
class Verification(Task):
    """Trains a classifier of people, and evaluates its descriptors on pairs of faces.

    A batch has `label` int32 [B], -1 for people who are not trained on.

    Attributes:
      loss: A function from logits and labels to losses [B].
      faces: The people and the pairs of the evaluated set; not needed in training.
      mirror: Whether a descriptor is the mean over the face and its mirror image.
      f7: The `kernel`, `bias` and `max` of F7, from which the siamese network starts;
        None for other protocols.
      others: Descriptors float32 [N, D] of the ensemble's other networks.
      class_names: The names of the people to train on, in the evaluated set.
    """

    loss: Loss
    faces: FaceSet | None = None
    mirror: bool = False
    f7: Mapping[str, Any] | None = None
    others: tuple[np.ndarray, ...] = ()
    class_names: tuple[str, ...] = ()
    name = "verification"
    primary_metric = PRIMARY_METRICS[name]
    has_targets_in_place = False
    eval_batch_size = 64
    evaluate_options = frozenset({"align", "mirror", "landmark_noise", "ensemble"})
    predict_arguments = "A.png B.png"
    report = staticmethod(evaluate_verification)

    @classmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Verification":
        """Creates the task of a face network, with the pairs of the last source."""
        check_no_aux_loss(spec, optim)
        loss = make_loss(optim.loss or spec.loss, smoothing=optim.label_smoothing)
        faces = sources[-1].face_set() if sources else None
        names = sources[-1].class_names if sources else ()
        return cls(loss, faces, data.mirror, class_names=names)

    @classmethod
    def prepare_sources(
        cls,
        data: DataConfig,
        sources: Sequence[Source],
        preprocesses: Sequence[Preprocess],
    ) -> tuple[DataConfig, Sequence[Source]]:
        """Aligns the faces of all sources by the method chosen for the first one."""
        align = choose_alignment(sources[0], data.align)
        aligned = [
            align_source(source, align, preprocess, noise=data.landmark_noise)
            for source, preprocess in zip(sources, preprocesses, strict=True)
        ]
        return dataclasses.replace(data, align=align), aligned

    @classmethod
    def tiny_data(cls, preprocess: Preprocess) -> dict[str, Any]:
        """Returns options for the tiny set of drawn faces."""
        return super().tiny_data(preprocess) | {
            "dataset": "faces_synthetic_tiny",
            "train_split": "train",
            "eval_split": "test",
        }

    def objective(self, model, variables, images, batch, rngs, counts=None):
        """Returns the mean of the losses, the accuracy, and new batch statistics."""
        labels = batch["label"]
        logits, losses, statistics = apply_and_compare(
            model,
            variables,
            images,
            rngs,
            lambda logits: self.loss(logits, labels),
            (),
        )
        hits = logits.argmax(-1) == labels
        return losses.mean(), {"identification": hits.mean()}, statistics

    def empty(self, num_classes: int) -> jax.Array:
        """Returns the initial number of images, 0."""
        return jnp.zeros((), jnp.int32)

    def evaluate(self, model, variables, images, state, batch):
        """Counts images; keeps descriptors, losses, and whether the class is right."""
        out = model.apply(variables, images, method="endpoints")
        labels = jnp.maximum(batch["label"], 0)
        logits, features = out["logits"], out["f7"]
        if self.mirror:
            other = model.apply(variables, images[:, :, ::-1], method="endpoints")
            features = 0.5 * (features + other["f7"])
        each = {
            "descriptors": normalize_features(features, feature_maximum(variables)),
            "hit": logits.argmax(-1) == labels,
            "loss": self.loss(logits, labels),
        }
        if self.f7 is not None:
            below = out[model.backbone.sizes.local[-1][0]]
            each["maps"] = below.reshape(len(below), -1)
        return state + batch["valid"].sum(dtype=jnp.int32), each

    def collect(
        self, state: Any, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Verified:
        """Compares the descriptors."""
        if self.faces is None:
            raise ValueError("an evaluation of faces needs the set's FaceSet.")
        found = evaluate_descriptors(each["descriptors"], self.faces)
        held_out = (self.faces.labels != UNKNOWN) & ~self.faces.gallery
        numbers = {}
        if held_out.any():
            numbers["identification"] = float(each["hit"][held_out].mean())
            numbers["loss"] = float(each["loss"][held_out].mean())
        return found._replace(metrics=found.metrics | numbers, maps=each.get("maps"))

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the accuracies."""
        parts = [
            f"verification {metrics['verification_accuracy']:.2%} +- "
            f"{metrics['standard_error']:.2%} of {metrics['pairs']:,} pairs"
        ]
        if "identification" in metrics:
            parts.append(f"identification {metrics['identification']:.2%}")
        if "rank1" in metrics:
            parts.append(f"rank 1 {metrics['rank1']:.2%}")
        return ", ".join(parts)

    @classmethod
    def choose_protocol(cls, name: str, scales: tuple[int, ...], model: str) -> None:
        """Checks the name; faces are compared in pairs, with one view of each."""
        if name not in PROTOCOLS:
            raise ValueError(unknown("protocol", name, PROTOCOLS))

    @classmethod
    def check_source(
        cls, source: Source, card: Card, protocol: str, where: str, weights: str
    ) -> None:
        """Checks that "lfw" has its pairs; people may differ from those of training."""
        if protocol == "lfw" and source.pairs is None:
            raise ValueError(
                f"--protocol lfw needs the pairs of a list, and {where} has none; open "
                "lfw:PATH with its pairs.txt, split test."
            )

    def prepare_protocol(
        self,
        protocol: str,
        variables: Any,
        card: Card,
        others: Sequence[Verified] = (),
    ) -> "Verification":
        """Adds F7 for the siamese network, and the other descriptors of an ensemble.

        If the people differ from those of the training, their classes are unknown.
        """
        folds = 0 if self.faces is None else len(np.unique(self.faces.pairs.fold))
        if protocol in LEARNED and folds < 2:
            raise ValueError(
                f"--protocol {protocol} is fitted to all folds of pairs but one, and "
                f"there are {folds}."
            )
        f7 = None
        if protocol == "siamese":
            f7 = {
                **variables["params"]["backbone"]["f7"],
                "max": feature_maximum(variables),
            }
        descriptors = tuple(other.descriptors for other in others)
        faces = self.faces
        if faces is not None and self.class_names != card.class_names:
            faces = faces._replace(labels=np.full_like(faces.labels, UNKNOWN))
        return dataclasses.replace(self, faces=faces, f7=f7, others=descriptors)

    def summarize(self, evaluated: Verified, protocol: str) -> Iterator[str]:
        """Yields the metrics, those of a fitted comparison, and those of each group.

        "lfw" is evaluated in its restricted setting, with the comparison "chi_squared".
        """
        yield from format_rows(evaluated.metrics)
        faces, name = evaluated.faces, protocol
        if protocol == "lfw" and len(np.unique(faces.pairs.fold)) > 1:
            name = "chi_squared"
        if name in LEARNED:
            words, fit = LEARNED[name]
            if name == "siamese":
                fit, values = partial(fit, f7=self.f7), evaluated.maps
            elif name == "ensemble":
                values = [evaluated.descriptors, *self.others]
            else:
                values = evaluated.descriptors
            if faces.templates is not None:
                average = partial(average_templates, templates=faces.templates)
                values = jax.tree.map(average, values)
            learned = evaluate_pairs(fit, values, faces.pairs)
            yield (
                f"  {words:<22}  {learned['accuracy']:.4f} +- "
                f"{learned['standard_error']:.4f}, auc {learned['auc']:.4f}"
            )
        for name, count, accuracy in evaluated.groups:
            yield f"  group {name:<16}  {accuracy:.4f} of {count:,} pairs"

    @classmethod
    def predict(
        cls, run_dir: Path, paths: Sequence[Path], *, score_threshold: float | None
    ) -> Iterator[Predicted]:
        """Yields whether two photographs, after alignment, show the same person.

        Landmarks come from `landmarks.csv` in the folder of a photograph, or from dlib.

        Raises:
          ValueError: There are not two images, the checkpoint has not been evaluated,
            or a face has no landmarks.
        """
        if len(paths) != 2:
            raise ValueError(f"name two photographs to compare, got {len(paths)}.")
        step = zoo.weights.read_checkpoint(run_dir)[2]
        rows = [row for row in read_history(run_dir) if "threshold" in row]
        measured = next((row for row in rows if row["step"] == step), None)
        if measured is None:
            raise ValueError(
                f"{run_dir} has no evaluation of its checkpoint {step}, and so no "
                f"threshold; evaluated steps: {[row['step'] for row in rows]}."
            )
        data = load_config(run_dir / "config.json").data
        predictor = zoo.make_predictor(run_dir)
        preprocess = predictor.card.preprocess
        crops = [
            _crop_face(predictor.read(path), path, data.align, preprocess)
            for path in paths
        ]
        describe = zoo.make_describer(predictor.model, preprocess, flip=data.mirror)
        described = describe(predictor.variables, np.stack(crops))
        first, second = np.asarray(described, np.float64)
        score = float(first @ second)
        same = score > measured["threshold"]
        pictures: list[Image.Image] = [enlarge(crop, 256) for crop in crops]
        words = (
            f"{'the same person' if same else 'two people'}, probability of the same "
            f"{probability(score, measured):.1%} (score {score:.3f}, threshold "
            f"{measured['threshold']:.3f})"
        )
        yield Predicted(
            f"{paths[0]} and {paths[1]}",
            f"{paths[0].stem}-{paths[1].stem}",
            words,
            {"": beside(pictures, [path.name[:28] for path in paths])},
        )


def _crop_face(
    image: np.ndarray, path: Path, align: str, preprocess: Preprocess
) -> np.ndarray:
    landmarks = read_landmarks(Files(path.parent)).get(path.name)
    if align == "none":
        return resize_center_crop(image, preprocess)
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
    return align_face(image, landmarks, align, preprocess.size)
