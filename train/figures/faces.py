"""Pictures of faces: landmarks, and the steps of the alignment."""

from functools import partial

import jax
import numpy as np
from PIL import Image, ImageDraw

from zoo.face.alignment import align_2d, camera_pose, fit_face, to_uint8, warp_face
from zoo.face.reference import find_triangles
from zoo.figures.pictures import beside, enlarge, to_pil

SIDE = 200
DOT, LINE = (0, 158, 115), (255, 255, 255)


def draw_points(
    image: np.ndarray, points: np.ndarray, *, lines: np.ndarray | None = None
) -> Image.Image:
    """Draws points, and optionally triangles, over an enlarged image.

    Args:
      image: uint8 [H, W, C].
      points: float [N, 2], x and y in pixels.
      lines: int [T, 3], triangles of points; none if None.

    Returns:
      An RGB picture.
    """
    picture = to_pil(image).convert("RGB")
    factor = SIDE / max(picture.size)
    size = [round(n * factor) for n in picture.size]
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    draw, at = ImageDraw.Draw(picture), (np.asarray(points) + 0.5) * factor
    for triangle in () if lines is None else lines:
        corners = [tuple(at[i]) for i in (*triangle, triangle[0])]
        draw.line(corners, LINE, 1)
    for x, y in at:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), DOT)
    return picture


def draw_alignment(image: np.ndarray, landmarks: np.ndarray, size: int) -> Image.Image:
    """Draws a photograph with its landmarks, and the results of its alignment.

    Args:
      image: uint8 [H, W, C].
      landmarks: float [L, 2].
      size: Height and width of the crop, in pixels.

    Returns:
      An RGB picture: the photograph, the similarity's crop, and with 67 or more
      landmarks the triangles and the frontal crop.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = _align(image, landmarks, size=size)
    flat, *fitted = map(np.asarray, found)
    pictures = [draw_points(image, landmarks), enlarge(flat, SIDE)]
    titles = ["landmarks", "similarity"]
    if fitted:
        frontal, source, (yaw, pitch, _) = fitted
        triangles = draw_points(image, source, lines=find_triangles())
        pictures += [triangles, enlarge(frontal, SIDE)]
        titles += [f"yaw {yaw:.0f}, pitch {pitch:.0f}", "frontal"]
    return beside(pictures, titles)


@partial(jax.jit, static_argnames="size")
def _align(image: jax.Array, landmarks: jax.Array, *, size: int) -> tuple:
    """Returns the crop of the similarity and, of enough landmarks, what is fitted."""
    flat = to_uint8(align_2d(image, landmarks, size=size))
    if len(landmarks) < 67:
        return (flat,)
    face = fit_face(landmarks, size=size)
    frontal = to_uint8(warp_face(image, face, size=size))
    return flat, frontal, face.source, camera_pose(face.camera)
