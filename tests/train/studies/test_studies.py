"""The studies' plumbing at a size of seconds; the bands are a benchmark's."""

import json
import math
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from tiny_runs import run_command

import zoo
from train.studies import STUDIES, Band, run_study, write_page
from train.studies.depth import count_depth
from train.studies.detector_parts import load_faster_rcnn
from train.studies.detectors import measure_recall
from train.studies.runner import (
    Curve,
    digits,
    keep,
    make_probe,
    short_config,
    train_short,
)
from zoo.detection.two_stage import Proposals


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.images = [], "", 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_and_writes_its_page_and_its_result(name, tmp_path):
    study = STUDIES[name]
    report = run_study(study, tmp_path, scale="smoke")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["study"], result["scale"]) == (name, "smoke")
    assert len(result["bands"]) == len(report.outcome.bands)
    page = Page(tmp_path / "report.html")
    assert not page.open
    assert study.claim in page.text
    assert page.images == len(report.outcome.figures) > 0
    assert len([*tmp_path.glob("figure-*.png")]) == page.images
    both = Page(write_page(tmp_path / "all.html", [report, report]))
    assert f"of {len(report.outcome.bands)}" in both.text


def test_what_was_measured_is_kept_and_a_damaged_file_is_named(tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"value": len(calls)}

    for plan, value in (({"steps": 1}, 1), ({"steps": 1}, 1), ({"steps": 2}, 2)):
        assert keep(tmp_path, "a", plan, run) == {"value": value}
    for content in (b"", b"null", b"{}", b"\xff"):
        (tmp_path / "runs/a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json cannot be read .*; without"):
            keep(tmp_path, "a", {"steps": 2}, run)


@pytest.mark.parametrize(
    ("name", "scale", "options", "message"),
    [
        (
            "depth",
            "quick",
            {"dataset": "cifar10"},
            r"--dataset cifar10: .* at no scale",
        ),
        (
            "detectors",
            "quick",
            {"dataset": "voc:D"},
            r"takes other data at medium or full\.",
        ),
        (
            "which_layer",
            "quick",
            {"steps": 9},
            r"--steps 9: .*which_layer.* no training",
        ),
        ("detectors", "quick", {"steps": -1}, r"--steps -1: expected 1 or more"),
        ("depth", "large", {}, r"--scale of depth 'large'"),
        ("which_layer", "medium", {}, r"--dataset: .*cifar_resnet20.*imagefolder:DIR"),
    ],
)
def test_what_a_study_does_not_take(tmp_path, name, scale, options, message):
    with pytest.raises(ValueError, match=message):
        run_study(STUDIES[name], tmp_path / "study", scale=scale, **options)
    assert not (tmp_path / "study").exists()


def test_every_scale_says_what_was_changed():
    for name, study in STUDIES.items():
        assert study.name == name
        assert {*study.data_scales} <= {*study.scales}
        assert {"smoke", "quick"} <= {*study.scales} <= {*study.changes, "smoke"}


@pytest.mark.parametrize(
    ("value", "low", "high", "holds"),
    [
        (1.0, 1.0, None, True),
        (0.9, 1.0, None, False),
        (2.0, None, 2.0, True),
        (2.1, 1.0, 2.0, False),
        (math.inf, 1.0, None, False),
        (math.nan, None, None, False),
    ],
)
def test_a_band_holds_within_its_bounds(value, low, high, holds):
    assert Band("x", value, low, high).holds is holds


def test_a_finished_run_is_not_run_again(tmp_path):
    config = short_config(
        "lenet5_modern", batch_size=8, steps=2, seed=0, learning_rate=0.01
    )
    arrays = digits(28)
    first = train_short(config, arrays, tmp_path, "run")
    path = tmp_path / "runs" / "run.json"
    kept = json.loads(path.read_text())
    kept["found"]["loss"] = [7.0, None]
    path.write_text(json.dumps(kept))
    again = train_short(config, arrays, tmp_path, "run")
    assert again.loss[0] == 7.0
    assert again.diverged
    other = short_config(
        "lenet5_modern", batch_size=8, steps=2, seed=0, learning_rate=0.02
    )
    assert train_short(other, arrays, tmp_path, "run").loss[0] == first.loss[0]
    # Nor is the result of other images shown for these.
    inverted = arrays._replace(images=-arrays.images)
    assert train_short(other, inverted, tmp_path, "run").loss[0] != first.loss[0]


def test_a_run_that_never_arrives_takes_forever():
    curve = Curve([1, 2], [1.0, 0.5], [0.9, 0.4], [0.9, 0.5], [1.0, 1.0])
    assert curve.steps_to(0.5) == 2
    assert curve.steps_to(0.3) == math.inf


def test_signals_are_read_where_layers_put_them_out():
    model, variables = zoo.create("lenet5_modern")
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    labels = np.array([3, 4])
    signals = make_probe(model)(variables, images, labels)
    assert [*signals] == [
        "backbone/conv1",
        "backbone/conv2",
        "backbone/ip1",
        "head/ip2",
    ]
    logits = np.asarray(model.apply(variables, images))
    last = signals["head/ip2"]
    np.testing.assert_allclose(last.output, logits, rtol=1e-5, atol=1e-6)
    # Of the sum of the cross-entropies: probabilities minus the one-hot labels.
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(last.gradient, shares - np.eye(10)[labels], atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [("vgg16", 16), ("googlenet", 22)])
def test_depth_is_counted_along_the_longest_path(name, depth):
    assert count_depth(zoo.get_spec(name)) == depth


def test_recall_is_the_share_of_objects_that_the_first_proposals_cover():
    boxes = np.array([[[0, 0, 9, 9], [20, 20, 30, 30], [0, 0, 0, 0]]], np.float32)
    test = {"boxes": boxes, "box_valid": np.array([[True, True, False]])}
    proposed = np.array([[[50, 50, 60, 60], *boxes[0, :2]]], np.float32)
    regions = [Proposals(proposed, np.array([[True, True, False]]))]
    assert measure_recall(regions, [test], 0.5) == [0, 0.5, 0.5]


@pytest.mark.apart
def test_faster_rcnn_is_trained_once(tmp_path):
    _, trained = load_faster_rcnn(tmp_path, 1, 2)
    _, again = load_faster_rcnn(tmp_path, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, trained, again)


def test_the_command_lists_the_studies_and_refuses_what_it_does_not_know():
    code, out, err = run_command("study", "--list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [*STUDIES]
    code, _, err = run_command("study", "initialisation")
    assert code == 1
    assert "initialization" in err
    code, _, err = run_command("study", "depth", "--scale", "medium")
    assert code == 1
    assert "--scale of depth" in err
