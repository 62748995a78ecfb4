"""Augmentations against slow numpy, and the same whether jitted or batched."""

from functools import partial

import jax
import numpy as np
import pytest

from zoo.ops.augment import affine, compose, flip, pad_crop, parse_augment

KEYS = jax.random.split(jax.random.key(0), 64)


def images(n=None, shape=(6, 8, 3), dtype=np.uint8):
    rng = np.random.default_rng(0)
    shape = shape if n is None else (n, *shape)
    return rng.integers(0, 256, shape).astype(dtype)


def shifted(image, down, right, fill):
    """The image moved by whole pixels, one pixel at a time."""
    out = np.full_like(image, fill)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if 0 <= y - down < image.shape[0] and 0 <= x - right < image.shape[1]:
                out[y, x] = image[y - down, x - right]
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pad_crop_makes_all_shifts_and_nothing_else(dtype):
    image = images(dtype=dtype)
    known = {
        shifted(image, d, r, 9).tobytes(): (d, r)
        for d in (-2, -1, 0, 1, 2)
        for r in (-2, -1, 0, 1, 2)
    }
    keys = jax.random.split(jax.random.key(1), 400)
    run = jax.jit(jax.vmap(lambda key: pad_crop(key, image, padding=2, fill=9)))
    out = np.asarray(run(keys))
    assert out.dtype == dtype
    counts = np.unique([known[o.tobytes()] for o in out], axis=0)
    assert len(counts) == 25
    still = pad_crop(KEYS[0], image, padding=0)
    np.testing.assert_array_equal(still, image)


def test_flip_mirrors_left_and_right_half_of_the_time():
    image = images()
    out = np.asarray(jax.jit(jax.vmap(flip, (0, None)))(KEYS, image))
    mirrored = (out == image[:, ::-1]).all((1, 2, 3))
    assert ((out == image).all((1, 2, 3)) ^ mirrored).all()
    assert 16 < mirrored.sum() < 48
    np.testing.assert_array_equal(flip(KEYS[0], image, p=1.0), image[:, ::-1])
    np.testing.assert_array_equal(flip(KEYS[0], image, p=0.0), image)


def slow_resample(image, angle, factor, offset, fill):
    """Bilinear look-up at the place that each output pixel comes from."""
    height, width, channels = image.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    out = np.zeros(image.shape, np.float64)

    def pixel(y, x, c):
        inside = 0 <= y < height and 0 <= x < width
        return float(image[y, x, c]) if inside else fill

    for y in range(height):
        for x in range(width):
            v, u = y - cy - offset[0], x - cx - offset[1]
            sy = (np.cos(angle) * v + np.sin(angle) * u) / factor + cy
            sx = (np.cos(angle) * u - np.sin(angle) * v) / factor + cx
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            a, b = sy - y0, sx - x0
            for c in range(channels):
                out[y, x, c] = (
                    (1 - a) * (1 - b) * pixel(y0, x0, c)
                    + (1 - a) * b * pixel(y0, x0 + 1, c)
                    + a * (1 - b) * pixel(y0 + 1, x0, c)
                    + a * b * pixel(y0 + 1, x0 + 1, c)
                )
    return out


def drawn(key, image, degrees, shift, scale):
    turn, grow, down, right = np.asarray(jax.random.uniform(key, (4,), minval=-1.0))
    offset = (down * shift * image.shape[0], right * shift * image.shape[1])
    return np.deg2rad(turn * degrees), 1 + grow * scale, offset


@pytest.mark.parametrize("draw", range(6))
def test_affine_is_bilinear_interpolation(draw):
    key, image = KEYS[draw], images(dtype=np.float32)
    options = {"degrees": 40, "shift": 0.3, "scale": 0.4}
    run = jax.jit(partial(affine, fill=7, **options))
    out = run(key, image)
    expected = slow_resample(image, *drawn(key, image, **options), 7)
    np.testing.assert_allclose(out, expected, atol=2e-3)
    whole = run(key, image.astype(np.uint8))
    assert whole.dtype == np.uint8
    assert np.abs(np.asarray(whole, float) - expected).max() <= 0.51


def test_the_slow_look_up_turns_by_known_quarters():
    square = images(shape=(5, 5, 1), dtype=np.float32)
    for quarters in range(4):
        angle = quarters * np.pi / 2
        out = slow_resample(square, angle, 1.0, (0, 0), 0)
        np.testing.assert_allclose(out, np.rot90(square, quarters), atol=1e-2)
    bigger = slow_resample(square, 0.0, 2.0, (0, 0), 0)
    np.testing.assert_allclose(bigger[2, 2], square[2, 2], atol=1e-4)
    np.testing.assert_allclose(bigger[0, 0], square[1, 1], atol=1e-4)
    down = slow_resample(square, 0.0, 1.0, (1, 2), 0)
    np.testing.assert_allclose(down, shifted(square, 1, 2, 0), atol=1e-3)


def test_affine_of_nothing_changes_nothing():
    image = images()
    out = affine(KEYS[0], image, degrees=0, shift=0, scale=0)
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("names", [("pad_crop:2", "flip"), ("affine:20",)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_same_plain_jitted_and_batched(names, dtype):
    function, batch = compose(names), images(8, dtype=dtype)
    plain = np.stack([function(k, i) for k, i in zip(KEYS, batch, strict=False)])
    batched = jax.jit(jax.vmap(function))(KEYS[:8], batch)
    assert batched.dtype == dtype
    # Cuts and mirrors are exact; interpolation may round another way when fused.
    room = 0 if "flip" in names else 1 if dtype == np.uint8 else 2e-3
    assert np.abs(np.asarray(batched, float) - plain).max() <= room
    one = jax.jit(function)(KEYS[0], batch[0])
    assert np.abs(np.asarray(one, float) - plain[0]).max() <= room


def test_compose_gives_each_its_own_key_and_keeps_their_order():
    image = images()
    out = compose(("flip:1", "pad_crop:2"))(KEYS[0], image)
    key = jax.random.fold_in(KEYS[0], 1)
    np.testing.assert_array_equal(out, pad_crop(key, image[:, ::-1], padding=2))
    np.testing.assert_array_equal(compose(())(KEYS[0], image), image)


def test_options_are_read_in_their_order():
    image = images(dtype=np.float32)
    out = parse_augment("affine:15:0.2:0:3")(KEYS[0], image)
    expected = affine(KEYS[0], image, degrees=15, shift=0.2, scale=0, fill=3)
    np.testing.assert_array_equal(out, expected)
    out = parse_augment("pad_crop:1:255")(KEYS[1], image)
    np.testing.assert_array_equal(out, pad_crop(KEYS[1], image, padding=1, fill=255))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", r"unknown augmentation 'flop'; did you mean 'flip'\?"),
        ("zzz", r"unknown augmentation 'zzz'\. There are pad_crop, flip, affine"),
        ("pad_crop", r"has 0 number\(s\); expected pad_crop:padding:fill=0"),
        ("flip:0.5:1", r"has 2 number\(s\); expected flip:p=0\.5"),
        ("pad_crop:x", "padding cannot be 'x', expected int"),
        ("pad_crop:1.5", "padding cannot be '1.5', expected int"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_augment(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pad_crop:-1", "padding=-1"),
        ("flip:2", "p=2.0"),
        ("affine:10:0:1", "scale=1.0"),
        ("affine:-1", "degrees=-1.0"),
    ],
)
def test_impossible_amounts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_augment(text)(KEYS[0], images())
