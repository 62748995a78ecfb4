"""What is known of the world's weights and classes, and that users are told it."""

import dataclasses
import re

import pytest

import zoo
from zoo.__main__ import run
from zoo.classification.imagenet import CAFFE_MEAN, IMAGENET, class_names
from zoo.weights import cache_path

PUBLISHED = {
    (name, weights.name): weights
    for name in zoo.list_models(task="classification")
    for weights in zoo.get_spec(name).weights
}
# torchvision's file of the same arrays as the hub's copy.
HUB = {
    "resnet18": "f37072fd",
    "resnet34": "b627a593",
    "resnet50": "0676ba61",
    "vgg16": "397923af",
}


def test_the_classes_are_those_of_every_public_set():
    names = class_names()
    assert len(names) == len({*names}) == 1000
    assert all(name == name.strip() and name for name in names)
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby"}
    known |= {285: "Egyptian cat", 817: "sports car", 985: "daisy"}
    known |= {999: "toilet tissue"}
    assert {i: names[i] for i in known} == known


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids="-".join)
def test_the_facts_of_weights_are_complete(name, weights):
    spec, facts = zoo.get_spec(name), PUBLISHED[name, weights]
    assert facts.url.startswith("https://")
    assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", facts.sha256)
    # What is kept says its hash, so that another version would be another file.
    kept = cache_path(facts)
    assert kept.stem.endswith(f"-{facts.sha256[:8]}")
    assert kept.suffix in (".safetensors", ".pth", ".th")
    if "huggingface.co" in facts.url:
        # Of one commit, and the hash whole: the name in the URL says neither.
        assert re.search(r"/resolve/[0-9a-f]{40}/model\.safetensors$", facts.url)
        assert len(facts.sha256) == 64
    else:
        assert facts.url.endswith(kept.name)
    assert facts.licence in ("BSD-3-Clause", "BSD-2-Clause")
    assert facts.source
    assert re.match(r"\d\d\.\d\d % .*images", facts.accuracy)
    assert len(facts.class_names) == spec.num_classes
    assert facts.preprocess.size == spec.preprocess.size
    assert facts.preprocess.channels == spec.preprocess.channels


def test_no_two_files_have_one_name():
    names = [cache_path(facts).name for facts in PUBLISHED.values()]
    assert len(names) == len({*names})


def test_the_hubs_copies_stand_for_torchvisions_files():
    hub = {
        name: facts
        for (name, _), facts in PUBLISHED.items()
        if "huggingface.co" in facts.url
    }
    assert {name: facts.copies for name, facts in hub.items()} == {
        name: (sha256,) for name, sha256 in HUB.items()
    }
    for name, facts in hub.items():
        assert f"/timm/{name}.tv_in1k/" in facts.url


def test_vggs_rules_know_timms_names():
    rules = zoo.get_spec("vgg16").torch_rules(zoo.build("vgg16"))
    assert {rule.key: rule.alias for rule in rules if rule.alias} == {
        "classifier.0": "pre_logits.fc1",
        "classifier.3": "pre_logits.fc2",
        "classifier.6": "head.fc",
    }


def test_colors():
    assert IMAGENET.mean == (0.485, 0.456, 0.406)
    assert IMAGENET.std == (0.229, 0.224, 0.225)
    assert [round(m * 255, 3) for m in CAFFE_MEAN.mean] == [123.68, 116.779, 103.939]
    assert [s * 255 for s in CAFFE_MEAN.std] == [1, 1, 1]
    for (name, weights), facts in PUBLISHED.items():
        if "ImageNet" in facts.accuracy:
            shorter = 232 if weights == "imagenet_v2" else 256
            assert facts.preprocess.resize == shorter, name
            if name != "googlenet_tv":  # It was trained with other colors.
                assert facts.preprocess.mean == IMAGENET.mean, name


def test_a_description_has_the_facts():
    text = zoo.describe("resnet18")
    facts = PUBLISHED["resnet18", "imagenet"]
    for part in (facts.url, facts.sha256, facts.licence, facts.accuracy, facts.source):
        assert part in text, part
    assert "224x224x3 RGB of a shorter side of 256 (bilinear), mean 0.485" in text
    assert "1000 classes, 'tench' to 'toilet tissue'" in text


VERSIONS = ("imagenet", "imagenet_v2")


def test_the_command_lists_them_with_the_place_of_the_file(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    run(["weights", "resnet50*"])
    out = capsys.readouterr().out
    for key in (("resnet50", name) for name in VERSIONS):
        assert f"{' '.join(key)}: {PUBLISHED[key].accuracy}" in out
        path = tmp_path / cache_path(PUBLISHED[key]).name
        assert f"will be kept as {path}" in out
    assert "resnet18" not in out
    # The publisher states a part of the hash of one of them.
    first, second = (PUBLISHED["resnet50", name].sha256 for name in VERSIONS)
    assert f"sha256 {first}\n" in out
    assert (len(first), len(second)) == (64, 8)
    assert f"sha256 {second} (the first 8 of 64 digits are published)\n" in out


def test_the_command_says_what_has_none_and_does_not_fetch_offline(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(SystemExit) as stop:
        run(["weights", "plain18"])
    assert stop.value.code == "error: no model that matches 'plain18' has weights."
    words = r"^error: .*resnet18\.tv_in1k-694f673d\.safetensors with the hash"
    with pytest.raises(SystemExit, match=words):
        run(["weights", "resnet18", "--fetch"])


def test_a_card_takes_its_facts_to_json_and_back():
    card = zoo.create_with_card("lenet5")[2]
    card = dataclasses.replace(card, licence="MIT", accuracy="99 %")
    assert type(card).from_json(card.to_json()) == card
    # What was written before there were these facts.
    old = {k: v for k, v in card.to_json().items() if k not in ("licence", "accuracy")}
    assert type(card).from_json(old).licence == ""
