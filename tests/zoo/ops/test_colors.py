"""Color changes against slow numpy and Pillow, and what they leave as it was."""

import colorsys
import itertools

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from zoo.ops.augment import compose, parse_augment
from zoo.ops.colors import (
    IMAGENET_COLORS,
    color_jitter,
    pca_color,
    pca_of_colors,
    photometric,
    ssd_photometric,
)

KEYS = jax.random.split(jax.random.key(0), 400)
LUMA = np.array([0.299, 0.587, 0.114])
CHANGES = ("pca_color:0.1", "color_jitter", "photometric", "ssd_photometric")


def make_image(seed=0, shape=(6, 8, 3), least=0, most=256):
    rng = np.random.default_rng(seed)
    return rng.integers(least, most, shape).astype(np.uint8)


# Color noise


def test_the_noise_is_one_color_for_each_image():
    image = make_image()
    out = np.asarray(jax.vmap(pca_color, (0, None))(KEYS, image))
    assert out.dtype == np.float32
    noise = out - image
    np.testing.assert_allclose(noise, noise[:, :1, :1] + 0 * noise, atol=3e-5)
    assert len(np.unique(noise[:, 0, 0, 0])) == len(KEYS)


def test_the_noise_has_the_published_spread_along_the_published_colors():
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [
            [-0.5675, 0.7192, 0.4009],
            [-0.5808, -0.0045, -0.8140],
            [-0.5836, -0.6948, 0.4203],
        ]
    )
    # They are an orthonormal basis, whose first color is gray.
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    image = np.zeros((1, 1, 3), np.float32)
    keys = jax.random.split(jax.random.key(1), 20_000)
    noise = np.asarray(jax.vmap(pca_color, (0, None))(keys, image))[:, 0, 0] / 255
    along = noise @ vectors
    np.testing.assert_allclose(along.std(0), 0.1 * values, rtol=0.03)
    assert np.abs(along.mean(0) / along.std(0)).max() < 0.03
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 0.03
    # In the first component alone that is 5.5 of 255.
    assert 0.1 * np.linalg.norm(IMAGENET_COLORS[:, 0]) == pytest.approx(5.546, abs=0.01)


def test_a_formula_by_hand():
    factors = 0.3 * np.asarray(jax.random.normal(KEYS[7], (3,)), np.float64)
    expected = [(row * factors).sum() for row in IMAGENET_COLORS]
    image = make_image()
    out = pca_color(KEYS[7], image, std=0.3)
    np.testing.assert_allclose(out, image + np.array([[expected]]), atol=1e-4)
    mine = np.diag([1.0, 2.0, 3.0])
    out = pca_color(KEYS[7], image, mine, std=0.3)
    expected = image + (np.array([1, 2, 3]) * factors)[None, None]
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_the_components_of_images_are_those_of_all_their_pixels():
    images = [make_image(i, (4 + i, 9 - i, 3), most=40 * i + 50) for i in range(5)]
    pixels = np.concatenate([i.reshape(-1, 3) for i in images]) / 255
    covariance = np.cov(pixels.T, bias=True)
    found = pca_of_colors(iter(images)) / 255
    lengths = np.linalg.norm(found, axis=0)
    assert lengths[0] > lengths[1] > lengths[2] > 0
    np.testing.assert_allclose(covariance @ found, found * lengths[None], atol=1e-12)
    total = sum(np.outer(v, v) / n for v, n in zip(found.T, lengths, strict=True))
    np.testing.assert_allclose(total, covariance, atol=1e-12)
    with pytest.raises(ValueError, match=r"takes images \[height, width, 3\], got"):
        pca_of_colors([np.zeros((4, 4, 1))])
    with pytest.raises(ValueError, match="at least one image"):
        pca_of_colors([])


# Brightness, contrast, saturation


def drawn(key, amounts):
    key_order, key_factors = jax.random.split(key)
    order = np.asarray(jax.random.permutation(key_order, 3))
    draws = np.asarray(jax.random.uniform(key_factors, (3,), minval=-1.0))
    return order, 1 + draws * np.array(amounts)


