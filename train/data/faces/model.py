"""Parametric heads: shape, colors and landmarks of people who do not exist.

A head is a surface over an angle `u` (radians, 0 in front, positive to the right of the
picture) and a height `v` (positive downward). The unit of length is about half the
width of a head; x points to the right, y down and z toward the viewer.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from train.data.rng import RandomStream

Array = np.ndarray

# The smallest v, at the crown of the head.
TOP = -1.5
TONES = ("light", "medium", "dark")
# RGB of skin from the lightest to the darkest, and of hair, irises and lips.
_SKIN = np.array([(244, 210, 186), (222, 172, 136), (170, 112, 74), (92, 58, 40)])
_HAIR = np.array(
    [(28, 22, 20), (70, 44, 28), (120, 78, 42), (198, 160, 98), (140, 60, 30)]
)
_GRAY_HAIR = np.array((165, 162, 160))
_IRIS = np.array([(66, 42, 26), (98, 74, 40), (86, 110, 82), (84, 120, 156)])
_LIP = np.array((172, 70, 72))
# The least and the largest angle, height and radius of birthmarks.
_MARKS = np.array([(-0.9, -0.4, 0.02), (0.9, 1.0, 0.05)])


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """The properties of a person's face, the same in all pictures; colors 0 to 255."""

    width: float
    depth: float
    jaw: float
    chin: float
    chin_out: float
    cheek: float
    brow_ridge: float
    eye_apart: float
    eye_height: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    brow_up: float
    brow_arch: float
    brow_thick: float
    brow_length: float
    nose_tip: float
    nose_out: float
    nose_width: float
    nose_bridge: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    hairline: float
    hair_peak: float
    hair_sides: float
    hair_length: float
    beard: float
    moustache: float
    tone: float
    skin: Array
    hair: Array
    iris: Array
    lips: Array
    spots: Array
    marks: Array


# The least and the largest value of each number of a person.
RANGES = {
    "width": (0.90, 1.10),
    "depth": (1.05, 1.25),
    "jaw": (2.0, 3.6),
    "chin": (1.24, 1.44),
    "chin_out": (0.02, 0.16),
    "cheek": (0.0, 0.10),
    "brow_ridge": (0.0, 0.08),
    "eye_apart": (0.36, 0.47),
    "eye_height": (-0.05, 0.05),
    "eye_width": (0.14, 0.20),
    "eye_open": (0.055, 0.10),
    "eye_tilt": (-0.03, 0.04),
    "brow_up": (0.17, 0.27),
    "brow_arch": (0.0, 0.09),
    "brow_thick": (0.018, 0.05),
    "brow_length": (0.20, 0.29),
    "nose_tip": (0.36, 0.52),
    "nose_out": (0.20, 0.38),
    "nose_width": (0.11, 0.20),
    "nose_bridge": (0.05, 0.14),
    "mouth_height": (0.74, 0.88),
    "mouth_width": (0.24, 0.38),
    "upper_lip": (0.03, 0.085),
    "lower_lip": (0.04, 0.11),
    "hairline": (-1.05, -0.62),
    "hair_peak": (-0.12, 0.16),
    "hair_sides": (0.85, 1.25),
    "hair_length": (-0.1, 1.6),
}


@dataclasses.dataclass(frozen=True)
class Expression:
    """The facial expression in one picture; all fields are 0 in a calm face.

    Attributes:
      smile: -1 (sad) to 1.
      mouth: How far the mouth is open, 0 to 1.
      blink: How far the eyes are closed, 0 to 1.
      surprise: How far the brows are raised, -1 to 1.
    """

    smile: float = 0.0
    mouth: float = 0.0
    blink: float = 0.0
    surprise: float = 0.0


CALM = Expression()


def average_person() -> Person:
    """Returns the person in the middle of all ranges, without beard or marks."""
    return _make_person({name: sum(ends) / 2 for name, ends in RANGES.items()}, 0.4)


