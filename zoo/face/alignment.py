"""Aligns faces: in two dimensions by a similarity, in three by a fitted camera.

Everything is a pure function of one face, for `jit` and `vmap`. Points are x, y in
pixels, where (0, 0) is the center of the upper left pixel. Landmarks are an input: 67
or the usual 68 of `zoo.face.reference`, or 6 (centers of the left and the right eye,
tip of the nose, left corner, middle and right corner of the mouth), 5 (without the
mouth's middle) or 2 (the eyes); left is that of the picture.

Reference:
  Taigman, Yang, Ranzato, Wolf, DeepFace, 2014, section 2.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.face.reference import (
    EYES,
    LANDMARKS,
    LEFT_OUT,
    MOUTH_BOTTOM,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    MOUTH_TOP,
    NOSE_TIP,
    VERTICES,
    find_mirror,
    find_triangles,
)
from zoo.layers import per_channel

Array = jax.Array

COUNTS = (2, 5, 6, 67, 68)
# Cosines of a vertex's normal with the line of sight: below HIDDEN the vertex is
# hidden; up to SEEN it is blended with its mirror image, as far as that is seen better:
# fully if the mirror image's cosine is larger by BETTER.
HIDDEN, SEEN, BETTER = 0.0, 0.3, 0.3


def pick_fiducials(landmarks: Array) -> Array:
    """Picks the few points that a similarity is fitted to.

    Args:
      landmarks: float [L, 2] or [L, 3], L one of `COUNTS`.

    Returns:
      The 6 fiducials of 67 or 68 landmarks; fewer landmarks unchanged.

    Raises:
      ValueError: This number of landmarks is not supported.
    """
    count = landmarks.shape[0]
    if count not in COUNTS:
        raise ValueError(
            f"landmarks must be [L, 2] with L one of {COUNTS}, got "
            f"{list(landmarks.shape)}."
        )
    if count < 67:
        return landmarks
    mouth = 0.5 * (landmarks[MOUTH_TOP] + landmarks[MOUTH_BOTTOM])
    points = (
        *(landmarks[eye].mean(0) for eye in EYES),
        landmarks[NOSE_TIP],
        landmarks[MOUTH_LEFT],
        mouth,
        landmarks[MOUTH_RIGHT],
    )
    return jnp.stack(points)


def make_template(count: int, size: int) -> Array:
    """Returns the positions of fiducials in an aligned crop, float32 [n, 2].

    Args:
      count: Number of landmarks, one of `COUNTS`; for 67 or 68 the result is that of 6.
      size: Height and width of the crop, in pixels.
    """
    six = pick_fiducials(jnp.asarray(LANDMARKS[:, :2])) * size - 0.5
    return {2: six[:2], 5: six[jnp.array([0, 1, 2, 3, 5])]}.get(count, six)


def fit_similarity(source: Array, target: Array) -> Array:
    """Fits rotation, scale and translation by least squares.

    Args:
      source: float [N, 2], at least two points that differ.
      target: float [N, 2], the positions to which they are mapped.

    Returns:
      float [2, 3], the matrix that maps a source (x, y, 1) to its target.

    Reference:
      Umeyama, Least-squares estimation of transformation parameters between two point
      patterns, 1991; in two dimensions it has a closed form.
    """
    from_, to = source.mean(0), target.mean(0)
    a, b = source - from_[None], target - to[None]
    norm = jnp.square(a).sum()
    cos = (a * b).sum() / norm
    sin = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / norm
    turn = jnp.array([[cos, -sin], [sin, cos]])
    return jnp.concatenate([turn, (to - turn @ from_)[:, None]], 1)


def transform(matrix: Array, points: Array) -> Array:
    """Applies a matrix [2, 3] to points [..., 2]."""
    moved = points @ matrix[:, :2].T
    return moved + per_channel(matrix[:, 2], moved)


def invert(matrix: Array) -> Array:
    """Inverts an affine matrix [2, 3]."""
    (a, b), (c, d) = matrix[:, :2]
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    return jnp.concatenate([inverse, -(inverse @ matrix[:, 2:])], 1)


def compose(second: Array, first: Array) -> Array:
    """Returns the matrix [2, 3] that applies `first` and then `second`."""
    linear = second[:, :2] @ first
    return linear.at[:, 2].add(second[:, 2])


def sample(image: Array, points: Array) -> Array:
    """Interpolates an image bilinearly; beyond its border, pixels are repeated.

    Args:
      image: [H, W, C], of any numeric type.
      points: float [..., 2], x and y in pixels.

    Returns:
      float32 [..., C].
    """
    height, width = image.shape[:2]
    x = jnp.clip(points[..., 0], 0, width - 1)
    y = jnp.clip(points[..., 1], 0, height - 1)
    left = jnp.clip(jnp.floor(x), 0, max(width - 2, 0)).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, max(height - 2, 0)).astype(jnp.int32)
    a, b = (x - left)[..., None], (y - top)[..., None]
    right, below = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    pixels = jnp.asarray(image, jnp.float32)
    above = pixels[top, left] * (1 - a) + pixels[top, right] * a
    under = pixels[below, left] * (1 - a) + pixels[below, right] * a
    return above * (1 - b) + under * b


def warp(image: Array, matrix: Array, size: int) -> Array:
    """Warps an image into a square crop.

    Args:
      image: [H, W, C].
      matrix: float [2, 3], from the image's pixels to those of the crop.
      size: Height and width of the crop, in pixels.

    Returns:
      float32 [size, size, C].
    """
    return sample(image, transform(invert(matrix), _grid(size)))


def _grid(size: int) -> Array:
    """Returns x and y of all pixels of a square: float32 [size, size, 2]."""
    y, x = jnp.mgrid[:size, :size]
    return jnp.stack([x, y], -1).astype(jnp.float32)


def align_2d(image: Array, landmarks: Array, *, size: int) -> Array:
    """Aligns a face in the plane, and crops it, by a similarity.

    Args:
      image: [H, W, C], a photograph.
      landmarks: float [L, 2], L one of `COUNTS`.
      size: Height and width of the crop, in pixels.

    Returns:
      float32 [size, size, C].

    Raises:
      ValueError: This number of landmarks is not supported.
    """
    template = make_template(landmarks.shape[0], size)
    return warp(image, fit_similarity(pick_fiducials(landmarks), template), size)


def iterate_similarity(
    image: Array,
    detect: Callable[[Array], Array],
    *,
    size: int,
    start: Array,
    iterations: int = 3,
) -> Array:
    """Refits a similarity to the landmarks that a detector finds in the last crop.

    Args:
      image: [H, W, C], a photograph.
      detect: Function from a crop float32 [size, size, C] to its landmarks [L, 2],
        which jax can trace.
      size: Height and width of the crop, in pixels.
      start: float [2, 3], from the photograph's pixels to those of the first crop, such
        as one for a face's bounding box.
      iterations: Number of times that the detector runs.

    Returns:
      float [2, 3], the composition of all similarities.
    """

    def look(_, matrix: Array) -> Array:
        found = detect(warp(image, matrix, size))
        template = make_template(found.shape[0], size)
        return compose(fit_similarity(pick_fiducials(found), template), matrix)

    return jax.lax.fori_loop(0, iterations, look, jnp.asarray(start, jnp.float32))


def fit_camera(
    points: Array, reference: Array, covariance: Array | None = None
) -> Array:
    """Fits an affine camera by generalized least squares.

    Args:
      points: float [N, 2], the landmarks in a picture, N at least 4.
      reference: float [N, 3], the same landmarks in space, not all in a plane.
      covariance: float [2 N, 2 N], covariance of the errors of x and y of the first
        point, of the second and so on, positive definite; None for independent errors
        of equal variance.

    Returns:
      float [2, 4], the matrix that maps (x, y, z, 1) to (x, y) in the picture.

    Raises:
      ValueError: A shape is wrong.
    """
    count = points.shape[0]
    if reference.shape != (count, 3) or points.shape != (count, 2) or count < 4:
        raise ValueError(
            f"points must be [N, 2] and reference [N, 3] with N >= 4, got "
            f"{list(points.shape)} and {list(reference.shape)}."
        )
    if covariance is not None and covariance.shape != (2 * count, 2 * count):
        raise ValueError(
            f"covariance must be [{2 * count}, {2 * count}], got "
            f"{list(covariance.shape)}."
        )
    # Points are scaled to mean 0 and size 1, for which float32 loses no digits.
    middle, spread = reference.mean(0), reference.std()
    center = points.mean(0)
    scaled = (reference - middle[None]) / spread
    rows = jnp.concatenate([scaled, jnp.ones((count, 1), scaled.dtype)], 1)
    design = jnp.kron(rows, jnp.eye(2, dtype=rows.dtype))  # [2 N, 8], by column pairs
    values = (points - center[None]).reshape(-1)
    if covariance is not None:
        factor = jnp.linalg.cholesky(covariance)
        whiten = partial(jax.scipy.linalg.solve_triangular, factor, lower=True)
        design, values = whiten(design), whiten(values)
    q, r = jnp.linalg.qr(design)
    solved = jax.scipy.linalg.solve_triangular(r, q.T @ values)
    camera = solved.reshape(4, 2).T
    linear = camera[:, :3] / spread
    offset = camera[:, 3] + center - linear @ middle
    return jnp.concatenate([linear, offset[:, None]], 1)


def project(camera: Array, points: Array) -> Array:
    """Projects points [..., 3] by an affine camera [2, 4] to [..., 2]."""
    seen = points @ camera[:, :3].T
    return seen + per_channel(camera[:, 3], seen)


def camera_pose(camera: Array) -> Array:
    """Returns yaw, pitch and roll of a face seen by a camera, in degrees: float [3].

    A positive yaw is a face turned to the right of the picture, a positive pitch one
    turned down, a positive roll one turned clockwise; roll is applied last.
    """
    x, y = camera[0, :3], camera[1, :3]
    x = x / jnp.linalg.norm(x)
    y = y - x * (x @ y)
    y = y / jnp.linalg.norm(y)
    z = jnp.cross(x, y)
    # Rows of R = Rz(roll) Rx(pitch) Ry(yaw).
    yaw = jnp.arctan2(-z[0], z[2])
    pitch = jnp.arcsin(jnp.clip(-z[1], -1, 1))
    roll = jnp.arctan2(-x[1], y[1])
    return jnp.rad2deg(jnp.stack([yaw, pitch, roll]))


class FittedFace(NamedTuple):
    """The transforms that turn a face to the front.

    Attributes:
      similarity: float [2, 3], from the photograph to the crop.
      camera: float [2, 4], from the reference, in pixels of the crop, to the crop.
      residuals: float [67, 2], differences of landmarks from their projections, in
        pixels of the crop.
      source: float [V, 2], vertices in the photograph.
      target: float [V, 2], vertices in the frontal crop.
      weights: float [V], the share of the color at each vertex that comes from its own
        side: 1 if it is seen, 0 if only its mirror image is.
    """

    similarity: Array
    camera: Array
    residuals: Array
    source: Array
    target: Array
    weights: Array


def fit_face(
    landmarks: Array, *, size: int, covariance: Array | None = None
) -> FittedFace:
    """Fits the reference face to 67 landmarks.

    The camera is fitted in the similarity's crop. Its residuals, which are the person's
    own shape, are added to the reference's x and y. Vertices around the face are
    projected by the camera.

    Args:
      landmarks: float [67, 2] or [68, 2], in pixels of the photograph.
      size: Height and width of the crop, in pixels.
      covariance: float [134, 134], covariance of the landmarks' errors in pixels of the
        crop; None for independent errors of equal variance.

    Raises:
      ValueError: This number of landmarks is not supported.
    """
    if landmarks.shape[0] not in (67, 68):
        raise ValueError(
            f"a face in three dimensions needs 67 or 68 landmarks, got "
            f"{list(landmarks.shape)}; align_2d takes {COUNTS}."
        )
    if landmarks.shape[0] == 68:
        landmarks = jnp.delete(landmarks, LEFT_OUT, axis=0)
    template = make_template(67, size)
    similarity = fit_similarity(pick_fiducials(landmarks), template)
    points = transform(similarity, landmarks)
    reference = jnp.asarray(VERTICES) * size - jnp.array([[0.5, 0.5, 0]])
    camera = fit_camera(points, reference[:67], covariance)
    residuals = points - project(camera, reference[:67])
    source = jnp.concatenate([points, project(camera, reference[67:])])
    target = reference[:, :2].at[:67].add(residuals)
    weights = _own_weights(camera, reference)
    source = transform(invert(similarity), source)
    return FittedFace(similarity, camera, residuals, source, target, weights)


def _own_weights(camera: Array, reference: Array) -> Array:
    triangles = find_triangles()
    a, b, c = (reference[triangles[:, i]] for i in range(3))
    # Added at all three corners, so that a vertex's normal is the mean by area.
    faces = jnp.repeat(jnp.cross(b - a, c - a), 3, axis=0)
    normals = jnp.zeros_like(reference).at[triangles.reshape(-1)].add(faces)
    normals /= jnp.linalg.norm(normals, axis=1, keepdims=True)
    sight = jnp.cross(camera[0, :3], camera[1, :3])
    sight /= jnp.linalg.norm(sight)
    own = normals @ sight
    hidden = jnp.clip((SEEN - own) / (SEEN - HIDDEN), 0, 1)
    return 1 - hidden * jnp.clip((own[find_mirror()] - own) / BETTER, 0, 1)


def align_3d(
    image: Array,
    landmarks: Array,
    *,
    size: int,
    covariance: Array | None = None,
) -> Array:
    """Turns a face to the front by the piecewise affine warp of its triangles.

    Args:
      image: [H, W, C], a photograph.
      landmarks: float [67, 2] or [68, 2], in its pixels.
      size: Height and width of the crop, in pixels.
      covariance: See `fit_face`.

    Returns:
      float32 [size, size, C].

    Raises:
      ValueError: This number of landmarks is not supported.
    """
    face = fit_face(landmarks, size=size, covariance=covariance)
    return warp_face(image, face, size=size)


def warp_face(image: Array, face: FittedFace, *, size: int) -> Array:
    """Warps a photograph by a fitted face.

    Args:
      image: [H, W, C].
      face: From `fit_face`.
      size: Height and width of the crop, in pixels.

    Returns:
      float32 [size, size, C].
    """
    triangles = jnp.asarray(find_triangles())
    mirror = jnp.asarray(find_mirror())
    a, b, c = (face.target[triangles[:, i]] for i in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    # Residuals may flip a thin triangle, which then covers nothing.
    solid = (area > 1e-3)[None]
    safe = jnp.where(solid, area[None], 1.0)

    def row(points: Array) -> tuple[Array, Array, Array]:
        ap = points[:, None] - a[None]
        second = (ap[..., 0] * ac[None, :, 1] - ap[..., 1] * ac[None, :, 0]) / safe
        third = (ab[None, :, 0] * ap[..., 1] - ab[None, :, 1] * ap[..., 0]) / safe
        inside = jnp.minimum(jnp.minimum(second, third), 1 - second - third)
        chosen = jnp.where(solid, inside, -jnp.inf).argmax(1)
        places = jnp.arange(len(points))
        second, third = second[places, chosen], third[places, chosen]
        shares = jnp.stack([1 - second - third, second, third], 1)  # [W, 3]
        corners = triangles[chosen]
        own = jnp.einsum("wk,wkd->wd", shares, face.source[corners])
        other = jnp.einsum("wk,wkd->wd", shares, face.source[mirror[corners]])
        weights = (shares * face.weights[corners]).sum(1)
        return own, other, weights

    own, other, weights = jax.lax.map(row, _grid(size))
    weights = weights[..., None]
    return weights * sample(image, own) + (1 - weights) * sample(image, other)


def to_uint8(image: Array) -> Array:
    """Rounds an image to uint8."""
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def align(image: Array, landmarks: Array, method: str, *, size: int) -> Array:
    """Aligns the face in a photograph by its landmarks.

    Args:
      image: uint8 [H, W, C].
      landmarks: float [L, 2], L one of `COUNTS`.
      method: "2d" or "3d"; "3d" needs 67 or 68 landmarks.
      size: Height and width of the crop, in pixels.

    Returns:
      uint8 [size, size, C].

    Raises:
      ValueError: The method is unknown, or the landmarks do not allow it.
    """
    if method not in ("2d", "3d"):
        raise ValueError(f"align={method!r} must be '2d' or '3d'.")
    function = {"2d": align_2d, "3d": align_3d}[method]
    return to_uint8(function(image, landmarks, size=size))
