"""Boxes and masks in batches: fitted, padded, the same however they are read."""

import itertools

import numpy as np
import pytest
from PIL import Image

from train.data import (
    eval_batches,
    fit_source,
    load_resident,
    resident_bytes,
    train_stream,
)
from train.data.annotations import (
    detection_example,
    make_objects,
    make_values,
    segmentation_example,
)
from train.data.preprocess import fit_example, resize_mask
from train.data.source import Source
from zoo.spec import Preprocess

GRAY = {"channels": 1, "mean": (0.2,), "std": (0.25,)}
STRETCH = Preprocess(size=12, width=20, fit="stretch", **GRAY)
SIDES = Preprocess(size=16, width=24, fit="sides", resize=12, longest=20, **GRAY)
KEEP = Preprocess(size=16, width=24, fit="keep", **GRAY)
CROP = Preprocess(size=6, resize=8, **GRAY)


class Scenes(Source):
    """Images of many sizes with as many objects as their position modulo 4."""

    class_names = ("a", "b", "c")
    name, split = "scenes", "train"

    def __init__(self, task, n=23):
        self.task, self.n = task, n

    def __len__(self):
        return self.n

    def image(self, index):
        rng = np.random.default_rng(index)
        shape = (8 + index % 7, 9 + index % 5, 1)
        return rng.integers(0, 256, shape, np.uint8)

    def provenance(self, index):
        return f"scene {index}"

    def example(self, index):
        rng, image = np.random.default_rng(100 + index), self.image(index)
        height, width, _ = image.shape
        if self.task == "segmentation":
            mask = rng.integers(0, 3, (height, width), np.uint8)
            return segmentation_example(image, mask, make_values(3), "m")
        n = index % 4
        corners = rng.uniform(0, (width, height), (n, 2, 2))
        boxes = np.concatenate([corners.min(1), corners.max(1) + 0.5], -1)
        hard = rng.integers(0, 2, n)
        return detection_example(
            image, make_objects(boxes, rng.integers(0, 3, n), hard)
        )


def take(stream, count, state=None):
    iterator = iter(stream)
    if state is not None:
        iterator.set_state(state)
    try:
        return list(itertools.islice(iterator, count)), iterator.get_state()
    finally:
        iterator.close()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


# Fitting


def test_stretched_boxes_and_masks_go_with_their_image():
    scene = Scenes("detection")[7]
    fitted = fit_example(scene, STRETCH)
    height, width, _ = scene["image"].shape
    pil = Image.fromarray(scene["image"][..., 0]).resize((20, 12), Image.BILINEAR)
    np.testing.assert_array_equal(fitted["image"][..., 0], np.asarray(pil))
    expected = [
        [x1 * 20 / width, y1 * 12 / height, x2 * 20 / width, y2 * 12 / height]
        for x1, y1, x2, y2 in scene["boxes"]
    ]
    np.testing.assert_allclose(fitted["boxes"], expected, rtol=1e-6)
    assert fitted["boxes"].dtype == np.float32
    assert fitted["size"].tolist() == [12, 20]
    scene = Scenes("segmentation")[7]
    fitted = fit_example(scene, STRETCH)
    pil = Image.fromarray(scene["mask"]).resize((20, 12), Image.NEAREST)
    np.testing.assert_array_equal(fitted["mask"], np.asarray(pil))


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (30, 7), (8, 64), (11, 13)])
def test_masks_take_the_pixel_in_which_a_center_lies(size):
    mask = np.random.default_rng(0).integers(0, 256, (11, 13), np.uint8)
    resized = resize_mask(mask, size)
    for i, j in np.ndindex(size):
        y, x = (i + 0.5) * 11 / size[0], (j + 0.5) * 13 / size[1]
        # On a border between two pixels it may be either.
        near = {mask[int(y - e), int(x - f)] for e in (0, 1e-9) for f in (0, 1e-9)}
        assert resized[i, j] in near


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_borders_are_of_the_mean_color_and_ignored(task):
    for index in range(23):
        scene = Scenes(task)[index]
        height, width = scene["image"].shape[:2]
        for preprocess in (SIDES, KEEP):
            fitted = fit_example(scene, preprocess)
            tall, wide = fitted["size"]
            if preprocess is KEEP:
                assert (tall, wide) == (height, width)
                np.testing.assert_array_equal(
                    fitted["image"][:tall, :wide], scene["image"]
                )
            else:
                assert min(tall, wide) == 12 or max(tall, wide) >= 15
                assert abs(tall / wide - height / width) < 0.15
            assert fitted["image"].shape == (16, 24, 1)
            outside = np.ones((16, 24), bool)
            outside[:tall, :wide] = False
            assert (fitted["image"][outside] == 51).all()
            if task == "segmentation":
                assert (fitted["mask"][outside] == 255).all()
                assert (fitted["mask"][~outside] < 3).all()
            elif len(scene["boxes"]):
                factors = fitted["boxes"] / scene["boxes"].clip(1e-9)
                inside = scene["boxes"] > 0
                expected = np.broadcast_to(
                    [wide / width, tall / height] * 2, factors.shape
                )
                np.testing.assert_allclose(factors[inside], expected[inside], rtol=1e-5)


