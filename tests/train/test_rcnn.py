"""The command that fits R-CNN on a folder of images with boxes."""

import json

import numpy as np
import pytest
from PIL import Image

import zoo
from train import rcnn
from train.data.proposals import remember, selective_search
from zoo.figures.boxes import draw_detections

NAMES = ("bright", "dark")
BOX = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def draw(seed):
    """An image with a bright and a dark square, and their corners."""
    rng = np.random.default_rng(seed)
    image = np.full((100, 140, 3), 128, np.uint8)
    found = []
    for level, left in ((250, 0), (10, 70)):
        side = rng.integers(26, 40)
        x, y = left + rng.integers(2, 66 - side), rng.integers(2, 96 - side)
        image[y : y + side, x : x + side] = level
        found.append((x, y, x + side, y + side))
    return image, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    splits = {"trainval": range(6), "test": range(6, 9)}
    for split, seeds in splits.items():
        lines = "\n".join(f"{seed:06d}" for seed in seeds)
        (root / f"ImageSets/Main/{split}.txt").write_text(lines + "\n")
        for seed in seeds:
            image, boxes = draw(seed)
            Image.fromarray(image).save(root / f"JPEGImages/{seed:06d}.jpg", quality=95)
            objects = "".join(
                BOX.format(name, x1 + 1, y1 + 1, x2, y2)
                for name, (x1, y1, x2, y2) in zip(NAMES, boxes, strict=True)
            )
            size = "<size><width>140</width><height>100</height></size>"
            xml = f"<annotation>{size}{objects}</annotation>"
            (root / f"Annotations/{seed:06d}.xml").write_text(xml)
    return root


def test_proposes_regions_around_the_objects():
    pytest.importorskip("cv2")
    image, boxes = draw(0)
    found = selective_search(image)
    assert found.dtype == np.float32
    assert (found[:, 2:] - found[:, :2] >= 20).all()
    assert len(np.unique(found, axis=0)) == len(found)
    for box in boxes:
        assert np.abs(found - box).max(axis=1).min() <= 2
    np.testing.assert_array_equal(found, selective_search(image))
    assert len(selective_search(image, max_proposals=3)) == 3


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((30, 30), np.uint8), {}, r"takes uint8 \[h, w, 3\]"),
        (np.zeros((30, 30, 3)), {}, "got float64"),
        (np.zeros((30, 30, 3), np.uint8), {"mode": "best"}, "'fast' or 'quality'"),
    ],
)
def test_refuses_what_is_no_image(image, options, message):
    with pytest.raises(ValueError, match=message):
        selective_search(image, **options)


def test_a_small_image_has_no_regions():
    pytest.importorskip("cv2")
    assert selective_search(np.zeros((1, 1, 3), np.uint8)).shape == (0, 4)


def test_proposals_are_found_once(tmp_path):
    calls = []

    def propose(image):
        calls.append(1)
        return np.ones((2, 4), np.float32) * len(calls)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1] = 1
    remembered = remember(propose, tmp_path / "a")
    first = [remembered(image) for image in images]
    again = [remember(propose, tmp_path / "a")(image) for image in images]
    np.testing.assert_array_equal(first, again)
    assert len(calls) == 2
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"\.npy cannot be read .*; without it"):
        remembered(images[0])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The file of a narrow AlexNet that nobody trained."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    options = dict(widths=(8, 8, 8, 8, 8), dense=64, init="he_fan_in")
    _, variables, card = zoo.create_with_card("alexnet", **options)
    zoo.weights.save_safetensors(path, variables, card)
    return path


def test_fits_evaluates_and_writes(folder, classifier, tmp_path, capsys):
    pytest.importorskip("cv2")
    run = tmp_path / "run"
    options = dict(weights=str(classifier), run_dir=run)
    options |= dict(max_proposals=30, batch_size=16)  # Few regions are padding.
    rcnn.rcnn("rcnn_alexnet", dataset=f"voc:{folder}", **options)
    _, _, card = zoo.create_with_card(
        "rcnn_alexnet", weights=str(run / "weights.safetensors")
    )
    assert card.class_names == NAMES
    found = json.loads((run / "metrics.json").read_text())
    assert found["images"] == 3
    assert found["ap50"] > 0.6
    assert "bright" in capsys.readouterr().out
    pictures = sorted((run / "detections").glob("*.png"))
    assert len(pictures) == 3
    for path in pictures:
        image = folder / f"JPEGImages/{int(path.stem) + 6:06d}.jpg"
        nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
        with Image.open(path) as drawn, Image.open(image) as plain:
            without = draw_detections(np.asarray(plain), *nothing, NAMES)
            assert (np.asarray(drawn) != np.asarray(without)).any()
    assert len([*run.glob("proposals-*/*.npy")]) == 9


def test_the_surest_are_shown():
    scores = np.array([[0.9, 0.4, 0.3, 0.2]], np.float32)
    found = zoo.Detections(
        boxes=np.arange(16, dtype=np.float32).reshape(1, 4, 4),
        scores=scores,
        classes=np.array([[0, 1, 2, 3]]),
        valid=np.array([[False, True, True, True]]),
    )
    for count, shown in ((0, []), (2, [1, 2]), (9, [1, 2, 3])):
        boxes, classes, of_them = rcnn.surest(found, count)
        assert classes.tolist() == shown
        np.testing.assert_array_equal(boxes, found.boxes[0][shown])
        np.testing.assert_array_equal(of_them, scores[0][shown])


def test_takes_the_layers_of_a_run(classifier):
    _, variables = zoo.create("alexnet", weights=str(classifier))
    _, found, card = rcnn.create_from_classifier("rcnn_alexnet", str(classifier), NAMES)
    ours, theirs = (v["params"]["backbone"]["conv2"] for v in (found, variables))
    np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])
    assert found["params"]["head"]["svm"]["kernel"].shape == (64, 2)
    assert (card.model, card.num_classes, card.preprocess.size) == (
        "rcnn_alexnet",
        2,
        227,
    )


def test_refuses_another_network(folder):
    with pytest.raises(ValueError, match="ssd96_small is no R-CNN"):
        rcnn.rcnn("ssd96_small", dataset=f"voc:{folder}")
