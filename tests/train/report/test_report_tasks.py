"""Reports and pictures of detectors and segmentation networks."""

from types import SimpleNamespace

import numpy as np
import pytest
from page import Page, old_matplotlib
from PIL import Image

from train.report import write_report
from train.report.detection import (
    Boxes,
    draw_finding,
    match_objects,
    overlaps,
    report_detector,
)
from train.report.detection import (
    draw_comparison as draw_found,
)
from train.report.segmentation import draw_prediction, report_segmentation
from zoo.figures.boxes import class_color, cut_around, draw_boxes, draw_detections
from zoo.figures.masks import (
    CAMVID,
    CITYSCAPES,
    draw_comparison,
    draw_overlay,
    make_palette,
    paletted,
)

pytestmark = old_matplotlib
EVIL = '<b>"x"</b>'


def make_image(height=60, width=80):
    return np.full((height, width, 3), 200, np.uint8)


def write(folder, evaluation, history):
    path = write_report(
        folder,
        title="t",
        summary={},
        config={},
        model_table="",
        history=history,
        evaluation=evaluation,
    )
    return Page(path.read_text("utf-8"))


def make_history(metric, parts):
    rows = []
    for step in range(1, 9):
        train = {"loss": 4 / step, "learning_rate": 0.1, "images_per_second": 9.0}
        train |= {name: 2 / step for name in parts} | {"grad_norm": 1.0}
        rows.append({"kind": "train", "step": step, "epoch": step / 4, **train})
    rows.append({"kind": "eval", "step": 8, "epoch": 2.0, metric: 0.75})
    return rows


def make_detector_evaluation():
    boxes = Boxes(np.array([[5, 5, 40, 30]], np.float32), np.array([1]))
    found = Boxes(boxes.boxes + 3, boxes.classes, np.array([0.8]))
    names = ("cat", EVIL, "none")
    finding = draw_finding(
        *(make_image(), boxes.boxes[0], f"{EVIL} 80%", f"it is {EVIL}"),
        *(boxes, names, EVIL),
    )
    classes = np.array([[0, 0, 0, 1, 1, 1, 1, 2]])
    evaluated = SimpleNamespace(
        metrics={"ap50": 0.75, "ap50_voc07": 0.7, "images": 5, "objects": 7},
        precision=[1.0, 0.5, None],
        objects=SimpleNamespace(classes=classes, valid=classes < 2),
        curves=[
            (np.array([0.5, 1.0]), np.array([1.0, 1.0])),
            (np.array([0.5]), np.array([0.6])),
            (np.zeros(0), np.zeros(0)),
        ],
    )
    shown = draw_found(make_image(), boxes, found, names, EVIL)
    return report_detector(evaluated, names, [shown], [finding], [])


def test_a_detectors_report_shows_the_numbers(tmp_path):
    history = make_history("ap50", ("box", "classification"))
    page = write(tmp_path, make_detector_evaluation(), history)
    for words in (
        "AP50 75.0 % mean over the classes",
        "AP50, VOC07 70.0 % of 11 points",
        "best AP50 75.0 % epoch 2",
        "images 5 7 objects",
        f"{EVIL} 50.0 % 4 cat 100.0 % 3 none – no objects",
        "parts of the loss",
        "AP50 (%)",
        f"it is {EVIL}",
        "Worst misses There are none.",
    ):
        assert words in page.text
    assert len(page.all("img")) == 2
    assert not page.all("b") or EVIL not in {a.get("class") for a in page.all("b")}
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert any(label.startswith("precision against recall: <b>") for label in labels)


def test_a_segmentation_networks_report_shows_the_numbers(tmp_path):
    mask = np.zeros((60, 80), np.uint8)
    mask[:20], mask[50:] = 1, 255
    predicted = np.zeros((60, 80), np.uint8)
    names = ("sky", EVIL, "none")
    image = draw_prediction(make_image(), mask, predicted, 0.6, names, EVIL)
    evaluated = SimpleNamespace(
        metrics={
            "mean_iou": 0.3,
            "pixel_accuracy": 0.6,
            "class_accuracy": 0.5,
            "loss": 0.4321,
            "images": 1,
            "pixels": 4000,
        },
        classes={"iou": [0.6, 0.0, None]},
        confusion=np.array([[2400, 0, 0], [1600, 0, 0], [0, 0, 0]]),
    )
    evaluation = report_segmentation(evaluated, names, [image])
    page = write(tmp_path, evaluation, make_history("mean_iou", ("pixel_accuracy",)))
    for words in (
        "mean IoU 30.0 % mean over the classes",
        "best mean IoU 75.0 % epoch 2",
        "loss 0.4321 evaluation",
        f"{EVIL} 0.0 % 1,600 sky 60.0 % 2,400 none – does not occur",
        f"{EVIL} sky 1,600/1,600 100.0 %",
        "60.0 % right",
        "mean IoU (%)",
        "Other images ● sky",
    ):
        assert words in page.text
    assert "parts of the loss" not in page.text
    assert len(page.all("img")) == 1


