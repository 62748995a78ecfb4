"""The report page: valid, self-contained, escaped, and right in its numbers."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page import Page, old_matplotlib
from PIL import Image

from train.data import array_source
from train.figures import line_chart
from train.history import format_rate
from train.report import (
    Evaluation,
    Picture,
    plot_section,
    table_section,
    write_report,
)
from train.report.classification import evaluate_classifier, report_classifier
from train.report.parts import confusion_matrix
from zoo.figures.pictures import draw_prediction, to_pil

EVIL = '<script>alert("1")</script>\'&'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def make_history(steps: int) -> list[dict]:
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "epoch": step / 4, "loss": 2 / step}
        line["accuracy"] = 1 - 0.5 / step
        if step % 4 == 0:
            lines.append(line | {"kind": "eval", "top5": 0.99})
        speed = {"learning_rate": 0.1 / step, "images_per_second": 1200.0 + step}
        lines.append(line | {"kind": "train", "grad_norm": 1.0} | speed)
    return lines


def make_evaluation(k: int, names=None, mistakes=()) -> Evaluation:
    confusion = np.diag(np.full(k, 9))
    confusion[0, 1] = 3
    names = names or tuple(f"class {i}" for i in range(k))
    return report_classifier(names, confusion, 0.4321, mistakes)


def make_page(folder: Path, **changes) -> Page:
    arguments = dict(
        title="lenet on digits",
        summary={"duration": "3 min"},
        config={"seed": 7, "optimizer": {"name": "sgd", "momentum": 0.9}},
        model_table="path   shape\nconv1  (5, 5)",
        history=make_history(12),
        evaluation=make_evaluation(3),
    )
    path = write_report(folder, **(arguments | changes))
    assert path == folder / "report.html"
    return Page(path.read_text("utf-8"))


def test_page_shows_the_numbers(tmp_path):
    page = make_page(tmp_path / "new" / "run")
    for words in (
        "accuracy 90.0 % 95 % interval 74.4 % to 96.5 %",
        "best accuracy 95.8 % epoch 3",
        "loss 0.4321 evaluation",
        "examples 30 evaluated",
        "throughput 1,206 images/s, median",  # 1206.5, rounded to even
        "duration 3 min",
        "class 0 class 1 3/12 25.0 %",
        "class 0 75.0 % 9/12",
        "optimizer.momentum 0.9",
        "conv1 (5, 5)",
        "python 3.",
    ):
        assert words in page.text
    assert [svg["role"] for svg in page.all("svg")] == ["img"] * 4
    assert all(svg["aria-label"] for svg in page.all("svg"))


def test_long_names_may_break_behind_underscores(tmp_path):
    page = make_page(tmp_path, title="a_very_long_name", summary={"x": "b_c"})
    breaks = [tag for tag, _ in page.tags].count("wbr")
    assert breaks >= 4
    assert "a_very_long_name" in page.text
    assert "x b_c" in page.text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0421, "0.0421"),
        (0.5, "0.5"),
        (9.876, "9.88"),
        (12.3, "12"),
        (4321.0, "4,321"),
    ],
)
def test_slow_runs_have_a_throughput_too(rate, text):
    assert format_rate(rate) == text


def test_summary_replaces_a_computed_number(tmp_path):
    text = make_page(tmp_path, summary={"throughput": "9 per s"}).text
    assert "throughput 9 per s Training" in text


@pytest.mark.parametrize("k", [2, 20, 21, 100])
def test_page_needs_no_other_file(tmp_path, k):
    mistake = Picture(to_pil(np.zeros((2, 2, 3), np.uint8)), "a")
    page = make_page(tmp_path, evaluation=make_evaluation(k, mistakes=[mistake]))
    for _, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("data:image/png;base64,", "#"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    text = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert page.words.count("predicted class") == (k > 20), "only many need a heat map"


def test_everything_is_escaped(tmp_path):
    image = to_pil(np.zeros((2, 2, 1), np.uint8))
    mistake = Picture(image, f"{EVIL} taken for b", EVIL, f"{EVIL}.png")
    series = {EVIL: ([1, 2], [3, 4]), "b": ([1], [2])}
    page = make_page(
        tmp_path,
        title=EVIL,
        summary={EVIL: EVIL},
        config={EVIL: {EVIL: EVIL}},
        model_table=EVIL,
        evaluation=make_evaluation(2, (EVIL, "b"), [mistake]),
        sections=[
            table_section(EVIL, [EVIL], [[EVIL]], EVIL),
            plot_section(EVIL, series, EVIL, EVIL, EVIL),
        ],
    )
    assert not page.all("script")
    assert page.all("img")[0]["alt"] == f"{EVIL} taken for b"
    assert page.text.count(EVIL) >= 19


def test_names_that_are_not_ascii_and_not_text(tmp_path):
    assert "дом 家 🏠 ?" in make_page(tmp_path, title="дом 家 🏠 \udcff").text


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 1000])
@pytest.mark.parametrize("evaluation", [None, make_evaluation(2)])
def test_any_length_of_history(tmp_path, steps, evaluation):
    page = make_page(tmp_path, history=make_history(steps), evaluation=evaluation)
    assert ("No measurements were logged." in page.text) == (steps == 0)
    assert ("Confusion matrix" in page.text) == (evaluation is not None)
    assert len((tmp_path / "report.html").read_bytes()) < 200_000


def test_an_evaluation_without_images(tmp_path):
    nothing = report_classifier(("a", "b"), np.zeros((2, 2), int), math.nan)
    text = make_page(tmp_path, evaluation=nothing).text
    assert "accuracy nan % 95 % interval 0.0 % to 100.0 %" in text
    assert "no examples" in text


def test_values_that_are_not_finite_are_said(tmp_path):
    history = make_history(12)
    bad = [json.loads("NaN"), None, math.inf, -math.inf]
    for line, loss in zip(history[-4:], bad, strict=True):
        line["loss"] = loss
    page = make_page(tmp_path, history=history, evaluation=None)
    assert "not finite)" in page.text
    paths = [path.get("d", "") for path in page.all("path")]
    assert not any("nan" in path or "inf" in path for path in paths)
    for line in history:
        line["loss"] = math.nan
    page = make_page(tmp_path, history=history, evaluation=None)
    assert "loss nan last eval" in page.text
    assert "loss: there are no finite values to draw." in page.text


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    make_page(tmp_path, title="the old one")

    def write_half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="no space left"):
        make_page(tmp_path, title="the new one")
    assert "the old one" in Page((tmp_path / "report.html").read_text("utf-8")).text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def curves(svg: str) -> list[str]:
    """The outlines of an SVG's series."""
    paths = [p for p in Page(svg).all("path") if "stroke-width: 2" in p["style"]]
    return [p["d"] for p in paths if "stroke: var(--s" in p["style"]]


