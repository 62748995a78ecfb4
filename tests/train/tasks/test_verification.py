"""The verification task: evaluation by hand, and a run from beginning to end."""

import json
import shutil
import sys

import numpy as np
import pytest
from page import old_matplotlib
from PIL import Image
from tiny_runs import run_command

import zoo
from train import commands
from train.config import load_config
from train.data.faces.landmarks import write_landmarks
from train.data.faces.source import make_pairs
from train.data.faces.synthetic import draw_example
from train.descriptors import (
    average_templates,
    evaluate_descriptors,
    probability,
)
from train.tasks import verification
from zoo.face.verification import FaceSet, Pairs, measure_maximum


def command(*arguments, code=0):
    """Runs a command, which must exit so; returns what it printed."""
    found, out, err = run_command(*arguments)
    assert found == code, err
    return err if code else out


def descriptors_of(people, noise, seed=0):
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(people.max() + 1, 16))[people]
    values = own + noise * rng.normal(size=own.shape)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def face_set(people, **facts):
    gallery = np.zeros(len(people), bool)
    gallery[::4] = True
    unknown = np.full(len(people), -1, np.int32)
    return FaceSet(people, unknown, gallery, make_pairs(people), **facts)


def test_good_descriptors_verify_and_identify():
    people = np.repeat(np.arange(24), 8)
    good, poor = (
        evaluate_descriptors(descriptors_of(people, noise), face_set(people)).metrics
        for noise in (0.1, 3.0)
    )
    assert good["verification_accuracy"] == good["rank1"] == good["auc"] == 1
    assert good["eer"] == 0
    assert poor["verification_accuracy"] < 0.75
    assert poor["rank1"] < 0.9
    assert 0 < poor["standard_error"] < 0.1


def test_the_probability_is_one_half_at_the_threshold_and_rises():
    people = np.repeat(np.arange(24), 8)
    found = evaluate_descriptors(descriptors_of(people, 1.0), face_set(people))
    middle = found.metrics["threshold"]
    assert probability(middle, found.metrics) == pytest.approx(0.5)
    assert probability(middle + 0.3, found.metrics) > 0.7
    assert probability(middle - 0.3, found.metrics) < 0.3


def test_strangers_are_not_identified():
    people = np.repeat(np.arange(24), 8)
    faces = face_set(people)
    faces = faces._replace(gallery=faces.gallery & (people < 12))
    metrics = evaluate_descriptors(descriptors_of(people, 0.1), faces).metrics
    assert metrics["rank1"] == metrics["dir_at_far_0.01"] == 1
    blurred = evaluate_descriptors(descriptors_of(people, 1.5), faces).metrics
    assert blurred["dir_at_far_0.01"] < blurred["rank1"]


def test_accuracy_is_measured_by_group():
    people = np.repeat(np.arange(40), 6)
    groups = (people % 2).astype(np.int32)
    clean, noisy = descriptors_of(people, 0.1), descriptors_of(people, 3.0)
    mixed = np.where(groups[:, None] == 0, clean, noisy)
    faces = face_set(people, groups=groups, group_names=("easy", "hard", "nobody"))
    found = evaluate_descriptors(mixed, faces)
    (easy, count, right), (hard, _, wrong) = found.groups
    assert (easy, hard) == ("easy", "hard")
    pairs = faces.pairs
    both = (groups[pairs.first] == 0) & (groups[pairs.second] == 0)
    assert count == both.sum()
    assert right > wrong + 0.1


def test_videos_are_compared_by_the_mean_of_all_pairs_of_frames():
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(9, 5))
    templates = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    means = average_templates(frames, templates)
    wanted = (frames[:2] @ frames[2:5].T).mean()
    assert means[0] @ means[1] == pytest.approx(wanted)
    pairs = Pairs(
        np.array([0, 0, 1, 2]),
        np.array([1, 2, 3, 3]),
        np.array([True, False, True, False]),
        np.array([0, 0, 1, 1]),
    )
    none = np.zeros(9, bool)
    faces = FaceSet(templates, np.full(9, -1), none, pairs, templates)
    assert evaluate_descriptors(frames, faces).scores[0] == pytest.approx(wanted)


