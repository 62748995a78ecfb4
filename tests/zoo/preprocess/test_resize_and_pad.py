"""Whole images on their way to a network, against torchvision's rule restated."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from platforms import run_as_on

from zoo.ops.resize import resize, resize_padded, scale_size
from zoo.preprocess import (
    canvas_size,
    normalize,
    resize_and_pad,
    resize_boxes,
    resize_shortest_edge,
    resized_size,
)
from zoo.spec import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = Preprocess(
    64, 3, MEAN, STD, resize=64, longest=107, fit="sides", antialias=False
)
STRETCH = Preprocess(48, 3, MEAN, STD, width=80, fit="stretch", antialias=False)
KEEP = Preprocess(64, 3, MEAN, STD, fit="keep")
# In arrays of 100 x 100; the third and the last come out a pixel short in float64.
SIZES = [(100, 97), (50, 70), (49, 49), (37, 70), (90, 33), (30, 100), (1, 1), (98, 97)]


def picture(height, width, channels=3):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def batch():
    """Images in the upper left corners of arrays of noise, and their sizes."""
    arrays = np.random.default_rng(0).integers(0, 256, (len(SIZES), 100, 100, 3))
    return arrays.astype(np.uint8), np.int32(SIZES)


def torchvision_size(height, width, shorter, longest):
    """GeneralizedRCNNTransform: numbers of Python, then interpolate's floor."""
    scale = min(
        shorter / min(height, width),
        longest / max(height, width),
    )
    return math.floor(height * scale), math.floor(width * scale)


def torch_interpolate(image, height, width):
    """PyTorch's bilinear rule for each pixel, align_corners=False, no antialias."""
    out = np.zeros((height, width, image.shape[-1]))
    rows, columns = image.shape[:2]
    for y in range(height):
        top = max((y + 0.5) * rows / height - 0.5, 0)
        y0, dy = int(top), top - int(top)
        y1 = min(y0 + 1, rows - 1)
        for x in range(width):
            left = max((x + 0.5) * columns / width - 0.5, 0)
            x0, dx = int(left), left - int(left)
            x1 = min(x0 + 1, columns - 1)
            upper = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            lower = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            out[y, x] = upper * (1 - dy) + lower * dy
    return out


@pytest.mark.parametrize("limits", [(800, 1333), (600, 1000), (300, 300), (96, 16000)])
def test_scaled_sizes_are_those_of_float64(limits):
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [
            rng.integers(1, 2000, (20000, 2)),
            rng.integers(1, 40, (4000, 2)),
            rng.integers(1, 1000, (10000, 2)) * 16,
            np.repeat(np.arange(1, 5000), 2).reshape(-1, 2),
        ]
    ).astype(np.int32)

    def scale(size):
        return scale_size(size, [(limits[0], size.min()), (limits[1], size.max())])

    found = jax.jit(jax.vmap(scale))(sizes)
    factor = np.minimum(limits[0] / sizes.min(1), limits[1] / sizes.max(1))
    expected = np.maximum(1, np.floor(sizes * factor[:, None]))
    np.testing.assert_array_equal(found, expected)
    # Not what whole numbers alone give.
    assert (found.min(1) < np.minimum(limits[0], sizes.min(1) * 16000)).any()
    host = [resized_size(*map(int, s), facts_of(limits)) for s in sizes[:500]]
    np.testing.assert_array_equal(host, expected[:500])


def facts_of(limits):
    return dataclasses.replace(SIDES, resize=limits[0], longest=limits[1])


def test_sides_are_fitted_as_torchvision_does():
    arrays, sizes = batch()
    canvas = (128, 128)
    fitted = jax.jit(lambda a, s: resize_and_pad(a, SIDES, s, canvas=canvas))(
        arrays, sizes
    )
    assert fitted.images.dtype == jnp.float32
    short = []
    for array, size, image, filled in zip(arrays, SIZES, *fitted, strict=True):
        expected_size = torchvision_size(*size, 64, 107)
        assert tuple(filled) == expected_size == resized_size(*size, SIDES)
        short.append(min(expected_size) == 63)
        pixels = (array[: size[0], : size[1]] / 255.0 - MEAN) / STD
        expected = np.zeros((*canvas, 3))
        expected[: filled[0], : filled[1]] = torch_interpolate(pixels, *expected_size)
        np.testing.assert_allclose(image, expected, atol=2e-4)
    assert any(short)


