"""Pictures of arrays, for web pages, and with captions beside them."""

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HIT, MISS = (0, 114, 178), (213, 94, 0)  # blue and orange: safe for color blindness
INK = "#1c1e21"


def to_pil(image: np.ndarray) -> Image.Image:
    """Turns uint8 [H, W, C] with 1, 3 or 4 channels into an RGB or RGBA picture."""
    image = np.asarray(image)
    shape_fits = image.ndim == 3 and image.shape[2] in (1, 3, 4) and image.size
    if image.dtype != np.uint8 or not shape_fits:
        raise ValueError(
            f"image has dtype {image.dtype} and shape {image.shape}; expected uint8 "
            "[H, W, C] with 1, 3 or 4 channels and at least one pixel"
        )
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(image))


def png_uri(picture: Image.Image) -> str:
    """Returns the picture as a `data:` URI, so that a page needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_prediction(
    image: np.ndarray,
    class_names: Sequence[str],
    probabilities: np.ndarray,
    *,
    top: int = 5,
) -> Image.Image:
    """Draws an image beside bars of its most probable classes.

    Args:
        image: uint8 [H, W, C] with 1, 3 or 4 channels, of any size.
        class_names: K names. Where the font lacks a character, the number of the
            class is shown after the name.
        probabilities: float [K] in [0, 1].
        top: Number of classes to show, at least 1; all K if there are fewer.

    Returns:
        An RGB picture.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(class_names),) or not len(class_names):
        raise ValueError(
            f"probabilities has shape {probabilities.shape}; expected "
            f"({len(class_names)},), one for each class name, and at least one"
        )
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all():
        raise ValueError(f"probabilities must lie in [0, 1], got {probabilities}")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    best = np.argsort(-probabilities, kind="stable")[:top]

    side, margin, row, width = 320, 20, 56, 420
    height = max(side, row * len(best)) + 2 * margin
    canvas = Image.new("RGB", (side + width + 3 * margin, height), "white")
    picture = to_pil(image)
    scale = side / max(picture.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize([max(1, round(n * scale)) for n in picture.size], way)
    corner = (margin + (side - picture.width) // 2, (height - picture.height) // 2)
    canvas.paste(picture, corner, picture if picture.mode == "RGBA" else None)

    draw, font = ImageDraw.Draw(canvas), make_font()[0]
    left, y = side + 2 * margin, (height - row * len(best)) // 2
    for index in best:
        share = f"{100 * probabilities[index]:.1f} %"
        name = fit_caption(
            class_names[index], index, width - font.getlength(share) - 20
        )
        draw.text((left, y + 4), name, INK, font)
        draw.text((left + width, y + 4), share, INK, font, anchor="ra")
        bar = round(width * min(probabilities[index], 1.0))
        for length, color in ((width, "#e8e8e5"), (bar, HIT)):
            if length:
                draw.rectangle((left, y + 32, left + length - 1, y + 43), color)
        y += row
    return canvas


def beside(
    pictures: Sequence[Image.Image], titles: Sequence[str], *, gap: int = 12
) -> Image.Image:
    """Puts pictures side by side, each below its title.

    Args:
        pictures: RGB, of any sizes.
        titles: One title for each picture.
        gap: Space between and around the pictures, in pixels.

    Returns:
        An RGB picture.
    """
    row, font = 26, make_font(15)[0]
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    height = max(picture.height for picture in pictures) + 2 * gap + row
    canvas = Image.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(canvas), gap
    for picture, title in zip(pictures, titles, strict=True):
        draw.text((left, gap), title, INK, font)
        canvas.paste(picture, (left, gap + row))
        left += picture.width + gap
    return canvas


def enlarge(image: np.ndarray, least: int) -> Image.Image:
    """Makes an RGB picture whose longer side has at least `least` pixels.

    Small images are enlarged by a whole factor, by repeating pixels.
    """
    picture = to_pil(image).convert("RGB")
    factor = -(-least // max(picture.size))
    size = [factor * n for n in picture.size]
    return picture.resize(size, Image.Resampling.NEAREST) if factor > 1 else picture


@functools.cache
def make_font(size: int = 17) -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """Returns a font and the characters that it has.

    If matplotlib is installed, it is the font that comes with it, which has far more
    characters than Pillow's own.

    Args:
      size: Height of the letters, in pixels.
    """
    try:
        import matplotlib  # not above: slow, and not always installed
        from matplotlib.ft2font import FT2Font
    except ImportError:
        return ImageFont.load_default(size), frozenset(range(32, 127))
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size), frozenset(FT2Font(str(path)).get_charmap())


def fit_caption(name: str, index: int, room: float, size: int = 17) -> str:
    """Returns a name on one line of at most `room` pixels, in characters of the font.

    Args:
        name: Name of a class.
        index: Its number, which is shown if the name is empty or lacks characters.
        room: Available width, in pixels.
        size: Size of the letters.
    """
    font, characters = make_font(size)
    name = " ".join(name.split())
    shown = "".join(c if ord(c) in characters else "\N{WHITE SQUARE}" for c in name)
    tail = f" (class {index})" if shown != name or not name else ""
    if font.getlength(shown + tail) > room:
        tail = "…" + tail
        while shown and font.getlength(shown + tail) > room:
            shown = shown[:-1]
    return shown + tail