def test_line_chart_places_points_and_breaks_at_gaps():
    chart = line_chart({"a": ([0, 1, 2, 3], [0, 10, math.nan, 5])}, "x", "y")
    (path,) = curves(chart.svg)
    pens, across, down = zip(
        *re.findall(r"([ML]) ([\d.]+) ([\d.]+)", path), strict=True
    )
    assert "".join(pens) == "MLM"
    assert across == ("72", "204", "468")
    points = [(float(p["x"]), float(p["y"])) for p in markers(chart.svg)]
    assert [x for x, _ in points] == [72, 204, 468]
    assert points[1][1] < points[2][1] < points[0][1], "up is more"
    assert [y for _, y in points] == [float(y) for y in down]


def markers(svg: str) -> list[dict]:
    return [use for use in Page(svg).all("use") if "var(--s" in use["style"]]


def test_logarithmic_axis():
    curve = {"a": ([1, 10, 100], [1, 2, 3])}
    page = plot_section("t", curve, "x", "y", log_x=True).body
    assert [use["x"] for use in markers(page)] == ["72", "270", "468"]
    with pytest.raises(ValueError, match="positive values, got 0"):
        plot_section("t", {"a": ([0, 1], [1, 2])}, "x", "y", log_x=True)


def test_long_series_are_averaged():
    noise = np.random.default_rng(0).normal(size=10_000)
    (path,) = curves(line_chart({"a": (np.arange(10_000), noise)}, "x", "y").svg)
    assert 200 < path.count("L") < 300


def test_sections_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"row of 1 cells, \['x'\], under .* 2"):
        table_section("t", ["a", "b"], [["x"]])
    with pytest.raises(ValueError, match=r"'s' has x of shape .* y of shape"):
        plot_section("t", {"s": ([1, 2], [1])}, "x", "y")


