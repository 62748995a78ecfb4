"""Predictions for image files: named classes, boxes, a mask or a descriptor.

print(zoo.predict("resnet50", "photo.jpg", weights="imagenet"))
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from flax import linen as nn
from PIL import Image

from zoo.api import create_with_card
from zoo.classify import make_classifier
from zoo.decode import decode_image, eight_bits
from zoo.descriptors import make_describer
from zoo.detect import make_detector
from zoo.paths import unknown
from zoo.predictions import (
    BoxPrediction,
    ClassPrediction,
    FacePrediction,
    MaskPrediction,
    Prediction,
)
from zoo.preprocess import pad_images
from zoo.registry import get_spec, list_models, list_options
from zoo.segment import make_segmenter
from zoo.spec import Card
from zoo.weights import list_trained, load_safetensors, read_card

ImageLike = str | os.PathLike | np.ndarray | Image.Image
Images = list[Any] | tuple[Any, ...]  # of `ImageLike`s
# Maps images uint8 [h, w, C] to the fields of each image's prediction.
Predict = Callable[[Sequence[np.ndarray]], Iterable[dict[str, Any]]]
# Arguments of `make_predictor` besides the options of the model.
_OPTIONS = ("weights", "top", "score_threshold", "max_detections")
_BATCH = 32  # images that a classifier takes at a time


class Predictor:
    """Predicts from images and image files; created by `make_predictor`.

    Attributes:
      model: The network.
      variables: Its variables.
      card: The card of the variables, with preprocessing and class names.
      upright: Whether files are rotated upright by their EXIF orientation.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        card: Card,
        predict: Predict,
        kind: type[Prediction],
        *,
        upright: bool,
    ):
        self.model, self.variables, self.card = model, variables, card
        self.upright = upright
        self._predict, self._kind = predict, kind
        self._names = card.class_names or tuple(map(str, range(card.num_classes)))

    def read(self, image: ImageLike) -> np.ndarray:
        """Returns an image as uint8 [h, w, C], with the network's channels.

        Files are decoded in the same way as training images.

        Args:
          image: A path, uint8 [h, w] or [h, w, C], or a Pillow image.

        Raises:
          ValueError: The image cannot be decoded, or has another type or shape.
          OSError: The file cannot be read.
        """
        color = self.card.preprocess.color
        if isinstance(image, str | os.PathLike):
            if str(image).startswith(("http://", "https://")):
                raise ValueError(
                    f"image={image!r}: fetch it, and give the file's path."
                )
            path = Path(image)
            return decode_image(
                path.read_bytes(), str(path), color=color, upright=self.upright
            )
        if not isinstance(image, Image.Image):
            image = self._to_pil(np.asarray(image))
        array = np.asarray(eight_bits(image, color))
        return array if array.ndim == 3 else array[..., None]

    @staticmethod
    def _to_pil(array: np.ndarray) -> Image.Image:
        channels = array.shape[2:] in ((), (1,), (2,), (3,), (4,))
        if array.dtype != np.uint8 or array.ndim < 2 or not channels or not array.size:
            raise ValueError(
                "image must be a path, a Pillow image, or uint8 [h, w] or [h, w, C] of "
                f"1 to 4 channels, got {array.dtype} {list(array.shape)}."
            )
        return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)

    @overload
    def __call__(self, image: ImageLike) -> Prediction: ...

    @overload
    def __call__(self, image: Images) -> list[Prediction]: ...

    def __call__(self, image: ImageLike | Images) -> Prediction | list[Prediction]:
        """Predicts what is in an image, or in each of several.

        Args:
          image: An image, see `read`, or a list of images of any sizes.

        Returns:
          The prediction, or for a list the list of predictions.

        Raises:
          ValueError: See `read`; or an image is too small for the network.
          OSError: See `read`.
        """
        if not isinstance(image, list | tuple):
            return self([image])[0]
        paths = [isinstance(each, str | os.PathLike) for each in image]
        names = [str(i) if p else "image" for i, p in zip(image, paths, strict=True)]
        arrays = [self.read(each) for each in image]
        found, out = iter(self._predict(arrays)), []
        for name, array in zip(names, arrays, strict=True):
            try:
                values = next(found)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            classes = {"class_names": self._names}
            out.append(self._kind(name=name, image=array, **classes, **values))
        return out


def make_predictor(
    name_or_run: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    top: int = 5,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    **overrides: Any,
) -> Predictor:
    """Loads a network once, to predict for any number of images or image files.

        predict = zoo.make_predictor("ssd96_small", weights="digits_canvas")
        for path in paths:
            print(predict(path))
        found = predict(paths)  # all at once

    Args:
      name_or_run: Name of a model, or a folder or file that names its model: a run
        folder, a checkpoint, or a safetensors file with a card.
      weights: Weights of a model given by name, see `zoo.create`.
      top: Number of classes that a classifier names.
      score_threshold: Score below which a detector's boxes are dropped, 0 to 1; None
        for 0.3 or the network's own threshold, whichever is higher.
      max_detections: Maximum number of boxes; None for the network's own.
      **overrides: Options of the model, see `zoo.create`.

    Raises:
      ValueError: The model, the weights or an option is unknown or does not fit.
    """
    name, source = _resolve(name_or_run, weights)
    spec = get_spec(name)
    if spec.reads_regions:
        raise ValueError(
            f"{name} reads regions, which an image file does not have; "
            "zoo.make_region_detector takes them."
        )
    known = {*list_options(name), "num_classes", "key", *_OPTIONS}
    for option in overrides:
        if option not in known:
            raise ValueError(unknown("option", option, known))
    model, variables, card = create_with_card(name, weights=source, **overrides)
    if spec.task == "classification":
        kind: type[Prediction] = ClassPrediction
        predict = _make_classify(model, variables, card, top)
    elif spec.task == "detection":
        kind = BoxPrediction
        predict = _make_detect(model, variables, card, score_threshold, max_detections)
    elif spec.task == "segmentation":
        kind = MaskPrediction
        predict = _make_segment(model, variables, card)
    else:
        kind = FacePrediction
        predict = _make_describe(model, variables, card)
    upright = not _is_stored(Path(source).expanduser())
    return Predictor(model, variables, card, predict, kind, upright=upright)


