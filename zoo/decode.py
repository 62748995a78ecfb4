"""Decodes the bytes of image files to uint8 pixels."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# A photograph of 50 megapixels is 150 MB once decoded. Larger images are refused before
# their pixels are decoded.
MAX_PIXELS = 50_000_000

COLORS = {"rgb": "RGB", "gray": "L", "grey": "L"}
# How images are rotated: "upright" follows their EXIF orientation, as viewers and most
# drawing tools do; "stored" ignores it. "auto" is upright for classification; boxes and
# masks are assumed to fit the stored image.
ORIENTATIONS = ("auto", "stored", "upright")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112

with contextlib.suppress(ImportError):  # reads .heic if installed
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
_KNOWN = (
    "apng avif avifs bmp dib gif heic heif hif j2c j2k jfif jp2 jpe jpeg jpf jpg jpx "
    "mpo pbm pcx pgm png pnm ppm qoi tga tif tiff webp"
)
# Suffixes of images that can be read: the known ones that this Pillow opens.
SUFFIXES = tuple(
    suffix
    for suffix in map(".{}".format, _KNOWN.split())
    if Image.registered_extensions().get(suffix) in Image.OPEN
)
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BadImage(ValueError):
    """An image that cannot be read; the message names its file and the reason."""


def check_color(color: str | None) -> None:
    """Raises ValueError unless `color` is None, "rgb" or "gray"."""
    if color is not None and color not in COLORS:
        raise ValueError(
            f"color={color!r}: expected 'rgb', 'gray', or None to keep what is stored."
        )


def check_orientation(orientation: str) -> None:
    """Raises ValueError unless `orientation` is one of `ORIENTATIONS`."""
    if orientation not in ORIENTATIONS:
        raise ValueError(
            f"orientation={orientation!r}: expected one of {', '.join(ORIENTATIONS)}."
        )


def looks_like_image(start: bytes) -> bool:
    """Whether a file that begins with these 16 bytes has the format of an image."""
    for suffix in SUFFIXES:
        accept = Image.OPEN[Image.registered_extensions()[suffix]][1]
        if accept is not None and accept(start) is True:
            return True
    return False


def read_orientation(data: bytes) -> int | None:
    """Reads the EXIF orientation of an image file, or of the beginning of one.

    Returns:
      2 to 8; 1 if the image is upright as stored or states no readable orientation, and
      for TIFF files, which are always read upright. None if the file cannot be opened.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns these itself
            return _orientation(image)
    except Exception:
        return None


def _orientation(image: Image.Image) -> int:
    # As in viewers, an orientation that cannot be read is ignored.
    try:
        found = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def decode_image(
    data: bytes,
    provenance: str,
    *,
    color: str | None = None,
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image file to 8 bits a channel, gray or RGB.

    Gray (also with alpha, and black and white) stays gray; everything else (palette,
    RGBA, CMYK, YCbCr) becomes RGB. Alpha is dropped, not composited, as Pillow's
    `convert("RGB")` does. 16-bit values keep the upper 8 bits, animations the first
    frame.

    Args:
      data: Contents of the file.
      provenance: Name of the file in errors.
      color: "rgb" or "gray" (ITU-R 601 luma) to convert; None to keep what is stored.
      upright: Whether to rotate the image upright by its EXIF orientation.
      max_pixels: Maximum number of pixels (height x width) to decode.

    Returns:
      uint8 [height, width, 1] or [height, width, 3].

    Raises:
      BadImage: The file is not an image, is truncated, or has too many pixels.
    """
    with _opened(data, provenance, max_pixels) as image:
        if upright:
            image = _turn_upright(image)
        array = np.asarray(eight_bits(image, color))
    return array if array.ndim == 3 else array[..., None]


def decode_mask(
    data: bytes,
    provenance: str,
    *,
    upright: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes the file of a mask to its values, which are not colors.

    For a file with a palette, these are the indices of the palette.

    Args:
      data: Contents of the file.
      provenance: Name of the file in errors.
      upright: Whether to rotate the mask upright by its own EXIF orientation.
      max_pixels: Maximum number of pixels (height x width) to decode.

    Returns:
      uint8 [height, width].

    Raises:
      BadImage: The file cannot be read, has too many pixels, has colors without a
        palette, or values above 255.
    """
    with _opened(data, provenance, max_pixels) as image:
        if image.mode not in ("P", "L", "1", *_SIXTEEN_BITS):
            raise BadImage(
                f"{provenance}: a mask must have a palette or be gray, so that each "
                f"pixel is the number of a class; it is of mode {image.mode}."
            )
        values = np.asarray(_turn_upright(image) if upright else image)
        if values.min() < 0 or values.max() > 255:
            raise BadImage(
                f"{provenance}: a mask has the values {values.min()} to "
                f"{values.max()}, expected 0 to 255."
            )
        return values.astype(np.uint8)


@contextlib.contextmanager
def _opened(data: bytes, provenance: str, max_pixels: int) -> Iterator[Image.Image]:
    """Opens a file and loads its pixels; errors within the block become `BadImage`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(
                    f"{provenance}: {width} x {height} = {width * height} pixels, "
                    f"more than the limit of {max_pixels}."
                )
            image.load()
            yield image
    except BadImage:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError,
        # struct.error, zlib.error and more for what is one problem to a user.
        reason = (
            "not an image of a known format"
            if isinstance(error, UnidentifiedImageError)
            else f"{type(error).__name__}: {error}"
        )
        raise BadImage(f"{provenance}: cannot be read ({reason}).") from error


def eight_bits(image: Image.Image, color: str | None) -> Image.Image:
    """Converts an image of any of Pillow's modes to "L" or "RGB".

    Args:
      image: The image.
      color: "rgb" or "gray" to convert; None to keep gray or colors, see
        `decode_image`.

    Raises:
      ValueError: The values have no range of 8 or 16 bits.
    """
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"mode {image.mode} with values {values.min()} to {values.max()}, "
                "expected 0 to 65535"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("mode F (floating point) has no range of its own")
    elif image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        # Via RGBA, as Pillow otherwise warns about palettes with transparency.
        image = image.convert("RGBA").convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image if color is None else image.convert(COLORS[color])


def list_images(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """Lists the image files that paths, folders and shell patterns refer to.

    Args:
      sources: Files, folders, which are searched recursively for images, and patterns
        such as "photos/*", of which files with another suffix are left out.

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
            matched = sorted(p for p in root.glob(pattern) if p.is_file())
            inside = [p for p in matched if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise FileNotFoundError(
                f"{source} is no image file, no folder with images, and no pattern "
                "that matches one."
            )
        found += inside
    return [*dict.fromkeys(found)]