def test_an_upright_image_is_made_smaller_for_a_lying_canvas():
    scene = Scenes("segmentation")[0]
    scene["image"] = np.zeros((30, 15, 1), np.uint8)
    scene["mask"] = np.zeros((30, 15), np.uint8)
    assert fit_example(scene, SIDES)["size"].tolist() == [16, 8]
    with pytest.raises(
        ValueError, match=r"15 x 30 pixels, and fit='keep' has place for"
    ):
        fit_example(scene, KEEP)


def test_masks_are_cropped_and_boxes_are_not():
    scene = Scenes("segmentation")[7]
    # Where a pixel's class follows from its value, it does so after the crop.
    scene["image"] = np.repeat(np.repeat(scene["image"][:8, :8], 4, 0), 4, 1)
    scene["mask"] = scene["image"][..., 0]
    preprocess = Preprocess(size=20, resize=32, **GRAY)
    fitted = fit_example(scene, preprocess)
    np.testing.assert_array_equal(fitted["mask"], fitted["image"][..., 0])
    assert fitted["mask"].shape == (20, 20)
    source = fit_source(Scenes("detection"), CROP)
    with pytest.raises(ValueError, match=r"scene 3: fit='crop' is for images without"):
        source[3]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("preprocess", [STRETCH, SIDES], ids=["stretch", "sides"])
def test_tiny_and_long_images(task, shape, preprocess):
    image = np.zeros((*shape, 1), np.uint8)
    if task == "detection":
        height, width = shape
        example = detection_example(image, make_objects([[0, 0, width, height]], [1]))
    else:
        mask = np.ones(shape, np.uint8)
        example = segmentation_example(image, mask, make_values(3), "m")
    fitted = fit_example(example, preprocess)
    tall, wide = fitted["size"]
    assert fitted["image"].shape == preprocess.shape
    assert 1 <= tall <= preprocess.shape[0]
    assert 1 <= wide <= preprocess.shape[1]
    if task == "detection":
        np.testing.assert_allclose(fitted["boxes"], [[0, 0, wide, tall]], rtol=1e-5)
    else:
        assert (fitted["mask"][:tall, :wide] == 1).all()


# Padding


def test_boxes_are_padded_and_too_many_name_their_image():
    source = fit_source(Scenes("detection"), STRETCH, max_boxes=3)
    for index in range(8):
        example, scene = source[index], Scenes("detection")[index]
        n = len(scene["boxes"])
        assert example["box_valid"].tolist() == [True] * n + [False] * (3 - n)
        assert example["classes"][:n].tolist() == scene["classes"].tolist()
        assert example["difficult"][:n].tolist() == scene["difficult"].tolist()
        for name in ("boxes", "classes", "difficult"):
            assert len(example[name]) == 3
            assert not example[name][n:].any()
        assert example["original_size"].tolist() == [*scene["image"].shape[:2]]
    source = fit_source(Scenes("detection"), STRETCH, max_boxes=2)
    message = r"scene 7 \(#7\) has 3 objects, more than max_boxes=2"
    with pytest.raises(ValueError, match=message):
        source[7]
    with pytest.raises(ValueError, match=r"scene 3 \(#3\) has 3 objects"):
        load_resident(Scenes("detection"), STRETCH, max_boxes=2)