def draw_person(rng: RandomStream) -> Person:
    """Draws a person."""
    numbers = {name: float(rng.uniform(*ends)) for name, ends in RANGES.items()}
    tone = float(rng.uniform())
    numbers["beard"] = float(rng.uniform(0.4, 1.0) * (rng.uniform() < 0.25))
    numbers["moustache"] = float(rng.uniform(0.4, 1.0) * (rng.uniform() < 0.25))
    hair = _HAIR[rng.integer(0, min(4, int(5 - 3.5 * tone)))]
    if rng.uniform() < 0.15:
        hair = _GRAY_HAIR
    iris = _IRIS[rng.integer(0, 0 if tone > 0.6 else 3)]
    return _make_person(
        numbers,
        tone,
        hair=hair + rng.uniform(-12, 12, (3,)),
        iris=iris + rng.uniform(-12, 12, (3,)),
        lips=_LIP + rng.uniform(-25, 25, (3,)),
        tint=rng.uniform(-10, 10, (3,)),
        spots=rng.uniform(-1, 1, (9, 9)),
        marks=rng.uniform(*_MARKS, (rng.integer(0, 3), 3)),
    )


def _make_person(
    numbers: dict[str, float],
    tone: float,
    *,
    hair: Array = _HAIR[1],
    iris: Array = _IRIS[0],
    lips: Array = _LIP,
    tint: Array | float = 0.0,
    spots: Array | None = None,
    marks: Array | None = None,
) -> Person:
    at = tone * (len(_SKIN) - 1)
    skin = [np.interp(at, range(len(_SKIN)), channel) for channel in _SKIN.T]
    skin = np.array(skin) + tint
    return Person(
        **{"beard": 0.0, "moustache": 0.0, **numbers},
        tone=tone,
        skin=skin,
        hair=np.asarray(hair, float),
        iris=np.asarray(iris, float),
        lips=0.55 * np.asarray(lips, float) + 0.45 * skin,
        spots=np.zeros((9, 9)) if spots is None else spots,
        marks=np.zeros((0, 3)) if marks is None else marks,
    )


def tone_name(person: Person) -> str:
    """Returns the group of a person's skin tone, one of `TONES`."""
    return TONES[min(int(3 * person.tone), 2)]


def _bump(u: Array, v: Array, at: tuple[float, float], radii: tuple[float, float]):
    return np.exp(-(((u - at[0]) / radii[0]) ** 2) - ((v - at[1]) / radii[1]) ** 2)


def locate(u: Array, v: Array, person: Person, expression: Expression = CALM) -> Array:
    """Returns the positions of points of the surface.

    Args:
      u: float [...], angles.
      v: float [...], heights, `TOP` to `person.chin`.
      person: The person, whose shape is used.
      expression: The expression of the face.

    Returns:
      float64 [..., 3]: x, y, z.
    """
    share = np.where(v < 0, v / TOP, v / person.chin).clip(0, 1)
    power = np.where(v < 0, 2.4, person.jaw)
    ring = (1 - share**power) ** (1 / power)
    round_ = (1 - share**3) ** (1 / 3)
    out = _nose(u, v, person)
    for side in (-1, 1):
        eye = side * person.eye_apart, person.eye_height
        out -= 0.09 * _bump(u, v, eye, (0.24, 0.16))
        out += person.cheek * _bump(u, v, (side * 0.55, 0.35), (0.3, 0.3))
        raised = expression.smile * 0.05
        out += raised * _bump(u, v, (side * 0.45, 0.5), (0.22, 0.2))
    out += person.brow_ridge * _bump(u, v, (0, person.eye_height - 0.2), (0.7, 0.12))
    out += person.chin_out * _bump(u, v, (0, person.chin - 0.22), (0.3, 0.22))
    out += 0.07 * _bump(u, v, (0, person.mouth_height), (person.mouth_width, 0.14))
    x = person.width * ring * np.sin(u)
    z = person.depth * round_ * np.cos(u) + out
    return np.stack(np.broadcast_arrays(x, v, z), -1)


