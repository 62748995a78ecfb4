"""Errors of face alignment, measured on drawn faces with known shape and pose."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data.faces.synthetic import draw_scene
from train.data.rng import RandomStream
from zoo.face.alignment import (
    camera_pose,
    fit_face,
    fit_similarity,
    invert,
    make_template,
    pick_fiducials,
    transform,
)

Array = jax.Array


class AlignmentErrors(NamedTuple):
    """Errors of alignment, averaged over pictures.

    Attributes:
      pixels_2d: Distance of a landmark in the crop of `align_2d` from where it would
        be if the person looked straight into the camera.
      pixels_3d: The same distance in the crop of `align_3d`.
      degrees: Absolute errors of the fitted camera's yaw, pitch and roll.
    """

    pixels_2d: float
    pixels_3d: float
    degrees: tuple[float, float, float]


def measure_alignment(
    *, noise: float = 0.0, pictures: int = 400, size: int = 152
) -> AlignmentErrors:
    """Measures the alignment of drawn faces with noise on their landmarks.

    Args:
      noise: Standard deviation of the error of each landmark's x and y, in pixels of
        the photograph, whose heads are about 52 pixels wide.
      pictures: Number of pictures, each of another person.
      size: Height and width of the crops, in pixels.

    Raises:
      ValueError: A number is out of range.
    """
    if pictures < 1 or size < 1:
        raise ValueError(
            f"--pictures and --size must be 1 or more, got {pictures} and {size}."
        )
    if not 0 <= noise < math.inf:
        raise ValueError(f"--noise must be 0 or more and finite, got {noise}.")
    scenes = [draw_scene(person, 0) for person in range(pictures)]
    points = np.stack([scene.project() for scene in scenes])
    shapes = np.stack([scene.landmarks for scene in scenes])
    found = points + noise * RandomStream((0, 13)).normal(points.shape)
    measure = jax.jit(jax.vmap(partial(_measure, size=size)))
    arrays = (np.float32(a) for a in (points, found, shapes))
    flat, frontal, poses = (np.asarray(a) for a in measure(*arrays))
    off = np.abs(poses - np.stack([scene.pose for scene in scenes])).mean(0)
    return AlignmentErrors(
        float(flat.mean()), float(frontal.mean()), tuple(map(float, off))
    )


def _measure(points: Array, found: Array, shape: Array, *, size: int):
    """Returns both distances of each landmark, float [67], and the fitted pose.

    Args:
      points: float [67, 2], the landmarks in the photograph.
      found: float [67, 2], the landmarks with their errors.
      shape: float [67, 3], the landmarks in space.
      size: Height and width of the crop, in pixels.
    """
    template = make_template(67, size)
    front = shape[:, :2]
    front = transform(fit_similarity(pick_fiducials(front), template), front)
    flat = transform(fit_similarity(pick_fiducials(found), template), points)
    face = fit_face(found, size=size)
    # A true landmark keeps its offset from the detected one, mapped by the similarity.
    beside = (points - found) @ face.similarity[:, :2].T
    frontal = face.target[:67] + beside
    distances = (jnp.linalg.norm(a - front, axis=-1) for a in (flat, frontal))
    # The camera from the reference to the photograph, in which the face is tilted.
    camera = invert(face.similarity)[:, :2] @ face.camera
    return *distances, camera_pose(camera)
