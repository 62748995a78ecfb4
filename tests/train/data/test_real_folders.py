"""Folders as people have them: names of splits, strange files, links, doubts."""

import io
import logging
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from train.data import BadImage, load_dataset
from train.data.files import Files, split_kind
from train.data.formats.image_folder import find_layout


def encode(kind="png", value=0):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, kind)
    return file.getvalue()


def write(root, *names, content=None):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode() if content is None else content)
    return root


def open_folder(root, split="all"):
    return load_dataset(f"imagefolder:{root}", split)


def members(source):
    return [source.identity(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[(n, "train") for n in ("train", "TRAIN", "Training", "training_set")],
        *[(n, "train") for n in ("trainset", "seg_train", "Train-Images", "TrainData")],
        *[(n, "val") for n in ("VAL", "valid", "Validation", "val_set", "ValImages")],
        *[(n, "test") for n in ("Test", "Testing", "test_set", "seg_test")],
        *[(n, None) for n in ("cat", "trainer", "strain", "train_test", "train2", "")],
        *[(n, None) for n in ("contest", "fire train", "data", "set")],
    ],
)
def test_names_of_splits(name, kind):
    assert split_kind(name) == kind


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("train_set", "test_set"),
        ("TRAIN", "VAL"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/images", "test/images"),
    ],
)
def test_splits_of_any_usual_name(tmp_path, train, test):
    names = [f"{c}/{i}.png" for c in ("glioma", "no_tumor") for i in range(3)]
    write(tmp_path, *(f"{split}/{name}" for split in (train, test) for name in names))
    for split, folder in (("train", train), ("val" if "VAL" in test else "test", test)):
        source = open_folder(tmp_path, split)
        assert source.class_names == ("glioma", "no_tumor")
        assert members(source) == [f"{folder}/{name}" for name in names]
    own = train.partition("/")[0]
    assert members(open_folder(tmp_path, own)) == [f"{train}/{name}" for name in names]


def test_images_without_classes_beside_splits_are_named(tmp_path, caplog):
    write(tmp_path, "seg_train/seg_train/a/1.png", "seg_test/seg_test/b/1.png")
    write(tmp_path, "seg_pred/1.png", "seg_pred/2.png")
    assert open_folder(tmp_path, "train").class_names == ("a", "b")
    assert "2 in no class folder" in caplog.text
    assert "seg_pred/1.png" in caplog.text


def test_folders_of_the_same_names_are_not_guessed(tmp_path):
    write(tmp_path, *(f"fold{i}/{c}/1.png" for i in (1, 2) for c in ("cat", "dog")))
    with pytest.raises(ValueError, match=r"fold1 and fold2 both have folders cat, dog"):
        open_folder(tmp_path)
    # What lies deeper in a class is of the class.
    layout = find_layout(["cat/old/1.png", "cat/new/1.png", "dog/old/1.png"], "x")
    assert {name for name, _ in layout["all"]} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("cat", "cat ")],
)
def test_classes_that_differ_by_case_alone_are_refused(tmp_path, one, other):
    write(tmp_path, f"train/{one}/1.png", "train/dog/1.png", f"test/{other}/1.png")
    with pytest.raises(ValueError, match="by case, accents or spaces alone") as error:
        open_folder(tmp_path, "train")
    assert f"train/{one}" in str(error.value)
    assert f"test/{other}" in str(error.value)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_images_of_all_suffixes_are_read_and_others_counted(tmp_path, caplog, zipped):
    images = {"1.jpg": "jpeg", "2.jfif": "jpeg", "3.JPE": "jpeg", "4.png": "png"}
    images |= {"5": "png", "IMG.006": "jpeg", "7.qoi": None}
    others = {
        "8.mp4": b"\0" * 20,
        "notes.txt": b"hello",
        "list": b"1 2 3",
        "x.csv": b"",
    }
    if ".avif" in Image.registered_extensions() and "AVIF" in Image.SAVE:
        images["9.avif"] = "avif"
    contents = {f"cat/{n}": encode(k) for n, k in images.items() if k}
    contents |= {f"cat/{n}": data for n, data in others.items()}
    if zipped:
        path = tmp_path / "s.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
    else:
        path = tmp_path / "s"
        for name, data in contents.items():
            write(path, name, content=data)
    source = open_folder(path)
    assert len(source) == len(contents) - len(others)
    assert all(source[i]["image"].shape == (4, 4, 3) for i in range(len(source)))
    assert "4 no images that Pillow reads (" in caplog.text
    for name in ("1 x .mp4", "1 x .txt", "1 x .csv", "1 x no suffix"):
        assert name in caplog.text
    open_folder(path)  # another split of it
    assert caplog.text.count("no images that Pillow reads") == 1


def test_heic_without_a_reader_says_what_reads_it(tmp_path, caplog):
    if ".heic" in Image.registered_extensions():
        pytest.skip("pillow-heif is installed")
    write(tmp_path, "cat/1.png", "cat/2.heic")
    assert len(open_folder(tmp_path)) == 1
    assert "1 x .heic; pip install pillow-heif" in caplog.text


def test_what_systems_add_is_left_out_and_named(tmp_path, caplog):
    write(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, "@eaDir/cat/SYNO@.png", "cat/@eaDir/1.png", "#recycle/2.png")
    write(tmp_path, "lost+found/1.png", "$RECYCLE.BIN/1.png", "__MACOSX/cat/1.png")
    write(tmp_path, "cat/Thumbs.db", "cat/.DS_Store", "cat/._1.png", ".git/x/1.png")
    source = open_folder(tmp_path)
    assert members(source) == ["cat/1.png", "dog/1.png"]
    assert "10 hidden or added by a file manager" in caplog.text


