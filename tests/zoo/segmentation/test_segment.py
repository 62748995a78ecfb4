"""From uint8 images of any size to masks: borders, sizes, scales, windows."""

import jax
import numpy as np
import pytest
from segmenters import PREPROCESS, RNG, check, make, make_images, probabilities

import zoo
from zoo.ops.resize import resize
from zoo.spec import Preprocess


@pytest.mark.parametrize("bucket", [1, 32])
@pytest.mark.parametrize("size", [(32, 64), (33, 41), (8, 100)])
def test_the_border_is_that_of_the_image_itself(size, bucket):
    model, variables = make()
    images = make_images(*size)
    segment = zoo.make_segmenter(model, bucket=bucket)
    normal = zoo.normalize(images, PREPROCESS)
    check(segment(variables, images), probabilities(model, variables, normal))


def test_a_folder_of_many_sizes_is_compiled_few_times():
    seen = []
    model, variables = make(note=seen.append)
    seen.clear()
    segment = zoo.make_segmenter(model)
    for size in RNG.integers(65, 129, (20, 2)):
        assert segment(variables, make_images(*size, 1)).classes.shape == (1, *size)
    assert seen == [(128, 128)]
    segment(variables, make_images(129, 70, 1))
    assert seen == [(128, 128), (192, 128)]


@pytest.mark.parametrize(("stride", "remainder"), [(8, 1), (16, 0), (1, 0), (32, 12)])
def test_sizes_are_what_the_stride_demands(stride, remainder):
    seen = []
    model, variables = make(note=seen.append, stride=stride, remainder=remainder)
    for bucket in (1, 64):
        segment = zoo.make_segmenter(model, bucket=bucket)
        for height, width in ((65, 64), (31, 150)):
            seen.clear()
            segment(variables, make_images(height, width, 1))
            ((rows, columns),) = seen
            for side, least in ((rows, height), (columns, width)):
                assert side % stride == remainder
                assert least <= side < least + max(bucket, stride)


@pytest.mark.parametrize("size", [(30, 41), (9, 70), (4, 4)])
def test_a_network_without_padding_sees_a_mirrored_border(size):
    facts = dict(margin=3, stride=4, remainder=2, min_size=10)
    model, variables = make(padding="VALID", window=7, **facts)
    images = make_images(*size)
    more = ((0, 0), (3, 3), (3, 3), (0, 0))
    normal = zoo.normalize(np.pad(images, more, mode="reflect"), PREPROCESS)
    expected = probabilities(model, variables, normal)
    check(zoo.make_segmenter(model)(variables, images), expected)


def test_flipping_averages_both_sides():
    model, variables = make()
    images = make_images(33, 41)
    normal = zoo.normalize(images, PREPROCESS)
    plain = probabilities(model, variables, normal)
    mirrored = probabilities(model, variables, normal[:, :, ::-1])[:, :, ::-1]
    assert abs(plain - mirrored).max() > 0.1
    segment = zoo.make_segmenter(model, flip=True)
    check(segment(variables, images), (plain + mirrored) / 2)


@pytest.mark.parametrize("size", [(64, 32), (40, 44)])
def test_scales_average_what_is_seen_at_each(size):
    # Multiples of 4: the scaled images have whole pixels.
    scales = (0.75, 1.5)
    model, variables = make()
    images = make_images(*size)
    normal = zoo.normalize(images, PREPROCESS)

    @jax.jit
    def average(variables, images):
        total = 0.0
        for scale in scales:
            x = resize(images, [int(n * scale) for n in size], antialias=False)
            for turn in (1, -1):
                y = probabilities(model, variables, x[:, :, ::turn])[:, :, ::turn]
                total = total + resize(y, size, antialias=False) / (2 * len(scales))
        return total

    segment = zoo.make_segmenter(model, scales=scales, flip=True, bucket=16)
    check(segment(variables, images), average(variables, normal), atol=1e-5)


def test_no_scale_makes_an_image_smaller_than_the_network_takes():
    seen = []
    model, variables = make(note=seen.append, min_size=24, stride=8)
    segment = zoo.make_segmenter(model, scales=(0.5,), bucket=1)
    seen.clear()
    assert segment(variables, make_images(24, 60)).classes.shape == (2, 24, 60)
    assert seen == [(24, 32)]


@pytest.mark.parametrize("size", [(64, 70), (33, 100), (20, 24)])
def test_windows_average_what_is_seen_in_each(size):
    model, variables = make()
    images = make_images(*size)
    normal = zoo.normalize(images, PREPROCESS)
    window, step = (24, 32), (16, 22)
    height, width = (max(pair) for pair in zip(size, window, strict=True))
    more = ((0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0))
    normal = np.pad(normal, more)
    total, count = 0.0, np.zeros((height, width, 1))
    total = np.zeros((2, height, width, 5))
    for top in {*range(0, height - 24, step[0]), height - 24}:
        for left in {*range(0, width - 32, step[1]), width - 32}:
            at = np.s_[top : top + 24, left : left + 32]
            total[:, *at] += probabilities(model, variables, normal[:, *at])
            count[at] += 1
    expected = (total / count)[:, : size[0], : size[1]]
    segment = zoo.make_segmenter(model, window=window, bucket=32)
    check(segment(variables, images), expected)


def test_windows_of_a_network_without_padding():
    model, variables = make(padding="VALID", window=7, margin=3)
    images = make_images(50, 41)
    whole = zoo.make_segmenter(model)(variables, images)
    windows = zoo.make_segmenter(model, window=(20, 17), overlap=0.25)
    found = windows(variables, images)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-5)
    np.testing.assert_array_equal(found.classes, whole.classes)


def test_some_classes_alone():
    model, variables = make()
    images = make_images(20, 30)
    expected = probabilities(model, variables, zoo.normalize(images, PREPROCESS))
    expected = np.asarray(expected)
    found = zoo.make_segmenter(model, classes=(4, 1))(variables, images)
    assert {*np.unique(found.classes)} == {1, 4}
    np.testing.assert_allclose(
        found.scores, expected[..., [1, 4]].max(axis=-1), rtol=1e-5
    )
    assert (found.classes == 4).mean() == pytest.approx(
        (expected[..., 4] > expected[..., 1]).mean(), abs=1e-3
    )


def test_the_preprocessing_may_be_another():
    model, variables = make()
    images = make_images(20, 30)
    other = Preprocess(
        size=8, channels=3, mean=(0.1,) * 3, std=(1.0,) * 3, channel_order="bgr"
    )
    expected = probabilities(model, variables, zoo.normalize(images, other))
    check(zoo.make_segmenter(model, other)(variables, images), expected)
