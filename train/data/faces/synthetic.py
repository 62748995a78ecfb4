"""Pictures of people who do not exist, with exact landmarks and known poses."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageFilter

from train.data.faces.model import (
    TONES,
    TOP,
    Expression,
    Person,
    Skin,
    draw_person,
    landmarks,
    locate,
    paint,
    paint_skin,
    tone_name,
)
from train.data.rng import RandomStream

SIDE = 80  # of a picture, in pixels


class Counts(NamedTuple):
    """The numbers of people and pictures of a data set.

    Attributes:
      known: The number of people to train on.
      train: The number of training pictures of each of them.
      held_out: The number of test pictures of each of them.
      unknown: The number of people who are never seen in training.
      unknown_each: The number of test pictures of each unknown person.
    """

    known: int
    train: int
    held_out: int
    unknown: int
    unknown_each: int


# Pixels per unit of length, subpixels per pixel side, mesh points across and down.
_SCALE, _SUPERSAMPLE, _ACROSS, _DOWN = 26.0, 2, 210, 140
_MOST_YAW, _MOST_PITCH, _MOST_ROLL = 40.0, 15.0, 20.0  # degrees


class View(NamedTuple):
    """The camera and the light of a picture.

    Attributes:
      rotation: float64 [3, 3], from a head's own axes to the camera's.
      scale: The number of pixels for a unit of length.
      center: float64 [2], the position of the head's origin, x and y in pixels.
      light: float64 [3], unit vector toward the light, in the camera's axes.
      ambient: The share of ambient light, 0 to 1.
      gain: float64 [3], the brightness of each channel.
      blur: The standard deviation of the blur, in pixels.
      grain: The standard deviation of the noise, relative to 255.
    """

    rotation: np.ndarray
    scale: float
    center: np.ndarray
    light: np.ndarray
    ambient: float
    gain: np.ndarray
    blur: float
    grain: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects points [..., 3] to pixels [..., 2] by the affine camera."""
        return points @ self.camera[:, :3].T + self.camera[:, 3]

    @property
    def camera(self) -> np.ndarray:
        """The affine camera, float64 [2, 4]."""
        return np.column_stack([self.scale * self.rotation[:2], self.center])


