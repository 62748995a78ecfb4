"""Faces aligned by their landmarks, as the input of a network."""

import functools

import jax
import numpy as np
from PIL import Image

from train.data.faces.landmarks import LANDMARKS_FILE
from train.data.faces.source import FaceSource
from train.data.rng import RandomStream
from train.data.source import Derived, Source
from zoo.face.alignment import COUNTS, align
from zoo.spec import Preprocess

_FACTS = ("pairs", "templates", "groups", "group_names", "gallery")
_PAD = 64  # Photographs are padded to multiples of it, so that few sizes compile.


class AlignedFaces(Derived, FaceSource):
    """The faces of a source, aligned and cropped.

    Args:
      source: The source of photographs.
      method: The alignment, "2d" or "3d".
      preprocess: The preprocessing of the network's input.
      noise: The standard deviation of the errors that are added to each landmark's x
        and y, in pixels of the photograph; the errors are the same in each run.

    Attributes:
      photographs: The source of photographs.
      method: The alignment, "2d" or "3d".
      noise: The standard deviation of the landmarks' error.
    """

    def __init__(
        self,
        source: FaceSource,
        method: str,
        preprocess: Preprocess,
        *,
        noise: float = 0.0,
    ):
        self.people, self.labels = source.people, source.labels
        for fact in ("name", "split", "class_names", *_FACTS):
            setattr(self, fact, getattr(source, fact))
        self.photographs, self.method, self.noise = source, method, noise
        self._size = preprocess.size

    def image(self, index: int) -> np.ndarray:
        landmarks = self.photographs.landmarks(index)
        if landmarks is None:
            raise ValueError(
                f"{self.provenance(index)} has no landmarks; {LANDMARKS_FILE} must "
                "have a line for it, or data.align must be 'none'."
            )
        image = self.photographs.image(index)
        if self.noise:
            rng = RandomStream((index, 13))
            landmarks = landmarks + self.noise * rng.normal(landmarks.shape)
        return align_face(image, landmarks, self.method, self._size)

    def find(self, index: int) -> tuple[Source, int]:
        return self.photographs, index


def align_face(
    image: np.ndarray, landmarks: np.ndarray, method: str, size: int
) -> np.ndarray:
    """Aligns a face on the host, even if there are accelerators.

    A photograph that is much larger than the crop is downsampled first, to avoid
    aliasing.

    Args:
      image: uint8 [H, W, C].
      landmarks: float32 [L, 2], in pixels.
      method: "2d" or "3d".
      size: Height and width of the crop, in pixels.

    Returns:
      uint8 [size, size, C].
    """
    spread = np.linalg.norm(landmarks.max(0) - landmarks.min(0))
    # The landmarks fill about half of the crop.
    factor = max(1, int(spread / size))
    if factor > 1:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture = np.asarray(picture.reduce(factor))
        image = picture.reshape(*picture.shape[:2], image.shape[-1])
        landmarks = (landmarks + 0.5) / factor - 0.5
    height, width = image.shape[:2]
    more = -height % _PAD, -width % _PAD
    image = np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(_align(method, size)(image, np.float32(landmarks)))


@functools.cache
def _align(method: str, size: int):
    return jax.jit(functools.partial(align, method=method, size=size))


def choose_alignment(source: FaceSource, method: str) -> str:
    """Chooses how the faces of a source are aligned.

    Args:
      source: The source of photographs.
      method: "none", "2d", "3d", or "auto": "3d" if the first picture has 67 or 68
        landmarks, "2d" if it has fewer, "none" if it has none.

    Returns:
      "none", "2d" or "3d".

    Raises:
      ValueError: The method is unknown, or the landmarks do not allow it.
    """
    if method not in ("auto", "none", "2d", "3d"):
        raise ValueError(f"data.align={method!r} must be 'auto', 'none', '2d' or '3d'.")
    landmarks = source.landmarks(0)
    count = 0 if landmarks is None else len(landmarks)
    if method == "auto":
        return "3d" if count >= 67 else "2d" if count else "none"
    if (method == "3d" and count < 67) or (method == "2d" and not count):
        wanted = "67 or 68" if method == "3d" else f"one of {COUNTS}"
        raise ValueError(
            f"data.align={method!r} needs {wanted} landmarks of each picture, and "
            f"{source.provenance(0)} has {count}."
        )
    return method


def align_source(
    source: FaceSource, method: str, preprocess: Preprocess, *, noise: float = 0.0
) -> FaceSource:
    """Aligns the faces of a source for a network.

    Args:
      source: The source of photographs.
      method: The alignment, see `choose_alignment`.
      preprocess: The preprocessing of the network's input.
      noise: The standard deviation of the landmarks' error, see `AlignedFaces`.

    Returns:
      The aligned faces, or the source itself.

    Raises:
      ValueError: The method is unknown, or the landmarks do not allow it.
    """
    if not 0 <= noise < float("inf"):
        raise ValueError(f"data.landmark_noise={noise} must be 0 or more.")
    method = choose_alignment(source, method)
    if method == "none":
        return source
    return AlignedFaces(source, method, preprocess, noise=noise)
