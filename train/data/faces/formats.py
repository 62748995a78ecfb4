"""The formats of data sets of faces: LFW, YouTube Faces, ORL, and image folders."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from train.data.faces.source import FaceSource, FileFaces
from train.data.files import (
    Files,
    find_splits,
    read_text,
    split_kind,
    warn_of_left_out,
)
from train.data.formats.image_folder import read_layout
from zoo.face.verification import Pairs

# ORL: the number of people to train on, and of each person's pictures in the gallery.
ORL_PEOPLE, ORL_KNOWN = 30, 5
# Splits of LFW, and the file that lists each one's pairs.
LFW_FILES = {
    "train": "pairsDevTrain.txt",
    "dev": "pairsDevTest.txt",
    "test": "pairs.txt",
}


def open_people(path: Path, split: str, *, color: str | None = None) -> FaceSource:
    """Opens a folder or zip file with one folder for each person.

    The layout is that of `open_folder`; the people to train on are those of the split
    "train" (or Training, and so on), or all people if there is no such split.

    Args:
      path: A folder, or a zip file, which is not unpacked.
      split: The name of a split, or several such as "train+val".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.

    Raises:
      ValueError: See `open_folder`.
    """
    files, layout, splits = read_layout(path, split)
    kinds = [part for part in layout if split_kind(part) == "train"] or layout
    trained = sorted({name for part in kinds for name, _ in layout[part]})
    names, members = zip(*(row for part in splits for row in layout[part]), strict=True)
    return FileFaces(files, "+".join(splits), members, names, trained, color)


def open_orl(path: Path, split: str, *, color: str | None = None) -> FaceSource:
    """Opens the ORL (AT&T) database of faces: `sN/M.pgm`, or another kind of image.

    "train" has the first five pictures of each of the first 30 people; "test" has all
    pictures, of which the first five of each person are the gallery of an
    identification. People 31 to 40 are not trained on; pairs are made of their
    pictures.

    Args:
      path: The folder or zip file.
      split: "train", "test" or "all", which is the same as "test".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.

    Raises:
      ValueError: The path does not exist, has no such pictures, or fewer than 32
        people, or there is no such split.

    Reference:
      Samaria and Harter, Parameterisation of a stochastic model for human face
      identification, 1994.
    """
    files = Files(path)
    pictures, images = {}, _list_images(files)
    for entry in images:
        match = re.fullmatch(r"(?:.*/)?s(\d+)/(\d+)(?:\.\w+)?", entry)
        if match:
            _add_picture(pictures, (int(match[1]), int(match[2])), entry, files)
    _warn_of_images(files, images, pictures.values(), "sN/M.pgm")
    found = [(*key, entry) for key, entry in pictures.items()]
    people = sorted({person for person, _ in pictures})
    if len(people) < ORL_PEOPLE + 2:
        raise ValueError(
            f"{path}: expected pictures sN/M.pgm of more than {ORL_PEOPLE + 1} people, "
            f"found {len(people)} people."
        )
    trained = people[:ORL_PEOPLE]
    chosen = _find_one(split, ("train", "test", "all"), path)
    rows = [
        row
        for row in sorted(found)
        if chosen != "train" or (row[0] in trained and row[1] <= ORL_KNOWN)
    ]
    return FileFaces(
        files,
        chosen,
        [entry for _, _, entry in rows],
        [f"s{person}" for person, _, _ in rows],
        [f"s{person}" for person in trained],
        color,
        gallery=np.array([number <= ORL_KNOWN for _, number, _ in rows]),
    )


def open_lfw(path: Path, split: str, *, color: str | None = None) -> FaceSource:
    """Opens Labeled Faces in the Wild: `NAME/NAME_0001.jpg`, funneled or not.

    The lists of pairs lie in the folder or above its pictures. "test" has the pictures
    that `pairs.txt` names, and its ten folds (view 2); "train" and "dev" those of
    `pairsDevTrain.txt` and `pairsDevTest.txt` (view 1), with their pairs as one fold;
    "all" has every picture. With `people.txt`, "all" has only the people of its folds,
    of whom the unrestricted setting may make pairs, see `read_people`.

    Args:
      path: The folder or zip file.
      split: "train", "dev", "test" or "all".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.

    Raises:
      ValueError: A list is missing, has another format, a fold of a wrong length, a
        pair of two people with the same name, or a picture that is missing; or there
        is no such split. The message names the file and the line.

    Reference:
      Huang et al., Labeled Faces in the Wild, 2007.
    """
    files = Files(path)
    pictures, images = {}, _list_images(files)
    entries = map(PurePosixPath, files.listing().entries)
    lists = {entry.name: str(entry) for entry in entries if entry.suffix == ".txt"}
    for entry in images:
        pure = PurePosixPath(entry)
        match = re.fullmatch(r"(.+)_(\d{4})", pure.stem)
        if match and match[1] == pure.parent.name:
            _add_picture(pictures, (match[1], int(match[2])), entry, files)
    _warn_of_images(files, images, pictures.values(), "NAME/NAME_0001.jpg")
    if not pictures:
        raise ValueError(f"{path}: expected pictures NAME/NAME_0001.jpg, found none.")
    chosen = _find_one(split, (*LFW_FILES, "all"), path)
    trained = sorted({name for name, _ in pictures})
    keys, pairs = sorted(pictures), None
    if chosen != "all":
        name = LFW_FILES[chosen]
        if name not in lists:
            raise ValueError(f"{path}: split {split!r} needs the file {name}.")
        where, text = files.where(lists[name]), read_text(files, lists[name])
        rows = read_pairs(text, where)
        for line, first, second, _, _ in rows:
            for key in (first, second):
                if key not in pictures:
                    raise ValueError(
                        f"{where}, line {line}: {key[0]}_{key[1]:04} is not there."
                    )
        keys = sorted({key for row in rows for key in row[1:3]})
        at = {key: i for i, key in enumerate(keys)}
        columns = [(at[a], at[b], same, fold) for _, a, b, same, fold in rows]
        pairs = _make_pairs(columns)
    elif "people.txt" in lists:
        where = files.where(lists["people.txt"])
        folds = read_people(read_text(files, lists["people.txt"]), where)
        keys = [key for key in keys if key[0] in folds]
        if not keys:
            raise ValueError(f"{where} names nobody of whom there is a picture.")
    return FileFaces(
        files,
        chosen,
        [pictures[key] for key in keys],
        [name for name, _ in keys],
        trained,
        color,
        pairs=pairs,
    )


def _list_images(files: Files) -> list[str]:
    """Lists the images, and logs the hidden and special files that are left out."""
    listing = files.listing()
    warn_of_left_out(str(files.path), listing.left_out)
    return [e for e in listing.entries if not e.endswith("/") and files.is_image(e)]


def _warn_of_images(
    files: Files, images: Sequence[str], used: Collection[str], form: str
) -> None:
    """Logs the images that are left out, since their path is not of a form."""
    others = sorted({*images} - {*used})
    warn_of_left_out(str(files.path), {f"image(s) not called {form}": others})


def _find_one(split: str, known: Sequence[str], path: Path) -> str:
    """Returns the name in `known` of a split; ValueError if it is several."""
    found = find_splits(split, known, str(path))
    if len(found) > 1:
        raise ValueError(
            f"{path}: split {split!r} names several; expected one of "
            f"{', '.join(known)}."
        )
    return found[0]


def _add_picture(pictures: dict, key: tuple, entry: str, files: Files) -> None:
    """Adds a picture by its person and number; raises ValueError if there is one."""
    other = pictures.setdefault(key, entry)
    if other != entry:
        raise ValueError(
            f"{files.path}: {other} and {entry} are two pictures of the same person "
            "and number; which one is meant? Rename or remove one."
        )


def read_pairs(text: str, where: str) -> list[tuple[int, tuple, tuple, bool, int]]:
    """Reads LFW's `pairs.txt`, `pairsDevTrain.txt` or `pairsDevTest.txt`.

    The first line has the number of folds, if there are several, and the number of
    pairs of each kind in a fold. For each fold, pairs of one person, `NAME 1 4`, are
    followed by pairs of two people, `NAME 1 OTHER 2`.

    Args:
      text: The contents of the file.
      where: The name of the file in errors.

    Returns:
      For each pair its line, both images as (name, number), whether they show one
      person, and the fold.

    Raises:
      ValueError: See `open_lfw`.
    """
    lines = [(i, line.split()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, words) for i, words in lines if words]
    head = lines[0][1] if lines else []
    if len(head) not in (1, 2) or not all(map(_is_count, head)):
        raise ValueError(
            f"{where}, line 1: expected the numbers of folds and of pairs, got "
            f"{' '.join(head)!r}."
        )
    folds, each = (1, int(head[0])) if len(head) == 1 else map(int, head)
    if not folds * each:
        raise ValueError(f"{where}, line 1: {' '.join(head)!r} announces no pairs.")
    if len(lines) - 1 != 2 * folds * each:
        raise ValueError(
            f"{where}: line 1 announces {folds} folds of {each} + {each} pairs, "
            f"{2 * folds * each} in all, and there are {len(lines) - 1}."
        )
    rows, seen = [], set()
    for number, (line, words) in enumerate(lines[1:]):
        fold, place = divmod(number, 2 * each)
        same = place < each
        numbers = words[1::2] if len(words) == 4 else words[1:]
        if len(words) != (3 if same else 4) or not all(map(_is_count, numbers)):
            form = "NAME NUMBER NUMBER" if same else "NAME NUMBER NAME NUMBER"
            raise ValueError(
                f"{where}, line {line}: pair {place + 1} of fold {fold + 1} must be "
                f"{form}, got {' '.join(words)!r}; each fold has {each} pairs of one "
                f"person and then {each} of two."
            )
        names = (words[0], words[0]) if same else (words[0], words[2])
        first, second = zip(names, map(int, numbers), strict=True)
        if first == second or (not same and names[0] == names[1]):
            what = "one picture twice" if same else "one person twice"
            raise ValueError(f"{where}, line {line}: {' '.join(words)!r} names {what}.")
        if frozenset((first, second)) in seen:
            raise ValueError(f"{where}, line {line}: {' '.join(words)!r} is repeated.")
        seen.add(frozenset((first, second)))
        rows.append((line, first, second, same, fold))
    return rows


def read_people(text: str, where: str) -> dict[str, int]:
    """Reads LFW's `people.txt` or `peopleDevTrain.txt`: the fold of each person.

    Raises:
      ValueError: The file has another format, a fold of a wrong length, or a person
        twice. The message names the line.
    """
    lines = [line.split() for line in text.splitlines() if line.split()]
    several = [len(words) for words in lines[:2]] == [1, 1]
    if several and not _is_count(lines[0][0]):
        raise ValueError(
            f"{where}, line 1: expected the number of folds, got {lines[0][0]!r}."
        )
    rest, folds = lines[1:] if several else lines, {}
    count = int(lines[0][0]) if several else 1
    for fold in range(count):
        if not rest or len(rest[0]) != 1 or not _is_count(rest[0][0]):
            raise ValueError(
                f"{where}: fold {fold + 1} must begin with its number of people, got "
                f"{' '.join(rest[0]) if rest else 'the end of the file'!r}."
            )
        length = int(rest[0][0])
        people, rest = rest[1 : length + 1], rest[length + 1 :]
        for words in people:
            if len(words) != 2 or not _is_count(words[1]) or words[0] in folds:
                what = "is there twice" if words[0] in folds else "must be NAME COUNT"
                raise ValueError(
                    f"{where}: {' '.join(words)!r} in fold {fold + 1} of {length} "
                    f"people {what}."
                )
            folds[words[0]] = fold
        if len(people) != length:
            raise ValueError(
                f"{where}: fold {fold + 1} announces {length} people and has "
                f"{len(people)}."
            )
    if rest:
        raise ValueError(f"{where}: {' '.join(rest[0])!r} comes after the last fold.")
    return folds


def open_ytf(path: Path, split: str, *, color: str | None = None) -> FaceSource:
    """Opens YouTube Faces: `PERSON/VIDEO/FRAME.jpg` and `splits.txt`.

    A video is a template: its descriptor is the mean over its frames, so that the inner
    product of two videos is the mean over all pairs of their frames.

    Args:
      path: The folder or zip file.
      split: "test", with the videos and the folds of `splits.txt`, or "all".
      color: The color to convert images to, "rgb" or "gray"; None for the stored one.

    Raises:
      ValueError: `splits.txt` is missing, has another format, or names a missing video;
        or there is no such split. The message names the line.

    Reference:
      Wolf, Hassner, Maoz, Face Recognition in Unconstrained Videos with Matched
      Background Similarity, 2011.
    """
    files, videos = Files(path), {}
    images = _list_images(files)
    for entry in images:
        parts = PurePosixPath(entry).parts
        if len(parts) >= 3:
            videos.setdefault(f"{parts[-3]}/{parts[-2]}", []).append(entry)
    frames = [entry for entries in videos.values() for entry in entries]
    _warn_of_images(files, images, frames, "PERSON/VIDEO/FRAME.jpg")
    if not videos:
        raise ValueError(f"{path}: expected frames PERSON/VIDEO/FRAME.jpg, found none.")
    chosen = _find_one(split, ("test", "all"), path)
    rows = []
    if chosen == "test":
        lists = [
            e for e in files.listing().entries if PurePosixPath(e).name == "splits.txt"
        ]
        if not lists:
            raise ValueError(f"{path}: split 'test' needs the file splits.txt.")
        where = files.where(lists[0])
        rows = _read_video_pairs(read_text(files, lists[0]), where, {*videos})
    used = {video for row in rows for video in row[:2]} or {*videos}
    kept = [video for video in videos if video in used]
    number = {video: i for i, video in enumerate(kept)}
    frames = [(entry, video) for video in kept for entry in videos[video]]
    names = [video.split("/")[0] for _, video in frames]
    columns = [(number[a], number[b], same, fold) for a, b, same, fold in rows]
    return FileFaces(
        files,
        chosen,
        [entry for entry, _ in frames],
        names,
        sorted({*names}),
        color,
        templates=np.array([number[video] for _, video in frames], np.int32),
        pairs=_make_pairs(columns) if rows else None,
    )


def _read_video_pairs(text: str, where: str, known: set[str]) -> list[tuple]:
    """Reads lines `FOLD, VIDEO, VIDEO, ..., 0 or 1`; the first one is a header."""
    rows = []
    for line, content in enumerate(text.splitlines(), 1):
        words = [word.strip() for word in content.split(",")]
        if not content.strip() or (line == 1 and not _is_count(words[0])):
            continue
        fits = len(words) >= 4 and _is_count(words[0]) and words[-1] in ("0", "1")
        if not fits or int(words[0]) < 1:
            raise ValueError(
                f"{where}, line {line}: expected FOLD, VIDEO, VIDEO, 0 or 1, got "
                f"{content!r}."
            )
        for video in words[1:3]:
            if video not in known:
                raise ValueError(f"{where}, line {line}: video {video} is not there.")
        rows.append((words[1], words[2], words[-1] == "1", int(words[0]) - 1))
    if not rows:
        raise ValueError(f"{where} has no pairs.")
    return rows


def _is_count(word: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", word) is not None


def _make_pairs(rows: Sequence[tuple[int, int, bool, int]]) -> Pairs:
    first, second, same, fold = (np.array(column) for column in zip(*rows, strict=True))
    return Pairs(
        first.astype(np.int32),
        second.astype(np.int32),
        same.astype(bool),
        fold.astype(np.int32),
    )