def rotate(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Returns the rotation of a head, float64 [3, 3]; angles are in degrees.

    A positive yaw turns the head to the right of the picture, a positive pitch down, a
    positive roll clockwise.
    """
    (cy, cp, cr), (sy, sp, sr) = (
        f(np.deg2rad([yaw, pitch, roll])) for f in (np.cos, np.sin)
    )
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return around_z @ around_x @ around_y


def draw_view(rng: RandomStream) -> tuple[View, np.ndarray]:
    """Draws a view, and returns it with its yaw, pitch and roll in degrees."""
    limits = np.array([_MOST_YAW, _MOST_PITCH, _MOST_ROLL])
    angles = rng.uniform(-limits, limits, (3,))
    azimuth, height = rng.uniform(-1.2, 1.2), rng.uniform(-0.9, 0.5)
    light = np.array([np.sin(azimuth), np.sin(height), np.cos(azimuth)])
    view = View(
        rotate(*angles),
        _SCALE * float(rng.uniform(0.82, 1.18)),
        SIDE / 2 + rng.uniform(-7, 7, (2,)),
        light / np.linalg.norm(light),
        float(rng.uniform(0.4, 0.75)),
        rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, (3,)),
        float(rng.uniform(0, 0.8)),
        float(rng.uniform(0, 5)),
    )
    return view, angles


def draw_expression(rng: RandomStream) -> Expression:
    """Draws an expression; about half of the mouths are closed, and most eyes open."""
    return Expression(
        smile=float(rng.uniform(-0.6, 1)),
        mouth=float(rng.uniform(-1, 1).clip(0, None)),
        blink=float(rng.uniform(-2, 0.9).clip(0, None)),
        surprise=float(rng.uniform(-1, 1)),
    )


def render(
    person: Person, view: View, expression: Expression, rng: RandomStream
) -> np.ndarray:
    """Renders a picture.

    The points of a fine mesh are projected onto subpixels of half the size, which show
    the nearest point; a pixel is the mean of four subpixels.

    Args:
      person: The person.
      view: The camera and the light.
      expression: The expression of the face.
      rng: The random numbers of background, clothes and grain.

    Returns:
      uint8 [SIDE, SIDE, 3].
    """
    fine = SIDE * _SUPERSAMPLE
    skin = _skin(person, max(1.0, view.scale / _SCALE / 1.18))
    points = locate(skin.u, skin.v, person, expression)
    # Hair stands out from the skin.
    points[..., [0, 2]] *= 1 + 0.07 * skin.hair[..., None]
    colors = paint(skin, person, expression)
    clothes = rng.uniform(20, 220, (3,))
    pixels = _background(rng, fine)
    # Drawn over each other in this order: neck, shoulders, head.
    for mesh in (*_body(person, clothes), (points, colors)):
        place, depth, shaded = _shade(view, *mesh, pixels=fine)
        order = np.argsort(depth, kind="stable")  # The nearest is written last.
        layer = np.full((fine * fine, 3), np.nan, np.float32)
        layer[place[order]] = shaded[order]
        layer = _fill_holes(layer.reshape(fine, fine, 3))
        pixels = np.where(np.isnan(layer), pixels, layer)
    image = pixels.reshape(SIDE, _SUPERSAMPLE, SIDE, _SUPERSAMPLE, 3).mean((1, 3))
    image = image * view.gain
    image = Image.fromarray(image.clip(0, 255).round().astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(view.blur)), float)
    noise = rng.normal((SIDE, SIDE, 3))
    return (image + view.grain * noise).clip(0, 255).round().astype(np.uint8)


@functools.lru_cache(maxsize=2)  # Pictures are drawn person by person.
def _skin(person: Person, ratio: float) -> Skin:
    u = np.linspace(-1, 1, round(_ACROSS * ratio), dtype=np.float32)[None]
    u = 2.2 * (0.45 * u + 0.55 * u**3)  # Finer in front, where the nose is steep.
    t = np.linspace(0, 1, round(_DOWN * ratio), dtype=np.float32)[:, None]
    t = 0.5 * t + 0.25 * (1 - np.cos(np.pi * t))  # Finer at crown and chin, too.
    v = TOP + (person.chin - TOP) * t
    return paint_skin(u, v, person)


@functools.lru_cache(maxsize=2)
def _person(number: int) -> Person:
    return draw_person(RandomStream((number, 1)))


def _shade(
    view: View, points: np.ndarray, colors: np.ndarray, *, pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lights a mesh, and keeps the points that face the camera.

    Returns:
      The pixel int [n], the depth [n] and the color [n, 3] of each point.
    """
    x, y, z = (points @ row.astype(np.float32) for row in view.rotation)
    ax, ay, az = (np.diff(part[:-1], axis=1) for part in (x, y, z))
    bx, by, bz = (np.diff(part[:, :-1], axis=0) for part in (x, y, z))
    # The normal is the cross product of both directions; z > 0 faces the camera.
    normal_z = ax * by - ay * bx
    seen = np.flatnonzero(normal_z > 0)
    x, y, z = (part[:-1, :-1].reshape(-1)[seen] for part in (x, y, z))
    column, row = (
        np.floor((part * view.scale + middle) * _SUPERSAMPLE).astype(np.int32)
        for part, middle in zip((x, y), view.center, strict=True)
    )
    kept = (column >= 0) & (column < pixels) & (row >= 0) & (row < pixels)
    seen, column, row, z = seen[kept], column[kept], row[kept], z[kept]
    ax, ay, az, bx, by, bz, normal_z = (
        part.reshape(-1)[seen] for part in (ax, ay, az, bx, by, bz, normal_z)
    )
    normal = np.stack([ay * bz - az * by, az * bx - ax * bz, normal_z])
    normal /= np.sqrt(np.square(normal).sum(0))
    facing = (view.light.astype(np.float32) @ normal).clip(0, None)
    lit = view.ambient + (1 - view.ambient) * facing
    shaded = colors[:-1, :-1].reshape(-1, 3)[seen] * lit[:, None]
    return row * pixels + column, z, shaded


def _fill_holes(pixels: np.ndarray) -> np.ndarray:
    """Fills pixels without points with the mean of their neighbors.

    A pixel is filled if it has neighbors on the left and the right, or above and below,
    at most two pixels away.

    Args:
      pixels: float64 [H, W, 3], NaN for pixels without points.
    """
    filled = ~np.isnan(pixels[..., 0])
    for axis in (0, 1):
        for before, after in ((1, 1), (1, 2), (2, 1)):
            beside = np.roll(filled, before, axis) & np.roll(filled, -after, axis)
            at = np.nonzero(~filled & beside)
            a, b, size = list(at), list(at), pixels.shape[axis]
            a[axis], b[axis] = (at[axis] - before) % size, (at[axis] + after) % size
            pixels[at] = (pixels[*a] + pixels[*b]) / 2
            filled[at] = True
    return pixels


def _body(person: Person, clothes: np.ndarray):
    """Makes a neck and shoulders, as meshes with colors."""
    u = np.linspace(-1.9, 1.9, 90, dtype=np.float32)[None]
    for radius, out, top, length, color in (
        (0.5, 0.0, 0.75, 1.0, 0.85 * person.skin),
        (1.25, 0.35, 1.55, 1.6, clothes),
    ):
        t = np.linspace(0, 1, 60, dtype=np.float32)[:, None] ** 1.5
        wide = radius * (1 - out * (1 - t) ** 3)
        v = top + length * t + 0 * u
        deep = -0.35 + 0.5 * np.minimum(wide, 1) * np.cos(u)
        mesh = np.stack([wide * np.sin(u), v, deep], -1)
        yield mesh, np.broadcast_to(color, mesh.shape)


def _background(rng: RandomStream, side: int) -> np.ndarray:
    """Draws clouds of two colors, float64 [side, side, 3]."""
    cells = rng.integer(2, 6)
    low, high = rng.uniform(10, 245, (2, 3))
    mix = (255 * rng.uniform(0, 1, (cells, cells))).astype(np.uint8)
    mix = Image.fromarray(mix).resize((side, side), Image.Resampling.BICUBIC)
    return low + (high - low) * (np.asarray(mix, float) / 255)[..., None]


class FacesSynthetic(tfds.core.GeneratorBasedBuilder):
    """Pictures of 80 x 80 pixels of 176 people who do not exist.

    "train" has 12 pictures of each of 128 people. "test" has two others of each of
    these, and eight of each of 48 people who are not in "train". People differ in the
    shape and the colors of head, eyes, brows, nose, mouth and hair; their pictures
    differ in pose (yaw up to 40, pitch up to 15, roll up to 20 degrees), size,
    position, expression, light, blur and noise. A picture depends only on the numbers
    of its person and itself, and is the same on every machine.

    An example has `image`, `person` (0 to 175, those of "train" first), `landmarks`
    [67, 2] (x, y in pixels, exact even if hidden, in the order of
    `zoo.face.alignment`), `camera` [2, 4] from the head's axes to pixels, `pose` (yaw,
    pitch and roll in degrees) and `group`, how dark the skin is.
    """

    VERSION = tfds.core.Version("1.0.0")
    COUNTS = Counts(known=128, train=12, held_out=2, unknown=48, unknown_each=8)
    # Nothing is downloaded; see `Digits`.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered faces of people who do not exist.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3)),
                    "person": np.int32,
                    "landmarks": tfds.features.Tensor(shape=(67, 2), dtype=np.float32),
                    "camera": tfds.features.Tensor(shape=(2, 4), dtype=np.float32),
                    "pose": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                    "group": tfds.features.ClassLabel(names=list(TONES)),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        counts = self.COUNTS
        known = range(counts.known)
        unknown = range(counts.known, counts.known + counts.unknown)
        first = [(p, i) for p in known for i in range(counts.train)]
        last = counts.train + counts.held_out
        others = [(p, i) for p in known for i in range(counts.train, last)]
        others += [(p, i) for p in unknown for i in range(counts.unknown_each)]
        return {
            "train": self._generate_examples(first),
            "test": self._generate_examples(others),
        }

    def _generate_examples(self, pictures):
        # Threads help, since numpy releases Python's lock while it computes.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            people, numbers = zip(*pictures, strict=True)
            yield from enumerate(threads.map(draw_example, people, numbers))


class Scene(NamedTuple):
    """The content of one picture, before it is rendered.

    Attributes:
      person: The person.
      view: The camera and the light.
      pose: Yaw, pitch and roll in degrees, float64 [3].
      expression: The expression of the face.
      landmarks: float64 [67, 3], in the head's own axes.
      rng: The random numbers for the rest of the drawing.
    """

    person: Person
    view: View
    pose: np.ndarray
    expression: Expression
    landmarks: np.ndarray
    rng: RandomStream

    def project(self) -> np.ndarray:
        """Returns the landmarks in the picture, float64 [67, 2]."""
        # Coordinates count from the center of the first pixel.
        return self.view.project(self.landmarks) - 0.5


def draw_scene(person: int, picture: int) -> Scene:
    """Draws the content of a picture of a person at random.

    Args:
      person: The number of the person, 0 or more.
      picture: The number of the picture, 0 or more.
    """
    who = _person(person)
    rng = RandomStream((person, 2), (0, picture))
    view, pose = draw_view(rng)
    expression = draw_expression(rng)
    return Scene(who, view, pose, expression, landmarks(who, expression), rng)


def draw_example(person: int, picture: int) -> dict:
    """Draws one picture of a person, with its annotations.

    Args:
      person: The number of the person, 0 or more.
      picture: The number of the picture, 0 or more.
    """
    scene = draw_scene(person, picture)
    view = scene.view
    image = render(scene.person, view, scene.expression, scene.rng)
    return {
        "image": Image.fromarray(image),
        "person": person,
        "landmarks": scene.project().astype(np.float32),
        "camera": (view.camera - [[0, 0, 0, 0.5]] * 2).astype(np.float32),
        "pose": scene.pose.astype(np.float32),
        "group": tone_name(scene.person),
    }


class FacesSyntheticTiny(FacesSynthetic):
    """A small version that is drawn in seconds: 8 people to train on, 6 others."""

    COUNTS = Counts(known=8, train=3, held_out=1, unknown=6, unknown_each=3)


# The number of people to train on in each set.
KNOWN = {
    "faces_synthetic": FacesSynthetic.COUNTS.known,
    "faces_synthetic_tiny": FacesSyntheticTiny.COUNTS.known,
}
