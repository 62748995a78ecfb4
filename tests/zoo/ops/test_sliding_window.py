"""Borders and windows of images that fill a part of an array, against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.sliding_window import crop_or_pad, sliding_window, zero_padding

RNG = np.random.default_rng(0)
crop_or_pad_jit = jax.jit(crop_or_pad, static_argnames=("size", "margin", "flip"))
sliding_window_jit = jax.jit(
    sliding_window, static_argnames=("function", "window", "overlap", "margin")
)


def make(height, width, filled):
    """Random images, with something outrageous where they do not fill the array."""
    images = RNG.normal(size=(2, height, width, 3)).astype(np.float32)
    rest = np.full_like(images, 1e6)
    rest[:, : filled[0], : filled[1]] = images[:, : filled[0], : filled[1]]
    return rest, rest[:, : filled[0], : filled[1]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("margin", [0, 1, 4, 9])
@pytest.mark.parametrize("filled", [(5, 7), (6, 3), (1, 2), (1, 1)])
def test_place_is_numpys_pad(filled, margin, flip):
    given, images = make(6, 7, filled)
    size = (20, 24)
    found = crop_or_pad_jit(given, np.int32(filled), size, margin=margin, flip=flip)
    if flip:
        images = images[:, :, ::-1]
    more = [(margin, n - margin - m) for n, m in zip(size, filled, strict=True)]
    mode = "reflect" if margin else "edge"
    expected = np.pad(images, ((0, 0), *more, (0, 0)), mode=mode)
    np.testing.assert_array_equal(found, expected)


def test_place_cuts_off_what_has_no_room():
    given, images = make(6, 7, (6, 7))
    found = crop_or_pad_jit(given, np.int32([6, 7]), (2, 3), flip=True)
    np.testing.assert_array_equal(found, images[:, :2, :3:-1])


def test_zero_padding():
    given, images = make(6, 7, (4, 2))
    found = jax.jit(zero_padding)(given, np.int32([4, 2]))
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found[:, :4, :2], images)
    assert float(jnp.abs(found).sum()) == pytest.approx(np.abs(images).sum(), rel=1e-5)


def with_place(windows):
    """Makes of each window its pixels and, as more channels, where they lie in it."""
    b, h, w, _ = windows.shape
    rows = jnp.broadcast_to(jnp.arange(h)[:, None, None], (b, h, w, 1))
    columns = jnp.broadcast_to(jnp.arange(w)[:, None], (b, h, w, 1))
    return jnp.concatenate([windows, rows / 7, (columns / 5) ** 2], axis=-1)


def slide_slowly(images, window, overlap):
    """hszhao/semseg's way: the last window of a direction ends with the image."""
    (b, h, w, c), (wh, ww) = images.shape, window
    total, count = np.zeros((b, h, w, c + 2)), np.zeros((h, w, 1))
    steps = [math.ceil(n * (1 - overlap)) for n in window]
    for i in range(math.ceil((h - wh) / steps[0]) + 1):
        for j in range(math.ceil((w - ww) / steps[1]) + 1):
            bottom, right = min(i * steps[0] + wh, h), min(j * steps[1] + ww, w)
            at = np.s_[bottom - wh : bottom, right - ww : right]
            total[:, *at] += with_place(images[:, *at])
            count[at] += 1
    return total / count


@pytest.mark.parametrize("overlap", [0, 1 / 3, 0.75])
@pytest.mark.parametrize("filled", [(9, 8), (12, 15), (13, 9), (17, 22), (24, 23)])
def test_windows_are_those_of_the_image_whatever_the_array(filled, overlap):
    given, images = make(24, 23, filled)
    args = (with_place, given, np.int32(filled), (9, 8))
    found = sliding_window_jit(*args, overlap=overlap)[:, : filled[0], : filled[1]]
    expected = slide_slowly(images, (9, 8), overlap)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_windows_whose_results_are_smaller_cover_the_image():
    given, images = make(30, 27, (30, 27))

    def inner(windows):
        return with_place(windows)[:, 3:-3, 3:-3]

    args = (inner, given, np.int32([24, 21]), (12, 10))
    found = sliding_window_jit(*args, overlap=0.5, margin=3)
    assert found.shape == (2, 24, 21, 5)
    np.testing.assert_allclose(found[..., :3], images[:, 3:-3, 3:-3], rtol=1e-5)
    # A window's first column is at 3 of 10; no pixel is further to the right than 6.
    assert float(found[..., 4].min()) == pytest.approx((3 / 5) ** 2)
    assert float(found[..., 4].max()) == pytest.approx((6 / 5) ** 2)
