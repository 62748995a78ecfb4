"""An average face: 67 landmarks in three dimensions, and their triangles.

The landmarks are the usual 68 (17 of the jaw, 10 of the brows, 9 of the nose, 12 of the
eyes, 20 of the lips) without number 66, the middle of the lower lip's inner edge, which
in a closed mouth is where number 62 is. They are listed from the left of the picture to
its right. Coordinates are fractions of an aligned crop's side: x to the right, y down,
z toward the viewer. `tests/reference/make_face_reference.py` makes both tables.

Reference:
  Sagonas et al., 300 Faces in-the-Wild Challenge, 2013, for the 68 landmarks.
"""

import functools

import numpy as np

# Number of the landmark of the 68 that is left out.
LEFT_OUT = 66

# fmt: off
_LANDMARKS = (
    (0.0715, 0.3580, 0.0850),
    (0.0879, 0.5003, 0.1492),
    (0.1222, 0.6202, 0.2079),
    (0.1740, 0.7184, 0.2538),
    (0.2386, 0.7955, 0.2815),
    (0.3090, 0.8526, 0.2885),
    (0.3772, 0.8908, 0.2784),
    (0.4365, 0.9115, 0.2671),
    (0.5000, 0.9173, 0.2758),
    (0.5635, 0.9115, 0.2671),
    (0.6228, 0.8908, 0.2784),
    (0.6910, 0.8526, 0.2885),
    (0.7614, 0.7955, 0.2815),
    (0.8260, 0.7184, 0.2538),
    (0.8778, 0.6202, 0.2079),
    (0.9121, 0.5003, 0.1492),
    (0.9285, 0.3580, 0.0850),
    (0.2348, 0.2552, 0.3997),
    (0.2788, 0.2464, 0.4343),
    (0.3258, 0.2474, 0.4638),
    (0.3753, 0.2582, 0.4883),
    (0.4267, 0.2787, 0.5054),
    (0.5733, 0.2787, 0.5054),
    (0.6247, 0.2582, 0.4883),
    (0.6742, 0.2474, 0.4638),
    (0.7212, 0.2464, 0.4343),
    (0.7652, 0.2552, 0.3997),
    (0.5000, 0.3609, 0.5338),
    (0.5000, 0.4246, 0.5645),
    (0.5000, 0.4884, 0.5919),
    (0.5000, 0.5522, 0.6215),
    (0.4344, 0.5783, 0.5183),
    (0.4672, 0.5848, 0.5398),
    (0.5000, 0.5913, 0.5375),
    (0.5328, 0.5848, 0.5398),
    (0.5656, 0.5783, 0.5183),
    (0.2599, 0.3587, 0.3991),
    (0.2981, 0.3291, 0.4198),
    (0.3522, 0.3309, 0.4463),
    (0.3945, 0.3630, 0.4643),
    (0.3522, 0.3926, 0.4468),
    (0.2981, 0.3909, 0.4215),
    (0.6055, 0.3630, 0.4643),
    (0.6478, 0.3309, 0.4463),
    (0.7019, 0.3291, 0.4198),
    (0.7401, 0.3587, 0.3991),
    (0.7019, 0.3909, 0.4215),
    (0.6478, 0.3926, 0.4468),
    (0.3835, 0.7130, 0.4543),
    (0.4278, 0.6855, 0.4818),
    (0.4696, 0.6787, 0.4929),
    (0.5000, 0.6826, 0.4961),
    (0.5304, 0.6787, 0.4929),
    (0.5722, 0.6855, 0.4818),
    (0.6165, 0.7130, 0.4543),
    (0.5681, 0.7466, 0.4638),
    (0.5282, 0.7556, 0.4725),
    (0.5000, 0.7574, 0.4747),
    (0.4718, 0.7556, 0.4725),
    (0.4319, 0.7466, 0.4638),
    (0.4059, 0.7088, 0.4682),
    (0.4524, 0.7032, 0.4895),
    (0.5000, 0.7013, 0.4975),
    (0.5476, 0.7032, 0.4895),
    (0.5941, 0.7088, 0.4682),
    (0.5468, 0.7229, 0.4848),
    (0.4532, 0.7229, 0.4848),
)
_ANCHORS = (
    (0.2391, -0.0304, 0.3322),
    (0.5000, -0.0304, 0.4610),
    (0.7609, -0.0304, 0.3322),
    (-0.0652, -0.0304, 0.0000),
    (-0.0652, 0.3174, 0.0000),
    (-0.0652, 0.7087, 0.0000),
    (1.0652, -0.0304, 0.0000),
    (1.0652, 0.3174, 0.0000),
    (1.0652, 0.7087, 0.0000),
    (-0.0652, 1.0565, 0.0435),
    (0.5000, 1.0565, 0.0435),
    (1.0652, 1.0565, 0.0435),
)
# fmt: on

LANDMARKS = np.array(_LANDMARKS, np.float32)
# Around the face: forehead, beside it, neck.
ANCHORS = np.array(_ANCHORS, np.float32)
# All vertices of the triangulation, [79, 3].
VERTICES = np.concatenate([LANDMARKS, ANCHORS])
EYES = (slice(36, 42), slice(42, 48))
NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT, MOUTH_TOP, MOUTH_BOTTOM = 30, 48, 54, 51, 57


def find_mirror() -> np.ndarray:
    """Returns the mirror image of each vertex, on the face's other side, int32 [79]."""
    mirrored = VERTICES * [-1, 1, 1] + [1, 0, 0]
    distances = np.linalg.norm(VERTICES[:, None] - mirrored[None], axis=-1)
    return distances.argmin(0).astype(np.int32)


@functools.cache
def find_triangles() -> np.ndarray:
    """Returns the Delaunay triangles of the vertices' x and y, int32 [T, 3].

    Their corners are ordered so that a triangle's normal, (b - a) x (c - a), points
    toward the viewer.
    """
    from scipy.spatial import Delaunay  # A dependency of jax.

    triangles = Delaunay(VERTICES[:, :2].astype(np.float64)).simplices
    a, b, c = (VERTICES[triangles[:, i], :2] for i in range(3))
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    triangles = triangles[np.abs(area) > 1e-7].astype(np.int32)
    triangles.flags.writeable = False  # Later calls return the same array.
    return triangles
