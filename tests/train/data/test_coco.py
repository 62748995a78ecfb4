"""COCO's files: boxes, categories, crowds, layouts, and what is refused."""

import copy
import json
import logging
import re

import pytest
from PIL import Image

from train.data import load_dataset

CONTENT = {
    "images": [
        {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 5, "file_name": "c.png"},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 90, "bbox": [1.5, 2, 10.25, 4]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5]},
        {
            "id": 3,
            "image_id": 3,
            "category_id": 2,
            "bbox": [30, 20, 99, 99],
            "iscrowd": 1,
        },
    ],
}


def write(path, content, split="train2017", images=("a", "b", "c")):
    (path / "annotations").mkdir(parents=True, exist_ok=True)
    file = path / f"annotations/instances_{split}.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    (path / split).mkdir(exist_ok=True)
    for name in images:
        Image.new("RGB", (40, 30)).save(path / split / f"{name}.png")
    return path


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_images_objects_and_categories(tmp_path, layout):
    path = write(tmp_path / "s", CONTENT)
    name = f"coco:{path}"
    if layout == "file":
        name += f"/annotations/instances_{{split}}2017.json:{path}/{{split}}2017"
    source = load_dataset(name, "train")
    assert source.task == "detection"
    assert source.class_names == ("bicycle", "toothbrush")  # by their numbers
    files = [source.provenance(i) for i in range(3)]
    assert files == [f"{path}/train2017/{n}.png" for n in "bac"]
    example = source[1]
    # x, y, width, height become corners within the image.
    assert example["boxes"].tolist() == [[1.5, 2, 11.75, 6], [30, 20, 40, 30]]
    assert example["classes"].tolist() == [1, 0]
    assert example["difficult"].tolist() == [False, True]  # a crowd
    assert source[2]["boxes"].shape == (0, 4)
    assert source[0]["boxes"].tolist() == [[0, 0, 5, 5]]


def test_splits_and_relative_paths(tmp_path):
    write(tmp_path / "s", CONTENT)
    less = CONTENT | {"annotations": []}
    write(tmp_path / "s", less, "val2017")
    both = load_dataset("coco:s", "train+val", data_dir=tmp_path)
    assert len(both) == 6
    assert both.split == "train+val"
    assert both.provenance(3).endswith("val2017/b.png")
    assert len(both[1]["boxes"]) == 2
    assert len(both[4]["boxes"]) == 0
    name = "coco:s/annotations/instances_{split}.json:s/{split}"
    assert len(load_dataset(name, "val2017", data_dir=tmp_path)) == 3
    assert len(load_dataset("coco:s", "validation", data_dir=tmp_path)) == 3
    with pytest.raises(ValueError, match=r"no annotations for split 'test'; it has tr"):
        load_dataset("coco:s", "test", data_dir=tmp_path)
    write(tmp_path / "s", CONTENT, "train2014")
    with pytest.raises(ValueError, match="several annotations for split 'train'"):
        load_dataset("coco:s", "train", data_dir=tmp_path)
    other = copy.deepcopy(less)
    other["categories"][0]["name"] = "comb"
    write(tmp_path / "s", other, "val2017")
    with pytest.raises(ValueError, match=r"val has other classes than .* train2017"):
        load_dataset("coco:s", "train2017+val", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["train+train", "train+training", "train+train2017"])
def test_a_split_that_is_named_twice_is_refused(tmp_path, split):
    write(tmp_path / "s", CONTENT)
    with pytest.raises(ValueError, match=f"s: split '{re.escape(split)}' .*twice"):
        load_dataset("coco:s", split, data_dir=tmp_path)


def test_empty_boxes_are_left_out_and_named(tmp_path, caplog):
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["bbox"] = [5, 5, 0, 3]
    content["annotations"][1]["bbox"] = [50, 5, 4, 3]
    with caplog.at_level(logging.WARNING):
        source = load_dataset(f"coco:{write(tmp_path / 's', content)}", "train")
    assert "train2017.json: 2 box(es)" in caplog.text
    assert "a.png: annotation 1: box 5, 5, 5, 8" in caplog.text
    assert [len(source[i]["boxes"]) for i in range(3)] == [0, 1, 0]


