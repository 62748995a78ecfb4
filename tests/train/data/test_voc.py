"""PASCAL VOC's folders: layouts, splits, classes, boxes, masks, and what is refused."""

import io
import logging
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from train.data import BadImage, load_dataset
from train.data.formats import voc
from train.data.formats.xml import parse_xml

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def box(name, x1, y1, x2, y2, more=""):
    return (
        f"<object><name>{name}</name>{more}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
    )


def png(value, size=(40, 30), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "png")
    return file.getvalue()


def write(path, annotations, lists, *, top="", zipped=False, **files):
    """Writes images of one value, their position, with annotations and lists.

    Args:
      path: Where to write a folder, or, with another suffix, a zip file.
      annotations: By the image's name: what is within <annotation>, or a whole file.
      lists: By the split's name: the file's text.
      top: Folder around, with a slash.
      zipped: Whether to write a zip file.
      files: More files below `top`, with "__" for a slash.
    """
    contents = {}
    for i, (name, text) in enumerate(annotations.items()):
        if isinstance(text, str):
            text = f"<annotation>\n{text}\n</annotation>".encode()
        contents[f"{top}Annotations/{name}.xml"] = text
        contents[f"{top}JPEGImages/{name}.png"] = png((i, 0, 0))
    for split, text in lists.items():
        contents[f"{top}ImageSets/Main/{split}.txt"] = text.encode()
    for name, content in files.items():
        contents[top + name.replace("__", "/")] = content
    if zipped:
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "a") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