def _nose(u: Array, v: Array, person: Person) -> Array:
    start, tip = person.eye_height - 0.1, person.nose_tip
    rise = ((v - start) / (tip - start)).clip(0, 1)
    bridge, full = person.nose_bridge, person.nose_out
    height = bridge * np.minimum(4 * rise, 1) + (full - bridge) * rise**1.6
    height = height * np.exp(-(((v - tip).clip(0, None) / 0.09) ** 2))
    half = person.nose_width * (0.55 + 0.45 * rise**2)
    return height * np.exp(-((u / half) ** 2))


def _mouth(du: Array, person: Person, expression: Expression) -> tuple[Array, ...]:
    """Returns the heights of the lips' four edges at `du`, -1 to 1 across the mouth."""
    middle = person.mouth_height + 0.10 * expression.smile * (0.4 - du**2)
    arch = (1 - du**2).clip(0, None)
    gap = 0.09 * expression.mouth * arch
    # The upper lip has a notch.
    notch = 1 - 0.25 * np.exp(-((du / 0.18) ** 2))
    upper = middle - gap - person.upper_lip * np.sqrt(arch) * notch
    lower = middle + gap + person.lower_lip * np.sqrt(arch)
    return upper, middle - gap, middle + gap, lower


def _mouth_width(person: Person, expression: Expression) -> float:
    return person.mouth_width * (1 + 0.18 * expression.smile - 0.1 * expression.mouth)


def _eye_open(person: Person, expression: Expression) -> float:
    return person.eye_open * (1 - 0.75 * expression.blink)


def _brow(du: Array, person: Person, expression: Expression) -> Array:
    """Returns the height of a brow's middle line at `du`: -1 inner, 1 outer end."""
    arch = person.brow_arch * (1 - (du - 0.3) ** 2)
    raised = 0.05 * expression.surprise
    return person.eye_height - person.brow_up - arch - raised


def landmarks(person: Person, expression: Expression = CALM) -> Array:
    """Returns the 67 landmarks in space, in the order of `zoo.face.alignment`.

    Returns:
      float64 [67, 3].
    """
    s = np.linspace(-1, 1, 17)
    jaw = 1.4 * np.sign(s) * np.abs(s) ** 0.75
    parts = [(jaw, person.chin * (0.955 - 0.96 * np.abs(s) ** 2.2))]
    center, half = person.eye_apart, person.brow_length
    du = np.linspace(1, -1, 5)
    line = _brow(du, person, expression)
    parts += [(-center - half * du, line), (center + half * du[::-1], line[::-1])]
    start, tip = person.eye_height, person.nose_tip
    zero = np.zeros(4)
    parts += [(zero, np.linspace(start, tip, 4))]
    nostrils = np.linspace(-1, 1, 5) * person.nose_width
    parts += [(nostrils, tip + 0.09 - 0.03 * np.abs(np.linspace(-1, 1, 5)))]
    # The right eye: inner corner, upper lid, outer corner, lower lid.
    du = np.array([-1, -0.4, 0.4, 1, 0.4, -0.4])
    lid = np.sqrt(1 - du**2) * np.array([0, -1, -1, 0, 1, 1])
    eye_v = person.eye_height - person.eye_tilt * du
    eye_v = eye_v + _eye_open(person, expression) * lid
    right = center + person.eye_width * du, eye_v
    left = [3, 2, 1, 0, 5, 4]
    parts += [(-right[0][left], right[1][left]), right]
    # The lips' inner corners lie at -0.8 and 0.8, inside the outer ones.
    outer, inner = (
        np.array([-1, -0.6, -0.25, 0, 0.25, 0.6, 1]),
        np.array([-0.4, 0, 0.4]),
    )
    width = _mouth_width(person, expression)
    edges = [_mouth(outer, person, expression), _mouth(inner, person, expression)]
    parts += [(width * outer, edges[0][0])]
    parts += [(width * outer[5:0:-1], edges[0][3][5:0:-1])]
    corners = _mouth(np.array([-0.8, 0.8]), person, expression)
    parts += [(width * np.array([-0.8]), corners[1][:1]), (width * inner, edges[1][1])]
    parts += [(width * np.array([0.8]), corners[1][1:])]
    # The lower edge without its middle point: 67 of the 68 usual points.
    parts += [(width * inner[[2, 0]], edges[1][2][[2, 0]])]
    u, v = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
    return locate(u, v, person, expression)


