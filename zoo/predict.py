"""From an image file to what is in it: named classes, boxes, a mask or a descriptor.

print(zoo.predict("resnet50", "photo.jpg", weights="imagenet"))
"""

import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from flax import linen as nn
from PIL import Image

from zoo.api import create_with_card
from zoo.classify import make_classifier
from zoo.decode import COLORS, SUFFIXES, decode_image
from zoo.describe import make_describer
from zoo.detect import make_detector
from zoo.figures.boxes import draw_detections
from zoo.figures.masks import draw_overlay, make_palette, paletted
from zoo.figures.pictures import draw_prediction
from zoo.paths import unknown
from zoo.preprocess import pad_images
from zoo.registry import get_spec, list_models
from zoo.segment import make_segmenter
from zoo.spec import Card
from zoo.weights import list_trained, load_safetensors, read_card

ImageLike = str | os.PathLike | np.ndarray | Image.Image
Images = list[Any] | tuple[Any, ...]  # of `ImageLike`s
_BATCH = 32  # images that a classifier takes at a time
_LEAST = 640  # pixels of the longer side of a picture with boxes


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image; one of the four classes below.

    `str` says it in words, and a notebook shows the picture.

    Attributes:
      name: Path of the image; "image" for one that was given as an array.
      image: The image, uint8 [h, w, C], upright.
      class_names: Names of the network's classes.
    """

    name: str
    image: np.ndarray
    class_names: tuple[str, ...]

    def draw(self) -> Image.Image:
        """Draws the prediction."""
        raise NotImplementedError

    def words(self) -> str:
        """Says the prediction in a few words."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction as plain JSON values."""
        return {"image": self.name}

    def pictures(self) -> dict[str, Image.Image]:
        """Draws all there is to draw, by the endings of file names such as "-mask"."""
        return {"": self.draw()}

    def show(self) -> None:
        """Shows the picture in the system's viewer of images."""
        self.draw().show(self.name)

    def save(self, path: str | os.PathLike) -> Path:
        """Saves the picture.

        Args:
          path: File to write; its suffix says the format, such as .png.
        """
        path = Path(path)
        self.draw().save(path)
        return path

    def __str__(self) -> str:
        return f"{self.name}: {self.words()}"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPrediction(Prediction):
    """The most probable classes of an image.

    Attributes:
      classes: int32 [top], the most probable first.
      scores: float32 [top], their probabilities.
    """

    classes: np.ndarray
    scores: np.ndarray

    @property
    def labels(self) -> list[str]:
        """Names of the classes, the most probable first."""
        return [self.class_names[c] for c in self.classes]

    def draw(self) -> Image.Image:
        """Draws the image beside bars of the probabilities."""
        return draw_prediction(
            self.image, self.labels, self.scores, top=len(self.labels)
        )

    def words(self) -> str:
        """Names the classes with their probabilities."""
        pairs = zip(self.labels, self.scores, strict=True)
        return ", ".join(f"{label} {score:.1%}" for label, score in pairs)

    def to_json(self) -> dict[str, Any]:
        """Returns the labels and their scores."""
        scores = [float(score) for score in self.scores]
        return super().to_json() | {"labels": self.labels, "scores": scores}


@dataclasses.dataclass(frozen=True, eq=False)
class BoxPrediction(Prediction):
    """The objects in an image.

    Attributes:
      boxes: float32 [N, 4], xyxy in pixels of the image.
      classes: int32 [N].
      scores: float32 [N], the highest first.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @property
    def labels(self) -> list[str]:
        """Names of the objects' classes."""
        return [self.class_names[c] for c in self.classes]

    def draw(self) -> Image.Image:
        """Draws the boxes with their labels and scores."""
        return draw_detections(
            *(self.image, self.boxes, self.classes, self.scores, self.class_names),
            least=_LEAST,
        )

    def words(self) -> str:
        """Counts the objects of each class."""
        counts = Counter(self.labels)
        said = ", ".join(f"{count} x {label}" for label, count in counts.items())
        return said or "nothing"

    def to_json(self) -> dict[str, Any]:
        """Returns the objects, each with label, score and box."""
        rows = zip(self.labels, self.scores, self.boxes, strict=True)
        objects = [
            {"label": label, "score": float(score), "box": [float(x) for x in box]}
            for label, score, box in rows
        ]
        return super().to_json() | {"objects": objects}


