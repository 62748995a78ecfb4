"""Pictures of masks: in colors, over their images, and with their errors."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from zoo.figures.boxes import class_color
from zoo.figures.pictures import (
    HIT,
    INK,
    MISS,
    beside,
    enlarge,
    fit_caption,
    make_font,
    to_pil,
)

IGNORED = 255
LEAST, LETTERS = 256, 14
# The colors in which data sets publish their masks, by the names of the classes.
CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOC = frozenset(
    (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
        *("cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person"),
        *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )
)
CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}


def make_palette(class_names: Sequence[str]) -> np.ndarray:
    """Returns the colors of a data set's classes, uint8 [256, 3].

    For the classes of CamVid, Cityscapes and VOC they are the data set's own. For
    others they are `class_color`'s, and black for the background; numbers beyond the
    classes have the colors of VOC, which has a rule for any number.
    """
    numbers = np.arange(256)[:, None, None]
    # VOC: every third bit of a number belongs to red, to green or to blue, and the
    # lowest of these bits is the highest bit of the color.
    places = np.arange(8)
    bits = (numbers >> (3 * places[None, None] + np.arange(3)[:, None])) & 1
    palette = (bits << (7 - places)).sum(-1).astype(np.uint8)
    if not {*class_names} <= VOC:
        things = [i for i, name in enumerate(class_names) if name != "background"]
        palette[: len(class_names)] = 0
        for number, place in enumerate(things):
            palette[place] = class_color(number)
    for known in (CAMVID, CITYSCAPES):
        if class_names and {*class_names} <= {*known}:
            palette[: len(class_names)] = [known[name] for name in class_names]
            palette[IGNORED] = 0
            break
    return palette


def paletted(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Makes a picture of mode "P" from a mask uint8 [H, W], as data sets store it."""
    picture = Image.fromarray(np.asarray(mask, np.uint8), "L")
    picture.putpalette(palette.ravel().tolist())
    return picture


def draw_overlay(
    image: np.ndarray,
    mask: np.ndarray,
    class_names: Sequence[str],
    palette: np.ndarray,
    *,
    strength: float = 0.6,
) -> Image.Image:
    """Draws a mask over its image, beside a legend of its classes.

    Args:
        image: uint8 [H, W, C].
        mask: uint8 [H, W].
        class_names: K names.
        palette: uint8 [256, 3], see `make_palette`.
        strength: Opacity of the mask's colors, 0 to 1.

    Returns:
        An RGB picture.
    """
    colors = enlarge(palette[mask], 2 * LEAST)
    picture = to_pil(image).convert("RGB").resize(colors.size, Image.Resampling.NEAREST)
    opacity = np.full(256, round(255 * strength), np.uint8)
    # The background is transparent.
    opacity[[i for i, name in enumerate(class_names) if name == "background"]] = 0
    stencil = enlarge(opacity[mask][..., None], 2 * LEAST).convert("L")
    shown = Image.composite(colors, picture, stencil)
    present, counts = np.unique(mask[mask != IGNORED], return_counts=True)
    present = present[np.argsort(-counts, kind="stable")]
    shares = np.sort(counts)[::-1] / mask.size
    row, margin, width = LETTERS + 10, 12, 230
    height = max(shown.height + 2 * margin, row * len(present) + 2 * margin)
    canvas = Image.new("RGB", (shown.width + width + 3 * margin, height), "white")
    canvas.paste(shown, (margin, margin))
    draw, font = ImageDraw.Draw(canvas), make_font(LETTERS)[0]
    left, top = shown.width + 2 * margin, margin
    for number, share in zip(present, shares, strict=True):
        color = tuple(int(c) for c in palette[number])
        draw.rectangle((left, top, left + 15, top + 15), color, INK)
        name = fit_caption(class_names[number], int(number), width - 90, LETTERS)
        draw.text((left + 24, top - 1), name, INK, font)
        share = f"{100 * share:.1f} %"
        draw.text((left + width, top - 1), share, INK, font, anchor="ra")
        top += row
    return canvas


def draw_comparison(
    image: np.ndarray, mask: np.ndarray, predicted: np.ndarray, palette: np.ndarray
) -> Image.Image:
    """Draws an image, its true mask, the predicted one, and where they differ.

    In the last picture, correct pixels are blue, wrong ones orange, ignored ones white.

    Args:
        image: uint8 [H, W, C].
        mask: uint8 [H, W], with 255 for ignored pixels.
        predicted: uint8 [H, W].
        palette: uint8 [256, 3].
    """
    pale = np.array(HIT) // 4 + 185
    errors = np.where((mask == predicted)[..., None], pale, MISS)
    errors = np.where((mask == IGNORED)[..., None], 255, errors).astype(np.uint8)
    pictures = [
        enlarge(array, LEAST)
        for array in (image, palette[mask], palette[predicted], errors)
    ]
    return beside(pictures, ("image", "truth", "prediction", "errors"))
