"""What is found out about boxes and masks before training, all of it at once."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_command

import zoo
from train.data import Subset, find_problems, fit_source, load_dataset
from train.data.annotations import explain_values, make_values
from train.experiment import check_size
from zoo.spec import Preprocess
from zoo.summary import abstract_variables

TAKES = Preprocess(size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, fit="stretch")


def write_masks(root, masks, *, size=None, classes="background\nlesion\n"):
    """Writes images and masks by split and name, such as train/a."""
    for name, values in masks.items():
        split, stem = name.split("/")
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        values = np.asarray(values, np.uint8)
        shape = size or values.shape
        Image.new("RGB", shape[::-1]).save(root / split / f"images/{stem}.png")
        Image.fromarray(values).save(root / split / f"masks/{stem}.png")
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def circle(value, inside=6, size=32):
    y, x = np.mgrid[:size, :size] - size // 2
    return np.where(x**2 + y**2 < inside**2, value, 0)


def survey(root, split="train", takes=TAKES, **options):
    source = load_dataset(f"masks:{root}", split, **options)
    return find_problems(fit_source(source, takes))


def test_masks_of_0_and_255_are_refused_and_can_be_mapped(tmp_path):
    root = write_masks(tmp_path, {f"train/{i}": circle(255) for i in range(3)})
    (problem,) = survey(root)
    for words in ("(3 were examined)", "0 (89.36%)", "255 (10.64%)", "2 classes"):
        assert words in problem
    assert "--data.values 0 255" in problem
    assert "--data.ignored 255" in problem
    assert survey(root, values=(0, 255)) == []
    source = load_dataset(f"masks:{root}", "train", values=(0, 255))
    np.testing.assert_array_equal(source[0]["mask"], circle(1))
    # Who says that these pixels are to be ignored is believed.
    assert survey(root, ignored=(255,)) == []
    reverse = load_dataset(f"masks:{root}", "train", values=(255, 0))
    np.testing.assert_array_equal(reverse[0]["mask"], circle(0) + (circle(1) == 0))


def test_a_rare_class_is_looked_for_in_all_masks(tmp_path):
    masks = {f"train/{i:03}": circle(255, 2, size=8) for i in range(70)}
    masks["train/001"] = circle(1, 2, size=8)
    assert survey(write_masks(tmp_path, masks)) == []


def test_values_that_stand_for_nothing_are_counted(tmp_path):
    masks = {"train/a": circle(127), "train/b": circle(255), "train/c": circle(0)}
    root = write_masks(tmp_path, masks, classes="a\nb\nc\n")
    (problem,) = survey(root)
    assert "127 (3.55%)" in problem
    assert "; 127 stand(s) for nothing" in problem
    assert "--data.values 0 127 255" in problem
    assert survey(root, values=(0, 127, 255)) == []


@pytest.mark.parametrize(
    ("values", "ignored", "message"),
    [
        ((0,), (), r"one value for each of the 2 classes"),
        ((0, 0), (), r"different ones"),
        ((0, 256), (), r"from 0 to 255"),
        ((0, 5), (5,), r"--data.values .*--data.ignored both have \[5\]"),
        ((), (1,), r"--data.values .*--data.ignored both have \[1\]"),
    ],
)
def test_values_that_do_not_fit_the_classes(values, ignored, message):
    with pytest.raises(ValueError, match=message):
        make_values(2, ignored, values)


def test_which_counts_of_values_are_suspicious():
    def explain(found, classes, **options):
        counts = np.zeros(256, int)
        counts[list(found)] = 10
        return explain_values(counts, make_values(classes), 4, **options)

    assert explain({0, 1, 255}, 2) is None
    assert explain({0, 20, 255}, 21) is None  # VOC's borders
    assert explain({0, 1}, 3) is None
    assert explain({0, 255}, 2)
    assert explain({0, 1, 255}, 3)
    assert explain({3, 255}, 21)
    assert explain({0, 255}, 2, sure=True) is None


def test_sets_without_anything_to_learn_or_find(tmp_path):
    root = write_masks(tmp_path / "m", {"train/a": 255 + circle(0)})
    assert "no pixel of any mask" in survey(root, ignored=(255,))[0]
    path = write_coco(tmp_path / "c", [])
    source = fit_source(load_dataset(f"coco:{path}", "train"), TAKES)
    assert "no image has an object" in find_problems(source)[0]
    crowd = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 1}]
    path = write_coco(tmp_path / "d", crowd)
    source = fit_source(load_dataset(f"coco:{path}", "train"), TAKES)
    assert "no image has an object" in find_problems(source)[0]


def test_masks_of_a_slice_are_those_that_are_checked(tmp_path):
    masks = {f"train/{i}": circle(1) for i in range(8)}
    root = write_masks(tmp_path, masks)
    name = f"masks:{root}"
    first, second = (load_dataset(name, s) for s in ("train[:50%]", "train[50%:]"))
    for index in range(len(second)):
        stem = Path(second.provenance(index)).stem
        write_masks(tmp_path, {f"train/{stem}": circle(9)})
    assert find_problems(fit_source(first, TAKES)) == []
    (problem,) = find_problems(fit_source(second, TAKES))
    assert "(4 were examined)" in problem
    assert "9 stand(s) for nothing" in problem


def test_too_many_objects_are_found_where_they_are_not_known_before(tmp_path):
    source = load_dataset("digits_canvas", "test", task="detection")
    few = Subset(source, np.arange(8))
    least = max(len(few[i]["boxes"]) for i in range(8))
    assert least > 1
    takes = dataclasses.replace(TAKES, size=64)
    assert find_problems(fit_source(few, takes, max_boxes=least)) == []
    (problem,) = find_problems(fit_source(few, takes, max_boxes=1))
    assert "--data.max-boxes" in problem


def write_coco(root, annotations):
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    Image.new("RGB", (40, 30)).save(root / "train/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cow"}],
        "annotations": annotations,
    }
    file = root / "annotations/instances_train.json"
    file.write_text(json.dumps(content))
    return root


def test_all_problems_of_a_set_are_found_at_once(tmp_path):
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}] * 4
    path = write_coco(tmp_path / "c", boxes)
    takes = dataclasses.replace(TAKES, fit="keep", size=20)
    source = fit_source(load_dataset(f"coco:{path}", "train"), takes, max_boxes=3)
    problems = find_problems(source)
    assert len(problems) == 2
    assert "a.png 4 of them: say --data.max-boxes 4" in problems[0]
    assert "40 x 30 pixels, and fit='keep'" in problems[1]
    # Where random crops make them small they are not fitted.
    assert len(find_problems(source, fitted=False)) == 1
    root = write_masks(tmp_path / "m", {"train/a": circle(9)}, size=(20, 30))
    problems = survey(root)
    assert "9 stand(s) for nothing" in problems[0]
    assert "the mask is 32 x 32 pixels, its image 30 x 20" in problems[1]


def test_masks_without_names_of_classes_say_what_they_have(tmp_path):
    root = write_masks(tmp_path, {"train/a": circle(11)}, classes="")
    with pytest.raises(ValueError, match=r"--classes .* have the values 0 11;"):
        load_dataset(f"masks:{root}", "train")


def test_the_command_says_all_problems_in_flags_and_writes_nothing(tmp_path):
    masks = {f"{s}/{i}": circle(255) for s in ("train", "test") for i in range(3)}
    root = write_masks(tmp_path / "set", masks)
    code, _, err = run_command(
        *("digits_segmentation_unet", "--dataset", f"masks:{root}", "--steps", "5"),
        *("--batch-size", "4", "--run-dir", tmp_path / "run"),
    )
    assert code == 1
    assert "error: 3 problems:" in err
    assert "batch_size=4 is more than the 3 images" in err
    assert err.count("--data.values 0 255") == 2
    assert not (tmp_path / "run").exists()


def test_own_boxes_are_checked_in_one_launch(tmp_path):
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}] * 4
    path = write_coco(tmp_path / "c", boxes)
    code, _, err = run_command(
        *("voc_ssd300", "--dataset", f"coco:{path}", "--data.eval-split", "train"),
        *("--data.train-split", "train", "--data.max-boxes", "3"),
        *("--run-dir", tmp_path / "run"),
    )
    assert code == 1
    assert "error: 3 problems:" in err
    for words in ("give --from RUN", "batch_size=32 is more than", "max-boxes 4"):
        assert words in err
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_network_cannot_take_is_named_by_its_flag():
    spec = zoo.get_spec("ssd96_small")
    model = zoo.build("ssd96_small", num_classes=2)
    variables = abstract_variables(model, spec.preprocess.shape)
    check_size(model, variables, spec.preprocess, "--size")
    bad = dataclasses.replace(spec.preprocess, size=64, width=96)
    with pytest.raises(ValueError, match=r"--data\.eval-size 64 96: .* takes images"):
        check_size(model, variables, bad, "--data.eval-size")