def test_links_pipes_and_devices(tmp_path, caplog):
    root = write(tmp_path / "s", "train/cat/1.png", "train/dog/1.png")
    (root / "test").symlink_to("train")  # a link to a folder beside is followed
    (root / "train/cat/up").symlink_to("../..")
    (root / "train/dog/self").symlink_to("self")
    (root / "train/dog/gone.png").symlink_to("nowhere.png")
    (root / "train/dog/other.png").symlink_to("1.png")
    (root / "train/dog/zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "train/dog/pipe.png")
    found = ["cat/1.png", "dog/1.png", "dog/other.png"]
    for split in ("train", "test"):
        assert members(open_folder(root, split)) == [f"{split}/{n}" for n in found]
    assert "8 neither files nor folders" in caplog.text
    assert "2 links that lead back to a folder above" in caplog.text


def test_folders_that_link_to_one_another_come_to_an_end(tmp_path):
    names = [f"c{i}" for i in range(8)]
    for name in names:
        write(tmp_path, f"{name}/1.png")
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(f"../{other}")
    entries, left_out = Files(tmp_path).listing()
    assert len(entries) < 8**5
    assert left_out


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a folder or zip file"):
        open_folder(tmp_path / "pipe")
    os.makedirs(os.fsencode(tmp_path) + b"/s/caf\xe9")
    with pytest.raises(ValueError, match=r"name 'caf\\udce9/' is not UTF-8"):
        open_folder(tmp_path / "s")


def test_two_images_of_one_stem_are_two_examples_of_their_class(tmp_path):
    # The folder is the label, so that nothing is in doubt.
    write(tmp_path, "cat/a.png", "cat/a.jpg", "dog/a.png")
    source = open_folder(tmp_path)
    assert members(source) == ["cat/a.jpg", "cat/a.png", "dog/a.png"]
    assert source.labels.tolist() == [0, 0, 1]


def write_zip(path, names, system=0, content=None):
    """Writes a zip file as a program of Windows (0) or of Unix (3) does."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo(name)
            info.create_system = system
            archive.writestr(info, content or encode(value=i))
    return path


def test_backslashes_in_a_zip_of_windows_separate_folders(tmp_path):
    names = [r"set\train\cat\1.png", r"set\train\dog\1.png", r"set\test\cat\2.png"]
    source = open_folder(write_zip(tmp_path / "s.zip", names), "train")
    assert members(source) == ["set/train/cat/1.png", "set/train/dog/1.png"]
    assert [int(source[i]["image"][0, 0, 0]) for i in (0, 1)] == [0, 1]
    # In Unix a backslash is a letter like any other.
    names = [r"cat/a\b.png", r"dog/a\b.png"]
    source = open_folder(write_zip(tmp_path / "unix.zip", names, system=3))
    assert members(source) == names
    both = write_zip(tmp_path / "both.zip", [r"cat\1.png", "cat/1.png"])
    with pytest.raises(ValueError, match=r"both\.zip has 2 members called cat/1\.png"):
        open_folder(both)


def test_members_that_lead_out_of_a_zip_are_left_out_and_named(tmp_path, caplog):
    names = ["cat/1.png", "../cat/2.png", "cat/../../3.png", r"..\dog\4.png"]
    source = open_folder(write_zip(tmp_path / "s.zip", names))
    assert members(source) == ["cat/1.png"]
    assert "3 names that lead out of the zip file" in caplog.text
    assert "../cat/2.png" in caplog.text
    names = ["/data/cat/1.png", "/data/dog/1.png"]
    source = open_folder(write_zip(tmp_path / "absolute.zip", names))
    assert source.class_names == ("cat", "dog")
    assert source[0]["image"].shape == (4, 4, 3)


def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", encode())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/1.png", encode(value=9))
    with pytest.raises(ValueError, match=r"s\.zip has 2 members called cat/1\.png"):
        open_folder(path)


@pytest.mark.parametrize(
    "way", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_members_of_every_compression_are_bad_images(tmp_path, way):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", encode() * 50, way)
    raw = bytearray(path.read_bytes())
    start = 30 + len("cat/1.png")
    raw[start + 4 : start + 40] = b"\xff" * 36
    path.write_bytes(raw)
    with pytest.raises(BadImage, match=r"s\.zip/cat/1\.png: cannot be read"):
        open_folder(path)[0]


def test_a_replaced_zip_is_read_anew(tmp_path):
    path = tmp_path / "s.zip"
    for value in (3, 200):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"cat/{value}.png", encode(value=value))
        source = open_folder(path)
        assert np.all(source[0]["image"][..., 0] == value)


def test_a_small_set_without_test_images_says_so(tmp_path):
    write(tmp_path, "cat/1.png")
    assert len(open_folder(tmp_path)) == 1
    empty = [s for s in ("train", "test") if not find_layout(["cat/1.png"], "x")[s]]
    with pytest.raises(ValueError, match=f"none of them falls to '{empty[0]}'"):
        open_folder(tmp_path, empty[0])


def test_a_path_may_have_a_colon(tmp_path):
    root = write(tmp_path / "a:b", "cat/1.png")
    assert len(open_folder(root)) == 1


def test_warnings_do_not_hide_in_the_log(tmp_path, caplog):
    write(tmp_path, "cat/1.png", "dog/1.png", "cat/x.txt")
    open_folder(tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