@pytest.mark.parametrize("antialias", [False, True])
def test_stretching_is_resizing_of_what_is_filled(antialias):
    arrays, sizes = batch()
    facts = dataclasses.replace(STRETCH, antialias=antialias)
    fitted = jax.jit(lambda a, s: resize_and_pad(a, facts, s))(arrays, sizes)
    assert fitted.images.shape[1:] == facts.shape
    assert (np.asarray(fitted.sizes) == facts.shape[:2]).all()
    for array, (height, width), image in zip(arrays, SIZES, fitted.images, strict=True):
        pixels = normalize(array[:height, :width], facts)
        expected = resize(pixels, (48, 80), antialias=antialias)
        np.testing.assert_allclose(image, expected, atol=2e-4)


def test_what_is_kept_is_only_cleared():
    arrays, sizes = batch()
    fitted = resize_and_pad(arrays, KEEP, sizes)
    assert fitted.images.shape == (len(SIZES), 128, 128, 3)
    np.testing.assert_array_equal(fitted.sizes, sizes)
    for array, (height, width), image in zip(arrays, SIZES, fitted.images, strict=True):
        expected = np.zeros((128, 128, 3), np.float32)
        expected[:height, :width] = normalize(array[:height, :width], KEEP)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("facts", [SIDES, STRETCH, KEEP], ids=lambda f: f.fit)
def test_no_sizes_are_the_arrays_own(facts):
    images = picture(90, 100)[None].repeat(2, 0)
    plain = jax.jit(lambda a: resize_and_pad(a, facts))(images)
    sized = jax.jit(lambda a, s: resize_and_pad(a, facts, s))(
        images, np.int32([(90, 100)] * 2)
    )
    # Traced sizes may be any: the canvas has room for all of them.
    height, width = plain.images.shape[1:3]
    np.testing.assert_allclose(
        plain.images, sized.images[:, :height, :width], atol=5e-5
    )
    assert not np.asarray(sized.images[:, height:]).any()
    assert not np.asarray(sized.images[:, :, width:]).any()
    np.testing.assert_array_equal(plain.sizes, sized.sizes)


def test_what_has_its_size_is_not_resampled():
    image = picture(64, 70)
    fitted = resize_and_pad(image[None], SIDES)
    np.testing.assert_array_equal(fitted.images[0, :, :70], normalize(image, SIDES))
    assert fitted.images.shape == (1, 64, 96, 3)
    assert not np.asarray(fitted.images[0, :, 70:]).any()


def test_other_sizes_compile_nothing():
    traced = []

    @jax.jit
    def fit(arrays, sizes):
        traced.append(1)
        return resize_and_pad(arrays, SIDES, sizes)

    arrays, sizes = batch()
    for shift in range(3):
        fit(arrays, np.roll(sizes, shift, 0))
    assert len(traced) == 1


def test_scale_is_reduced_to_fit_the_canvas():
    # 100 x 100 pixels become 64 x 64; 50 x 100 would become 53 x 107.
    arrays, _ = batch()
    sizes = np.int32([(100, 100), (50, 100)])
    fitted = resize_and_pad(arrays[:2], SIDES, sizes, canvas=(64, 64))
    assert fitted.images.shape[1:3] == (64, 64)
    assert np.asarray(fitted.sizes).tolist() == [[64, 64], [32, 64]]
    # Without a canvas there is room for each at its own scale.
    fitted = resize_and_pad(arrays[:2], SIDES, sizes)
    assert np.asarray(fitted.sizes).tolist() == [[64, 64], [53, 107]]
    assert fitted.images.shape[1] >= 64
    assert fitted.images.shape[2] >= 107
    assert resized_size(50, 100, SIDES, canvas=(64, 64)) == (32, 64)
    assert resized_size(50, 100, SIDES) == (53, 107)
    image, scale = resize_shortest_edge(arrays[0, :50], SIDES, canvas=(64, 64))
    assert image.shape == (32, 64, 3)
    np.testing.assert_allclose(scale, [0.64, 0.64])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("fit", ["sides", "stretch", "keep"])
