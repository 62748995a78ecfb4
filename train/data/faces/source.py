"""Pictures of people, with the person and group of each, and the pairs to compare."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from train.data.faces.landmarks import read_landmarks, read_table
from train.data.files import Files
from train.data.formats.image_files import FileSource
from train.data.rng import RandomStream
from train.data.source import Source
from zoo.face.verification import UNKNOWN, FaceSet, Pairs

GROUPS_FILE = "groups.csv"
FOLDS = 10
PAIRS_EACH = 60  # pairs of each kind in a fold, if the set has no list of pairs
GALLERY = 5  # largest number of a person's pictures in the gallery
NO_GROUP = -1


class FaceSource(Source):
    """Images of people.

    A subclass sets `name`, `split`, `class_names`, `people` and `labels`, and
    implements `image` and `provenance`.

    Attributes:
      class_names: The names of the people to train on.
      labels: int32 [N], the person in `range(len(class_names))`, -1 for others.
      people: int32 [N], the number of the person, among all people of the set.
      pairs: The pairs to verify; None to make them with `make_pairs`.
      templates: int32 [N], the template of each image, see `FaceSet`, or None.
      groups: int32 [N], the group of each image or -1, see `FaceSet`, or None.
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
        """Returns the landmarks of a picture, float32 [L, 2]; None if unknown."""
        return None

    def face_set(self) -> FaceSet:
        """Returns the people, pairs and groups that an evaluation needs."""
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


class FileFaces(FaceSource, FileSource):
    """Images of people in a folder or zip file.

    Files beside the images may have landmarks and groups, see `read_landmarks` and
    `read_groups`.

    Args:
      files: The folder or zip file.
      split: The name of the split.
      members: The paths of the images.
      names: The name of the person on each image.
      trained: The names of the people to train on.
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.
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
        **facts,
    ):
        super().__init__(files, split, trained, members, color)
        label = {name: i for i, name in enumerate(trained)}
        number = {name: i for i, name in enumerate(dict.fromkeys([*trained, *names]))}
        self.labels = np.array([label.get(n, UNKNOWN) for n in names], np.int32)
        self.people = np.array([number[n] for n in names], np.int32)
        self._landmarks, groups = read_landmarks(files), read_groups(files)
        if groups:
            self.group_names = tuple(sorted({*groups.values()}))
            numbers = {name: i for i, name in enumerate(self.group_names)}
            found = [numbers.get(groups.get(name), NO_GROUP) for name in names]
            self.groups = np.array(found, np.int32)
        for fact, value in facts.items():
            setattr(self, fact, value)

    def landmarks(self, index: int) -> np.ndarray | None:
        return self._landmarks.get(self._images[index])

    def content(self, index: int) -> str:
        points, stamp = self.landmarks(index), super().content(index)
        return stamp if points is None else f"{stamp} {points.tobytes().hex()}"


def read_groups(files: Files) -> dict[str, str]:
    """Reads the groups of people from `groups.csv` beside their images.

    Its first line is `person,group`. A person without a line is in no group.

    Returns:
      The name of the group by the name of the person; empty if there is no such file.

    Raises:
      ValueError: The file has another format, or names nobody whose folder is there;
        the message names the line.
    """
    if GROUPS_FILE not in files.listing().entries:
        return {}
    where, rows = files.where(GROUPS_FILE), read_table(files, GROUPS_FILE)
    if not rows or rows[0] != ["person", "group"]:
        raise ValueError(
            f"{where}: the first line must be person,group, got "
            f"{','.join(rows[0]) if rows else ''}."
        )
    groups = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not all(row) or row[0] in groups:
            raise ValueError(
                f"{where}, line {number}: expected a person, who is not named before, "
                f"and a group, got {','.join(row)}."
            )
        groups[row[0]] = row[1]
    entries = map(PurePosixPath, files.listing().entries)
    if not groups.keys() & {name for entry in entries for name in entry.parts}:
        raise ValueError(
            f"{where} names nobody of whom there is a picture: got "
            f"{', '.join([*groups][:3]) or 'no line'}, expected names of people as "
            "those of their folders."
        )
    return groups


def first_pictures(people: np.ndarray) -> np.ndarray:
    """Selects the first half of each person's images, at most `GALLERY` of them.

    Args:
      people: int [N], the person on each image.

    Returns:
      bool [N].
    """
    chosen = np.zeros(len(people), bool)
    for person in np.unique(people):
        at = np.flatnonzero(people == person)
        chosen[at[: min(GALLERY, len(at) // 2)]] = True
    return chosen


def make_pairs(people: np.ndarray, candidates: np.ndarray | None = None) -> Pairs:
    """Draws pairs of images for a verification in ten folds.

    There are as many pairs of one person as of two people, at most `PAIRS_EACH` of each
    kind in a fold, without duplicates. With at least two people per fold, no person is
    in two folds; with fewer people, the pairs are divided at random.

    Args:
      people: int [N], the person on each image.
      candidates: bool [N], the images to choose from; all if None.

    Raises:
      ValueError: There are no two people, or no person has two pictures.
    """
    if candidates is None:
        candidates = np.ones(len(people), bool)
    rng = RandomStream((0, 7))
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
