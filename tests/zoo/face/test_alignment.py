"""Alignment against scikit-image's transforms and least squares in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import transform as skimage

from zoo.face.alignment import (
    align,
    align_2d,
    align_3d,
    camera_pose,
    compose,
    fit_camera,
    fit_face,
    fit_similarity,
    invert,
    iterate_similarity,
    make_template,
    pick_fiducials,
    project,
    sample,
    transform,
    warp,
    warp_face,
)
from zoo.face.reference import LANDMARKS, VERTICES, find_mirror, find_triangles

SIZE = 48


def similarity(angle, scale, x, y):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]], np.float32)


def rotation(yaw, pitch, roll):
    """Rz(roll) Rx(pitch) Ry(yaw), angles in degrees."""
    a, b, c = np.deg2rad([yaw, pitch, roll])
    around_y = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    around_x = [[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]]
    around_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(around_z) @ around_x @ around_y


def photograph(height=70, width=64):
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 3, columns * 3, 60 * np.sin(rows / 4) + 100], -1)
    return image.clip(0, 255).astype(np.uint8)


def seen_landmarks(yaw, pitch, roll, scale=40.0, center=(30.0, 34.0)):
    """The reference as an affine camera sees it, and that camera, float32."""
    linear = scale * rotation(yaw, pitch, roll)[:2]
    reference = np.float64(LANDMARKS) - [0.5, 0.5, 0]
    points = reference @ linear.T + center
    return points.astype(np.float32), linear


def test_similarity_is_exact_and_scikit_images():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(6, 2)).astype(np.float32) * 20
    matrix = similarity(0.7, 1.8, 5, -3)
    np.testing.assert_allclose(
        fit_similarity(source, transform(matrix, source)), matrix, atol=2e-5
    )
    target = source + rng.normal(size=(6, 2)).astype(np.float32)
    wanted = skimage.SimilarityTransform.from_estimate(source, target)
    found = jax.jit(fit_similarity)(source, target)
    np.testing.assert_allclose(found, wanted.params[:2], atol=1e-4)


def test_matrices_are_composed_and_inverted():
    first, second = similarity(0.3, 1.2, 2, 5), np.array([[1, 0.4, 2], [0, 0.8, 1]])
    points = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    both = compose(jnp.asarray(second), jnp.asarray(first))
    np.testing.assert_allclose(
        transform(both, points), transform(second, transform(first, points)), rtol=1e-4
    )
    back = transform(invert(both), transform(both, points))
    np.testing.assert_allclose(back, points, atol=1e-5)


def test_warp_is_scikit_images():
    image = photograph()
    matrix = similarity(0.2, 0.9, 3, -4)
    full = np.vstack([matrix, [0, 0, 1]])
    wanted = skimage.warp(
        image.astype(float),
        skimage.AffineTransform(full).inverse,
        output_shape=(SIZE, SIZE),
        order=1,
        mode="edge",
    )
    found = jax.jit(warp, static_argnums=2)(image, matrix, SIZE)
    np.testing.assert_allclose(found, wanted, atol=0.05)


def test_sampling_meets_pixels_and_goes_on_beyond_the_border():
    image = photograph(5, 4)
    points = np.array([[0, 0], [3, 4], [1.5, 2], [-3, 9]], np.float32)
    found = sample(image, points)
    np.testing.assert_allclose(found[0], image[0, 0])
    np.testing.assert_allclose(found[1], image[4, 3])
    middle = (image[2, 1].astype(float) + image[2, 2]) / 2
    np.testing.assert_allclose(found[2], middle)
    np.testing.assert_allclose(found[3], image[4, 0])
    assert sample(image[:1, :1], points).shape == (4, 3)


@pytest.mark.parametrize("count", [2, 5, 6, 67, 68])
def test_fiducials_of_any_number_come_to_the_template(count):
    points, _ = seen_landmarks(0, 0, 25)
    if count == 68:
        points = np.insert(points, 66, points[62], axis=0)
    elif count < 67:
        points = np.asarray(pick_fiducials(points))[: {2: 2}.get(count, 6)]
        points = points[[0, 1, 2, 3, 5]] if count == 5 else points
    template = make_template(count, SIZE)
    matrix = fit_similarity(pick_fiducials(points), template)
    np.testing.assert_allclose(
        transform(matrix, pick_fiducials(points)), template, atol=1e-3
    )
    crop = jax.jit(align_2d, static_argnames="size")(photograph(), points, size=SIZE)
    assert crop.shape == (SIZE, SIZE, 3)


def test_iteration_finds_what_one_look_misses():
    image, true = photograph(), similarity(-0.5, 0.8, 20, 15)
    wanted = make_template(6, SIZE)
    in_photo = transform(invert(jnp.asarray(true)), wanted)

    def detector(matrix):
        """Sees landmarks, with an error as large as the crop is off."""

        def detect(crop):
            del crop
            seen = transform(matrix[0], in_photo)
            return seen + 0.4 * (wanted - seen)

        return detect

    # Without jit, so that the detector may know which crop it is shown.
    errors, matrix = [], jnp.array([[1.0, 0, 0], [0, 1, 0]])
    for _ in range(6):
        matrix = iterate_similarity(
            image, detector([matrix]), size=SIZE, start=matrix, iterations=1
        )
        errors.append(float(jnp.abs(matrix - true).max()))
    assert errors[0] > 1
    assert errors[-1] < errors[0] / 20
    assert sorted(errors, reverse=True) == errors


def test_iteration_composes_its_looks():
    image = photograph()
    shift = jnp.array([2.0, -1.0])

    def detect(crop):
        return make_template(6, SIZE) + shift[None] + 0 * crop.sum()

    start = similarity(0.1, 1.1, 3, 4)
    run = jax.jit(
        lambda image: iterate_similarity(
            image, detect, size=SIZE, start=start, iterations=3
        )
    )
    np.testing.assert_allclose(run(image)[:, 2], start[:, 2] - 3 * shift, atol=1e-3)


@pytest.mark.parametrize("pose", [(0, 0, 0), (35, -10, 15), (-60, 20, -30)])
def test_a_camera_is_recovered_exactly(pose):
    points, linear = seen_landmarks(*pose)
    reference = jnp.asarray(LANDMARKS - np.float32([0.5, 0.5, 0]))
    camera = jax.jit(fit_camera)(points, reference)
    np.testing.assert_allclose(camera[:, :3], linear, atol=2e-3)
    np.testing.assert_allclose(camera[:, 3], [30, 34], atol=1e-3)
    np.testing.assert_allclose(project(camera, reference), points, atol=1e-3)
    np.testing.assert_allclose(camera_pose(camera), pose, atol=0.01)


def test_covariance_weighs_as_generalized_least_squares():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(12, 3))
    points = rng.normal(size=(12, 2)) + reference[:, :2] * 10
    root = rng.normal(size=(24, 24))
    covariance = root @ root.T + 0.5 * np.eye(24)
    design = np.kron(np.column_stack([reference, np.ones(12)]), np.eye(2))
    inverse = np.linalg.inv(covariance)
    solved = np.linalg.solve(
        design.T @ inverse @ design, design.T @ inverse @ points.reshape(-1)
    )
    found = fit_camera(
        *(jnp.asarray(a, jnp.float32) for a in (points, reference, covariance))
    )
    np.testing.assert_allclose(found, solved.reshape(4, 2).T, atol=2e-3)
    plain = fit_camera(jnp.float32(points), jnp.float32(reference))
    assert np.abs(plain - found).max() > 0.05


def test_a_point_of_large_error_hardly_counts():
    points, linear = seen_landmarks(20, 5, 0)
    points[30] += 25
    reference = jnp.asarray(LANDMARKS - np.float32([0.5, 0.5, 0]))
    errors = np.ones(134, np.float32)
    errors[60:62] = 1e6
    camera = fit_camera(points, reference, jnp.diag(errors))
    np.testing.assert_allclose(camera[:, :3], linear, atol=0.02)
    assert np.abs(fit_camera(points, reference)[:, :3] - linear).max() > 0.5


def test_the_reference_is_symmetric_and_its_triangles_cover_the_crop():
    mirror, triangles = find_mirror(), find_triangles()
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(VERTICES)))
    np.testing.assert_allclose(
        VERTICES[mirror], VERTICES * [-1, 1, 1] + [1, 0, 0], atol=2e-4
    )
    a, b, c = (VERTICES[triangles[:, i], :2] for i in range(3))
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert (areas > 0).all()
    hull = np.ptp(VERTICES[:, :2], axis=0).prod()
    assert areas.sum() == pytest.approx(hull, rel=0.01)
    assert VERTICES[:, :2].min() < 0 < 1 < VERTICES[:, :2].max()


def test_a_face_in_front_is_left_as_it_is():
    points, _ = seen_landmarks(0, 0, 0)
    face = fit_face(points, size=SIZE)
    np.testing.assert_allclose(face.residuals, 0, atol=1e-3)
    np.testing.assert_allclose(face.weights, 1, atol=1e-3)
    image = photograph()
    flat, frontal = (
        jax.jit(f, static_argnames="size")(image, points, size=SIZE)
        for f in (align_2d, align_3d)
    )
    np.testing.assert_allclose(frontal, flat, atol=0.3)


def test_a_persons_own_shape_is_kept():
    points, _ = seen_landmarks(0, 0, 0)
    own = points.copy()
    own[48:60] += [0, 2.0]  # A lower mouth.
    face = fit_face(own, size=SIZE)
    reference = VERTICES[:67, :2] * SIZE - 0.5
    moved = np.asarray(face.target[48:60] - reference[48:60])[:, 1]
    still = np.abs(np.asarray(face.target[:27] - reference[:27]))
    assert (moved > 1).all()
    assert still.max() < moved.min()


def test_a_turned_face_is_brought_to_the_front():
    """The colors of a picture of the reference, in front and turned, are the same."""
    front, turned = seen_landmarks(0, 0, 0)[0], seen_landmarks(30, 0, 10)[0]
    face = fit_face(turned, size=SIZE)
    assert camera_pose(face.camera)[0] == pytest.approx(30, abs=2)
    # What lies at a landmark in the photograph lies at the reference's place after it.
    target = fit_face(front, size=SIZE).target[:67]
    np.testing.assert_allclose(face.target[:67], target, atol=0.5)
    np.testing.assert_allclose(face.source[:67], turned, atol=1e-2)


def test_the_hidden_side_is_the_seen_one_mirrored():
    points, _ = seen_landmarks(45, 0, 0)
    face = fit_face(points, size=SIZE)
    left, right = face.weights[0:6], face.weights[11:17]
    assert min(float(left.min()), float(right.min())) == 0
    assert max(float(left.min()), float(right.min())) == 1
    hidden = 0 if left.min() == 0 else 16
    mirror = find_mirror()
    assert face.weights[mirror[hidden]] == 1


def slow_weights(camera, reference):
    """How much of each vertex is of its own side, vertex by vertex."""
    triangles, mirror = find_triangles(), find_mirror()
    sight = np.cross(camera[0, :3], camera[1, :3])
    cosines = []
    for vertex in range(len(reference)):
        normal = np.zeros(3)
        for triangle in triangles[(triangles == vertex).any(1)]:
            a, b, c = reference[triangle]
            normal += np.cross(b - a, c - a)
        product = normal @ sight
        cosines.append(product / np.linalg.norm(normal) / np.linalg.norm(sight))
    weights = []
    for own, other in zip(cosines, np.array(cosines)[mirror], strict=True):
        # From a cosine of 0.3 down to 0 a vertex fades, as far as the other is seen.
        hidden = min(max((0.3 - own) / 0.3, 0), 1)
        weights.append(1 - hidden * min(max((other - own) / 0.3, 0), 1))
    return weights


def slow_warp(image, face, size):
    """The piecewise affine warp, pixel by pixel and triangle by triangle."""
    source, target = np.float64(face.source), np.float64(face.target)
    mirror, out = find_mirror(), np.zeros((size, size, 3))

    def look(at):
        at = [at[1:], at[:1]]
        channels = np.moveaxis(image.astype(float), -1, 0)
        return [map_coordinates(c, at, order=1, mode="nearest")[0] for c in channels]

    for y in range(size):
        for x in range(size):
            for triangle in find_triangles():
                corners = np.column_stack([target[triangle], np.ones(3)]).T
                if abs(np.linalg.det(corners)) < 1e-3:
                    continue
                shares = np.linalg.solve(corners, [x, y, 1])
                if shares.min() < -1e-9:
                    continue
                own = look(shares @ source[triangle])
                other = look(shares @ source[mirror[triangle]])
                weight = shares @ np.float64(face.weights)[triangle]
                out[y, x] = weight * np.array(own) + (1 - weight) * np.array(other)
                break
    return out


@pytest.mark.parametrize("pose", [(0, 0, 0), (35, -8, 10), (-40, 15, -20)])
def test_warp_and_blending_are_those_of_slow_loops(pose):
    size = 12
    points, _ = seen_landmarks(*pose)
    face = fit_face(points, size=size)
    reference = np.float64(VERTICES) * size - [0.5, 0.5, 0]
    wanted = slow_weights(np.float64(face.camera), reference)
    np.testing.assert_allclose(face.weights, wanted, atol=1e-4)
    found = jax.jit(warp_face, static_argnames="size")(photograph(), face, size=size)
    wanted = slow_warp(photograph(), face, size)
    # At an edge a pixel may be of either triangle.
    off = np.abs(found - wanted).max(-1)
    assert np.median(off) < 1e-2
    assert (off < 0.5).mean() > 0.98


def test_faces_are_aligned_in_batches():
    points = np.stack([seen_landmarks(20, 5, 3)[0], seen_landmarks(-30, 0, -9)[0]])
    images = np.stack([photograph(), photograph()[::-1]])
    many = jax.jit(jax.vmap(lambda i, p: align(i, p, "3d", size=SIZE)))(images, points)
    assert many.dtype == jnp.uint8
    one = jax.jit(lambda i, p: align(i, p, "3d", size=SIZE))(images[1], points[1])
    assert np.abs(many[1].astype(int) - one).max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pick_fiducials(jnp.zeros((7, 2))), r"L one of \(2, 5, 6, 67, 68\)"),
        (lambda: fit_face(jnp.zeros((6, 2)), size=8), "needs 67 or 68 landmarks"),
        (lambda: align(None, None, "4d", size=8), "align='4d' must be '2d' or '3d'"),
        (lambda: fit_camera(jnp.zeros((3, 2)), jnp.zeros((3, 3))), "N >= 4"),
        (
            lambda: fit_camera(jnp.zeros((5, 2)), jnp.zeros((5, 3)), jnp.eye(5)),
            r"covariance must be \[10, 10\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