def test_groups_of_videos_and_of_pairs_in_one_fold():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(8), 4)
    templates = np.repeat(np.arange(16), 2)
    first, second = np.triu_indices(16, 1)
    same = first // 2 == second // 2
    pairs = Pairs(first, second, same, np.zeros(len(first), np.int64))
    groups = (people // 4).astype(np.int32)
    values = rng.normal(size=(8, 5))[people] + 0.05 * rng.normal(size=(32, 5))
    values[groups == 1] = rng.normal(size=((groups == 1).sum(), 5))
    faces = FaceSet(
        *(people, np.full(32, -1), np.zeros(32, bool), pairs, templates, groups),
        ("clear", "blurred"),
    )
    (clear, count, right), (_, _, wrong) = evaluate_descriptors(values, faces).groups
    assert (clear, count) == ("clear", 8 * 7 / 2)
    assert right > wrong


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of a few steps, its folder and what it printed."""
    root = tmp_path_factory.mktemp("faces")
    run_dir = root / "run"
    out = command(
        "faces_deepface_small_tiny", "--run-dir", run_dir, "--data-dir", root / "data"
    )
    return run_dir, root / "data", out


@old_matplotlib
def test_a_run_reports_verification(run):
    run_dir, _, out = run
    assert "verification" in out
    assert "rank 1" in out
    assert load_config(run_dir / "config.json").data.align == "3d"
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    (evaluated,) = (row for row in rows if row["kind"] == "eval")
    assert evaluated["pairs"] > 20
    assert 0 <= evaluated["identification"] <= 1
    page = (run_dir / "report.html").read_text()
    for title in ("Verification", "With other alignments", "Worst pairs", "Alignment"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<td>2d</td>") == page.count("<td>none</td>") == 1


@old_matplotlib
def test_a_run_is_evaluated_with_other_alignments(run):
    run_dir, data, _ = run
    common = ("evaluate", run_dir, "--data-dir", data)
    assert "group dark" in command(*common)
    assert "verification accuracy" in command(*common, "--align", "none")
    assert "verification accuracy" in command(*common, "--landmark-noise", 2)
    out = command(*common, "--protocol", "lfw", code=1)
    assert "--protocol lfw needs the pairs of a list" in out


@old_matplotlib
def test_a_run_is_evaluated_by_what_pairs_teach(run, monkeypatch):
    run_dir, data, _ = run
    noises, align = [], verification.align_source

    def record(*arguments, noise):
        noises.append(noise)
        return align(*arguments, noise=noise)

    monkeypatch.setattr(verification, "align_source", record)
    common = ("evaluate", run_dir, "--data-dir", data, "--protocol")
    for protocol, words, *rest in (
        ("siamese", "siamese"),
        ("ensemble", "ensemble", "--ensemble", run_dir, "--landmark-noise", 2),
    ):
        out = command(*common, protocol, *rest)
        (line,) = (row for row in out.splitlines() if row.strip().startswith(words))
        accuracy, _, error = line.removeprefix(f"  {words}").split(",")[0].split()
        assert 0.3 < float(accuracy) <= 1
        assert 0 <= float(error) < 0.2
    assert noises == [0, 2, 2]  # Both networks of the ensemble see the same faces.
    monkeypatch.setattr(commands, "write_visualization", lambda *arguments, **_: "page")
    command("visualize", run_dir, "--data-dir", data)
    assert noises == [0, 2, 2, 0]  # The page shows aligned faces, too.
    for rest in (("ensemble",), ("siamese", "--ensemble", run_dir)):
        out = command(*common, *rest, code=1)
        assert "--protocol ensemble and --ensemble RUN go together" in out


@old_matplotlib
def test_a_run_compares_two_photographs(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)  # As if it were not installed.
    run_dir, _, _ = run
    found = {}
    for number in (0, 1):
        example = draw_example(300, number)
        example["image"].save(tmp_path / f"{number}.png")
        found[f"{number}.png"] = example["landmarks"]
    both = tmp_path / "0.png", tmp_path / "1.png"
    out = command("predict", run_dir, *both, code=1)
    assert "landmarks.csv must have a line" in " ".join(out.split())
    write_landmarks(tmp_path / "landmarks.csv", found)
    out = command("predict", run_dir, *both, "--out", tmp_path / "out")
    assert "probability of the same" in out
    with Image.open(tmp_path / "out" / "0-1.png") as picture:
        assert picture.width > 500
    # The threshold is that of the checkpoint, and not of a later evaluation.
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    history = copy / "metrics.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    later = {**rows[-1], "step": rows[-1]["step"] + 1, "threshold": 9.0}
    history.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, later]))
    again = command("predict", copy, *both, "--out", tmp_path / "again")
    assert again.split("  (")[0] == out.split("  (")[0]
    history.write_text(f"{json.dumps(later)}\n")
    error = command("predict", copy, *both, code=1)
    assert f"checkpoint {rows[-1]['step']}" in error
    assert str(later["step"]) in error
    assert "name two photographs" in command("predict", run_dir, both[0], code=1)


@old_matplotlib
def test_descriptors_of_a_runs_network(run):
    run_dir, _, _ = run
    model, variables, card = zoo.create_with_card(
        "deepface_small", weights=str(run_dir)
    )
    examples = [draw_example(300, number) for number in (0, 1)]
    images = np.stack([np.asarray(example["image"]) for example in examples])
    landmarks = np.stack([example["landmarks"] for example in examples])
    describe = zoo.make_describer(model, card.preprocess, align="3d")
    found = np.asarray(describe(variables, images, landmarks))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="align='3d', and none were given"):
        describe(variables, images)
    with pytest.raises(ValueError, match=r"landmarks must be \[2, L, 2\]"):
        describe(variables, images, landmarks[:1])
    with pytest.raises(ValueError, match="align='4d'"):
        zoo.make_describer(model, card.preprocess, align="4d")
    crops = zoo.normalize(images[:, 8:72, 8:72], card.preprocess)
    measured = measure_maximum(model, variables, [crops[:1], crops[1:]])
    features = zoo.features(model, variables, crops, ["f7"])["f7"]
    maximum = measured["batch_stats"]["backbone"]["f7"]["max"]
    np.testing.assert_allclose(maximum, features.max(0), atol=1e-4)
