"""Evaluation by protocols: every view of every image counts once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from tiny_runs import run_command

import zoo
from train.data import Source, array_source
from train.evaluate import Evaluator
from train.multi_crop import (
    batch_by_shape,
    check_views,
    count_views,
    evaluate_multi_crop,
)
from train.steps import make_mesh
from train.tasks.classification import Classification, softmax_cross_entropy
from zoo.metrics import classification as metrics
from zoo.protocols import PROTOCOLS, get_protocol
from zoo.spec import Card, Preprocess

PREPROCESS = Preprocess(6, 3, (0.5,) * 3, (0.25,) * 3, 8)
SIZES = [(8, 8), (9, 20), (30, 11), (5, 4), (8, 12), (17, 17), (10, 26)]
CLASSES = 7


class Waves(nn.Module):
    """Says something else of each view; takes images of any size."""

    @nn.compact
    def __call__(self, images, train=False):
        x = jnp.concatenate([jnp.sin(images), jnp.cos(3 * images)], -1)
        rows = jnp.arange(x.shape[1]).reshape(1, -1, 1, 1) / x.shape[1]
        columns = jnp.arange(x.shape[2]).reshape(1, 1, -1, 1) / x.shape[2]
        x = jnp.concatenate([x, x * rows, x * columns], -1).mean((1, 2))
        return nn.Dense(CLASSES, kernel_init=nn.initializers.normal(5.0))(x)


class Pictures(Source):
    """Images of many sizes, in memory."""

    def __init__(self, images, labels):
        self.name, self.split = "pictures", "test"
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.class_names = tuple("abcdefg")
        self.read = []

    def image(self, index):
        self.read.append(index)
        return self.images[index]

    def provenance(self, index):
        return f"picture {index}"


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = []
    for i in range(23):
        coarse = rng.integers(0, 256, (3, 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize(SIZES[i % len(SIZES)][::-1])
        images.append(np.asarray(image))
    return Pictures(images, np.arange(23) % CLASSES)


@pytest.fixture(scope="module")
def variables():
    return Waves().init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))


def evaluate(variables, source, protocol, batch_size=64, preprocess=PREPROCESS):
    return evaluate_multi_crop(
        Waves(), variables, source, preprocess, protocol, batch_size=batch_size
    )


def restate(variables, source, protocol):
    """One view after the other, in numpy."""
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], float)
    rows = []
    for image in source.images:
        seen = []
        for view in (v for part in protocol.views(image, PREPROCESS) for v in part):
            x = (view / 255 - 0.5) / 0.25
            x = np.concatenate([np.sin(x), np.cos(3 * x)], -1)
            y, z = (np.arange(n) / n for n in x.shape[:2])
            x = [x, x * y[:, None, None], x * z[:, None]]
            seen.append(np.exp(np.concatenate(x, -1).mean((0, 1)) @ kernel))
        assert len(seen) == protocol.count
        rows.append(np.mean([x / x.sum() for x in seen], axis=0))
    probabilities, labels = np.stack(rows), source.labels
    own = probabilities[np.arange(len(labels)), labels]
    ranks = (probabilities > own[:, None]).sum(1)
    return {
        "count": len(labels),
        "correct": int((ranks == 0).sum()),
        "accuracy": float((ranks == 0).mean()),
        "top5": float((ranks < 5).mean()),
        "loss": float(-np.log(own).mean()),
    }


@pytest.mark.parametrize(
    ("name", "scales"),
    [("ten_crop", ()), ("googlenet_144", (7, 10)), ("dense", (16, 32))],
)
def test_every_view_counts_once(name, scales, source, variables):
    protocol = get_protocol(name, scales or (8,))
    expected = restate(variables, source, protocol)
    # One at a time, and several.
    for batch_size in (1, 100):
        found = evaluate(variables, source, protocol, batch_size)
        assert found == pytest.approx(expected, rel=1e-5)
    shown = {v.shape for i in source.images for v in protocol.views(i, PREPROCESS)}
    assert (len(shown) > 3) == (name == "dense")


def test_views_are_averaged_and_not_the_center_alone(source, variables):
    loss = {
        name: evaluate(variables, source, get_protocol(name, (8,)))["loss"]
        for name in ("center_crop", "ten_crop", "dense")
    }
    assert len({round(value, 3) for value in loss.values()}) == 3


def test_the_center_crop_is_the_evaluators(source, variables):
    evaluator = Evaluator(
        Waves(),
        Classification(softmax_cross_entropy),
        source,
        PREPROCESS,
        make_mesh(jax.devices()[:1]),
        8,
    )
    expected = evaluator(variables).metrics
    found = evaluate(variables, source, get_protocol("center_crop"))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("megabytes", [1024, 0])
def test_batches_have_each_part_once_and_few_shapes(megabytes, devices):
    rng = np.random.default_rng(0)
    shapes = [(2, 4, 4, 1), (2, 4, 8, 1), (3, 4, 4, 1)]
    parts = [(i, rng.integers(1, 256, shapes[i * i % 3], np.uint8)) for i in range(50)]
    pixels = 2 * 4 * 4 * 5 * devices
    seen, lengths = [], set()
    batches = batch_by_shape(iter(parts), pixels, devices, megabytes=megabytes)
    for numbers, batch in batches:
        lengths.add((batch.shape[1:], len(batch)))
        assert len(batch) % devices == 0
        assert batch.size <= pixels
        assert not batch[len(numbers) :].any()
        for number, part in zip(numbers, batch, strict=False):
            np.testing.assert_array_equal(part, parts[number][1])
            seen.append(number)
    assert sorted(seen) == list(range(50))
    assert len(lengths) <= 2 * len(shapes)
    assert (max(length for _, length in lengths) > devices) == (megabytes > 0)


@pytest.mark.parametrize("counts", [(12, 11), (1, 0)])
def test_processes_share_the_images(counts, source, variables):
    protocol = get_protocol("ten_crop", (8,))
    few = Pictures(source.images[: sum(counts)], source.labels[: sum(counts)])
    alone = evaluate(variables, few, protocol)
    states = []
    for process in (0, 1):
        few.read.clear()
        setting = Waves(), variables, few, PREPROCESS, protocol
        states.append(count_views(*setting, batch_size=64, process=(process, 2)))
        assert sorted(few.read) == list(range(process, sum(counts), 2))
        assert len(few.read) == counts[process]
    found = metrics.compute(jax.tree.map(lambda *x: sum(x), *states))
    assert found == pytest.approx(alone, rel=1e-5)


def test_what_a_network_cannot_take_is_said_before_an_image_is_read():
    spec = zoo.get_spec("lenet5_modern")
    model = zoo.build("lenet5_modern")
    abstract = zoo.summary.abstract_variables(model, (28, 28, 1))
    check_views(model, abstract, spec.preprocess, get_protocol("ten_crop"))
    with pytest.raises(ValueError, match=r"dense shows whole images.* 224 x 224 .*28"):
        check_views(model, abstract, spec.preprocess, get_protocol("dense"))
    with pytest.raises(ValueError, match=r"ten_crop makes .* 20 pixels .* takes 28"):
        check_views(model, abstract, spec.preprocess, get_protocol("ten_crop", (20,)))


def test_an_image_that_does_not_fit_is_named(source, variables):
    images = [*source.images[:3], np.zeros((9, 9, 1), np.uint8)]
    with pytest.raises(ValueError, match=r"picture 3: .* has 1 channel\(s\)"):
        evaluate(variables, Pictures(images, range(4)), get_protocol("ten_crop", (8,)))


def test_an_empty_set_is_refused(variables):
    with pytest.raises(ValueError, match="no example was evaluated"):
        evaluate(variables, Pictures([], []), get_protocol("ten_crop", (8,)))


def test_a_class_without_any_probability_has_a_finite_loss(variables):
    huge = jax.tree.map(lambda x: 1e6 * x, variables)
    source = array_source(
        np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3),
        np.arange(4),
        "abcdefg",
    )
    found = evaluate(huge, source, get_protocol("ten_crop", (8,)))
    assert 0 < found["loss"] < 100


def write_folder(root, names):
    rng = np.random.default_rng(0)
    for label, name in enumerate(names):
        (root / "val" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (30 + 3 * i, 40 - 2 * label), np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that nobody trained, for eight classes with names."""
    path = tmp_path_factory.mktemp("weights") / "lenet.safetensors"
    _, variables, card = zoo.create_with_card("lenet5_modern", num_classes=8)
    names = tuple("abcdefgh")
    card = Card("lenet5_modern", 8, {}, card.preprocess, names, "a test")
    zoo.weights.save_safetensors(path, variables, card)
    return path


