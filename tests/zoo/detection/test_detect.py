"""From pixels to boxes: a slow reference, and detectors whose answers are known."""

import math
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_detectors import POSTPROCESS, Bright, draw, facts
from tiny_runs import forced_devices

import zoo
from zoo.detect import select_detections
from zoo.detection.types import Candidates, Postprocess

ROOT = Path(__file__).parents[3]


def iou(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0, min(a[3], b[3]) - max(a[1], b[1])
    )
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0


def slow_reference(boxes, scores, valid, rules):
    """Of one image: a list of (score, class, box), best first."""
    found = []
    for k in range(scores.shape[1]):
        places = [
            r
            for r in range(len(scores))
            if valid[r] and scores[r, k] > rules.score_threshold
        ]
        box_of = {r: boxes[r] if boxes.ndim == 2 else boxes[r, k] for r in places}
        places = [
            r
            for r in places
            if min(box_of[r][2] - box_of[r][0], box_of[r][3] - box_of[r][1])
            >= rules.min_size
        ]
        places.sort(key=lambda r: (-scores[r, k], r))
        kept = []
        for r in places[: rules.max_candidates]:
            if all(iou(box_of[r], box_of[s]) <= rules.iou_threshold for s in kept):
                kept.append(r)
        found += [(scores[r, k], k, r, box_of[r]) for r in kept]
    found.sort(key=lambda f: (-f[0], f[1], f[2]))
    return found[: rules.max_detections]


def random_candidates(seed, own_boxes, batch=2, count=40, classes=3):
    rng = np.random.default_rng(seed)
    shape = (batch, count, classes, 2) if own_boxes else (batch, count, 2)
    low = rng.integers(0, 20, shape)
    boxes = np.concatenate([low, low + rng.integers(-1, 12, shape)], -1)
    # Many ties, and some that are no number.
    scores = rng.integers(0, 12, (batch, count, classes)) / 12
    scores[rng.random(scores.shape) < 0.03] = np.nan
    valid = rng.random((batch, count)) < (0.8 if seed % 4 else 0.1)
    return Candidates(np.float32(boxes), np.float32(scores), valid)


RULES = [
    Postprocess(0.3, 0.5, 10),
    Postprocess(0.0, 0.3, 200),
    Postprocess(0.05, 0.45, 30, max_candidates=5, min_size=3.0),
    Postprocess(0.05, 0.0, 30, max_candidates=100, min_size=0.01),
]


@pytest.mark.parametrize(
    ("rules", "own_boxes", "few"),
    [
        (RULES[0], True, 50),
        (RULES[1], False, 8),
        (RULES[2], True, 8),
        pytest.param(RULES[0], False, 2048, marks=pytest.mark.apart),
        pytest.param(RULES[2], False, 2048, marks=pytest.mark.apart),
        pytest.param(RULES[3], False, 8, marks=pytest.mark.apart),
    ],
)
def test_detections_are_those_of_the_slow_reference(cheap_jit, rules, own_boxes, few):
    choose = cheap_jit(partial(select_detections, postprocess=rules, top_n=few))
    for seed in range(8):
        candidates = random_candidates(seed, own_boxes)
        # Of jax's arrays each slice would be compiled.
        found = jax.device_get(choose(candidates))
        assert found.boxes.shape == (2, rules.max_detections, 4)
        assert found.classes.dtype == jnp.int32
        for i in range(2):
            expected = slow_reference(*(np.asarray(x)[i] for x in candidates), rules)
            count = len(expected)
            assert found.valid[i].tolist() == [True] * count + [False] * (
                rules.max_detections - count
            )
            np.testing.assert_array_equal(
                found.scores[i, :count], np.float32([e[0] for e in expected])
            )
            assert found.classes[i, :count].tolist() == [e[1] for e in expected]
            np.testing.assert_array_equal(
                found.boxes[i, :count], np.reshape([e[3] for e in expected], (-1, 4))
            )
            assert not found.boxes[i, count:].any()


def test_every_class_is_searched_only_where_the_few_do_not_suffice(cheap_jit):
    """The best few may all be copies of one box, so that others must be looked at."""
    boxes = np.tile(np.float32([0, 0, 9, 9]), (1, 100, 1))
    boxes[0, 60] = [20, 20, 40, 40]
    scores = np.linspace(0.9, 0.5, 100, dtype=np.float32)[None, :, None]
    rules = Postprocess(0.1, 0.5, 3)
    choose = cheap_jit(partial(select_detections, postprocess=rules, top_n=16))
    found = choose(Candidates(boxes, scores, np.ones((1, 100), bool)))
    assert found.valid[0].tolist() == [True, True, False]
    np.testing.assert_array_equal(found.boxes[0, 1], [20, 20, 40, 40])


def test_candidates_that_share_boxes_are_not_copied():
    """No array has four numbers for each class of each candidate."""
    rows, classes = 3000, 400
    shapes = Candidates(
        jax.ShapeDtypeStruct((1, rows, 4), jnp.float32),
        jax.ShapeDtypeStruct((1, rows, classes), jnp.float32),
        jax.ShapeDtypeStruct((1, rows), bool),
    )
    program = jax.make_jaxpr(partial(select_detections, postprocess=POSTPROCESS))
    found = {*shapes_within(program(shapes).jaxpr)}
    assert (1, 2048, 4) in found
    assert all(math.prod(s) < rows * classes * 4 for s in found if s[-1:] == (4,))