@dataclasses.dataclass(frozen=True, eq=False)
class MaskPrediction(Prediction):
    """The class of each pixel of an image.

    Attributes:
      mask: uint8 [h, w].
      scores: float32 [h, w], the classes' probabilities.
    """

    mask: np.ndarray
    scores: np.ndarray

    @property
    def shares(self) -> dict[str, float]:
        """Part of the image that each class has, the largest first."""
        classes, counts = np.unique(self.mask, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            self.class_names[classes[i]]: float(counts[i] / self.mask.size)
            for i in order
        }

    def draw(self) -> Image.Image:
        """Draws the mask over the image, beside a legend."""
        palette = make_palette(self.class_names)
        return draw_overlay(self.image, self.mask, self.class_names, palette)

    def draw_mask(self) -> Image.Image:
        """Draws the mask alone, of mode "P": its pixels are the numbers of classes."""
        return paletted(self.mask, make_palette(self.class_names))

    def pictures(self) -> dict[str, Image.Image]:
        """Draws the mask over the image, and alone."""
        return {"": self.draw(), "-mask": self.draw_mask()}

    def words(self) -> str:
        """Names the classes with the largest parts."""
        largest = [*self.shares.items()][:5]
        return ", ".join(f"{label} {share:.1%}" for label, share in largest)

    def to_json(self) -> dict[str, Any]:
        """Returns the part of the image that each class has."""
        return super().to_json() | {"shares": self.shares}


@dataclasses.dataclass(frozen=True, eq=False)
class FacePrediction(Prediction):
    """The descriptor of a face.

    Attributes:
      descriptor: float32 [D] of length 1: the inner product of two says how alike the
        faces are.
    """

    descriptor: np.ndarray

    def draw(self) -> Image.Image:
        """Draws the image."""
        return Image.fromarray(self.image.squeeze())

    def words(self) -> str:
        """Says how long the descriptor is."""
        return f"a descriptor of {len(self.descriptor)} values"

    def to_json(self) -> dict[str, Any]:
        """Returns the descriptor."""
        return super().to_json() | {"descriptor": [float(x) for x in self.descriptor]}


class Predictor:
    """A network that takes images and image files; `make_predictor` makes it.

    Attributes:
      model: The network.
      variables: Its variables.
      card: What the variables expect.
      upright: Whether files are turned as their EXIF orientation says.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        card: Card,
        predict: Callable[[Sequence[np.ndarray]], Iterable[dict[str, Any]]],
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

        Files are decoded as those that networks are trained on.

        Args:
          image: A path, uint8 [h, w] or [h, w, C], or a Pillow image.

        Raises:
          ValueError: It is no image that can be read.
          OSError: The file cannot be read.
        """
        color = {1: "grey", 3: "rgb"}[self.card.preprocess.channels]
        if isinstance(image, str | os.PathLike):
            path = Path(image)
            return decode_image(
                path.read_bytes(), str(path), color=color, upright=self.upright
            )
        array = image if isinstance(image, np.ndarray) else np.asarray(image)
        channels = array.shape[2:] in ((), (1,), (2,), (3,), (4,))
        if array.dtype != np.uint8 or array.ndim < 2 or not channels or not array.size:
            raise ValueError(
                "image must be a path, a Pillow image, or uint8 [h, w] or [h, w, C] of "
                f"1 to 4 channels, got {array.dtype} {list(array.shape)}."
            )
        picture = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
        array = np.asarray(picture.convert(COLORS[color]))
        return array if array.ndim == 3 else array[..., None]

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
          ValueError: See `read`, or it is too small for the network.
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
    """Loads a network that takes image files, for any number of them.

        predict = zoo.make_predictor("ssd96_small", weights="digits_canvas")
        for path in paths:
            print(predict(path))
        found = predict(paths)  # all at once

    Args:
      name_or_run: Name of a model, or a folder or file that says which model it is of:
        the folder of a run, a checkpoint, or a safetensors file with a card.
      weights: Weights of a model given by name, see `zoo.create`.
      top: Number of classes that a classifier names.
      score_threshold: Score below which a detector's boxes are left out, 0 to 1; 0.3,
        or the network's own where that is higher, where None.
      max_detections: Number of boxes at most; the network's own where None.
      **overrides: Options of the model, see `zoo.create`.

    Raises:
      ValueError: The model, the weights or an option is unknown or does not fit.
    """
    name, source = _resolve(name_or_run, weights)
    if get_spec(name).reads_regions:
        raise ValueError(
            f"{name} reads regions, which an image file does not have; "
            "zoo.make_region_detector takes them."
        )
    model, variables, card = create_with_card(name, weights=source, **overrides)
    return wrap_network(
        model,
        variables,
        card,
        top=top,
        score_threshold=score_threshold,
        max_detections=max_detections,
        upright=not _is_stored(Path(name_or_run)),
    )


