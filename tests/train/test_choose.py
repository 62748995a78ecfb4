"""Recipes for one's own data: what is found, what is odd, and what is chosen for it."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_command

import zoo
from train.choose import choose, choose_model
from train.config import ModelConfig, TrainConfig, load_config
from train.configs.my_data import RECIPES
from train.data import load_dataset
from train.data.inspect import inspect
from train.data.source import UnknownSplit
from train.experiment import prepare_experiment


def save(path, size=(40, 30), seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def run(name, dataset, **flags):
    """Chooses as the command line does with some flags; returns config and words."""

    def parse(config: TrainConfig) -> TrainConfig:
        for flag, value in flags.items():
            part, _, field = flag.partition("__")
            inner = dataclasses.replace(getattr(config, part), **{field: value})
            config = dataclasses.replace(config, **{part: inner})
        return config

    base = RECIPES[name]()
    data = dataclasses.replace(base.data, dataset=dataset)
    said = []
    config = choose(dataclasses.replace(base, data=data), parse, say=said.append)
    return config, "\n".join(said)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of many images, one of one; one is in train and in test."""
    root = tmp_path_factory.mktemp("pictures")
    for label, (name, count) in enumerate({"cat": 12, "dog": 14, "emu": 1}.items()):
        for i in range(count):
            mode = "L" if i == 3 else "RGB"
            save(root / "train" / name / f"{i}.png", seed=100 * label + i, mode=mode)
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            save(root / "test" / name / f"{i}.png", seed=1000 * (label + 1) + i)
    save(root / "test" / "dog" / "again.png", seed=105)
    return root


def test_odd_pictures_are_named(pictures):
    config, said = run("my_images", f"imagefolder:{pictures}")
    assert "27 to train (split train) and 9 to evaluate (split test)" in said
    assert "all 40 x 30 pixels" in said
    assert "2 gray" in said
    assert "emu (1): fewer than 10 training images" in said
    assert "class emu: nothing to evaluate on" in said
    (duplicate,) = [line for line in said.splitlines() if "pixel for pixel" in line]
    assert "1 image(s) of train" in duplicate
    assert "dog/5.png" in duplicate
    assert config.data.color == "rgb"
    assert config.data.batch_size <= 27 / 4
    assert config.model.name == "cifar_resnet20"
    prepare_experiment(config)


def test_given_options_win(pictures):
    config, said = run(
        "my_images",
        f"imagefolder:{pictures}",
        model__name="lenet5_modern",
        data__batch_size=5,
        optim__learning_rate=0.5,
        optim__warmup_steps=3,
    )
    assert (config.model.name, config.model.weights) == ("lenet5_modern", "digits")
    assert (config.data.batch_size, config.data.color) == (5, "gray")
    assert (config.optim.learning_rate, config.optim.warmup_steps) == (0.5, 3)
    assert "lenet5_modern, starts from digits" in said


def test_choices_follow_given_ones(pictures):
    dataset = f"imagefolder:{pictures}"
    few, _ = run("my_images", dataset, data__batch_size=2)
    many, _ = run("my_images", dataset, data__batch_size=6)
    assert few.epochs == many.epochs == 100
    warmups = few.optim.warmup_steps, many.optim.warmup_steps
    assert warmups == (round(0.05 * 100 * 13), round(0.05 * 100 * 4))
    fresh, said = run(
        "my_images", dataset, model__name="lenet5_modern", model__weights=None
    )
    assert fresh.model.weights is None
    assert "new, from no weights" in said