def test_host_and_device_agree(fit, antialias):
    facts = {"sides": SIDES, "stretch": STRETCH, "keep": KEEP}[fit]
    facts = dataclasses.replace(facts, antialias=antialias)
    arrays, sizes = batch()
    canvas = (128, 128) if fit != "stretch" else None
    device = jax.jit(lambda a, s: resize_and_pad(a, facts, s, canvas=canvas))(
        arrays, sizes
    )
    for array, size, image, filled in zip(arrays, SIZES, *device, strict=True):
        fitted, scale = resize_shortest_edge(array[: size[0], : size[1]], facts)
        height, width = fitted.shape[:2]
        assert tuple(filled) == (height, width)
        np.testing.assert_allclose(scale, np.float32((height, width)) / size)
        pixels = (np.asarray(image)[:height, :width] * STD + MEAN) * 255
        # Pillow rounds after each direction.
        np.testing.assert_allclose(pixels, fitted, atol=1.01)
        assert abs((pixels - fitted).mean()) < 0.2


def test_boxes_go_there_and_back():
    boxes = np.float32([[[10, 20, 30, 45]], [[0, 0, 70, 50]]])
    size, target = np.int32([(50, 70)] * 2), np.int32([(100, 35), (25, 140)])
    there = resize_boxes(boxes, size, target)
    np.testing.assert_allclose(there[0], [[5, 40, 15, 90]])
    np.testing.assert_allclose(there[1], [[0, 0, 140, 25]])
    np.testing.assert_allclose(resize_boxes(there, target, size), boxes, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (64, 64)), ((7, 10000), (1, 107)), ((10000, 7), (107, 1))],
)
def test_extreme_images(size, expected):
    fitted = jax.jit(lambda a, s: resize_and_pad(a, SIDES, s))(
        np.full((1, *size, 3), 200, np.uint8), np.int32([size])
    )
    assert tuple(fitted.sizes[0]) == expected
    filled = fitted.images[0, : expected[0], : expected[1]]
    expected_pixel = (200 / 255 - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_allclose(
        filled, np.broadcast_to(expected_pixel, filled.shape), atol=1e-4
    )
    assert (
        resize_shortest_edge(np.zeros((*size, 3), np.uint8), SIDES)[0].shape[:2]
        == expected
    )


def test_canvas_is_a_multiple_of_32():
    assert canvas_size(100, 150, SIDES) == (64, 96)
    assert canvas_size(100, 150, SIDES, canvas=(70, 97)) == (70, 97)
    assert canvas_size(100, 150, KEEP) == (128, 160)
    assert canvas_size(100, 150, STRETCH) == (48, 80)


@pytest.mark.parametrize(
    ("images", "facts", "canvas", "message"),
    [
        (
            picture(9, 9)[None] / 255,
            SIDES,
            None,
            r"uint8 .B, h, w, channels., got f",
        ),
        (picture(9, 9), SIDES, None, r"got uint8 \[9, 9, 3\]"),
        (picture(9, 9, 1)[None], SIDES, None, r"has 1 channel.*takes 3"),
        (picture(9, 9)[None], Preprocess(9, 3, MEAN, STD), None, "fit='stretch', 'sid"),
        (picture(9, 9)[None], STRETCH, (9, 9), r"canvas=\(9, 9\).*9 x 9 .*48 x 80"),
        (picture(9, 9)[None], KEEP, (8, 9), r"canvas=\(8, 9\).*become 9 x 9"),
        (picture(9, 9)[None], SIDES, (0, 9), r"canvas=\(0, 9\).*become 64 x 64"),
        (np.zeros((1, 1, 20000, 3), np.uint8), SIDES, None, "at most 16383 a side"),
    ],
)
def test_what_cannot_be_fitted_is_said(images, facts, canvas, message):
    with pytest.raises(ValueError, match=message):
        resize_and_pad(images, facts, canvas=canvas)


def test_products_and_taps_agree():
    """Which of the two is compiled depends on the device."""
    arrays, sizes = batch()
    image, size = arrays[1].astype(np.float32), sizes[1]
    for target in ((90, 70), (20, 128), (50, 70)):
        target = jnp.int32(target)
        run = partial(resize_padded, canvas=(96, 128), antialias=False)
        taps = run(image, size, target)
        products = run_as_on("tpu", run, image, size, target)
        np.testing.assert_allclose(taps, products, atol=0.02)
        assert not np.asarray(taps[target[0] :]).any()
