"""Pictures of people: who is shown, landmarks, and which pairs are to be compared."""

import csv
import functools
import io
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from train.data.files import Files, read_text
from train.data.rng import RandomStream
from train.data.source import Source
from zoo.decode import decode_image
from zoo.face.alignment import COUNTS, align
from zoo.face.verification import UNKNOWN, FaceSet, Pairs
from zoo.spec import Preprocess

LANDMARKS_FILE = "landmarks.csv"
FOLDS = 10
PAIRS_EACH = 60  # of a kind and a fold, where the set does not say
GALLERY = 5  # pictures of a person that are known
_FACTS = ("pairs", "templates", "groups", "group_names", "gallery")
_PAD = 64  # Photographs are padded to multiples, so that few sizes are compiled.


class FaceSource(Source):
    """Images of people.

    A subclass sets `name`, `split`, `class_names`, `people` and `labels`, and
    implements `image` and `provenance`.

    Attributes:
      class_names: The names of the people to train on.
      labels: int32 [N], the person in `range(len(class_names))`, -1 for others.
      people: int32 [N], the number of the person, for all people of the set.
      pairs: The pairs to verify; None to make them with `make_pairs`.
      templates: int32 [N], the template of each image, see `FaceSet`, or None.
      groups: int32 [N], the group of each image, see `FaceSet`, or None.
      group_names: The names of the groups.
      gallery: bool [N], whether an image is in the gallery of an identification; None
        for the first images of each person, see `first_pictures`.
    """

    task = "verification"
    people: np.ndarray
    pairs: Pairs | None = None
    templates: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    gallery: np.ndarray | None = None

    def landmarks(self, index: int) -> np.ndarray | None:
        """Returns the landmarks of a picture, float32 [L, 2]; None where unknown."""
        return None

    def face_set(self) -> FaceSet:
        """Returns the facts of the images that an evaluation needs."""
        unknown = self.labels == UNKNOWN
        candidates = unknown if unknown.any() else np.ones(len(self), bool)
        gallery, pairs = self.gallery, self.pairs
        if gallery is None:
            gallery = first_pictures(self.people) & candidates
        if pairs is None:
            pairs = make_pairs(self.people, candidates)
        return FaceSet(
            self.people,
            self.labels,
            gallery,
            pairs,
            self.templates,
            self.groups,
            self.group_names,
        )


class FileFaces(FaceSource):
    """Images of people in a folder or zip file.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      members: The paths of the images.
      names: The name of the person on each image.
      trained: The names of the people to train on.
      color: The color to convert images to, "rgb" or "grey"; None for the stored one.
      landmarks: The landmarks by path, see `read_landmarks`.
      **facts: Other attributes of `FaceSource`, such as `pairs`.
    """

    def __init__(
        self,
        files: Files,
        split: str,
        members: Sequence[str],
        names: Sequence[str],
        trained: Sequence[str],
        color: str | None,
        landmarks: dict[str, np.ndarray] | None = None,
        **facts,
    ):
        self.name, self.split = files.path.stem, split
        self.class_names = tuple(trained)
        label = {name: i for i, name in enumerate(trained)}
        number = {name: i for i, name in enumerate(dict.fromkeys([*trained, *names]))}
        self.labels = np.array([label.get(n, UNKNOWN) for n in names], np.int32)
        self.people = np.array([number[n] for n in names], np.int32)
        self._files, self._members, self._color = files, list(members), color
        self._landmarks = landmarks or {}
        for fact, value in facts.items():
            setattr(self, fact, value)

    def image(self, index: int) -> np.ndarray:
        data = self._files.read(self._members[index])
        where = self.provenance(index)
        return decode_image(data, where, color=self._color, upright=True)

    def landmarks(self, index: int) -> np.ndarray | None:
        return self._landmarks.get(self._members[index])

    def provenance(self, index: int) -> str:
        return self._files.where(self._members[index])

    def content(self, index: int) -> str:
        points = self.landmarks(index)
        stamp = self._files.stamp(self._members[index])
        return stamp if points is None else f"{stamp} {points.tobytes().hex()}"