def test_a_training_by_the_command_line_alone(pictures, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run_command(
        *("my_images", "--dataset", f"imagefolder:{pictures}", "--run-dir", folder),
        *("--model.name", "lenet5_modern", "--steps", "2", "--batch-size", "9"),
    )
    assert code == 0, err
    assert out.startswith(f"What imagefolder:{pictures} has:")
    assert "takes" in out
    config = load_config(folder / "config.json")
    assert (config.steps, config.data.batch_size) == (2, 9)
    assert zoo.weights.read_card(folder).class_names == ("cat", "dog", "emu")


def test_a_recipe_wants_a_data_set():
    code, _, err = run_command("my_boxes")
    assert code == 1
    assert err == "error: --dataset FORMAT:PATH says where the images are.\n"
    code, _, err = run_command("my_masks", "--dataset", "imagefolder:.")
    assert code == 1
    assert "for classification, not for task='segmentation'" in err


def test_where_there_is_no_test_split_a_part_is_held_out(tmp_path):
    for i in range(20):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", seed=i)
    dataset = f"imagefolder:{tmp_path}"
    config, said = run("my_images", dataset, model__name="lenet5_modern")
    splits = config.data.train_split, config.data.eval_split
    assert splits == ("train[:80%]", "train[80%:]")
    assert "a fifth of train is held out" in said
    train, held = (load_dataset(dataset, split) for split in splits)
    assert (len(train), len(held)) == (16, 4)
    names = {source.identity(i) for source in (train, held) for i in range(len(source))}
    assert len(names) == 20
    experiment = prepare_experiment(config)
    assert experiment.eval_source.split == "train[80%:]"


def splits_of(dataset, train_split, **flags):
    config, _ = run(
        "my_images",
        dataset,
        model__name="lenet5_modern",
        data__train_split=train_split,
        **flags,
    )
    return config.data.train_split, config.data.eval_split


def test_no_image_to_train_on_is_chosen_to_evaluate_on(tmp_path):
    for i in range(40):
        split = "val" if i % 4 == 1 else "train"
        save(tmp_path / split / "ab"[i // 2 % 2] / f"{i}.png", seed=i)
    dataset = f"imagefolder:{tmp_path}"
    assert splits_of(dataset, "train") == ("train", "val")
    both = splits_of(dataset, "train+val")
    assert both == ("train+val[:80%]", "train+val[80%:]")
    assert splits_of(dataset, "val") == ("val[:80%]", "val[80%:]")
    sources = [load_dataset(dataset, split) for split in both]
    names = [{s.provenance(i) for i in range(len(s))} for s in sources]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40


@pytest.mark.parametrize(
    ("given", "train_split", "eval_split"),
    [
        ("train+test", "train[:80%]+test[:80%]", "train[80%:]+test[80%:]"),
        ("all", "all[:80%]", "all[80%:]"),
        ("test[10%:50%]", "test[10%:42%]", "test[42%:50%]"),
        ("train[:50%]", "train[:50%]", "test"),
    ],
)
def test_parts_are_held_out_of_prepared_data_sets(given, train_split, eval_split):
    assert splits_of("digits", given) == (train_split, eval_split)


def test_a_slice_of_a_slice_is_a_smaller_one(tmp_path):
    for i in range(40):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", seed=i)
    dataset = f"imagefolder:{tmp_path}"
    assert splits_of(dataset, "train[:50%]") == ("train[:40%]", "train[40%:50%]")
    with pytest.raises(ValueError, match=r"--data.train-split test\[50%:51%\].*expect"):
        splits_of("digits", "test[50%:51%]")


def test_prepared_data_sets_are_looked_at_too():
    config, said = run("my_images", "digits", model__name="lenet5_modern")
    assert (config.data.train_split, config.data.eval_split) == ("train", "test")
    assert "classes     10: " in said
    with pytest.raises(
        UnknownSplit, match="digits has no split 'val'; it has train, test"
    ):
        load_dataset("digits", "val")


def test_slices_of_splits_are_refused_where_they_are_empty_or_reversed(tmp_path):
    for i in range(3):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", seed=i)
    dataset = f"imagefolder:{tmp_path}"
    with pytest.raises(ValueError, match=r"train\[60%:40%\].*expected rising"):
        load_dataset(dataset, "train[60%:40%]")
    with pytest.raises(ValueError, match=r"train\[:5%\].*none of the 3 images"):
        load_dataset(dataset, "train[:5%]")


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path):
    for split, count in (("train", 12), ("test", 4)):
        for i in range(count):
            save(tmp_path / split / "ab"[i % 2] / f"{i}.png", seed=len(split) + i)
    (tmp_path / "train" / "a" / "bad.png").write_bytes(b"\x89PNG no more")
    dataset = f"imagefolder:{tmp_path}"
    config, said = run("my_images", dataset, model__name="lenet5_modern")
    assert "1 image(s) cannot be read and are left out" in said
    assert "bad.png" in said
    assert config.data.on_bad_image == "skip"


def write_coco(root, split, boxes, size=(80, 60), seed=0):
    """One image for each list of boxes (class, x, y, width, height)."""
    annotations, images = [], []
    for i, found in enumerate(boxes):
        save(root / split / f"{i}.png", size, seed + i)
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 60})
        annotations += [
            {"id": 100 * i + j, "image_id": i, "category_id": k, "bbox": box}
            for j, (k, *box) in enumerate(found)
        ]
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    categories = [{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt"}]
    content = dict(images=images, annotations=annotations, categories=categories)
    path.write_text(json.dumps(content))


def test_odd_boxes_are_named_and_counted(tmp_path):
    usual = [(1, 10 + i, 10, 20, 20) for i in range(5)]
    outside = [(1, 70, 10, 30, 20), (1, 200, 10, 20, 20)]
    write_coco(tmp_path, "train", [usual] * 6 + [[*outside, (2, 5, 5, 2, 2)], []])
    write_coco(tmp_path, "val", [usual * 2], seed=50)
    config, said = run("my_boxes", f"coco:{tmp_path}", data__size=(96, 128))
    assert (config.data.train_split, config.data.eval_split) == ("train", "val")
    assert "2 box(es) reach beyond their image" in said
    assert "bolt (1): fewer than 10 training objects" in said
    assert "class bolt: nothing to evaluate on" in said
    assert "1 of 8 training images have no box" in said
    assert "have less than 8 pixels a side in an input of 128 x 96" in said
    assert config.data.max_boxes == 16  # of val's ten
    model = config.model
    assert (model.name, model.weights) == ("faster_rcnn_small", "digits_canvas")
    prepare_experiment(config)


def test_the_size_of_the_input_follows_that_of_the_boxes(tmp_path):
    for name, side in (("large", 30), ("small", 6)):
        boxes = [[(1, 10, 10, side, side), (2, 40, 20, side, side)]] * 4
        write_coco(tmp_path / name, "train", boxes)
        write_coco(tmp_path / name, "test", boxes, seed=9)
    sizes = {}
    for name in ("large", "small"):
        sources = [
            load_dataset(f"coco:{tmp_path / name}", s) for s in ("train", "test")
        ]
        sizes[name] = inspect(*sources).train.box_sides
        config, _ = run("my_boxes", f"coco:{tmp_path / name}")
        sizes[name] = config.data.size
    assert sizes["large"][0] * sizes["large"][1] < sizes["small"][0] * sizes["small"][1]
    assert sizes["large"][1] > sizes["large"][0]  # as the images are


def write_masks(root, values, splits, names=()):
    for split, count in splits.items():
        for i in range(count):
            save(root / split / "images" / f"{i}.png", seed=len(split) * 10 + i)
            mask = np.resize(np.array(values, np.uint8), 30 * 40).reshape(30, 40)
            path = root / split / "masks" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    if names:
        (root / "classes.txt").write_text("\n".join(names))


@pytest.mark.parametrize(
    ("values", "names", "chosen", "classes"),
    [
        # 255 is the foreground where there is nothing else, and else ignored.
        ((0, 255), (), (0, 255), ("value 0", "value 255")),
        ((0, 255), ("ground", "cell"), (0, 255), ()),
        ((0, 1, 2, 255), (), (), ("value 0", "value 1", "value 2")),
        ((3, 9, 20), (), (3, 9, 20), ("value 3", "value 9", "value 20")),
    ],
)
def test_values_of_masks_become_classes(tmp_path, values, names, chosen, classes):
    write_masks(tmp_path, values, {"train": 6, "test": 2}, names)
    config, said = run("my_masks", f"masks:{tmp_path}", data__size=(32, 32))
    assert (config.data.values, config.data.classes) == (chosen, classes)
    assert f"values {values[0]} (" in said
    model = config.model
    assert (model.name, model.weights) == ("unet_small", "digits_canvas")
    count = len(names or classes)
    assert prepare_experiment(config).card.num_classes == count


def test_ignored_values_and_masks_without_splits(tmp_path):
    write_masks(tmp_path / "set", (0, 1, 2), {"": 10})
    dataset = f"masks:{tmp_path / 'set'}"
    config, said = run("my_masks", dataset, data__ignored=(2,), data__size=(32, 32))
    assert config.data.classes == ("value 0", "value 1")
    splits = config.data.train_split, config.data.eval_split
    assert splits == ("all[:80%]", "all[80%:]")
    assert "8 to train" in said
    prepare_experiment(config)


def test_ignored_values_leave_the_others_to_the_names(tmp_path):
    write_masks(tmp_path, (0, 1, 2), {"train": 6, "test": 2}, ("road", "sky"))
    config, _ = run("my_masks", f"masks:{tmp_path}", data__ignored=(0,))
    assert (config.data.values, config.data.ignored) == ((1, 2), (0,))


def test_each_unnamed_value_is_a_class_and_how_to_leave_one_out_is_said(tmp_path):
    write_masks(tmp_path, (0, 0, 1, 1, 11), {"train": 5, "test": 2})
    config, said = run("my_masks", f"masks:{tmp_path}")
    assert config.data.classes == ("value 0", "value 1", "value 11")
    assert (
        "EACH of these values of the masks is one: 0 (40.0%), 1 (40.0%), 11 (20" in said
    )
    command = f"canon-zoo train my_masks --dataset masks:{tmp_path} --data.ignored 11"
    assert f"left out by its number; 11 by {command}" in said
    config, said = run("my_masks", f"masks:{tmp_path}", data__ignored=(11,))
    assert config.data.classes == ("value 0", "value 1")
    assert "--data.ignored 11" not in said
    prepare_experiment(config)


def test_a_value_without_a_name_is_no_class(tmp_path):
    write_masks(tmp_path, (0, 0, 1, 1, 2), {"train": 5, "test": 2}, ("road", "sky"))
    config, said = run("my_masks", f"masks:{tmp_path}")
    assert config.data.ignored == (2,)
    assert "the value(s) 2 (20.0%) have no name" in said
    assert "(--data.ignored 2)" in said
    assert prepare_experiment(config).card.class_names == ("road", "sky")


def test_values_are_not_left_out_where_a_name_has_none(tmp_path):
    # Perhaps 1 and 2 are the classes, and not 0 and 1.
    write_masks(tmp_path, (1, 2, 3), {"train": 5, "test": 2}, ("road", "sky"))
    config, _ = run("my_masks", f"masks:{tmp_path}")
    assert config.data.ignored == ()
    with pytest.raises(ValueError, match=r"2, 3 stand\(s\) for nothing"):
        prepare_experiment(config)


def test_mixed_sizes_are_fitted_to_the_middle_one(tmp_path):
    write_masks(tmp_path, (0, 1), {"train": 6, "test": 2})
    for i, size in enumerate(((80, 60), (120, 30))):
        save(tmp_path / "train" / "images" / f"{i}.png", size)
        mask = np.ones(size[::-1], np.uint8)
        Image.fromarray(mask).save(tmp_path / "train" / "masks" / f"{i}.png")
    write_masks(tmp_path, (0, 1), {"val": 3})
    config, said = run("my_masks", f"masks:{tmp_path}")
    assert "the 3 images of val are not used" in said
    assert "40 x 30 to 120 x 60 pixels, in the middle 40 x 30" in said
    assert config.data.fit == "stretch"
    prepare_experiment(config)


def test_published_weights_are_taken_where_they_are_kept(
    pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    root = tmp_path / "large"
    for i in range(8):
        save(root / "train" / "ab"[i % 2] / f"{i}.png", (90, 70), i)
        save(root / "test" / "ab"[i % 2] / f"{i}.png", (90, 70), 10 + i)
    sources = [load_dataset(f"imagefolder:{root}", s) for s in ("train", "test")]
    found, given = inspect(*sources), ModelConfig("")
    model, frozen, better = choose_model(given, "classification", found, True)
    assert (model.name, model.weights) == ("cifar_resnet20", "cifar10_20epochs")
    assert frozen == ()
    assert "--model.name resnet50 --from imagenet" in better
    for name in ("resnet18", "resnet50"):
        (weights, *_) = zoo.get_spec(name).weights
        zoo.weights.cache_path(weights).touch()
    for accelerator, name in ((True, "resnet50"), (False, "resnet18")):
        model, frozen, _ = choose_model(given, "classification", found, accelerator)
        assert (model.name, model.weights) == (name, "imagenet")
        assert frozen == ("backbone/**",)
