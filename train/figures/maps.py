"""Pictures of what a network sees: filters, patches, projections and heat maps."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from zoo.figures.pictures import to_pil

GRAY = (128, 128, 128)
GAP = 4  # pixels between the cells of a grid


def draw_grid(pictures: Sequence[Image.Image], cell: int, columns: int) -> Image.Image:
    """Puts pictures into a grid of square cells, row by row.

    Args:
        pictures: RGB, of any sizes; each is resized to its cell, small ones with
            square pixels.
        cell: Height and width of a cell, in pixels.
        columns: Number of cells in a row.

    Returns:
        An RGB picture.
    """
    rows = -(-len(pictures) // columns)
    size = [n * (cell + GAP) - GAP for n in (columns, rows)]
    canvas = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        top, left = (n * (cell + GAP) for n in divmod(i, columns))
        canvas.paste(_to_cell(picture, cell), (left, top))
    return canvas


def _to_cell(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = [max(1, round(n * scale)) for n in picture.size]
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    canvas = Image.new("RGB", (cell, cell), GRAY)
    picture = picture.convert("RGB").resize(size, way)
    canvas.paste(picture, [(cell - n) // 2 for n in size])
    return canvas


def draw_filters(kernel: np.ndarray, *, bgr: bool = False) -> list[Image.Image]:
    """Draws the filters of a first layer, each scaled to its own range.

    Args:
        kernel: float [k, k, 1 or 3, F].
        bgr: Whether blue comes first.
    """
    pictures = []
    for weights in np.moveaxis(np.asarray(kernel, np.float32), -1, 0):
        low, high = weights.min(), weights.max()
        unit = (weights - low) / max(high - low, 1e-12)
        pictures.append(_picture(255 * unit, bgr))
    return pictures


def draw_projection(
    projection: np.ndarray, *, bgr: bool = False, clip: float = 1.0
) -> Image.Image:
    """Draws a projection into the image; gray is zero.

    Args:
        projection: float [H, W, 1 or 3].
        bgr: Whether blue comes first.
        clip: The share of the pixels that are not clipped, 0 to 1; the others have the
            largest values.
    """
    size = np.abs(projection).max(axis=-1)
    # The quantile is over the pixels that the projection reaches at all.
    reached = size[size > 0]
    largest = float(np.quantile(reached, clip)) if len(reached) else 1e-12
    return _picture(127.5 + 127.5 * projection / largest, bgr)


def draw_heat(
    values: np.ndarray,
    size: tuple[int, int],
    *,
    low: float | None = None,
    high: float | None = None,
) -> Image.Image:
    """Draws a map of numbers, dark where they are small.

    Args:
        values: float [H, W].
        size: Height and width of the picture, in pixels.
        low: The value drawn darkest; the smallest value if None.
        high: The value drawn brightest; the largest value if None.
    """
    from matplotlib import colormaps  # not above: slow

    values = np.asarray(values, np.float32)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    unit = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = colormaps["inferno"](unit)[..., :3]
    picture = to_pil(np.round(255 * colors).astype(np.uint8))
    return picture.resize(size[::-1], Image.Resampling.NEAREST)


def draw_classes(
    classes: np.ndarray, size: tuple[int, int]
) -> tuple[Image.Image, dict[int, str]]:
    """Draws a map of classes, each in a color of its own.

    Args:
        classes: int [H, W].
        size: Height and width of the picture, in pixels.

    Returns:
        The picture, and the HTML color of each class that occurs, the most frequent
        class first.
    """
    from matplotlib import colormaps

    found, counts = np.unique(classes, return_counts=True)
    found = found[np.argsort(-counts, kind="stable")]
    table = colormaps["tab20"]
    colors = {
        int(c): np.round(255 * np.array(table(i % 20)[:3])).astype(np.uint8)
        for i, c in enumerate(found)
    }
    drawn = np.zeros((*classes.shape, 3), np.uint8)
    for number, color in colors.items():
        drawn[classes == number] = color
    picture = to_pil(drawn).resize(size[::-1], Image.Resampling.NEAREST)
    return picture, {n: "#" + bytes(color).hex() for n, color in colors.items()}


def blend(image: np.ndarray, heat: Image.Image, share: float = 0.55) -> Image.Image:
    """Lays a heat map over an image uint8 [H, W, C] of the same size."""
    return Image.blend(to_pil(image).convert("RGB"), heat, share)


def _picture(values: np.ndarray, bgr: bool) -> Image.Image:
    values = values[..., ::-1] if bgr else values
    return to_pil(np.round(np.clip(values, 0, 255)).astype(np.uint8))