class Skin(NamedTuple):
    """The colors of a person that do not depend on the expression.

    Attributes:
      u: float64 [1, U], angles.
      v: float64 [V, 1], heights.
      color: float64 [V, U, 3], the skin with marks and beard, 0 to 255.
      hair: float64 [V, U], how much of each point is hair, 0 to 1.
      strands: float64 [V, U, 3], the hair's color.
    """

    u: Array
    v: Array
    color: Array
    hair: Array
    strands: Array


def paint_skin(u: Array, v: Array, person: Person) -> Skin:
    """Paints a person's skin at angles [1, U] and heights [V, 1]."""
    color = np.empty((len(v), u.shape[1], 3), u.dtype)
    color[:] = person.skin
    color *= 1 + 0.05 * _patches(u, v, person.spots)[..., None]
    blush = sum(_bump(u, v, (side * 0.5, 0.4), (0.22, 0.2)) for side in (-1, 1))
    color += blush[..., None] * np.array((10, -8, -8))
    for at_u, at_v, radius in person.marks:
        _cover(color, _inside(u, v, (at_u, at_v), (radius, radius)), person.skin * 0.45)
    _paint_beard(color, u, v, person)
    inner = 0.5 * person.nose_width, person.nose_tip + 0.07
    nostril = sum(
        _bump(u, v, (side * inner[0], inner[1]), (0.05, 0.03)) for side in (-1, 1)
    )
    color *= 1 - 0.6 * nostril[..., None].clip(0, 1)
    return Skin(u, v, color, hair_cover(u, v, person), _strands(u, v, person))


def paint(skin: Skin, person: Person, expression: Expression = CALM) -> Array:
    """Returns the color of points of the surface, before lighting.

    Args:
      skin: The result of `paint_skin`.
      person: The person, whose colors are used.
      expression: The expression of the face.

    Returns:
      float64 [V, U, 3], 0 to 255.
    """
    color, u, v = skin.color.copy(), skin.u, skin.v
    _paint_mouth(color, u, v, person, expression)
    for side in (-1, 1):
        _paint_eye(color, side * u, v, person, expression)
    _cover(color, skin.hair, skin.strands)
    return color.clip(0, 255)


def hair_cover(u: Array, v: Array, person: Person) -> Array:
    """Returns how much of each point is hair, 0 to 1."""
    line = person.hairline + person.hair_peak * np.cos(3 * u)
    above = _step(line - v, 0.03)
    beside = _step(np.abs(u) - person.hair_sides - 0.12 * v, 0.05)
    return np.maximum(above, beside * _step(person.hair_length - v, 0.05))


def _strands(u: Array, v: Array, person: Person) -> Array:
    phase = 40 * u + 7 * np.sin(3 * v + person.hair_peak * 20)
    return person.hair * (1 + 0.12 * np.sin(phase) * np.ones_like(v))[..., None]


def _paint_beard(color: Array, u: Array, v: Array, person: Person) -> None:
    shade = 0.7 * person.hair + 0.3 * person.skin
    if person.beard:
        line = person.mouth_height - 0.15 - 0.25 * (np.abs(u) - 0.4).clip(0, None)
        cover = _step(v - line, 0.08) * _step(np.abs(u) - 0.3, 0.1)
        below = _step(v - person.mouth_height - 0.17, 0.05)
        _cover(
            color,
            person.beard * np.maximum(cover, below) * _step(1.2 - np.abs(u), 0.1),
            shade,
        )
    if person.moustache:
        at = (person.nose_tip + 0.09 + person.mouth_height - person.upper_lip) / 2
        half = 0.9 * person.mouth_width, 0.05
        _cover(color, person.moustache * _inside(u, v, (0, at), half), shade)