def slow_jitter(image, order, factors, clip):
    """One pixel after the other, as fb.resnet.torch and Pillow mix images."""
    image = image.astype(np.float64)
    for kind in order:
        grays = [[float(pixel @ LUMA) for pixel in row] for row in image]
        mean = sum(sum(row) for row in grays) / image[..., 0].size
        for y, x in np.ndindex(*image.shape[:2]):
            other = (0.0, mean, grays[y][x])[kind]
            image[y, x] = factors[kind] * image[y, x] + (1 - factors[kind]) * other
            if clip:
                image[y, x] = np.clip(image[y, x], 0, 255)
    return image


@pytest.mark.parametrize("draw", range(6))
def test_jitter_and_distortions_are_the_mixtures_they_say(draw):
    key, image = KEYS[draw], make_image(draw)
    amounts = (0.6, 0.3, 0.9)
    out = parse_augment("color_jitter:0.6:0.3:0.9")(key, image)
    expected = slow_jitter(image, *drawn(key, amounts), clip=False)
    np.testing.assert_allclose(out, expected, atol=1e-3)
    out = photometric(key, image, amount=0.7)
    expected = slow_jitter(image, *drawn(key, (0.7,) * 3), clip=True)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_distortions_are_pillows_enhancements_but_for_its_rounding():
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for draw in range(20):
        image = make_image(draw)
        order, factors = drawn(KEYS[draw], (0.5,) * 3)
        expected = Image.fromarray(image)
        for kind in order:
            expected = kinds[kind](expected).enhance(float(factors[kind]))
        out = np.asarray(photometric(KEYS[draw], image))
        assert np.abs(out - np.asarray(expected, float)).max() < 4


def test_all_orders_are_as_frequent():
    orders = [tuple(drawn(key, (1,) * 3)[0].tolist()) for key in KEYS]
    counts = {order: orders.count(order) for order in set(orders)}
    assert counts.keys() == {*itertools.permutations(range(3))}
    assert 35 < min(counts.values()) <= max(counts.values()) < 100


def test_what_each_change_leaves_as_it_was():
    image = make_image(least=60, most=150)
    means = lambda x: (np.asarray(x, np.float64) @ LUMA).mean()  # noqa: E731
    for key in KEYS[:10]:
        none = color_jitter(key, image, brightness=0, contrast=0, saturation=0)
        np.testing.assert_allclose(none, image, atol=1e-4)
        bright = color_jitter(key, image, brightness=0.4, contrast=0, saturation=0)
        ratio = np.asarray(bright) / image
        np.testing.assert_allclose(ratio, ratio[0, 0, 0] + 0 * ratio, rtol=1e-5)
        assert 0.6 <= ratio[0, 0, 0] <= 1.4
        contrast = color_jitter(key, image, brightness=0, contrast=0.4, saturation=0)
        assert means(contrast) == pytest.approx(means(image), rel=1e-5)
        color = color_jitter(key, image, brightness=0, contrast=0, saturation=0.4)
        np.testing.assert_allclose(
            np.asarray(color) @ LUMA, image @ LUMA, rtol=1e-5, atol=1e-3
        )
    gray = np.repeat(image[..., :1], 3, -1)
    out = np.asarray(color_jitter(KEYS[0], gray))
    np.testing.assert_allclose(out, out[..., :1] + 0 * out, atol=1e-3)


def test_ranges():
    image = make_image()
    for change, low, high in (
        (photometric, 0, 255),
        (color_jitter, -300, 255 * 1.4**3 * 1.2),
    ):
        out = np.asarray(jax.vmap(change, (0, None))(KEYS, image))
        assert low <= out.min() < 1
        assert 254 < out.max() <= high
    # The largest changes that were drawn are clipped in the one, not in the other.
    assert out.max() > 256


# SSD's


def slow_distortion(key, image, amounts):
    """One pixel after the other, by the color space of Python's own library."""
    key_which, key_amounts = jax.random.split(key)
    *which, first = np.asarray(jax.random.bernoulli(key_which, shape=(5,)))
    draws = np.asarray(jax.random.uniform(key_amounts, (4,), minval=-1.0), float)
    shift, by, saturate, turn = draws * amounts * which
    image = (image.astype(np.float64) + shift).clip(0, 255)
    if first:
        image = (image * (1 + by)).clip(0, 255)
    for y, x in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[y, x] / 255)
        hue, saturation = hue + turn / 180, min(1, saturation * (1 + saturate))
        image[y, x] = np.multiply(colorsys.hsv_to_rgb(hue % 1, saturation, value), 255)
    return image if first else (image * (1 + by)).clip(0, 255)