def changed(kind, place, **values):
    content = copy.deepcopy(CONTENT)
    content[kind][place] |= values
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train2017\.json:1: not JSON \(Expecting value\)"),
        ('{\n"images": [}', r"train2017\.json:2: not JSON"),
        ("[" * 100_000, r"train2017\.json.* not JSON"),
        ("[]", r"expected a list 'images' of objects"),
        (CONTENT | {"annotations": None}, "expected a list 'annotations'"),
        (CONTENT | {"categories": [1]}, "expected a list 'categories' of objects"),
        (CONTENT | {"images": [], "annotations": []}, r"2017\.json has no images"),
        (
            changed("annotations", 1, image_id=4),
            "annotation 2 has image_id 4, which is",
        ),
        (changed("annotations", 1, category_id=1), "annotation 2 has category_id 1"),
        (changed("annotations", 1, category_id=None), "'category_id' is None in"),
        (
            changed("annotations", 1, bbox=[1, 2, 3]),
            r"annotation 2 has bbox \[1, 2, 3\]",
        ),
        (changed("annotations", 1, bbox=[1]), r"annotation 2 has bbox \[1\]"),
        (changed("annotations", 1, bbox=None), "annotation 2 has bbox None"),
        (changed("annotations", 1, bbox=[1, 2, 3, "x"]), "annotation 2 has bbox"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), "annotation 2 has"),
        (changed("categories", 1, name=3), "'name' is 3 in .*; expected str"),
        (changed("categories", 1, name="toothbrush"), "two categories have the same"),
        (changed("images", 1, file_name="x.png"), r"x\.png is not in .*/train2017"),
        (changed("images", 1, file_name="../a"), r"\.\./a is not in .*/train2017"),
        (changed("images", 1, width="wide"), "'width' is 'wide'"),
        (
            changed("images", 1, width=float("inf")),
            "'width' is inf .* number of pixels",
        ),
        (changed("images", 1, width=float("nan")), "'width' is nan in"),
        (changed("images", 1, height=10**400), r"'height' is 1000.*\.\.\. in"),
        (changed("images", 1, height=-3), "'height' is -3"),
        (changed("images", 1, id=float("nan")), "'id' is nan .* a finite number"),
        (changed("images", 1, id=True), "'id' is True"),
        (changed("categories", 1, id=float("inf")), "'id' is inf"),
        (changed("annotations", 1, image_id=[1]), r"'image_id' is \[1\]"),
        (changed("annotations", 1, bbox=[1, 2, 3, 10**400]), "annotation 2 has bbox"),
        (changed("annotations", 1, bbox=[1, 2, 3, 1e300]), "annotation 2 has bbox"),
        (changed("annotations", 1, bbox=["1", "2", "3", "4"]), "annotation 2 has bbox"),
        (changed("annotations", 1, bbox={"x": 1}), "annotation 2 has bbox"),
        (changed("annotations", 1, iscrowd="0"), "iscrowd '0', expected 0 or 1"),
        (
            changed("images", 1, id=7),
            r"two images have the same id 7: .* 'b\.png' and 'a\.png', and 1 of 3",
        ),
        (
            changed("images", 1, file_name="b.png"),
            r"two images have the same file_name 'b\.png': their id is 7 and 3",
        ),
        (
            changed("categories", 1, id=90),
            "two categories have the same id 90: .* 'toothbrush' and 'bicycle'",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = write(tmp_path / "s", content)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"coco:{path}", "train")


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json does not exist; expected coco:"):
        load_dataset(f"coco:{tmp_path}/none.json:{tmp_path}", "train")
    with pytest.raises(ValueError, match="it has none at all; expected coco:DIR"):
        load_dataset(f"coco:{tmp_path}", "train")


@pytest.mark.parametrize("folder", ["{coco}", "{0}", "a{b", "100%s"])
def test_braces_in_paths_stand_for_themselves(tmp_path, folder):
    path = write(tmp_path / folder, CONTENT)
    name = f"coco:{path}/annotations/instances_{{split}}2017.json:{path}/{{split}}2017"
    assert len(load_dataset(name, "train")) == 3
    assert len(load_dataset(f"coco:{path}", "train")) == 3


def test_names_of_splits_in_other_forms(tmp_path):
    path = write(tmp_path / "s", CONTENT, "Training")
    write(path, CONTENT, "VAL")
    assert len(load_dataset(f"coco:{path}", "train+validation")) == 6
