"""The measures of maps, on maps and networks whose answers are known."""

import itertools

import jax
import numpy as np
import pytest
from tiny_explained import make_tiny

from zoo import explain
from zoo.paths import flatten
from zoo.registry import build


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


def test_similarity_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, size=(2, 3, 5, 6, 2)).astype(np.float32)
    found = explain.similarity(a, b)
    for i in range(3):
        ranked = [np.abs(x[i]).max(-1).reshape(-1) for x in (a, b)]
        expected = stats.spearmanr(*ranked).statistic
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
    np.testing.assert_allclose(explain.similarity(a, -2 * a), 1, atol=1e-5)
    assert explain.similarity(a, np.ones_like(a)).tolist() == [0, 0, 0]
    for other in (a[:1], a.reshape(3, 6, 5, 2)):
        with pytest.raises(ValueError, match="maps must be of one size"):
            explain.similarity(a, other)


def test_mass_in_mask():
    maps = np.zeros((3, 4, 4, 2), np.float32)
    maps[0, 1, 1] = [-3, 1]
    maps[0, 3, 3] = [0.5, -1]
    maps[1, 0, 0, 0] = 2
    masks = np.zeros((3, 4, 4), bool)
    masks[:, :2, :2] = True
    np.testing.assert_allclose(explain.mass_in_mask(maps, masks), [0.75, 1, 0])
    with pytest.raises(ValueError, match=r"masks must be \[3, 4, 4\]"):
        explain.mass_in_mask(maps, masks[:2])


def test_layers_are_randomized_from_the_last_on(tiny):
    model, variables, images = tiny
    steps = explain.randomize_layers(model, variables, images, key=jax.random.key(0))
    before = flatten(variables["params"])
    changed = []
    for path, shuffled in steps:
        changed.append(path)
        after = flatten(shuffled["params"])
        different = {n for n in after if not np.array_equal(after[n], before[n])}
        assert {n for n in different if n.endswith("kernel")} == {
            f"{p}/kernel" for p in changed
        }
        for name in after:
            np.testing.assert_array_equal(
                np.sort(np.ravel(after[name])), np.sort(np.ravel(before[name]))
            )
    assert changed == ["head/fc", "backbone/conv2", "backbone/conv1"]