def wrap_network(
    model: nn.Module,
    variables: Any,
    card: Card,
    *,
    top: int = 5,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    upright: bool = True,
) -> Predictor:
    """Makes a predictor of a network that is loaded already.

    Args:
      model: The network.
      variables: Variables of the network.
      card: What the variables expect, see `zoo.create_with_card`.
      top: See `make_predictor`.
      score_threshold: See `make_predictor`.
      max_detections: See `make_predictor`.
      upright: Whether files are turned as their EXIF orientation says.
    """
    task = get_spec(card.model).task
    if task == "classification":
        classify = make_classifier(model, card.preprocess, top=top)

        def predict_all(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
            for first in range(0, len(images), _BATCH):
                part = images[first : first + _BATCH]
                # It is compiled for each number of images: 1, 2, 4, .. are enough.
                filled = 1 << (len(part) - 1).bit_length()
                found = classify(variables, [*part, *[part[-1]] * (filled - len(part))])
                classes, scores = np.asarray(found.classes), np.asarray(found.scores)
                for i in range(len(part)):
                    yield {"classes": classes[i], "scores": scores[i]}

        kind: type[Prediction] = ClassPrediction
    elif task == "detection":
        options = {"max_detections": max_detections} if max_detections else {}
        detect = make_detector(
            model, card.preprocess, score_threshold=score_threshold, **options
        )
        least = 0.3 if score_threshold is None else score_threshold

        def predict(image: np.ndarray) -> dict[str, Any]:
            found = detect(variables, *pad_images([image]))
            boxes, scores, classes, valid = (np.asarray(x[0]) for x in found)
            kept = valid & (scores >= least)
            return {
                "boxes": boxes[kept],
                "classes": classes[kept],
                "scores": scores[kept],
            }

        kind = BoxPrediction
    elif task == "segmentation":
        segment = make_segmenter(model, card.preprocess)

        def predict(image: np.ndarray) -> dict[str, Any]:
            found = segment(variables, image[None])
            return {"mask": found.classes[0], "scores": found.scores[0]}

        kind = MaskPrediction
    else:
        describe = make_describer(model, card.preprocess)

        def predict(image: np.ndarray) -> dict[str, Any]:
            return {"descriptor": np.asarray(describe(variables, image[None])[0])}

        kind = FacePrediction
    if task != "classification":

        def predict_all(images: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
            return map(predict, images)

    return Predictor(model, variables, card, predict_all, kind, upright=upright)


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

    A face network takes a face that is aligned already; `zoo.make_describer` aligns
    photographs by landmarks.

    Args:
      name_or_run: See `make_predictor`.
      image: A path, uint8 [h, w, C], a Pillow image, or a list of these.
      weights: See `make_predictor`.
      **options: See `make_predictor`.

    Returns:
      A `ClassPrediction`, `BoxPrediction`, `MaskPrediction` or `FacePrediction`; for a
      list a list of them.

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


def _is_stored(run: Path) -> bool:
    """Whether a run was told to take images as they are stored."""
    file = run / "config.json"
    if not file.is_file():
        return False
    try:
        return json.loads(file.read_bytes())["data"].get("orientation") == "stored"
    # Of a damaged file anything can be missing, or of another type.
    except Exception as error:
        raise ValueError(
            f"{file} is no config of a run ({type(error).__name__}: {error})."
        ) from error


def list_images(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """Lists the image files that paths, folders and shell patterns stand for.

    Args:
      sources: Files, folders, of which all images in them and below are meant, and
        patterns such as "photos/*.jpg".

    Raises:
      FileNotFoundError: There is no such file, or there is no image.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            inside = [path]
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(root)) if path.is_absolute() else str(path)
            inside = sorted(p for p in root.glob(pattern) if p.is_file())
        if not inside:
            raise FileNotFoundError(
                f"{source} is no image file, no folder with images, and no pattern "
                "that matches one."
            )
        found += inside
    return [*dict.fromkeys(found)]