def test_ssds_distortions_are_what_they_say(cheap_jit):
    distort = cheap_jit(jax.vmap(ssd_photometric))
    images = np.stack([make_image(i) for i in range(60)])
    images[1] = images[1][..., :1]  # grays, that have no hue
    images[2], images[3] = 0, 255
    amounts = np.array([32, 0.5, 0.5, 18])
    out = np.asarray(distort(KEYS[:60], images))
    for key, image, found in zip(KEYS, images, out, strict=False):
        expected = slow_distortion(key, image, amounts)
        np.testing.assert_allclose(found, expected, atol=2e-3)
    strong = cheap_jit(jax.vmap(parse_augment("ssd_photometric:90:1:1:90")))
    out = np.asarray(strong(KEYS[:60], images))
    for key, image, found in zip(KEYS, images, out, strict=False):
        expected = slow_distortion(key, image, np.array([90, 1, 1, 90]))
        np.testing.assert_allclose(found, expected, atol=5e-3)


def test_each_of_ssds_distortions_happens_half_the_time(cheap_jit):
    image = make_image(least=80, most=120)
    plain = cheap_jit(jax.vmap(parse_augment("ssd_photometric:0:0:0:0"), (0, None)))
    np.testing.assert_allclose(plain(KEYS[:9], image)[0], image, atol=1e-4)
    for text in ("32:0:0:0", "0:0.5:0:0", "0:0:0.5:0", "0:0:0:18"):
        change = cheap_jit(
            jax.vmap(parse_augment(f"ssd_photometric:{text}"), (0, None))
        )
        same = np.abs(np.asarray(change(KEYS, image)) - image).max((1, 2, 3)) < 1e-3
        assert 150 < same.sum() < 250


# Alike


@pytest.mark.parametrize("text", CHANGES)
def test_the_same_plain_jitted_and_batched(text):
    change = parse_augment(text)
    batch = np.stack([make_image(i) for i in range(8)])
    plain = np.stack([change(k, i) for k, i in zip(KEYS, batch, strict=False)])
    again = np.stack([change(k, i) for k, i in zip(KEYS, batch, strict=False)])
    np.testing.assert_array_equal(plain, again)
    for other in (jax.vmap(change), jax.jit(jax.vmap(change))):
        out = other(KEYS[:8], batch)
        assert out.dtype == np.float32
        assert out.shape == batch.shape
        np.testing.assert_allclose(out, plain, atol=1e-3)
    floats = jax.vmap(change)(KEYS[:8], batch.astype(np.float32))
    np.testing.assert_allclose(floats, plain, atol=1e-3)
    assert len({image.tobytes() for image in plain}) == 8


def test_nothing_is_rounded_between_augmentations():
    image = make_image()
    both = compose(("pca_color:0.1", "flip:1"))(KEYS[0], image)
    assert both.dtype == np.float32
    noisy = pca_color(jax.random.fold_in(KEYS[0], 0), image)
    np.testing.assert_array_equal(both, np.asarray(noisy)[:, ::-1])
    assert (np.asarray(both) != np.round(both)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pca_color:-1", r"pca_color: amounts \(-1.0,\), expected 0 or more"),
        ("color_jitter:0:-1", r"color_jitter: amounts \(0.0, -1.0, 0.4\)"),
        ("photometric:-0.1", "photometric: amounts"),
        ("ssd_photometric:-1", r"ssd_photometric: amounts \(-1.0, 0.5, 0.5, 18\)"),
        ("pca_color:0.1:2", r"has 2 number\(s\); expected pca_color:std=0.1\."),
        ("colour_jitter", r"did you mean 'color_jitter'\?"),
    ],
)
def test_impossible_amounts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_augment(text)(KEYS[0], make_image())


@pytest.mark.parametrize("text", CHANGES)
def test_gray_images_are_refused(text):
    with pytest.raises(ValueError, match=r"takes an RGB image .* got \[6, 8, 1\]"):
        parse_augment(text)(KEYS[0], make_image(shape=(6, 8, 1)))
