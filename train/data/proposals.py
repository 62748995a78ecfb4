"""Region proposals by OpenCV's selective search."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

# As in the paper's code, regions with a side below this are dropped, in pixels.
MIN_SIDE = 20


def selective_search(
    image: np.ndarray,
    *,
    mode: str = "fast",
    max_proposals: int = 2000,
) -> np.ndarray:
    """Proposes regions by merging the segments of an image.

    Args:
      image: uint8 [h, w, 3], RGB.
      mode: "fast" or "quality", which has more color spaces and segmentations.
      max_proposals: The largest number of proposals.

    Returns:
      float32 [R, 4], xyxy in pixels, without duplicates, with sides of at least
      `MIN_SIDE`. The choice and the order are the same in each run, unlike OpenCV's
      own order, whose random numbers cannot be seeded.

    Raises:
      ValueError: The image or the mode is invalid.
      ImportError: OpenCV's contributed modules are missing; the message says how to
        install them.

    Reference:
      Uijlings et al., Selective Search for Object Recognition, 2013.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"selective search takes uint8 [h, w, 3], got {image.dtype} "
            f"{list(image.shape)}."
        )
    if mode not in ("fast", "quality"):
        raise ValueError(f"mode={mode!r} must be 'fast' or 'quality'.")
    try:
        from cv2.ximgproc import segmentation
    except ImportError as error:
        raise ImportError(
            "selective search is in OpenCV's contributed modules: "
            "pip install 'canon-zoo[rcnn]'."
        ) from error
    if min(image.shape[:2]) < MIN_SIDE:
        return np.zeros((0, 4), np.float32)
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    switch = {
        "fast": search.switchToSelectiveSearchFast,
        "quality": search.switchToSelectiveSearchQuality,
    }
    switch[mode]()
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)
    found = np.unique(found, axis=0)
    found = found[(found[:, 2:] >= MIN_SIDE).all(axis=1)]
    found = np.random.default_rng(0).permutation(found)[:max_proposals]
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def remember(
    propose: Callable[[np.ndarray], np.ndarray], folder: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Caches the proposals of images in files.

    Args:
      propose: A function from an image to proposals float32 [R, 4].
      folder: The folder of the cache, with a file for each different image; each
        `propose` needs a folder of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def remembered(image: np.ndarray) -> np.ndarray:
        content = np.ascontiguousarray(image)
        digest = hashlib.sha256(repr(image.shape).encode() + content.tobytes())
        file = folder / f"{digest.hexdigest()[:32]}.npy"
        if file.exists():
            try:
                return np.load(file, allow_pickle=False)
            except Exception as error:
                raise ValueError(
                    f"{file} cannot be read ({type(error).__name__}: {error}); without "
                    "it the proposals are found again."
                ) from error
        found = propose(image)
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            np.save(out, found)
        part.replace(file)
        return found

    return remembered
