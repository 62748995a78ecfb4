"""Random crops: what they cut out, and that nothing but seed, step and image decide."""

import dataclasses
import itertools
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from train.config import DataConfig
from train.data import array_source, parse_crop, train_stream
from train.data.crops import draw_numbers
from train.data.source import Source
from train.loaders import ResidentLoader, StreamLoader, make_loader
from train.steps import make_mesh
from zoo.preprocess import resize_center_crop
from zoo.spec import Preprocess

GRAY = Preprocess(size=6, channels=1, mean=(0.5,), std=(0.5,), resize=8)
RGB = Preprocess(size=6, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
WIDE = Preprocess(
    size=20, channels=3, mean=(0,) * 3, std=(1,) * 3, interpolation="bicubic"
)
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def make_image(height, width, channels=3, seed=0):
    """Noise that is smooth enough for a pixel to be told from its neighbors."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height)))
    return image[..., :channels]


class Sizes(Source):
    """Images of different sizes, each of one value: its position."""

    def __init__(self, n=23):
        self.name, self.split, self.class_names = "sizes", "train", ("a", "b")
        self.labels = np.arange(n, dtype=np.int32) % 2

    def image(self, index):
        return make_image(9 + index % 7, 8 + index % 5, 1, seed=index)

    def provenance(self, index):
        return f"#{index}"


# What is cut out


def resize_all(image, side, preprocess):
    """The whole image with its shorter side scaled."""
    height, width = image.shape[:2]
    size = (
        (side, int(side * height / width))
        if width <= height
        else (int(side * width / height), side)
    )
    resample = FILTERS[preprocess.interpolation]
    return np.asarray(Image.fromarray(image).resize(size, resample))


def assert_alike(found, expected):
    """The same but for what Pillow rounds between its two passes, in either order."""
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 0.5
    assert difference.max() <= 4


@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (30, 90), (200, 100)])
@pytest.mark.parametrize("preprocess", [RGB, WIDE], ids=["bilinear", "bicubic"])
def test_crops_of_a_scaled_image_are_those_of_the_whole_scaled(shape, preprocess):
    image, size = make_image(*shape), preprocess.size
    for index in range(20):
        numbers = draw_numbers(0, 0, index)
        side = 24 + int(numbers[0] * 9)
        whole = resize_all(image, side, preprocess)
        top = int(numbers[1] * (whole.shape[0] - size + 1))
        left = int(numbers[2] * (whole.shape[1] - size + 1))
        expected = whole[top : top + size, left : left + size]
        found = parse_crop("scale_jitter:24:32", preprocess)(numbers, image, preprocess)
        assert_alike(found, expected)

        whole = resize_all(image, 28, preprocess)
        top, left = (round((n - 28) / 2) for n in whole.shape[:2])
        central = whole[top : top + 28, left : left + 28]
        top, left = (int(n * (28 - size + 1)) for n in numbers[:2])
        expected = central[top : top + size, left : left + size]
        found = parse_crop("square:28", preprocess)(numbers, image, preprocess)
        assert_alike(found, expected)


@pytest.mark.parametrize(
    ("text", "places"), [("square:8", 3 * 3), ("scale_jitter:8:8", 3 * 7)]
)
def test_every_place_is_as_frequent_as_the_others(text, places):
    # Its shorter side is 8 already: nothing is resampled.
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 1), np.uint8)
    crop, found = parse_crop(text, GRAY), {}
    for index in range(100 * places):
        part = crop(draw_numbers(5, 1, index), image, GRAY).tobytes()
        found[part] = found.get(part, 0) + 1
    left = range(2, 5) if "square" in text else range(7)
    parts = [image[t : t + 6, x : x + 6] for t in range(3) for x in left]
    assert found.keys() == {part.tobytes() for part in parts}
    assert len(found) == places
    assert 50 < min(found.values()) <= max(found.values()) < 150


def test_scales_are_whole_and_the_last_is_one_of_them():
    wide = dataclasses.replace(RGB, size=24)
    crop = parse_crop("scale_jitter:24:32", wide)
    # A ramp, whose slope shows to how many columns it was resized.
    ramp = np.broadcast_to(np.uint8(4 * np.arange(64))[None, :, None], (64, 64, 3))
    sides = []
    for index in range(900):
        row = crop(draw_numbers(0, 0, index), ramp, wide)[12, 2:-2, 0].astype(float)
        sides.append(round(256 * (len(row) - 1) / (row[-1] - row[0])))
    counts = {side: sides.count(side) for side in sorted(set(sides))}
    assert [*counts] == [*range(24, 33)]
    assert 60 < min(counts.values()) <= max(counts.values()) < 140


@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (100, 100), (30, 50)])
def test_areas_are_cut_out_and_then_resized(shape):
    image, (height, width) = make_image(*shape), shape
    for index in range(30):
        numbers = draw_numbers(1, 2, index)
        for i in range(10):
            area = height * width * (0.2 + 0.6 * numbers[i])
            ratio = np.exp((2 * numbers[10 + i] - 1) * np.log(4 / 3))
            h, w = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
            if h <= height and w <= width:
                top = int(numbers[20 + i] * (height - h + 1))
                left = int(numbers[30 + i] * (width - w + 1))
                break
        else:
            pytest.fail("none of ten fits")
        part = Image.fromarray(image).crop((left, top, left + w, top + h))
        expected = np.asarray(part.resize((20, 20), Image.BICUBIC))
        found = parse_crop("area:0.2:0.8", WIDE)(numbers, image, WIDE)
        np.testing.assert_array_equal(found, expected)


def test_areas_are_spread_over_their_range():
    parts = []

    class Watched(np.ndarray):
        def __getitem__(self, window):
            parts.append(super().__getitem__(window).shape)
            return np.zeros((1, 1, 3), np.uint8)

    crop = parse_crop("area:0.08:1", RGB)
    image = np.zeros((300, 400, 3), np.uint8).view(Watched)
    for index in range(3000):
        crop(draw_numbers(0, 0, index), image, RGB)
    height, width, _ = np.array(parts, float).T
    share, ratio = height * width / (300 * 400), width / height
    assert 0.08 - 1e-3 < share.min() < 0.1
    assert 0.95 < share.max() <= 1
    assert 0.74 < ratio.min() < ratio.max() < 1.35
    # Up to the share at which any sides fit it is uniform, and so is the ratio's log.
    small = share < 0.5
    assert np.abs(np.histogram(share[small], 6)[0] / small.sum() - 1 / 6).max() < 0.04
    log = np.histogram(np.log(ratio[small]), 4)[0] / small.sum()
    assert np.abs(log - 1 / 4).max() < 0.05


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((4, 100), (0, 4), (47, 52)), ((100, 4), (47, 52), (0, 4))],
)
def test_where_no_area_fits_it_is_the_largest_central_part(shape, rows, columns):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    part = Image.fromarray(image[slice(*rows), slice(*columns)])
    expected = np.asarray(part.resize((6, 6), Image.BILINEAR))
    found = parse_crop("area:1:1", RGB)(draw_numbers(0, 0, 0), image, RGB)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("text", ["center", "square:8", "scale_jitter:8:12", "area"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (5, 3), (6, 6)])
def test_the_smallest_and_the_longest_images_give_a_crop_too(text, shape):
    for preprocess in (GRAY, RGB):
        image = make_image(*shape, preprocess.channels)
        crop = parse_crop(text, preprocess)
        for index in range(5):
            found = crop(draw_numbers(0, 0, index), image, preprocess)
            assert found.shape == (6, 6, preprocess.channels)
            assert image.min() <= found.min() <= found.max() <= image.max()


def test_the_center_is_that_of_evaluation():
    image = make_image(13, 17, 1)
    found = parse_crop("center", GRAY)(draw_numbers(0, 0, 0), image, GRAY)
    np.testing.assert_array_equal(found, resize_center_crop(image, GRAY))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "centre",
            r"unknown crop 'centre'; did you mean 'center'\? There are center, ",
        ),
        ("square:5", "square: a shorter side of 5 pixels is less than the 6"),
        ("scale_jitter:5:9", "scale_jitter: a shorter side of 5 pixels"),
        ("scale_jitter:9:8", "scale_jitter: most=8 is less than least=9"),
        ("scale_jitter:9", r"has 1 number\(s\); expected scale_jitter:least:most"),
        ("square:8.5", "side cannot be '8.5', expected int"),
        ("area:0:1", r"area: least=0\.0, most=1\.0; expected 0 < "),
        ("area:0.5:1.5", "area: least=0.5, most=1.5"),
        ("center:6", r"has 1 number\(s\); expected center\."),
    ],
)
def test_crops_that_do_not_fit_are_refused_at_once(text, message):
    with pytest.raises(ValueError, match=message):
        parse_crop(text, GRAY)
    with pytest.raises(ValueError, match=message):
        train_stream(Sizes(), GRAY, batch_size=4, seed=0, crop=text)


# What decides


def test_numbers_are_the_same_for_ever():
    # A run that an older version began goes on exactly.
    expected = [0.9958144172860609, 0.9258340720784478, 0.616117226556492]
    np.testing.assert_allclose(draw_numbers(3, 4, 5)[:3], expected, rtol=1e-15)


def test_numbers_are_uniform_and_differ_by_seed_step_and_index():
    keys = [*itertools.product(range(8), range(8), range(8))]
    numbers = np.array([draw_numbers(*key) for key in keys])
    assert len(np.unique(numbers)) == numbers.size == 512 * 40
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    counts = np.histogram(numbers, 10, (0, 1))[0] / numbers.size
    assert np.abs(counts - 0.1).max() < 0.01


def take(stream, count, state=None):
    iterator = iter(stream)
    try:
        if state is not None:
            iterator.set_state(state)
        batches = list(itertools.islice(iterator, count))
        return batches, json.loads(json.dumps(iterator.get_state()))
    finally:
        iterator.close()


def make_stream(**options):
    options = {"batch_size": 6, "seed": 1, "crop": "area:0.1:0.6"} | options
    return train_stream(Sizes(), GRAY, **options)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


@pytest.mark.parametrize("process_count", [2, 3])
def test_the_parts_of_all_processes_are_the_batch(process_count):
    whole, _ = take(make_stream(), 7)
    parts = [
        take(make_stream(process_index=p, process_count=process_count), 7)[0]
        for p in range(process_count)
    ]
    together = [
        {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


@pytest.mark.apart
def test_crops_go_on_exactly_with_any_number_of_workers():
    whole, _ = take(make_stream(), 9)
    first, state = take(make_stream(), 5)
    assert state == {"next_index": 5}
    rest, _ = take(make_stream(workers=2), 4, state)
    assert_same(first + rest, whole)


def test_each_epoch_and_each_seed_cut_anew():
    def by_image(batches):
        return {
            int(i): image.tobytes()
            for batch in batches
            for i, image in zip(batch["index"], batch["image"], strict=True)
        }

    batches, _ = take(make_stream(), 6)  # two epochs of three steps
    first, second = by_image(batches[:3]), by_image(batches[3:])
    both = first.keys() & second.keys()
    assert len(both) > 10
    assert all(first[i] != second[i] for i in both)
    # Another seed, but the same images in this step.
    image = Sizes().image(3)
    crop = parse_crop("area:0.1:0.6", GRAY)
    parts = {crop(draw_numbers(seed, 0, 3), image, GRAY).tobytes() for seed in range(5)}
    assert len(parts) == 5


def test_crops_can_be_sent_to_workers():
    crop = parse_crop("scale_jitter:8:12", GRAY)
    again = pickle.loads(pickle.dumps(crop))
    image, numbers = make_image(20, 30, 1), draw_numbers(0, 0, 0)
    np.testing.assert_array_equal(
        again(numbers, image, GRAY), crop(numbers, image, GRAY)
    )


def test_other_channels_are_named_as_for_the_center():
    stream = train_stream(Sizes(), RGB, batch_size=6, seed=0, crop="area")
    with pytest.raises(ValueError, match="takes 3; open the data set with color='rgb'"):
        take(stream, 1)


@pytest.mark.parametrize(
    ("crop", "kind"), [("center", ResidentLoader), ("area", StreamLoader)]
)
def test_random_crops_are_streamed(crop, kind):
    mesh = make_mesh(jax.devices()[:1])
    source = array_source(np.zeros((23, 8, 8, 1), np.uint8), np.arange(23) % 3)
    config = DataConfig("arrays", batch_size=4, crop=crop)
    assert type(make_loader(config, source, GRAY, mesh, 0)) is kind
    config = DataConfig("arrays", batch_size=4, crop=crop, placement="device")
    if kind is ResidentLoader:
        assert type(make_loader(config, source, GRAY, mesh, 0)) is kind
    else:
        message = "data.crop=area cuts .* data.placement must be auto or stream"
        with pytest.raises(ValueError, match=message):
            make_loader(config, source, GRAY, mesh, 0)
