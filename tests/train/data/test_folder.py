"""Folders and zip files of images: layouts, splits, classes, and what is refused."""

import io
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from train.data import BadImage, load_dataset
from train.data.files import MAX_MEMBER_BYTES, Files
from train.data.formats import image_folder
from train.data.formats.image_folder import find_layout


def png(value: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def write(root, paths, zipped):
    """Writes images whose red value is their position in `paths`."""
    if zipped:
        with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
            for i, path in enumerate(paths):
                archive.writestr(path, b"" if path.endswith("/") else png(i))
        return root.with_suffix(".zip")
    for i, path in enumerate(paths):
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(png(i))
    return root


def reds(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


WITH_SPLITS = [
    "train/cat/b.png",
    "train/cat/a.JPG",
    "train/dog/1.png",
    "val/dog/1.png",
    "test/ape/1.png",
]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("around", ["", "set/", "a/b/"])
def test_splits_classes_and_images(tmp_path, zipped, around):
    path = write(tmp_path / "s", [around + p for p in WITH_SPLITS], zipped)
    train = load_dataset(f"imagefolder:{path}", "train")
    assert train.class_names == ("ape", "cat", "dog")
    assert train.labels.tolist() == [1, 1, 2]
    assert train.labels.dtype == np.int32
    assert reds(train) == [1, 0, 2]
    assert train.provenance(0) == f"{path}/{around}train/cat/a.JPG"
    example = train[2]
    assert (example["label"], example["index"]) == (2, 2)
    # A split that lacks classes keeps their numbers.
    test = load_dataset(f"imagefolder:{path}", "test")
    assert (test.class_names, test.labels.tolist()) == (train.class_names, [0])
    for alias in ("val", "valid", "validation"):
        assert load_dataset(f"imagefolder:{path}", alias).labels.tolist() == [2]


def test_a_lone_split_and_lone_top_folders():
    assert list(find_layout(["test/cat/1.webp"], "x")) == ["test"]
    layout = find_layout(["cifar10/test/cat/1.webp"], "x")
    assert layout == {"test": [("cat", "cifar10/test/cat/1.webp")]}
    assert set(find_layout(["orl/s1/1.pgm", "orl/s2/1.pgm"], "x")) == {
        "train",
        "test",
        "all",
    }
    # Images may lie deeper inside of a class.
    layout = find_layout(["train/cat/old/1.png", "train/dog/1.png"], "x")
    assert [name for name, _ in layout["train"]] == ["cat", "dog"]
    # One class alone, and a class that is called like a split.
    assert {n for n, _ in find_layout(["cat/1.png"], "x")["all"]} == {"cat"}
    layout = find_layout(["test/1.png", "exam/1.png"], "x")
    assert [name for name, _ in layout["all"]] == ["exam", "test"]


def test_one_class_is_logged_and_refused_if_it_has_folders(tmp_path, caplog):
    paths = [f"train/animals/{c}/{i}.png" for c in ("cat", "dog") for i in range(2)]
    path = write(tmp_path / "nested", paths, False)
    with pytest.raises(ValueError, match=r"nested: .*'animals'.*cat, dog"):
        load_dataset(f"imagefolder:{path}", "train")
    path = write(tmp_path / "lone", ["train/cat/1.png", "train/cat/old/2.png"], False)
    assert load_dataset(f"imagefolder:{path}", "train").class_names == ("cat",)
    assert f"{path} has the class cat alone" in caplog.text


def test_hold_out_is_fixed_complete_and_each_images_own():
    paths = [f"{c}/{i}.png" for c, n in [("a", 10), ("b", 90)] for i in range(n)]
    layout = find_layout(paths, "x")
    train, test = layout["train"], layout["test"]
    assert sorted(train + test) == sorted(layout["all"])
    assert not set(train) & set(test)
    assert 10 <= len(test) <= 30  # a fifth, by chance
    # Neither the folder around it nor the order of listing changes it.
    moved = find_layout([f"top/{p}" for p in reversed(paths)], "y")
    assert [(n, p.removeprefix("top/")) for n, p in moved["test"]] == test
    # What is added or taken away moves no other image.
    more = [f"{c}/{i}.jpg" for c in "abc" for i in range(50)]
    grown = find_layout(paths[:60] + more, "x")
    kept = {f for f in paths[:60]}
    assert [x for x in grown["test"] if x[1] in kept] == [
        x for x in test if x[1] in kept
    ]
    # Golden: the split of today is the split of every later version.
    assert [p for n, p in test if n == "a"] == ["a/0.png", "a/8.png"]


def test_what_is_no_image_is_left_alone(tmp_path):
    paths = ["cat/1.png", "cat/._1.png", "cat/.hidden/2.png", "__MACOSX/cat/1.png"]
    path = write(tmp_path / "s", [*paths, "dog/1.png"], True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cat/notes.txt", "hello")
        archive.writestr("README.md", "hello")
    source = load_dataset(f"imagefolder:{path}", "all")
    assert source.class_names == ("cat", "dog")
    assert reds(source) == [0, 4]


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["notes.txt"], "has no images; expected split/class/image"),
        (["train/cat/1.png", "train/dog/"], "class folder train/dog has no images"),
        (["cat/1.png", "dog/"], "class folder dog has no images"),
        (["top/cat/1.png", "top/dog/"], "class folder top/dog has no images"),
        (["train/1.png", "test/1.png"], "lie directly in test, train"),
        (["train/cat/1.png", "other/cat/1.png"], "beside them other"),
        (["train/cat/1.png", "train/2.png"], r"train/2\.png is in no class folder"),
        (["1.png"], r"1\.png is in no class folder"),
    ],
)
def test_other_layouts_are_errors_that_name_them(tmp_path, paths, message, zipped):
    path = write(tmp_path / "s", paths, zipped)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"imagefolder:{path}", "train")


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder:", "coco:"])
def test_a_format_without_a_path(name):
    with pytest.raises(ValueError, match=rf"'{name}' lacks a path; expected \w+:PATH"):
        load_dataset(name, "train")