def read_landmarks(files: Files) -> dict[str, np.ndarray]:
    """Reads the landmarks of images from `landmarks.csv` beside them.

    Its first line names the columns: `file`, then `x0`, `y0`, `x1`, `y1` and so on, for
    2, 5, 6, 67 or 68 landmarks in pixels (see `zoo.face.alignment`). A picture without
    a line has none.

    Returns:
      Landmarks float32 [L, 2] by path; empty if there is no such file.

    Raises:
      ValueError: The file has another format; the message names the line.
    """
    if LANDMARKS_FILE not in files.listing().entries:
        return {}
    where = files.where(LANDMARKS_FILE)
    text = read_text(files, LANDMARKS_FILE)
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise ValueError(f"{where}: no table of commas ({error}).") from error
    header = rows[0] if rows else []
    count = (len(header) - 1) // 2
    wanted = ["file", *(f"{axis}{i}" for i in range(count) for axis in "xy")]
    if header != wanted or count not in COUNTS:
        raise ValueError(
            f"{where}: the first line must be file,x0,y0,x1,y1,.. for one of {COUNTS} "
            f"landmarks, got {','.join(header[:5])} and {len(header)} columns in all."
        )
    known, found = {*files.listing().entries}, {}
    for number, row in enumerate(rows[1:], 2):
        try:
            values = np.array(row[1:], np.float32).reshape(count, 2)
            fits = bool(np.isfinite(values).all())
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{where}, line {number}: expected a file and {2 * count} finite "
                f"numbers, got {','.join(row[:4])} and {len(row)} columns in all."
            )
        if row[0] not in known or row[0] in found:
            what = "named twice" if row[0] in found else "not there"
            raise ValueError(f"{where}, line {number}: {row[0]} is {what}.")
        found[row[0]] = values
    return found


def write_landmarks(path, landmarks: dict[str, np.ndarray]) -> None:
    """Writes `landmarks.csv`, as `read_landmarks` reads it.

    Args:
      path: The path of the file.
      landmarks: float [L, 2] by image file, with one L.
    """
    count = len(next(iter(landmarks.values())))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"{a}{i}" for i in range(count) for a in "xy")])
        for name, points in landmarks.items():
            writer.writerow([name, *(f"{x:.2f}" for x in np.ravel(points))])