THREE = {
    "a": SIZE + box("hen", 1, 1, 1, 1) + box("cow", 11, 6, 40, 30),
    "b": SIZE,
    "c": SIZE + box("ewe", 2, 3, 10, 12, "<difficult>1</difficult>"),
}
LISTS = {"train": "a\nb\n", "val": "c  1\n\n", "test": "b"}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("top", ["", "VOCdevkit/VOC2007/"])
def test_images_and_objects(tmp_path, top, zipped):
    path = write(tmp_path / "s", THREE, LISTS, top=top, zipped=zipped)
    source = load_dataset(f"voc:{path}", "train")
    assert (source.task, len(source)) == ("detection", 2)
    # Those of the whole set, whichever of them a split has.
    assert source.class_names == ("cow", "ewe", "hen")
    example = source[0]
    assert {k: v.dtype.name for k, v in example.items()} == {
        "image": "uint8",
        "boxes": "float32",
        "classes": "int32",
        "difficult": "bool",
        "index": "int32",
    }
    assert example["image"].shape == (30, 40, 3)
    # Pixels are numbered from 1, and the last one belongs to the box.
    assert example["boxes"].tolist() == [[0, 0, 1, 1], [10, 5, 40, 30]]
    assert example["classes"].tolist() == [2, 0]
    assert not example["difficult"].any()
    # An image may have no object.
    assert source[1]["boxes"].shape == (0, 4)
    assert source[1]["classes"].shape == (0,)
    assert source.provenance(1) == f"{path}/{top}JPEGImages/b.png"
    for alias in ("val", "valid", "validation"):
        other = load_dataset(f"voc:{path}", alias)
        assert other[0]["difficult"].tolist() == [True]
    both = load_dataset(f"voc:{path}", "train+val")
    assert [int(both[i]["image"][0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert both[2]["boxes"].tolist() == [[1, 2, 10, 12]]
    with pytest.raises(IndexError, match="3 examples, no #3"):
        both[3]
    copy = pickle.loads(pickle.dumps(both))  # as workers get it
    assert copy[2]["boxes"].tolist() == both[2]["boxes"].tolist()


def test_several_years_side_by_side(tmp_path):
    path = write(tmp_path / "s", THREE, LISTS, top="VOC2007/")
    more = {"z": SIZE + box("cat", 1, 1, 9, 9)}
    write(path, more, {"train": "z"}, top="VOC2012/")
    both = load_dataset(f"voc:{path}", "VOC2007/train+VOC2012/train")
    assert both.class_names == ("cat", "cow", "ewe", "hen")
    assert len(both) == 3
    assert both[2]["classes"].tolist() == [0]
    message = r"no split 'train'; it has VOC2007/test, VOC2007/train, .*VOC2012/train"
    with pytest.raises(ValueError, match=message):
        load_dataset(f"voc:{path}", "train")


def test_which_classes(tmp_path):
    objects = box("person", 1, 1, 9, 9) + box("cat", 1, 1, 9, 9)
    path = write(tmp_path / "voc", {"a": SIZE + objects}, {"train": "a"})
    source = load_dataset(f"voc:{path}", "train")
    assert source.class_names == voc.CLASSES
    assert len(voc.CLASSES) == 20
    assert source[0]["classes"].tolist() == [14, 7]
    # Some of them, in an order of one's own.
    chosen = load_dataset(f"voc:{path}", "train", classes=("dog", "cat"))
    assert chosen.class_names == ("dog", "cat")
    assert chosen[0]["classes"].tolist() == [1]
    assert chosen[0]["boxes"].shape == (1, 4)
    with pytest.raises(ValueError, match=r"no class 'persn'; did you mean 'person'"):
        load_dataset(f"voc:{path}", "train", classes=("persn",))
    with pytest.raises(ValueError, match="per_class=2 is not possible for detection"):
        load_dataset(f"voc:{path}", "train", per_class=2)
    # Named beside them.
    (path / "classes.txt").write_text("person\n\ncat\n")
    source = load_dataset(f"voc:{path}", "train")
    assert source.class_names == ("person", "cat")
    assert source[0]["classes"].tolist() == [0, 1]
    (path / "classes.txt").write_text("prson\ncat\n")
    message = r"a\.xml:2: unknown class 'person'; did you mean 'prson'"
    with pytest.raises(ValueError, match=message):
        load_dataset(f"voc:{path}", "train")
    (path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(
        ValueError, match=r"classes\.txt: expected names .* that differ"
    ):
        load_dataset(f"voc:{path}", "train")


def test_boxes_are_cut_to_the_image_and_empty_ones_left_out(tmp_path, caplog):
    boxes = [
        box("cow", -4, 0, 60, 90),
        box("cow", 20, 5, 10, 9),  # inside out
        box("cow", 50, 5, 60, 9),  # outside
        box("cow", 5, 5, 4, 9),  # no pixel wide
        box("cow", 39.5, 29, 41, 30.5),
    ]
    path = write(tmp_path / "s", {"a": SIZE + "".join(boxes)}, {"train": "a"})
    with caplog.at_level(logging.WARNING):
        source = load_dataset(f"voc:{path}", "train")
    assert source[0]["boxes"].tolist() == [[0, 0, 40, 30], [38.5, 28, 40, 30]]
    assert "3 box(es) without any area within their image are left out" in caplog.text
    assert f"{path}/Annotations/a.xml:2: box 19, 4, 10, 9" in caplog.text
    # Without a size they are cut when the image is read.
    write(path, {"a": "".join(boxes)}, {"train": "a"})
    source = load_dataset(f"voc:{path}", "train")
    assert source[0]["boxes"].tolist() == [[0, 0, 40, 30], [38.5, 28, 40, 30]]


def test_many_objects_and_a_long_log(tmp_path, caplog):
    boxes = "\n".join(box("cow", 1, 1, 2 + i % 30, 9) for i in range(3000))
    empty = "\n".join(box("cow", 9, 9, 1, 1) for _ in range(12))
    path = write(tmp_path / "s", {"a": SIZE + boxes + empty}, {"train": "a"})
    assert load_dataset(f"voc:{path}", "train")[0]["boxes"].shape == (3000, 4)
    assert "12 box(es)" in caplog.text
    assert "and 2 more" in caplog.text


def test_an_annotation_for_another_size_is_a_bad_image(tmp_path):
    size = "<size><width>30</width><height>40</height></size>"
    path = write(tmp_path / "s", {"a": size}, {"train": "a"})
    message = r"a\.png is 40 x 30 pixels; its annotation is for 30 x 40"
    with pytest.raises(BadImage, match=message):
        load_dataset(f"voc:{path}", "train")[0]


def test_gray_and_transparent_images(tmp_path):
    path = write(tmp_path / "s", THREE, LISTS)
    (path / "JPEGImages/a.png").write_bytes(png(77, mode="L"))
    (path / "JPEGImages/b.png").write_bytes(png((1, 2, 3, 4), mode="RGBA"))
    stored = load_dataset(f"voc:{path}", "train")
    assert [stored[i]["image"].shape[-1] for i in (0, 1)] == [1, 3]
    converted = load_dataset(f"voc:{path}", "train", color="rgb")
    assert converted[0]["image"][5, 5].tolist() == [77] * 3
    assert converted[1]["image"][5, 5].tolist() == [1, 2, 3]
    assert load_dataset(f"voc:{path}", "train", color="gray")[1]["image"].shape[-1] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("TRUE", True), (" 0 ", False), ("False", False), ("", False)],
)
def test_forms_of_difficult(tmp_path, text, expected):
    content = box("cow", 1, 1, 2, 3, f"<difficult>{text}</difficult>")
    path = write(tmp_path / "s", {"a": content}, {"train": "a"})
    (objects,) = load_dataset(f"voc:{path}", "train").objects(0).difficult
    assert objects == expected


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
OUTSIDE = b"""<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<annotation>&x;</annotation>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"a\.xml:1: not XML \(no element found\)"),
        (b"<annotation>\n<object>\n</annotation>", r"a\.xml:3: not XML \(mismatched"),
        (b"<annotation/>\n<annotation/>", r"a\.xml:2: not XML \(junk after"),
        (b"\xff\xfe\x00", r"a\.xml:1: not XML"),
        (BOMB, r"a\.xml:2: a document type \(<!DOCTYPE \.\.>\) is not read"),
        (BOMB.decode().encode("utf-16"), r"a\.xml:.: (a document type|not XML)"),
        (OUTSIDE, r"a\.xml:1: a document type"),
        (b"<a>" * 2000, r"a\.xml:1: elements are nested 100 deep"),
        ("<object>\n</object>", r"a\.xml:2: <object> has no <name>"),
        ("<object><name> </name></object>", r"a\.xml:2: <object> has no <name>"),
        ("<object><name>cow</name></object>", r"a\.xml:2: <object> has no <bndbox>"),
        ("\n" + box("cow", "", 1, 2, 3), r"a\.xml:3: <bndbox> has no <xmin>"),
        (box("cow", "x1", 1, 2, 3), r"a\.xml:2: <xmin> is 'x1', expected a number"),
        (box("cow", 1, 1, "nan", 3), r"a\.xml:2: <xmax> is 'nan', expected a number"),
        (box("cow", 1, 1, "1e999", 3), r"a\.xml:2: <xmax> is '1e999'"),
        (
            box("cow", 1, 1, 2, 3, "\n<difficult>yes</difficult>"),
            r"a\.xml:3: <difficult> is 'yes', expected 0, 1, true or false",
        ),
        ("<size><width>4</width></size>", r"a\.xml:2: <size> has no <height>"),
    ],
)
def test_bad_annotations_name_file_and_line(tmp_path, text, message):
    path = write(tmp_path / "s", {"a": text}, {"train": "a"})
    with pytest.raises(ValueError, match=message):
        load_dataset(f"voc:{path}", "train")


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path / "s", THREE, LISTS | {"none": "\n", "twice": "a\na"})
    name = f"voc:{path}"
    with pytest.raises(ValueError, match="no split 'tset'; it has none, test, train"):
        load_dataset(name, "tset")
    with pytest.raises(ValueError, match="split 'none' names no image"):
        load_dataset(name, "none")
    with pytest.raises(ValueError, match="split 'twice' has images twice"):
        load_dataset(name, "twice")
    with pytest.raises(ValueError, match=r"'train\+train' names one twice"):
        load_dataset(name, "train+train")
    (path / "Annotations/b.xml").unlink()
    message = r"Main/train\.txt:2: there is no Annotations/b\.xml"
    with pytest.raises(ValueError, match=message):
        load_dataset(name, "train")
    (path / "JPEGImages/a.png").unlink()
    with pytest.raises(ValueError, match=r"train\.txt:1: JPEGImages has no a\."):
        load_dataset(name, "train")
    with pytest.raises(ValueError, match="none does not exist"):
        load_dataset(f"voc:{tmp_path}/none", "train")
    with pytest.raises(ValueError, match=r"has no ImageSets/Main/SPLIT\.txt"):
        load_dataset(f"voc:{path}/JPEGImages", "train")


def test_elements_have_their_line_and_own_text():
    top = parse_xml(b"<a>1<b>x</b>2\n<b>y</b><c>3.5</c></a>", "f")
    assert "".join(top.texts) == "12\n"
    assert [b.where for b in top.find_all("b")] == ["f:1", "f:2"]
    assert (top.text("b"), top.number("c")) == ("x", 3.5)
    assert top.find("d") is None


# Files of other habits

CHINESE = "<annotation><object><name>车</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
CHINESE += "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *[(n, "车") for n in ("gb2312", "gbk", "GB18030", "utf-8", "utf-16")],
        *[("big5", "車"), ("shift_jis", "車"), ("euc-jp", "車"), ("euc-kr", "차")],
        *[("gb2312", "镕"), ("latin-1", "é"), ("windows-1251", "ж")],
    ],
)
def test_annotations_in_any_encoding_of_python(tmp_path, encoding, name):
    # Much that says gb2312 has characters of its larger form.
    written = "gb18030" if encoding == "gb2312" else encoding
    text = f'<?xml version="1.0" encoding="{encoding}"?>{CHINESE.replace("车", name)}'
    path = write(tmp_path / "s", {"a": text.encode(written)}, {"train": "a"})
    source = load_dataset(f"voc:{path}", "train")
    assert source.class_names == (name,)
    assert source[0]["boxes"].tolist() == [[0, 0, 9, 9]]


@pytest.mark.parametrize("declared", ["gbk", "utf-16"])
def test_a_mark_at_the_beginning_decides(tmp_path, declared):
    text = f'<?xml version="1.0" encoding="{declared}"?>{CHINESE}'
    path = write(tmp_path / "s", {"a": text.encode("utf-8-sig")}, {"train": "a"})
    assert load_dataset(f"voc:{path}", "train").class_names == ("车",)


@pytest.mark.parametrize(
    "encoding", ["hex", "zlib", "rot13", "undefined", "none", "idna"]
)
def test_other_encodings_are_errors_with_file_and_encoding(tmp_path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{CHINESE}'
    path = write(tmp_path / "s", {"a": text.encode()}, {"train": "a"})
    with pytest.raises(ValueError, match=rf"a\.xml.*{encoding}"):
        load_dataset(f"voc:{path}", "train")


@pytest.mark.parametrize("size", ["9" * 300, "-5", "nan"])
def test_sizes_that_no_image_has(tmp_path, size):
    text = f"<size><width>{size}</width><height>30</height></size>"
    path = write(tmp_path / "s", {"a": text}, {"train": "a"})
    with pytest.raises(ValueError, match=r"a\.xml:2: <width> is '.*number of pixels"):
        load_dataset(f"voc:{path}", "train")


def test_names_with_spaces(tmp_path):
    names = ("img (1)", "img 1", "b c", "d")
    path = write(
        tmp_path / "s",
        dict.fromkeys(names, SIZE + box("cow", 1, 1, 9, 9)),
        {"train": "img (1)\nimg 1\n  b c   -1\nd  1\n"},
    )
    source = load_dataset(f"voc:{path}", "train")
    files = [source.identity(i).removeprefix("JPEGImages/") for i in range(4)]
    assert files == [f"{name}.png" for name in names]
    write(path, {}, {"test": "e f\n"})
    with pytest.raises(ValueError, match=r"test\.txt:1: JPEGImages has no e f\."):
        load_dataset(f"voc:{path}", "test")


def test_two_images_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "s", THREE, LISTS)
    (path / "JPEGImages/a.jpeg").write_bytes(png((1, 2, 3)))
    with pytest.raises(ValueError, match=r"a\.jpeg and .*a\.png are two images called"):
        load_dataset(f"voc:{path}", "train")


def test_classes_that_differ_by_case_are_refused_unless_listed(tmp_path):
    objects = box("Cow", 1, 1, 9, 9) + box("cow", 1, 1, 9, 9)
    path = write(tmp_path / "s", {"a": objects}, {"train": "a"})
    with pytest.raises(ValueError, match="'Cow' and 'cow' differ by case alone"):
        load_dataset(f"voc:{path}", "train")
    (path / "classes.txt").write_text("Cow\ncow\n")
    assert load_dataset(f"voc:{path}", "train")[0]["classes"].tolist() == [0, 1]


def test_lists_are_utf_8_or_16(tmp_path):
    path = write(tmp_path / "s", {"ü": SIZE + box("cow", 1, 1, 9, 9)}, {"train": "ü"})
    lists = path / "ImageSets/Main/train.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        lists.write_bytes("ü\n".encode(encoding))
        assert len(load_dataset(f"voc:{path}", "train")) == 1
    lists.write_bytes("x\nü\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"train\.txt:2: not UTF-8 .*; save it as UTF-8"
    ):
        load_dataset(f"voc:{path}", "train")


# Masks


def write_masks(path, masks):
    files = {f"SegmentationClass__{name}.png": data for name, data in masks.items()}
    files["ImageSets__Segmentation__train.txt"] = "\n".join(masks).encode()
    return write(path, dict.fromkeys(masks, SIZE), {"train": "a"}, **files)


def test_masks_of_voc(tmp_path):
    values = np.zeros((30, 40), np.uint8)
    values[3:9, 5:7], values[9, 9] = 20, 255
    mask = Image.fromarray(values)
    mask.putpalette([v for i in range(256) for v in (i // 2, 255 - i, i)])
    file = io.BytesIO()
    mask.save(file, "png")
    path = write_masks(tmp_path / "s", {"a": file.getvalue()})
    source = load_dataset(f"voc_masks:{path}", "train")
    assert (source.task, len(source)) == ("segmentation", 1)
    assert source.class_names == ("background", *voc.CLASSES)
    example = source[0]
    np.testing.assert_array_equal(example["mask"], values)
    assert (example["mask"].dtype, example["image"].shape) == (np.uint8, (30, 40, 3))
    # Fewer classes than the mask has values.
    source = load_dataset(f"voc_masks:{path}", "train", classes=("a", "b"))
    assert source.class_names == ("a", "b")
    with pytest.raises(
        BadImage, match=r"a\.png: 12 pixel.* such as 20, expected 0 \.\. 1"
    ):
        source[0]
