"""Landmarks by dlib, of the extra `face`, and what is said where it is missing."""

import importlib.util
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_command

from train.data.faces.landmarks import fill_landmarks, read_landmarks, write_landmarks
from train.data.faces.synthetic import draw_example
from train.data.files import Files
from zoo.face.alignment import pick_fiducials

HAS_DLIB = all(
    importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models")
)
needs_dlib = pytest.mark.skipif(not HAS_DLIB, reason="the extra face is not installed")


@pytest.mark.skipif(HAS_DLIB, reason="the extra face is installed")
def test_the_extra_is_named(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    code, _, err = run_command("landmarks", tmp_path)
    assert code == 1
    assert "pip install 'canon-zoo[face]'" in err


def test_a_folder_is_needed(tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as file:
        file.writestr("a.png", b"")
    with pytest.raises(ValueError, match=r"faces\.zip must be a folder"):
        fill_landmarks(tmp_path / "faces.zip")


@needs_dlib
def test_landmarks_of_a_drawn_face_are_found_and_kept(tmp_path):
    example = draw_example(7, 0)
    large = example["image"].resize((320, 320), Image.Resampling.BICUBIC)
    large.save(tmp_path / "face.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "nothing.png")
    count, missing = fill_landmarks(tmp_path)
    assert (count, missing) == (1, ["nothing.png"])
    found = read_landmarks(Files(tmp_path))["face.png"]
    assert found.shape == (68, 2)
    exact = np.asarray(pick_fiducials(4 * example["landmarks"] + 1.5))
    off = np.linalg.norm(np.asarray(pick_fiducials(found)) - exact, axis=1)
    assert off.mean() < 20  # Of a head that is about 210 pixels wide.
    # What the file has is not looked for again.
    write_landmarks(tmp_path / "landmarks.csv", {"face.png": found + 1})
    fill_landmarks(tmp_path)
    np.testing.assert_allclose(read_landmarks(Files(tmp_path))["face.png"], found + 1)


@needs_dlib
def test_landmarks_of_another_number_stay(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    write_landmarks(tmp_path / "landmarks.csv", {"a.png": np.zeros((6, 2))})
    with pytest.raises(ValueError, match=r"6 landmarks .* dlib finds 68"):
        fill_landmarks(tmp_path)