def command(weights, folder, *options):
    return run_command(
        *("evaluate", "--model", "lenet5_modern", "--weights", weights),
        *("--dataset", f"imagefolder:{folder}", "--split", "val"),
        *("--batch-size", "64", *options),
    )


def test_the_command_prints_both_accuracies_with_intervals(weights, tmp_path):
    folder = write_folder(tmp_path, "abcdefgh")
    for options, line in (
        ((), "center_crop, one view of each image"),
        (("--protocol", "center_crop", "--scales", "40"), "center_crop, one view"),
        (("--protocol", "ten_crop", "--scales", "32"), "ten_crop, 10 views of each"),
    ):
        code, out, err = command(weights, folder, *options)
        assert (code, err) == (0, "")
        assert f"protocol  {line}" in out
        share = r"\d+\.\d\d% \(\d+ of 24\), \d+\.\d\d% to \d+\.\d\d% at 95 %"
        assert re.search(rf"  top-1     {share}", out)
        assert re.search(rf"  top-5     {share}", out)
        assert re.search(r"  speed     [\d,.]+ images per second", out)
        assert "matched by number" not in out


def test_the_help_names_every_protocol():
    out = run_command("evaluate", "--help")[1]
    assert all(re.search(rf"\b{name}\b", out) for name in PROTOCOLS)


def test_folders_with_wordnets_numbers_are_matched_by_number(weights, tmp_path):
    folder = write_folder(tmp_path, [f"n0144076{i}" for i in range(8)])
    code, out, _ = command(weights, folder)
    assert code == 0
    assert "matched by number: class 0 is 'n01440760' in the data set" in out
    assert "and 'a' in" in out
    assert "the last 'n01440767' and 'h'" in out


def test_what_the_command_cannot_do_is_said(weights, tmp_path):
    folder = write_folder(tmp_path / "1", "bcdefghi")
    for options, words in (
        (
            ("--protocol", "tencrop"),
            "unknown protocol 'tencrop'; did you mean ten_crop",
        ),
        ((), "in another order: 'b' is number 0, and in"),
    ):
        code, _, err = command(weights, folder, *options)
        assert code == 1
        assert err.startswith("error: ")
        assert words in err
    folder = write_folder(tmp_path / "2", "abcdefgh")
    for options, words in (
        (("--protocol", "dense"), "dense shows whole images"),
        (("--protocol", "ten_crop", "--scales", "20"), "choose larger scales"),
        (("--protocol", "ten_crop", "--color", "rgb"), "takes 1 (L)"),
    ):
        code, _, err = command(weights, folder, *options)
        assert code == 1
        assert err.startswith("error: ")
        assert words in err
    folder = write_folder(tmp_path / "3", "abc")
    code, _, err = command(weights, folder)
    assert code == 1
    assert "has 3 classes, and" in err