def test_unknown_split_and_path(tmp_path):
    path = write(tmp_path / "s", WITH_SPLITS, False)
    with pytest.raises(ValueError, match="no split 'tset'; it has test, train, val"):
        load_dataset(f"imagefolder:{path}", "tset")
    with pytest.raises(ValueError, match="none does not exist"):
        load_dataset(f"imagefolder:{tmp_path}/none", "train")
    (tmp_path / "x.zip").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.zip is not a folder or zip file"):
        load_dataset(f"imagefolder:{tmp_path}/x.zip", "train")
    # A relative path starts at data_dir.
    assert len(load_dataset("imagefolder:s", "train", data_dir=tmp_path)) == 3


def test_bad_files_name_themselves(tmp_path):
    path = write(tmp_path / "s", ["cat/1.png", "cat/2.png"], True)
    raw = bytearray(path.read_bytes())
    at = raw.index(png(0)) + 50
    raw[at] ^= 255  # the sum of zip's own no longer fits
    path.write_bytes(raw)
    source = load_dataset(f"imagefolder:{path}", "all")
    with pytest.raises(BadImage, match=r"s\.zip/cat/1\.png: .*CRC"):
        source[0]
    assert reds(
        image_folder.FolderSource(
            Files(path), "x", ("cat",), [("cat", "cat/2.png")], None
        )
    )

    plain = write(tmp_path / "t", ["cat/1.png"], False)
    source = load_dataset(f"imagefolder:{plain}", "all")
    (plain / "cat/1.png").write_bytes(png(0)[:40])
    with pytest.raises(BadImage, match=r"t/cat/1\.png: cannot be read"):
        source[0]
    (plain / "cat/1.png").unlink()
    with pytest.raises(BadImage, match=r"t/cat/1\.png: cannot be read"):
        source[0]
    with pytest.raises(IndexError, match="has 1 examples, no #1"):
        source[1]


def test_corrupt_deflate_stream_is_a_bad_image(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", png(0, 64) + bytes(1000))
    raw = bytearray(path.read_bytes())
    start = 30 + len("cat/1.png")
    raw[start : start + 20] = b"\xff" * 20
    path.write_bytes(raw)
    with pytest.raises(BadImage, match=r"cat/1\.png: cannot be read"):
        load_dataset(f"imagefolder:{path}", "all")[0]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(5000))
    # As its directory says, so large; what is unpacked would not be.
    size = (MAX_MEMBER_BYTES + 1).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace((5000).to_bytes(4, "little"), size))
    words = rf"cat/1\.png: .* {MAX_MEMBER_BYTES + 1} bytes, .* {MAX_MEMBER_BYTES}"
    with pytest.raises(BadImage, match=words):
        load_dataset(f"imagefolder:{path}", "all")[0]


def _sum(source):
    return sum(reds(source))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_zip_is_read_by_processes_and_threads_at_once(tmp_path, method):
    path = write(tmp_path / "s", [f"cat/{i:03}.png" for i in range(200)], True)
    source = load_dataset(f"imagefolder:{path}", "all")
    expected = list(range(200))
    assert reds(source) == expected  # open here, before the others start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum, [source] * 4, 1) == [sum(expected)] * 4
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(reds, [source] * 4)) == [expected] * 4
    assert len(pickle.dumps(source)) < 20_000