def test_confusion_shades_hits_and_misses():
    table = Page(confusion_matrix(np.array([[4, 0], [1, 3]]), ("a", "b")))
    paints = [cell["style"].partition("rgba")[2] for cell in table.all("td")[1:]]
    hits, misses = paints[::3], paints[1:3]
    assert hits == ["(0, 114, 178, 1.0)", "(0, 114, 178, 0.87)"]
    assert misses == ["(213, 94, 0, 0.0)", "(213, 94, 0, 0.5)"]
    looks = [cell["class"] for cell in table.all("td")[1:]]
    assert looks == ["strong", "zero", "weak", "strong"]


def test_the_most_confident_mistakes_come_first(tmp_path):
    predicted, share = np.arange(30) % 2, np.arange(30) / 100
    source = array_source(np.zeros((30, 3, 6), np.uint8), np.zeros(30, int), "ab")
    predictions = SimpleNamespace(predicted=predicted, probability=share)
    confusion = np.array([[15, 15], [0, 0]])
    result = SimpleNamespace(
        experiment=SimpleNamespace(
            eval_source=source, card=SimpleNamespace(class_names=("a", "b"))
        ),
        evaluated=SimpleNamespace(
            predictions=predictions, confusion=confusion, metrics={"loss": 1.0}
        ),
    )
    page = make_page(tmp_path, evaluation=evaluate_classifier(result))
    shown = re.findall(r"b (\d+)\.0 % truth: a arrays train #(\d+)", page.text)
    assert shown == [(str(i), str(i)) for i in range(29, 0, -2)]


@old_matplotlib
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 3), (3, 2000, 3), (900, 2, 4)])
def test_draw_prediction(shape):
    image = np.full(shape, 200, np.uint8)
    names = ("猫 \U0001f431", "собака " * 30, "line\nbreak \udcff \x00", "", "z")
    picture = draw_prediction(image, names, np.array([0.1, 0.6, 0.2, 0.1, 0.0]))
    assert (picture.mode, picture.size) == ("RGB", (800, 360))
    blue = (np.asarray(picture)[:, 360:] == (0, 114, 178)).all(-1).sum(axis=1)
    lengths = [int(n) for n, before in zip(blue[1:], blue, strict=False) if n > before]
    assert lengths == [252, 84, 42, 42], "bars of 420 pixels times the probability"


@old_matplotlib
def test_draw_prediction_of_two_classes_enlarges_sharply():
    image = np.uint8([[[255], [0]], [[0], [9]]])
    picture = draw_prediction(image, ("a", "b"), np.array([0.25, 0.75]), top=5)
    left = np.asarray(picture)[20:340, 20:340]
    np.testing.assert_array_equal(left, np.kron(image, np.ones((160, 160, 3))))


def test_draw_prediction_refuses_what_does_not_fit():
    image = np.zeros((1, 1, 3), np.uint8)
    for probabilities, top, message in (
        ([0.5, 0.5, 0.0], 5, r"shape \(3,\); expected \(2,\)"),
        ([0.5, math.nan], 5, r"lie in \[0, 1\]"),
        ([0.5, 0.5], 0, "top must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_prediction(image, ("a", "b"), probabilities, top=top)


def test_to_pil_refuses_other_arrays():
    for image in (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3))):
        with pytest.raises(ValueError, match="expected uint8"):
            to_pil(image)


def test_a_browser_shows_the_page(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of the browsers {BROWSERS} is installed")
    make_page(tmp_path, title="Shown in a browser")
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    switches += "disable-background-networking disable-component-update "
    switches += f"window-size=1000,1400 user-data-dir={tmp_path / 'profile'}"
    command = [browser, *(f"--{switch}" for switch in switches.split())]
    address = (tmp_path / "report.html").as_uri()
    options = {"capture_output": True, "timeout": 120, "check": True}
    dom = subprocess.run([*command, "--dump-dom", address], **options).stdout.decode()
    assert "Shown in a browser</h1>" in dom
    assert "<dt>accuracy</dt><dd>90.0" in dom
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", address], **options)
    with Image.open(shot) as picture:
        spread = np.ptp(np.asarray(picture.convert("RGB"), int), axis=-1)
    assert (spread > 60).sum() > 1000, "curves, matrix and bars are in color"


def test_charts_do_not_follow_the_users_settings():
    import matplotlib

    curve = {"loss": ([0, 1], [2.0, 1.0])}
    expected = line_chart(curve, "step", "loss").svg
    settings = {"figure.constrained_layout.use": True, "axes.facecolor": "red"}
    with matplotlib.rc_context(settings):
        assert line_chart(curve, "step", "loss").svg == expected