# Batches

EXPECTED = {
    "detection": {
        "image": ("uint8", (5, 12, 20, 1)),
        "index": ("int32", (5,)),
        "size": ("int32", (5, 2)),
        "original_size": ("int32", (5, 2)),
        "boxes": ("float32", (5, 4, 4)),
        "classes": ("int32", (5, 4)),
        "box_valid": ("bool", (5, 4)),
        "difficult": ("bool", (5, 4)),
    },
    "segmentation": {
        "image": ("uint8", (5, 12, 20, 1)),
        "index": ("int32", (5,)),
        "size": ("int32", (5, 2)),
        "original_size": ("int32", (5, 2)),
        "mask": ("uint8", (5, 12, 20)),
    },
}


@pytest.mark.parametrize("task", EXPECTED)
def test_streams_sets_and_evaluations_agree(task):
    source, options = Scenes(task), {"max_boxes": 4}
    data = load_resident(source, STRETCH, **options)
    size = resident_bytes(source, STRETCH, **options)
    assert size == sum(values.nbytes for values in data.values())
    batches, _ = take(train_stream(source, STRETCH, batch_size=5, seed=2, **options), 6)
    tests = list(eval_batches(source, STRETCH, batch_size=5, **options))
    for batch in batches + tests:
        shapes = {k: (v.dtype.name, v.shape) for k, v in batch.items()}
        valid = batch.pop("valid", np.ones(5, bool))
        shapes.pop("valid", None)
        assert shapes == EXPECTED[task]
        where = batch["index"][valid]
        for key in data:
            np.testing.assert_array_equal(batch[key][valid], data[key][where])
            assert not batch[key][~valid].any()
    seen = [i for batch in tests for i in batch["index"]]
    assert seen[:23] == list(range(23))


@pytest.mark.parametrize(
    ("task", "geometry", "workers"),
    [
        ("detection", ("zoom_out:3", "iou_crop", "flip"), 0),
        pytest.param(
            *("detection", ("zoom_out:3", "iou_crop", "flip"), 2),
            marks=pytest.mark.apart,
        ),
        ("segmentation", ("scale_jitter:0.5:2", "rotate:20", "random_crop", "flip"), 0),
    ],
)
def test_changed_batches_go_on_exactly_with_any_number_of_workers(
    task, geometry, workers
):
    def stream(**options):
        return train_stream(
            Scenes(task),
            STRETCH,
            batch_size=6,
            seed=3,
            geometry=geometry,
            max_boxes=4,
            **options,
        )

    whole, _ = take(stream(), 9)
    first, state = take(stream(), 5)
    rest, _ = take(stream(workers=workers), 4, state)
    assert_same(first + rest, whole)
    parts = [take(stream(process_index=p, process_count=2), 3)[0] for p in (0, 1)]
    together = [
        {k: np.concatenate([a[k], b[k]]) for k in a}
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(together, whole[:3])
    # Another change in every epoch.
    second = {
        int(i): x
        for b in whole[3:6]
        for i, x in zip(b["index"], b["image"], strict=True)
    }
    again = [
        np.array_equal(image, second[int(i)])
        for batch in whole[:3]
        for i, image in zip(batch["index"], batch["image"], strict=True)
        if int(i) in second
    ]
    assert sum(again) < len(again) / 4


def test_crops_and_geometry_are_for_their_tasks():
    options = {"batch_size": 5, "seed": 0}
    with pytest.raises(
        ValueError, match="crop='area' is for classification; for detec"
    ):
        train_stream(Scenes("detection"), STRETCH, crop="area", **options)
    with pytest.raises(ValueError, match="iou_crop is for detection"):
        train_stream(Scenes("segmentation"), STRETCH, geometry=("iou_crop",), **options)


@pytest.mark.parametrize("task", EXPECTED)
def test_other_channels_are_named(task):
    rgb = Preprocess(size=8, channels=3, mean=(0,) * 3, std=(1,) * 3, fit="stretch")
    with pytest.raises(ValueError, match=r"scene 0: .* 1 channel.*color='rgb'"):
        fit_source(Scenes(task), rgb)[0]
