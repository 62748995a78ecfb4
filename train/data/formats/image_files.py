"""Sources of images in folders and zip files, and of their boxes or masks."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from train.data.annotations import (
    Objects,
    Table,
    UnknownValues,
    detection_example,
    segmentation_example,
)
from train.data.files import Files
from train.data.source import Example, Source, map_in_threads
from zoo.decode import BadImage, decode_image, decode_mask, read_orientation

# Bytes at the beginning of a JPEG file that show whether it has EXIF, and bytes that
# usually contain the EXIF; other files are read as a whole.
_MARKED, _HEADER = 2**13, 2**17

logger = logging.getLogger(__name__)


class FileSource(Source):
    """Images in a folder or zip file.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      class_names: The names of the classes.
      images: The path of each image.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      upright: Whether to apply the EXIF orientation.
    """

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: Sequence[str],
        images: Sequence[str],
        color: str | None,
        upright: bool = True,
    ):
        self.name, self.split = files.path.stem, split
        self.class_names = tuple(class_names)
        self._files, self._images, self._color = files, list(images), color
        self._upright = upright

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        data = self._files.read(self._images[index])
        where = self.provenance(index)
        return decode_image(data, where, color=self._color, upright=self._upright)

    def provenance(self, index: int) -> str:
        return self._files.where(self._images[index])

    def identity(self, index: int) -> str:
        return self._images[index]

    def content(self, index: int) -> str:
        return self._files.stamp(self._images[index])


class _FileImages(FileSource):
    """Images in a folder or zip file, with boxes or masks beside them.

    With `orientation` "upright" the EXIF orientation is applied to images, with
    "stored" it is not; "auto" is "stored" and logs how many images have one, since
    their boxes and masks may have been drawn on the rotated image that viewers show.
    """

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        images: Sequence[str],
        color: str | None,
        orientation: str,
    ):
        upright = orientation == "upright"
        super().__init__(files, split, class_names, images, color, upright)
        if orientation == "auto":
            self._warn_of_orientations()

    def orientation(self, index: int) -> int:
        """Returns the EXIF orientation of an image, 1 if it has none."""
        name, files = self._images[index], self._files
        try:
            start, found = files.read_start(name, _MARKED), None
            if start.startswith(b"\xff\xd8"):
                if b"Exif\0" not in start and b"ns.adobe.com/xap" not in start:
                    return 1  # most images: nothing is parsed
                found = read_orientation(files.read_start(name, _HEADER))
            if found is None:
                found = read_orientation(files.read(name))
            return found or 1
        except BadImage:
            return 1  # decoding the image will raise the error

    def _warn_of_orientations(self) -> None:
        what = f"reading orientations in {self.name}"
        turned = [
            f"{self._images[i]}: {orientation}"
            for i, orientation in enumerate(
                map_in_threads(self.orientation, len(self), what)
            )
            if orientation != 1
        ]
        if turned:
            logger.warning(
                "%s %s: %d of %d images have an EXIF orientation (%s%s) and are read "
                "as they are stored, not as viewers show them. If boxes or masks were "
                "drawn on what viewers show, say --data.orientation upright; if not, "
                "--data.orientation stored.",
                self.name,
                self.split,
                len(turned),
                len(self),
                ", ".join(turned[:5]),
                ", ..." if len(turned) > 5 else "",
            )

    def _explain_size(self, index: int, size: tuple[int, int]) -> str:
        """Explains a wrong size if the image would have the right one upright."""
        found = self.orientation(index)
        if self._upright or found < 5 or self.image(index).shape[1::-1] != size:
            return ""
        return (
            f" Its EXIF orientation is {found}, and turned upright it would fit: say "
            "--data.orientation upright."
        )


class FileObjects(_FileImages):
    """Images with objects.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      class_names: The names of the classes.
      images: The path of each image.
      objects: The objects of each image.
      sizes: The height and width in each image's annotation, 0 if it has none.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation, one of `ORIENTATIONS`.
      outside: The number of boxes that reached beyond their image, and were clipped or
        dropped.

    Attributes:
      outside: The number of boxes that reached beyond their image.
    """

    task = "detection"

    def __init__(
        self,
        files: Files,
        split: str,
        class_names: tuple[str, ...],
        images: Sequence[str],
        objects: Iterable[Objects],
        *,
        sizes: Sequence[tuple[int, int]],
        color: str | None,
        orientation: str = "auto",
        outside: int = 0,
    ):
        super().__init__(files, split, class_names, images, color, orientation)
        self._objects, self.outside = Table(objects), outside
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)

    def objects(self, index: int) -> Objects:
        return self._objects[index]

    def content(self, index: int) -> str:
        values = (array.tobytes().hex() for array in self._objects[index])
        return " ".join((super().content(index), *values))

    def example(self, index: int) -> Example:
        image, size = self.image(index), tuple(self._sizes[index].tolist())
        if all(size) and size != image.shape[:2]:
            raise BadImage(
                f"{self.provenance(index)} is {image.shape[1]} x {image.shape[0]} "
                f"pixels; its annotation is for {size[1]} x {size[0]}."
                f"{self._explain_size(index, size)}"
            )
        return detection_example(image, self._objects[index])


class FileMasks(_FileImages):
    """Images with masks.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      class_names: The names of the classes.
      images: The path of each image.
      masks: The path of each mask.
      values: The table from the values of masks to classes, see `make_values`.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
      orientation: How to treat the EXIF orientation of images and masks, one of
        `ORIENTATIONS`.
      sure: Whether the user said that 255 is ignored, or that it is a class.

    Attributes:
      values: The table from the values of masks to classes.
      sure: Whether the user said that 255 is ignored, or that it is a class.
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
        orientation: str = "auto",
        *,
        sure: bool = False,
    ):
        super().__init__(files, split, class_names, images, color, orientation)
        self._masks, self.values, self.sure = list(masks), values, sure

    def content(self, index: int) -> str:
        return f"{super().content(index)} {self._files.stamp(self._masks[index])}"

    def mask(self, index: int) -> np.ndarray:
        """Returns the values of a mask's file, uint8 [height, width]."""
        data = self._files.read(self._masks[index])
        where = self._files.where(self._masks[index])
        return decode_mask(data, where, upright=self._upright)

    def count_values(self, index: int) -> np.ndarray:
        """Counts the pixels of each value, int [256]; 0 if the mask cannot be read."""
        try:
            return np.bincount(self.mask(index).ravel(), minlength=256)
        except BadImage:
            return np.zeros(256, int)

    def example(self, index: int) -> Example:
        where = self._files.where(self._masks[index])
        mask, image = self.mask(index), self.image(index)
        try:
            return segmentation_example(image, mask, self.values, where)
        except UnknownValues:
            raise
        except BadImage as error:
            reason = f"{error}{self._explain_size(index, mask.shape)}"
            raise BadImage(reason) from error