def _make_classify(model: nn.Module, variables: Any, card: Card, top: int) -> Predict:
    classify = make_classifier(model, card.preprocess, top=top)

    def predict(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        for first in range(0, len(images), _BATCH):
            part = images[first : first + _BATCH]
            # Each batch size is compiled; padding to 1, 2, 4, ... keeps them few.
            filled = 1 << (len(part) - 1).bit_length()
            found = classify(variables, [*part, *[part[-1]] * (filled - len(part))])
            classes, scores = np.asarray(found.classes), np.asarray(found.scores)
            for i in range(len(part)):
                yield {"classes": classes[i], "scores": scores[i]}

    return predict


def _make_detect(
    model: nn.Module,
    variables: Any,
    card: Card,
    score_threshold: float | None,
    max_detections: int | None,
) -> Predict:
    if score_threshold is None:
        score_threshold = max(0.3, model.postprocess.score_threshold)
    detect = make_detector(
        model,
        card.preprocess,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )

    def predict(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        for image in images:
            found = detect(variables, *pad_images([image]))
            boxes, scores, classes, valid = (np.asarray(x[0]) for x in found)
            yield {
                "boxes": boxes[valid],
                "classes": classes[valid],
                "scores": scores[valid],
            }

    return predict


def _make_segment(model: nn.Module, variables: Any, card: Card) -> Predict:
    segment = make_segmenter(model, card.preprocess)

    def predict(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        for image in images:
            found = segment(variables, image[None])
            yield {"mask": found.classes[0], "scores": found.scores[0]}

    return predict


def _make_describe(model: nn.Module, variables: Any, card: Card) -> Predict:
    describe = make_describer(model, card.preprocess)

    def predict(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        for image in images:
            yield {"descriptor": np.asarray(describe(variables, image[None])[0])}

    return predict


@overload
def predict(
    name_or_run: str | os.PathLike,
    image: ImageLike,
    *,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> Prediction: ...


@overload
def predict(
    name_or_run: str | os.PathLike,
    image: Images,
    *,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> list[Prediction]: ...


def predict(
    name_or_run: str | os.PathLike,
    image: ImageLike | Images,
    *,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> Prediction | list[Prediction]:
    """Predicts what is in an image, or in each of several.

    `make_predictor` loads a network once for many calls.

        found = zoo.predict("resnet50", "photo.jpg", weights="imagenet")
        print(found)
        found.save("found.png")

    A face network takes faces that are already aligned; `zoo.make_describer` aligns
    photographs by landmarks.

    Args:
      name_or_run: See `make_predictor`.
      image: A path, uint8 [h, w, C], a Pillow image, or a list of these.
      weights: See `make_predictor`.
      **options: See `make_predictor`.

    Returns:
      A `ClassPrediction`, `BoxPrediction`, `MaskPrediction` or `FacePrediction`; for a
      list of images, a list of these.

    Raises:
      ValueError: The model, the weights or an option is unknown or does not fit, or the
        image cannot be read.
      OSError: The file cannot be read.
    """
    return make_predictor(name_or_run, weights=weights, **options)(image)


def _resolve(
    name_or_run: str | os.PathLike, weights: str | os.PathLike | None
) -> tuple[str, str | os.PathLike]:
    """Returns the name of a model, and the source of its weights."""
    text = str(name_or_run)
    names = list_models()
    if text in names:
        if weights is None:
            known = [w.name for w in (*get_spec(text).weights, *list_trained(text))]
            raise ValueError(
                f"weights=None: {text} needs weights to predict with; give a file, the "
                f"folder of a run, or one of {known}."
            )
        return text, weights
    path = Path(name_or_run).expanduser()
    if not path.exists():
        raise ValueError(
            f"{unknown('model', text, names)} Nor is there a file or folder of that "
            "path."
        )
    if weights is not None:
        raise ValueError(
            f"weights={str(weights)!r}: {path} has weights of its own; give the name "
            "of a model with other weights."
        )
    card = read_card(path) if path.is_dir() else load_safetensors(path)[1]
    if card is None:
        raise ValueError(
            f"{path} does not say which model it is of; give the model's name, and the "
            "file as weights."
        )
    return card.model, path


def _is_stored(source: Path) -> bool:
    """Whether the run of these weights ignored EXIF orientation ("stored").

    Args:
      source: Folder of a run, of its checkpoints, or of one of them; or other weights.
    """
    run = source.parent if source.parent.name == "checkpoints" else source
    run = run.parent if run.name == "checkpoints" else run
    file = run / "config.json"
    if not file.is_file():
        return False
    try:
        return json.loads(file.read_bytes())["data"].get("orientation") == "stored"
    # In a damaged file any entry can be missing or of another type.
    except Exception as error:
        raise ValueError(
            f"{file} is no config of a run ({type(error).__name__}: {error})."
        ) from error
