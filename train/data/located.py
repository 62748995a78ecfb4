"""Sources whose images, boxes and masks are files."""

from collections.abc import Iterable, Sequence

import numpy as np

from train.data.decode import BadImage, decode_image, decode_mask
from train.data.files import Files
from train.data.masks import segmentation_example
from train.data.objects import Objects, Table, detection_example
from train.data.source import Example, Source


class _FileImages(Source):
    """Images in a folder or zip file, as stored: they are not turned upright."""

    def __init__(self, files: Files, split, class_names, images: Sequence[str], color):
        self.name, self.split, self.class_names = files.path.stem, split, class_names
        self._files, self._images, self._color = files, list(images), color

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        data = self._files.read(self._images[index])
        return decode_image(data, self.provenance(index), color=self._color)

    def provenance(self, index: int) -> str:
        return self._files.where(self._images[index])


class FileObjects(_FileImages):
    """Images with objects.

    Args:
      files: The folder or zip file.
      split: Name of the split.
      class_names: In the order of the classes.
      images: Path of each image within.
      objects: The objects of each image.
      sizes: Height and width that each image's annotation states, 0 where it states
        none.
      color: "rgb", "grey" or None, see `decode_image`.
    """

    task = "detection"

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        images: Sequence[str],
        objects: Iterable[Objects],
        sizes: Sequence[tuple[int, int]],
        color: str | None,
    ):
        super().__init__(files, split, class_names, images, color)
        self._objects = Table(objects)
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)

    def example(self, index: int) -> Example:
        image, (height, width) = self.image(index), self._sizes[index]
        if height and width and (height, width) != image.shape[:2]:
            raise BadImage(
                f"{self.provenance(index)} is {image.shape[1]} x {image.shape[0]} "
                f"pixels; its annotation is for {width} x {height}."
            )
        return detection_example(image, self._objects[index])


class FileMasks(_FileImages):
    """Images with masks.

    Args:
      files: The folder or zip file.
      split: Name of the split.
      class_names: In the order of the classes.
      images: Path of each image within.
      masks: Path of each mask within.
      values: What the values of a mask stand for, see `make_values`.
      color: "rgb", "grey" or None, see `decode_image`.
    """

    task = "segmentation"

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        images: Sequence[str],
        masks: Sequence[str],
        values: np.ndarray,
        color: str | None,
    ):
        super().__init__(files, split, class_names, images, color)
        self._masks, self._values = list(masks), values

    def example(self, index: int) -> Example:
        where = self._files.where(self._masks[index])
        mask = decode_mask(self._files.read(self._masks[index]), where)
        return segmentation_example(self.image(index), mask, self._values, where)