def test_curves_begin_and_end_where_they_must(tiny):
    model, variables, images = tiny
    labels = np.array([0, 1])
    maps = explain.saliency(model, variables, images, "logits", labels)

    def shares(images):
        logits = model.apply(variables, images)
        return np.asarray(jax.nn.softmax(logits))[[0, 1], labels]

    args = (model, variables, images, maps, labels)
    deletion = explain.perturbation_curve(*args, mode="deletion", steps=5, fill=0.3)
    insertion = explain.perturbation_curve(*args, mode="insertion", steps=5, fill=0.3)
    assert deletion.shape == insertion.shape == (2, 6)
    empty = shares(np.full_like(images, 0.3))
    for curve, ends in (
        (deletion, (shares(images), empty)),
        (insertion, (empty, shares(images))),
    ):
        np.testing.assert_allclose(curve[:, 0], ends[0], atol=1e-6)
        np.testing.assert_allclose(curve[:, -1], ends[1], atol=1e-6)
    # A fifth of the pixels, those of the largest magnitude.
    order = np.abs(np.asarray(maps)).max(-1).reshape(2, -1).argsort(axis=1)[:, ::-1]
    hidden = images.reshape(2, -1, 2).copy()
    for i in range(2):
        hidden[i, order[i, :29]] = 0.3
    expected = shares(hidden.reshape(images.shape))
    np.testing.assert_allclose(deletion[:, 1], expected, atol=1e-6)
    # A quarter of the squares of 6 x 6 pixels: that of the largest mean.
    size = np.abs(np.asarray(maps)).max(-1).reshape(2, 2, 6, 2, 6).mean(axis=(2, 4))
    hidden = images.copy()
    for i, best in enumerate(size.reshape(2, -1).argmax(-1)):
        top, left = 6 * (best // 2), 6 * (best % 2)
        hidden[i, top : top + 6, left : left + 6] = 0.3
    options = dict(mode="deletion", steps=4, fill=0.3)
    squares = explain.perturbation_curve(*args, cell=6, **options)
    np.testing.assert_allclose(squares[:, 1], shares(hidden), atol=1e-6)
    with pytest.raises(ValueError, match=r"cell must divide.*12 x 12, got 5"):
        explain.perturbation_curve(*args, cell=5, **options)
    with pytest.raises(ValueError, match="mode must be"):
        explain.perturbation_curve(*args, mode="delete")
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        explain.perturbation_curve(*args, mode="deletion", steps=0)
    *rest, labels = args
    with pytest.raises(ValueError, match=r"labels must be a whole number .* got None"):
        explain.perturbation_curve(*rest, None, mode="deletion")
    turned = np.zeros((2, 6, 24, 3))
    with pytest.raises(ValueError, match=r"maps must be \[2, 12, 12\] like the images"):
        explain.perturbation_curve(*rest[:3], turned, labels, mode="deletion")


def test_transforms_of_images():
    images = np.zeros((1, 5, 5, 1), np.float32)
    images[0, 1, 2] = 1
    (down,) = explain.translations([2])
    assert np.argwhere(np.asarray(down(images))[0, ..., 0] > 0.5).tolist() == [[3, 2]]
    (turned,) = explain.rotations([90])  # What was above the center is on the left.
    assert np.argwhere(np.asarray(turned(images))[0, ..., 0] > 0.5).tolist() == [[2, 1]]
    (large,) = explain.scalings([2.0])
    assert np.asarray(large(images))[0, 0, 2, 0] > 0.9
    for transform in (*explain.rotations([0]), *explain.scalings([1.0])):
        np.testing.assert_allclose(transform(images), images, atol=1e-6)


def test_invariance_by_hand(tiny):
    model, variables, images = tiny
    labels = np.array([2, 0])
    transforms = [lambda x: x, *explain.translations([3])]
    found = explain.invariance(
        model, variables, images, labels, transforms, ["conv1", "pool"]
    )
    still = model.apply(variables, images, method="endpoints")
    moved = model.apply(variables, transforms[1](images), method="endpoints")
    for name in ("conv1", "pool"):
        np.testing.assert_allclose(found[name][0], 0, atol=1e-5)
        change = np.asarray(still[name] - moved[name]).reshape(2, -1)
        expected = np.linalg.norm(change, axis=1)
        np.testing.assert_allclose(found[name][1], expected, rtol=1e-5)
    shares = np.asarray(jax.nn.softmax(moved["logits"]))[[0, 1], labels]
    np.testing.assert_allclose(found["probability"][1], shares, atol=1e-6)


def test_ablation_takes_layers_away(tiny):
    model, variables, images = tiny
    cut = explain.ablate(variables, ["backbone/conv2"])
    out = model.apply(cut, images, method="endpoints")
    assert not np.asarray(out["conv2"]).any()
    whole = model.apply(variables, images, method="endpoints")
    np.testing.assert_array_equal(out["pool1"], whole["pool1"])
    with pytest.raises(ValueError, match=r"layer 'backbone/conv3'.*backbone/conv2"):
        explain.ablate(variables, ["backbone/conv3"])


def test_each_layer_is_randomized_once():
    model = build("faster_rcnn_small")
    images = np.zeros((1, 96, 96, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
    key = jax.random.key(0)
    layers = explain.randomize_layers(model, ones, images, key=key)
    # Among them those of the RPN, which runs on two maps.
    paths = [path for path, _ in itertools.islice(layers, 9)]
    assert {"rpn/conv", "rpn/cls_logits"} < {*paths}
    assert len(paths) == len({*paths})