def test_boxes_are_drawn_where_they_are():
    picture = np.asarray(
        draw_boxes(make_image(), [[10, 20, 50, 40]], [""], [(255, 0, 0)], least=80)
    )
    red = (picture == (255, 0, 0)).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (rows[0], rows[-1]) == (20, 39)
    assert (columns[0], columns[-1]) == (10, 49)
    assert not red[24:36, 14:46].any()


def test_small_images_are_enlarged_and_captions_fit():
    picture = draw_detections(
        make_image(8, 10), [[0, 0, 9, 7]], [1], [0.5], ("a", "猫" * 40), least=300
    )
    assert picture.size == (300, 240)
    color = np.array(class_color(1))
    assert (np.asarray(picture) == color).all(-1).sum() > 500
    with pytest.raises(ValueError, match="2 boxes have 1 captions and 1 colors"):
        draw_boxes(make_image(), np.zeros((2, 4)), [""], [(0, 0, 0)])


@pytest.mark.parametrize(
    "box", [(10, 10, 20, 30), (0, 0, 1, 1), (79, 59, 80, 60), (-9, -9, 200, 200)]
)
def test_what_is_cut_out_holds_the_box(box):
    image = np.arange(60 * 80).reshape(60, 80, 1).astype(np.uint8)
    part, corner = cut_around(image, np.array(box, np.float32))
    height, width, _ = part.shape
    assert height
    assert width
    left, top = corner
    np.testing.assert_array_equal(part, image[top:, left:][:height, :width])
    inside = np.clip(box, 0, [80, 60, 80, 60])
    assert (inside[:2] >= corner).all()
    assert (inside[2:] <= np.array([left + width, top + height])).all()


def test_palettes_are_those_of_the_data_sets(tmp_path):
    voc = make_palette(("background", "aeroplane", "bicycle"))
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert voc[:5].tolist() == [[*color] for color in expected]
    assert voc[20].tolist() == [0, 64, 128]
    assert voc[255].tolist() == [224, 224, 192]
    for known in (CAMVID, CITYSCAPES):
        names = [*known][::-1]
        assert make_palette(names)[0].tolist() == [*known[names[0]]]
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    paletted(mask, voc).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), mask)
        rgb = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(rgb, voc[mask])


@pytest.mark.parametrize("background", [False, True])
def test_classes_of_other_sets_have_colors_that_differ(background):
    names = (*("background",) * background, *map(str, range(20)))
    palette = make_palette(names)
    assert (palette[0].tolist() == [0, 0, 0]) == background
    colors = palette[background : len(names)].astype(int)
    assert colors.tolist() == [[*class_color(i)] for i in range(20)]
    colors = np.concatenate([colors, np.zeros((1, 3), int)])  # the background's
    distances = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert distances[np.triu_indices(21, 1)].min() > 60
    assert distances[:10, :10][np.triu_indices(10, 1)].min() > 125
    assert len({class_color(i) for i in range(40)}) == 40


def test_of_captions_that_would_hide_one_another_the_first_is_drawn():
    def draw(*captions):
        image, boxes = np.zeros((60, 80, 3), np.uint8), [[10, 20, 40, 50]] * 2
        colors = [(200, 0, 0), (0, 200, 0)]
        return np.asarray(draw_boxes(image, boxes, captions, colors)).astype(int)

    first, both = draw("cat", ""), draw("cat", "caterpillar")
    np.testing.assert_array_equal(first, both)
    assert (draw("", "caterpillar") != both).any()


def test_an_overlay_leaves_the_background_as_it_is():
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 40:] = 1
    names = ("background", "thing")
    palette = make_palette(names)
    picture = np.asarray(draw_overlay(make_image(), mask, names, palette, strength=0.5))
    assert (picture[40, 40] == 200).all()
    middle = (np.array([200, 200, 200]) + palette[1]) / 2
    assert abs(picture[40, 500].astype(int) - middle).max() <= 1


def test_a_comparison_shows_errors_in_orange():
    mask = np.array([[0, 1], [1, 255]], np.uint8)
    predicted = np.array([[0, 0], [1, 1]], np.uint8)
    picture = draw_comparison(make_image(2, 2), mask, predicted, make_palette("ab"))
    errors = np.asarray(picture)[-12 - 256 : -12, -12 - 256 : -12]
    orange = (errors == (213, 94, 0)).all(-1)
    assert orange[:128, 128:].all()
    assert orange.sum() == 128 * 128
    assert (errors[128:, 128:] == 255).all()


def test_matches_are_made_as_average_precision_counts_them():
    objects = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float64)
    boxes = np.array(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [5, 0, 15, 9]]
    )
    match = match_objects(
        boxes,
        np.array([0, 0, 1, 0, 0]),
        np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        objects,
        np.array([0, 0, 0]),
        np.array([False, False, True]),
    )
    # Right, a second time, another class, difficult, too far away.
    assert match.alarm.tolist() == [False, True, True, False, True]
    np.testing.assert_allclose(match.score, [0.9, 0, 0])
    none = np.zeros((0, 4))
    assert overlaps(none, objects).shape == (0, 3)
    labels = np.zeros(0, int)
    assert match_objects(none, labels, labels, none, labels, labels).score.shape == (0,)
