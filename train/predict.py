"""What the network of a run says of an image, as words and as pictures."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from PIL import Image

import zoo
from train.config import load_config
from train.data import decode_image
from train.figures import draw_prediction
from zoo.cpu import jit_inference
from zoo.figures.boxes import draw_detections
from zoo.figures.masks import draw_overlay, make_palette, paletted
from zoo.spec import Card


class Predicted(NamedTuple):
    """What was said of an image.

    Attributes:
      words: In short.
      pictures: To be saved, by what is added to the image's name.
    """

    words: str
    pictures: dict[str, Image.Image]


class Predictor(NamedTuple):
    """A network that says what it sees.

    Attributes:
      color: "rgb" or "grey", what its images must be.
      predict: From an image uint8 [h, w, C] to what is said of it.
      upright: Whether files are turned as their EXIF orientation says.
    """

    color: str
    predict: Callable[[np.ndarray], Predicted]
    upright: bool = True

    def read(self, path: Path) -> np.ndarray:
        """Reads an image file as the network was trained on such files.

        Raises:
          BadImage: It is no image that can be read.
        """
        data = path.read_bytes()
        return decode_image(data, str(path), color=self.color, upright=self.upright)

    def __call__(self, image: np.ndarray) -> Predicted:
        """Says what an image shows."""
        return self.predict(image)


def load_predictor(run_dir: Path, *, score_threshold: float | None = None) -> Predictor:
    """Loads the network of a run.

    Args:
      run_dir: Its folder.
      score_threshold: Of a detector: what is found has a higher score, 0 to 1. None
        for the network's own.

    Raises:
      ValueError: There is no run, or the threshold is out of range.
    """
    model, variables, card = _load(run_dir)
    names = card.class_names or tuple(map(str, range(card.num_classes)))
    color = {1: "grey", 3: "rgb"}[card.preprocess.channels]
    task = zoo.get_spec(card.model).task
    if task == "detection":
        predict = _detector(model, variables, card, names, score_threshold)
    elif task == "segmentation":
        predict = _segmenter(model, variables, card, names)
    else:
        predict = _classifier(model, variables, card, names)
    # What viewers show, unless the run was told to take images as they are stored.
    file = run_dir / "config.json"
    stored = file.exists() and load_config(file).data.orientation == "stored"
    return Predictor(color, predict, upright=not stored)


def _load(run_dir: Path) -> tuple[nn.Module, dict[str, Any], Card]:
    name = zoo.weights.read_card(run_dir).model
    return zoo.create_with_card(name, weights=str(run_dir))


def _classifier(
    model: nn.Module, variables: Any, card: Card, names: Sequence[str]
) -> Callable[[np.ndarray], Predicted]:
    apply = jit_inference(model.apply)

    def predict(image: np.ndarray) -> Predicted:
        fitted = zoo.fit_image(image, card.preprocess)[None]
        images = zoo.normalize(jax.numpy.asarray(fitted), card.preprocess)
        probabilities = np.asarray(jax.nn.softmax(apply(variables, images))[0])
        best = int(probabilities.argmax())
        picture = draw_prediction(image, names, probabilities)
        return Predicted(f"{names[best]} {probabilities[best]:.1%}", {"": picture})

    return predict


def _detector(
    model: nn.Module,
    variables: Any,
    card: Card,
    names: Sequence[str],
    score_threshold: float | None,
) -> Callable[[np.ndarray], Predicted]:
    detect = zoo.make_detector(model, card.preprocess, score_threshold=score_threshold)

    def predict(image: np.ndarray) -> Predicted:
        found = jax.device_get(detect(variables, *zoo.pad_images([image])))
        boxes, scores, classes = (values[0][found.valid[0]] for values in found[:3])
        counts = Counter(names[c] for c in classes)
        words = ", ".join(f"{count} x {name}" for name, count in counts.items())
        picture = draw_detections(image, boxes, classes, scores, names, least=640)
        return Predicted(words or "nothing", {"": picture})

    return predict


def _segmenter(
    model: nn.Module, variables: Any, card: Card, names: Sequence[str]
) -> Callable[[np.ndarray], Predicted]:
    segment, palette = zoo.make_segmenter(model, card.preprocess), make_palette(names)

    def predict(image: np.ndarray) -> Predicted:
        mask = np.asarray(segment(variables, image[None]).classes[0])
        classes, counts = np.unique(mask, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:5]
        words = (f"{names[classes[i]]} {counts[i] / mask.size:.1%}" for i in order)
        pictures = {
            "": draw_overlay(image, mask, names, palette),
            "-mask": paletted(mask, palette),
        }
        return Predicted(", ".join(words), pictures)

    return predict