def first_pictures(people: np.ndarray, most: int = GALLERY) -> np.ndarray:
    """Selects the first images of each person: half of them, and at most `most`.

    Args:
      people: int [N], the person on each image.
      most: The largest number of images of a person.

    Returns:
      bool [N].
    """
    chosen = np.zeros(len(people), bool)
    for person in np.unique(people):
        at = np.flatnonzero(people == person)
        chosen[at[: min(most, len(at) // 2)]] = True
    return chosen


def make_pairs(
    people: np.ndarray, candidates: np.ndarray | None = None, *, seed: int = 0
) -> Pairs:
    """Draws pairs of images for a verification in ten folds.

    There are as many pairs of one person as of two people, at most `PAIRS_EACH` of each
    in a fold, without duplicates. With two people for each fold or more, no person is
    in two folds; with fewer people, the pairs are divided at random.

    Args:
      people: int [N], the person on each image.
      candidates: bool [N], the images to choose from; all if None.
      seed: The seed of the choice.

    Raises:
      ValueError: There are no two people, or no person has two pictures.
    """
    if candidates is None:
        candidates = np.ones(len(people), bool)
    rng = RandomStream((seed, 7))
    names = np.unique(people[candidates])
    names = names[rng.permutation(len(names))]
    parts = FOLDS if len(names) >= 2 * FOLDS else 1
    each = PAIRS_EACH * (FOLDS // parts)
    first, second, same, fold = [], [], [], []
    for part in range(parts):
        at = np.flatnonzero(candidates & np.isin(people, names[part::parts]))
        a, b = np.triu_indices(len(at), 1)
        alike = people[at[a]] == people[at[b]]
        kinds = [np.flatnonzero(alike), np.flatnonzero(~alike)]
        count = min(each, *map(len, kinds))
        if not count:
            raise ValueError(
                f"{len(at)} pictures of {len(names[part::parts])} people have no two "
                "of one person, or no two of two people; no pairs can be made."
            )
        for is_same, kind in zip((True, False), kinds, strict=True):
            chosen = np.sort(kind[rng.permutation(len(kind))[:count]])
            first.append(at[a[chosen]])
            second.append(at[b[chosen]])
            same.append(np.full(count, is_same))
            places = rng.permutation(count) * FOLDS // count
            fold.append(places if parts == 1 else np.full(count, part))
    return Pairs(
        np.concatenate(first).astype(np.int32),
        np.concatenate(second).astype(np.int32),
        np.concatenate(same),
        np.concatenate(fold).astype(np.int32),
    )


class AlignedFaces(FaceSource):
    """The faces of a source, aligned and cropped.

    Args:
      source: The source of photographs.
      method: The alignment, "2d" or "3d".
      preprocess: The preprocessing of the network's input.

    Attributes:
      photographs: The source of photographs.
      method: The alignment, "2d" or "3d".
    """

    def __init__(self, source: FaceSource, method: str, preprocess: Preprocess):
        self.people, self.labels = source.people, source.labels
        for fact in ("name", "split", "class_names", *_FACTS):
            setattr(self, fact, getattr(source, fact))
        self.photographs, self.method = source, method
        self._size = preprocess.size

    def image(self, index: int) -> np.ndarray:
        landmarks = self.photographs.landmarks(index)
        if landmarks is None:
            raise ValueError(
                f"{self.provenance(index)} has no landmarks; {LANDMARKS_FILE} must "
                "have a line for it, or data.align must be 'none'."
            )
        image = self.photographs.image(index)
        return align_face(image, landmarks, self.method, self._size)

    def provenance(self, index: int) -> str:
        return self.photographs.provenance(index)

    def content(self, index: int) -> str:
        return self.photographs.content(index)


def align_face(
    image: np.ndarray, landmarks: np.ndarray, method: str, size: int
) -> np.ndarray:
    """Aligns a face on the host, even where there are accelerators.

    A photograph that is much larger than the crop is downsampled first, to avoid
    aliasing.

    Args:
      image: uint8 [H, W, C].
      landmarks: float32 [L, 2], in pixels.
      method: "2d" or "3d".
      size: Height and width of the crop, in pixels.

    Returns:
      uint8 [size, size, C].
    """
    spread = np.linalg.norm(landmarks.max(0) - landmarks.min(0))
    # The landmarks fill about half of the crop.
    factor = max(1, int(spread / size))
    if factor > 1:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture = np.asarray(picture.reduce(factor))
        image = picture.reshape(*picture.shape[:2], image.shape[-1])
        landmarks = (landmarks + 0.5) / factor - 0.5
    height, width = image.shape[:2]
    more = -height % _PAD, -width % _PAD
    image = np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(_align(method, size)(image, np.float32(landmarks)))


@functools.cache
def _align(method: str, size: int):
    return jax.jit(functools.partial(align, method=method, size=size))


def choose_alignment(source: FaceSource, method: str) -> str:
    """Chooses how the faces of a source are aligned.

    Args:
      source: The source of photographs.
      method: "none", "2d", "3d", or "auto": "3d" where the first picture has 67 or 68
        landmarks, "2d" where it has fewer, "none" where it has none.

    Returns:
      "none", "2d" or "3d".

    Raises:
      ValueError: The method is unknown, or the landmarks do not allow it.
    """
    if method not in ("auto", "none", "2d", "3d"):
        raise ValueError(f"data.align={method!r} must be 'auto', 'none', '2d' or '3d'.")
    landmarks = source.landmarks(0)
    count = 0 if landmarks is None else len(landmarks)
    if method == "auto":
        return "3d" if count >= 67 else "2d" if count else "none"
    if (method == "3d" and count < 67) or (method == "2d" and not count):
        wanted = "67 or 68" if method == "3d" else f"one of {COUNTS}"
        raise ValueError(
            f"data.align={method!r} needs {wanted} landmarks of each picture, and "
            f"{source.provenance(0)} has {count}."
        )
    return method


def align_source(source: FaceSource, method: str, preprocess: Preprocess) -> FaceSource:
    """Aligns the faces of a source for a network.

    Args:
      source: The source of photographs.
      method: The alignment, see `choose_alignment`.
      preprocess: The preprocessing of the network's input.

    Returns:
      The aligned faces, or the source itself.

    Raises:
      ValueError: The method is unknown, or the landmarks do not allow it.
    """
    method = choose_alignment(source, method)
    return source if method == "none" else AlignedFaces(source, method, preprocess)
