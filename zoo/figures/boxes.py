"""Pictures of images with boxes."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from zoo.figures.pictures import INK, enlarge, fit_caption, make_font

Color = tuple[int, int, int]
LEAST = 384  # minimum longer side in pixels, so that captions can be read
LETTERS = 14


# Colors that are easy to tell apart, after Sasha Trubetskoy's list of 20.
COLORS: tuple[Color, ...] = (
    *((0, 130, 200), (230, 25, 75), (60, 180, 75), (245, 130, 48), (145, 30, 180)),
    *((70, 240, 240), (240, 50, 230), (255, 225, 25), (0, 0, 128), (250, 190, 212)),
    *((0, 128, 128), (170, 110, 40), (128, 0, 0), (170, 255, 195), (128, 128, 0)),
    *((220, 190, 255), (190, 240, 45), (128, 128, 128), (0, 80, 60), (90, 60, 60)),
)


def class_color(number: int) -> Color:
    """Returns a color for a class; those of the first 20 are easy to tell apart."""
    if number < len(COLORS):
        return COLORS[number]
    hue = (0.58 + number * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.85 - 0.25 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    *,
    least: int = LEAST,
    bold: int = 0,
) -> Image.Image:
    """Draws boxes with captions on an image.

    Args:
        image: uint8 [H, W, C] with 1, 3 or 4 channels.
        boxes: float [n, 4], xyxy in pixels of the image. The first ones are drawn
            last, on top of the others.
        captions: n texts; empty ones are not drawn, and neither are those that would
            hide an earlier one.
        colors: n colors.
        least: Minimum longer side in pixels; smaller images are enlarged.
        bold: Number of boxes, counted from the first, with thicker lines.

    Returns:
        An RGB picture.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not len(boxes) == len(captions) == len(colors):
        raise ValueError(
            f"{len(boxes)} boxes have {len(captions)} captions and {len(colors)} "
            "colors; expected one for each."
        )
    picture = enlarge(image, least)
    scale = picture.width / np.asarray(image).shape[1]
    draw, font = ImageDraw.Draw(picture), make_font(LETTERS)[0]
    corners = (boxes * scale).clip(0, [*picture.size, *picture.size])
    thick = max(2, round(max(picture.size) / 300))
    for i in reversed(range(len(boxes))):
        left, top, right, bottom = corners[i]
        corner = (max(right - 1, left), max(bottom - 1, top))
        width = 2 * thick if i < bold else thick
        draw.rectangle((left, top, *corner), None, colors[i], width)
    taken: list[tuple[float, float, float, float]] = []
    for i in range(len(boxes)):
        (left, top, _, _), caption, color = corners[i], captions[i], colors[i]
        if not caption:
            continue
        width, height = font.getlength(caption) + 6, LETTERS + 5
        # Above the box or, if there is no room, within it.
        top = top - height if top >= height else top
        left = max(0.0, min(left, picture.width - width))
        place = (left, top, left + width, top + height)
        if any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        draw.rectangle(place, color)
        ink = "white" if np.dot(color, (0.3, 0.59, 0.11)) < 150 else INK
        draw.text((left + 3, top + 1), caption, ink, font)
    return picture


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    across = one[0] < other[2] and other[0] < one[2]
    return across and one[1] < other[3] and other[1] < one[3]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    least: int = LEAST,
) -> Image.Image:
    """Draws boxes in the colors of their classes, with names and scores.

    Args:
        image: uint8 [H, W, C].
        boxes: float [n, 4], xyxy in pixels of the image.
        classes: int [n].
        scores: float [n], 0 to 1; None for the ground truth.
        class_names: K names.
        least: See `draw_boxes`.
    """
    captions = [fit_caption(class_names[c], int(c), 150, LETTERS) for c in classes]
    if scores is not None:
        captions = [f"{c} {s:.0%}" for c, s in zip(captions, scores, strict=True)]
    colors = [class_color(int(c)) for c in classes]
    return draw_boxes(image, boxes, captions, colors, least=least)


def cut_around(
    image: np.ndarray, box: np.ndarray, *, margin: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a square around a box out of an image.

    Args:
        image: uint8 [H, W, C].
        box: float [4], xyxy in pixels.
        margin: Margin on each side, in units of the box's longer side.

    Returns:
        The part of the image, and the position of its upper left corner, [left, top].
    """
    left, top, right, bottom = box
    center = np.array([left + right, top + bottom]) / 2
    half = max(right - left, bottom - top, 8) * (0.5 + margin)
    size = np.array(image.shape[1::-1])
    low = np.floor(center - half).clip(0, size - 1).astype(int)
    high = np.maximum(np.ceil(center + half).clip(1, size).astype(int), low + 1)
    return image[low[1] : high[1], low[0] : high[0]], low
