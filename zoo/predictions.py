"""Predictions for an image: named classes, boxes, a mask or a descriptor."""

import dataclasses
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.figures.boxes import draw_detections
from zoo.figures.masks import draw_overlay, make_palette, paletted
from zoo.figures.pictures import draw_prediction, to_pil

_LEAST = 640  # minimum longer side of a picture with boxes, in pixels


def unused_path(path: Path, taken: set[Path]) -> Path:
    """Returns a path that is not taken, by adding "-1", "-2", ... to the name.

    Args:
      path: The wanted path.
      taken: Resolved paths that must not be written; the returned one is added.
    """
    number, free = 0, path
    while free.resolve() in taken:
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    taken.add(free.resolve())
    return free


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction of a network for one image; the base of the classes below.

    `str` describes it in words, and a notebook shows it as a picture.

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
        """Returns the prediction in a few words."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction as plain JSON values."""
        return {"image": self.name}

    def pictures(self) -> dict[str, Image.Image]:
        """Draws every picture, keyed by a suffix of the file name such as "-mask"."""
        return {"": self.draw()}

    def show(self) -> None:
        """Shows the picture in the system's image viewer."""
        self.draw().show(self.name)

    def save(self, path: str | os.PathLike) -> Path:
        """Saves the picture.

        Args:
          path: File to write; its suffix, such as .png, sets the format.
        """
        path = Path(path)
        self.draw().save(path)
        return path

    def __str__(self) -> str:
        return f"{self.name}: {self.words()}"

    def __repr__(self) -> str:
        # Keeps a printed list of predictions readable.
        return f"<{type(self).__name__} {self}>"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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
            self.image,
            self.boxes,
            self.classes,
            self.scores,
            self.class_names,
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MaskPrediction(Prediction):
    """The class of each pixel of an image.

    Attributes:
      mask: uint8 [h, w].
      scores: float32 [h, w], the probability of each pixel's class.
    """

    mask: np.ndarray
    scores: np.ndarray

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the image that each class covers, the largest first."""
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
        """Draws the mask alone, in mode "P": its pixels are class numbers."""
        return paletted(self.mask, make_palette(self.class_names))

    def pictures(self) -> dict[str, Image.Image]:
        """Draws the mask over the image, and the mask alone."""
        return {"": self.draw(), "-mask": self.draw_mask()}

    def words(self) -> str:
        """Names the classes that cover most of the image."""
        largest = [*self.shares.items()][:5]
        return ", ".join(f"{label} {share:.1%}" for label, share in largest)

    def to_json(self) -> dict[str, Any]:
        """Returns the fraction of the image that each class covers."""
        return super().to_json() | {"shares": self.shares}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FacePrediction(Prediction):
    """The descriptor of a face.

    Attributes:
      descriptor: float32 [D] of unit length; the inner product of two descriptors
        measures how similar the faces are.
    """

    descriptor: np.ndarray

    def draw(self) -> Image.Image:
        """Draws the image."""
        return to_pil(self.image)

    def words(self) -> str:
        """Describes the descriptor by its length."""
        return f"a descriptor of {len(self.descriptor)} values"

    def to_json(self) -> dict[str, Any]:
        """Returns the descriptor."""
        return super().to_json() | {"descriptor": [float(x) for x in self.descriptor]}