def _paint_mouth(
    color: Array, u: Array, v: Array, person: Person, expression: Expression
) -> None:
    du = u / _mouth_width(person, expression)
    upper, inner_up, inner_down, lower = _mouth(du, person, expression)
    within = _step(1 - np.abs(du), 0.04)
    lips = within * _step(v - upper, 0.015) * _step(lower - v, 0.015)
    _cover(color, lips, person.lips)
    gap = np.maximum(inner_down - inner_up, 0.016)
    middle = (inner_up + inner_down) / 2
    dark = within * _step(gap / 2 - np.abs(v - middle), 0.012)
    _cover(color, dark, np.array((60, 24, 26)))
    # Teeth are visible if the mouth is open.
    teeth = dark * _step(inner_up + 0.5 * gap - v, 0.012) * (expression.mouth > 0.3)
    _cover(color, teeth, np.array((232, 228, 218)))


def _paint_eye(
    color: Array, u: Array, v: Array, person: Person, expression: Expression
) -> None:
    """Paints the eye and the brow at positive angles."""
    du = (u - person.eye_apart) / person.eye_width
    line = person.eye_height - person.eye_tilt * du
    open_ = _eye_open(person, expression)
    lid = open_ * np.sqrt((1 - du**2).clip(0, None))
    near = np.abs(du) < 1.25
    _cover(
        color, near * _step(lid + 0.022 - np.abs(v - line), 0.015), 0.45 * person.skin
    )
    white = near * _step(lid - np.abs(v - line), 0.012)
    _cover(color, white, np.array((236, 234, 230)))
    radius = np.hypot(du * person.eye_width, v - line)
    _cover(color, white * _step(0.075 - radius, 0.012), person.iris)
    _cover(color, white * _step(0.032 - radius, 0.012), np.array((14, 12, 12)))
    du = (u - person.eye_apart) / person.brow_length
    off = np.abs(v - _brow(du, person, expression))
    thick = person.brow_thick * (1.1 - 0.5 * du)
    cover = _step(1 - np.abs(du), 0.05) * _step(thick - off, 0.015)
    _cover(color, 0.9 * cover, 0.8 * person.hair)


def _patches(u: Array, v: Array, values: Array) -> Array:
    """Interpolates a grid of numbers smoothly over the face."""
    rows, columns = ((n - 1) for n in values.shape)
    at_v = ((v - TOP) / (1.5 - TOP) * rows).clip(0, rows - 1e-6)
    at_u = ((u / np.pi + 1) / 2 * columns).clip(0, columns - 1e-6)
    i, j = at_v.astype(int), at_u.astype(int)
    a, b = (0.5 - 0.5 * np.cos(np.pi * (at - at.astype(int))) for at in (at_v, at_u))
    top = values[i, j] * (1 - b) + values[i, j + 1] * b
    below = values[i + 1, j] * (1 - b) + values[i + 1, j + 1] * b
    return top * (1 - a) + below * a


def _step(x: Array, softness: float) -> Array:
    """Rises from 0 to 1 within +-`softness` of 0."""
    return (0.5 + x / (2 * softness)).clip(0, 1)


def _inside(u: Array, v: Array, at: tuple[float, float], half: tuple[float, float]):
    radius = np.hypot((u - at[0]) / half[0], (v - at[1]) / half[1])
    return _step(1 - radius, 0.25)


def _cover(color: Array, amount: Array, paint: Array) -> None:
    """Blends `paint` into `color` in place; `amount`, 0 to 1, is the opacity."""
    amount = np.broadcast_to(amount, color.shape[:2])
    some = amount > 0
    rows, columns = (np.flatnonzero(some.any(axis)) for axis in (1, 0))
    if not len(rows):
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if paint.ndim == 3:
        paint = paint[part]
    color[part] += amount[part][..., None] * (paint - color[part])