def shapes_within(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape"))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes_within(inner)


# Boxes of the image itself, which become whole cells of the network's input.
CASES = {
    # 60 x 120 becomes 64 x 64.
    "stretch": (facts("stretch"), (60, 120), (8 / 64 * 120, 8 / 64 * 60)),
    # 30 x 45 becomes 64 x 96.
    "sides": (facts("sides", resize=64, longest=128), (30, 45), (3.75, 3.75)),
    "keep": (facts("keep"), (56, 40), (8, 8)),
}


@pytest.mark.parametrize(
    ("fit", "own_boxes"),
    [
        ("stretch", False),
        ("sides", True),
        pytest.param("keep", False, marks=pytest.mark.apart),
    ],
)
def test_boxes_are_in_pixels_of_the_original_image(cheap_jit, fit, own_boxes):
    preprocess, size, (cell_width, cell_height) = CASES[fit]
    cells = [(1, 2), (3, 1), (0, 4)]
    boxes = [
        (x * cell_width, y * cell_height, (x + 1) * cell_width, (y + 1) * cell_height)
        for x, y in cells
    ]
    # A pixel more, so that the cell is bright all over.
    drawn = np.array(boxes) + np.array([-1, -1, 1, 1])
    drawn = np.rint(drawn).clip(0).astype(int)
    image = draw(size, (100, 128), drawn)
    model = Bright(preprocess, own_boxes=own_boxes)
    variables = {"params": {"scale": jnp.ones(3)}}
    canvas = None if fit == "stretch" else (128, 128)
    detect = cheap_jit(zoo.make_detector(model, score_threshold=0.8, canvas=canvas))
    found = detect(variables, image[None], np.array([size]))
    assert found.valid[0].tolist() == [True] * 3 + [False] * 3
    assert found.classes[0, :3].tolist() == [0, 1, 2]
    np.testing.assert_allclose(
        found.scores[0, :3], [1, 245 / 255, 235 / 255], atol=0.01
    )
    np.testing.assert_allclose(found.boxes[0, :3], boxes, atol=1e-4)
    # The same image alone.
    alone = image[None, : size[0], : size[1]]
    again = detect(variables, alone)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(scope="module")
def bright():
    """A detector, its variables, and images of several sizes with their sizes."""
    model = Bright(facts("sides", resize=64, longest=128))
    images = [
        draw(size, size, [(10, 10, 40, 40), (50, 5, 75, 30), (10, 45, 60, 60)])
        for size in ((64, 90), (70, 80), (60, 96), (90, 78))
    ]
    return model, {"params": {"scale": jnp.ones(3)}}, *zoo.pad_images(images, step=32)


def test_other_sizes_compile_nothing(bright):
    model, variables, images, sizes = bright
    traced = []

    class Counting(Bright):
        @jax.named_call
        def decode(self, outputs, sizes=None):
            traced.append(outputs["scores"].shape)
            return super().decode(outputs, sizes)

    detect = zoo.make_detector(Counting(model.preprocess))
    first = detect(variables, images, sizes)
    other = detect(variables, images, sizes[::-1].copy())
    assert len(traced) == 1
    assert not np.array_equal(first.boxes, other.boxes)
    # Types of sizes that mean the same; and another bucket.
    detect(variables, jnp.asarray(images), jnp.asarray(sizes))
    detect(variables, images, sizes.astype(np.int64))
    detect(variables, images, sizes.tolist())
    assert len(traced) == 1
    detect(variables, images[:, :64], np.minimum(sizes, [64, 96]))
    assert len(traced) == 2


@pytest.mark.apart
def test_under_jit_and_vmap(cheap_jit, bright):
    model, variables, images, sizes = bright
    detect = zoo.make_detector(model)
    expected = detect(variables, images, sizes)
    assert expected.valid.any(axis=1).all()
    for found in (
        jax.jit(detect)(variables, images, sizes),
        jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            jax.vmap(detect, in_axes=(None, 0, 0))(
                variables,
                images.reshape(2, 2, *images.shape[1:]),
                sizes.reshape(2, 2, 2),
            ),
        ),
    ):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_regions_from_outside_are_scaled_as_the_image_is(bright):
    _, variables, images, sizes = bright
    seen = {}

    class Outside(Bright):
        def decode(self, outputs, sizes=None):
            given = outputs["proposals"]
            seen["shape"] = given.boxes.shape
            scores = jnp.ones((*given.boxes.shape[:2], 1))
            return Candidates(given.boxes, scores, given.valid)

    boxes = np.float32([[[10, 20, 30, 40]]]).repeat(len(images), 0)
    regions = Candidates(boxes, np.zeros((4, 1, 1)), np.ones((4, 1), bool))
    detect = zoo.make_detector(Outside(facts("sides", resize=64, longest=128)))
    found = detect(variables, images, sizes, regions)
    assert seen["shape"] == (4, 1, 4)
    np.testing.assert_allclose(found.boxes[:, :1], boxes, rtol=1e-5)


PARALLEL = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    import zoo
    from tiny_detectors import Bright, draw, facts

    variables = {"params": {"scale": jnp.ones(3)}}
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = NamedSharding(mesh, P("data"))
    # So large that suppression takes the best few candidates first.
    widths = (90, 80, 70, 60)
    images = np.stack([draw((64, w), (64, 96), [(10, 10, 40, 40)]) for w in widths])
    sizes = np.int32([(64, w) for w in widths])
    detect = zoo.make_detector(Bright(facts("sides", resize=128, longest=256)))
    one = detect(variables, images, sizes)
    many = detect(
        jax.device_put(variables, NamedSharding(mesh, P())),
        jax.device_put(images, spread),
        jax.device_put(sizes, spread),
    )
    assert many.boxes.sharding.is_equivalent_to(spread, 3), many.boxes.sharding
    assert np.asarray(one.valid).any(axis=1).all()
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    print("agree on", len(jax.devices()))
"""


def test_a_batch_can_be_spread_over_devices():
    environment = {
        "XLA_FLAGS": forced_devices(2),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/reference")]),
    }
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARALLEL)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "agree on 2\n", ran.stderr
