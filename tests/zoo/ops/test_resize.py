"""Resizing, against slow restatements, Pillow and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from zoo.ops.resize import resize

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
# From and to: down, up, both, odd, even, a pixel, a line, tall, the same.
SIZES = [
    ((13, 18), (7, 11)),
    ((12, 16), (6, 8)),
    ((7, 5), (20, 33)),
    ((9, 30), (14, 12)),
    ((40, 6), (9, 11)),
    ((50, 12), (9, 8)),
    ((1, 1), (4, 3)),
    ((8, 9), (1, 1)),
    ((1, 37), (5, 16)),
    ((11, 10), (11, 6)),
    ((6, 7), (6, 7)),
]


def picture(size, channels=3, *, lead=()):
    """Noise of black and white, on which bicubic filters overshoot most."""
    rng = np.random.default_rng(sum(size))
    shape = (*lead, *size, channels)
    noise = rng.integers(0, 256, shape)
    return np.where(rng.random(shape) < 0.5, noise, noise // 200 * 255).astype(np.uint8)


def cubic(x, a):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def tent(x, _):
    return max(0.0, 1 - abs(x))


def pillow_line(length, target, method):
    """Weights that average the pixels around each output pixel, one by one."""
    kernel, reach = {"bilinear": (tent, 1), "bicubic": (cubic, 2)}[method]
    step = length / target
    width = max(step, 1)
    weights = np.zeros((target, length))
    for i in range(target):
        middle = (i + 0.5) * step
        first = max(0, int(middle - reach * width + 0.5))
        for j in range(first, min(length, int(middle + reach * width + 0.5))):
            weights[i, j] = kernel((j + 0.5 - middle) / width, -0.5)
        weights[i] /= sum(weights[i])
    return weights


def torch_line(length, target, method, corners):
    """Weights between neighbors; beyond the border its pixel is repeated."""
    weights = np.zeros((target, length))
    for i in range(target):
        if not corners:
            place = (i + 0.5) * length / target - 0.5
        else:
            place = i * (length - 1) / (target - 1) if target > 1 else 0.0
        kernel, reach = {"bilinear": (tent, 1), "bicubic": (cubic, 2)}[method]
        for j in range(math.floor(place) - reach, math.floor(place) + reach + 2):
            weights[i, min(max(j, 0), length - 1)] += kernel(j - place, -0.75)
    return weights


def lines(method, rule):
    if rule == "antialias":
        return lambda length, target: pillow_line(length, target, method)
    return lambda length, target: torch_line(length, target, method, rule == "corners")


def options(rule):
    return {"antialias": rule == "antialias", "align_corners": rule == "corners"}


def pillow_reference(image, size, method):
    """Fixed-point weights and a rounding after each direction."""
    (h, w), (height, width) = image.shape[:2], size

    def pass_over(image, axis):
        length, target = image.shape[axis], size[axis]
        if length == target:
            return image
        weights = pillow_line(length, target, method)
        fixed = np.floor(np.abs(weights) * 2**22 + 0.5) * np.sign(weights)
        total = np.tensordot(fixed, image.astype(float), (1, axis))
        total = np.floor((np.moveaxis(total, 0, axis) + 2**21) / 2**22)
        return np.clip(total, 0, 255)

    height_first = h > height and h - height > 2 * (w - width)
    for axis in (0, 1) if height_first else (1, 0):
        image = pass_over(image, axis)
    return image.astype(np.uint8), height_first


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_bytes_are_pillows(size, target, method):
    image = picture(size)
    got = resize(image, target, method, antialias=True)
    assert got.dtype == jnp.uint8
    expected, height_first = pillow_reference(image, target, method)
    np.testing.assert_array_equal(got, expected)
    pillow = Image.fromarray(image).resize(target[::-1], FILTERS[method])
    # Earlier ones always take the width first, where both exist.
    if height_first and int(PIL.__version__.split(".")[0]) < 13:
        if method == "bilinear":
            np.testing.assert_allclose(got, pillow, rtol=0, atol=1)
    else:
        np.testing.assert_array_equal(got, pillow)


def test_both_orders_of_directions_are_tested():
    orders = {pillow_reference(picture(a), b, "bilinear")[1] for a, b in SIZES}
    assert orders == {False, True}


def test_a_photograph_is_pillows():
    rows, columns = np.mgrid[:375, :500]
    waves = np.sin(rows / 7) * np.cos(columns / 11) * 100 + 128
    image = np.stack([waves, rows % 256, columns % 256], -1).astype(np.uint8)
    image += picture((375, 500)) // 16
    pillow = Image.fromarray(image).resize((341, 256), FILTERS["bilinear"])
    np.testing.assert_array_equal(resize(image, (256, 341), antialias=True), pillow)


@pytest.mark.parametrize("rule", ["antialias", "centers", "corners"])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_numbers_are_weighted_as_restated(size, target, method, rule):
    image = picture(size).astype(np.float32) / 255
    got = resize(image, target, method, **options(rule))
    assert got.dtype == jnp.float32
    weights = lines(method, rule)
    columns, rows = weights(size[1], target[1]), weights(size[0], target[0])
    expected = np.einsum("yh,hwc,xw->yxc", rows, image, columns)
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rule", ["antialias", "centers", "corners"])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_numbers_are_pytorchs(method, rule):
    torch = pytest.importorskip("torch")
    for size, target in SIZES:
        image = picture(size).astype(np.float32) / 255
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(
            tensor, target, mode=method, **options(rule)
        )
        got = resize(image, target, method, **options(rule))
        expected = expected[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "target"), [*SIZES, ((10, 10), (15, 15))])
def test_nearest_is_pillows_and_keeps_labels(size, target):
    labels = picture(size, channels=1)
    pillow = Image.fromarray(labels[..., 0]).resize(target[::-1], FILTERS["nearest"])
    got = resize(labels, target, "nearest", antialias=False)
    np.testing.assert_array_equal(got[..., 0], pillow)
    large = labels.astype(np.int32) * 100_000
    got = resize(large, target, "nearest", antialias=False)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got[..., 0], np.asarray(pillow, int) * 100_000)


def test_nearest_repeats_pixels_at_whole_factors():
    image = picture((4, 5))
    got = resize(image, (12, 10), "nearest", antialias=False)
    np.testing.assert_array_equal(got, image.repeat(3, 0).repeat(2, 1))


@pytest.mark.parametrize("rule", ["antialias", "centers", "corners"])
def test_what_is_constant_or_of_the_same_size_stays(rule):
    for method in ("bilinear", "bicubic"):
        white = resize(np.ones((5, 9, 1)), (13, 4), method, **options(rule))
        np.testing.assert_allclose(white, np.ones((13, 4, 1)), rtol=1e-6)
        image = np.random.default_rng(0).random((5, 9, 2), np.float32)
        same = resize(image, (5, 9), method, **options(rule))
        np.testing.assert_array_equal(same, image)


def test_corners_stay_where_they_are_only_if_they_are_aligned():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    got = resize(image, (5, 7), antialias=False, align_corners=True)
    np.testing.assert_allclose(got[::2, ::2], image, atol=1e-6)
    other = resize(image, (5, 7), antialias=False)
    assert np.abs(other - got).max() > 0.1


def test_batches_vmap_and_jit_agree(cheap_jit):
    images = picture((9, 8), lead=(2, 3)).astype(np.float32)

    def shrink(x):
        return resize(x, (4, 5), "bicubic", antialias=True)

    got = cheap_jit(shrink)(images)
    assert got.shape == (2, 3, 4, 5, 3)
    np.testing.assert_allclose(jax.vmap(jax.vmap(shrink))(images), got, rtol=1e-5)
    np.testing.assert_allclose(shrink(images[1, 2]), got[1, 2], rtol=1e-5, atol=1e-4)
    whole = cheap_jit(shrink)(images.astype(np.uint8))
    assert whole.dtype == jnp.uint8
    np.testing.assert_array_equal(shrink(images[1, 2].astype(np.uint8)), whole[1, 2])


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest"])
def test_gradients_are_the_transposed_matrix(method, cheap_jit):
    x = jax.random.normal(jax.random.key(0), (2, 6, 9, 1))
    y = jax.random.normal(jax.random.key(1), (2, 8, 4, 1))
    antialias = method != "nearest"

    def both(x, y):
        out, back = jax.vjp(lambda x: resize(x, (8, 4), method, antialias=antialias), x)
        return (out * y).sum(), (back(y)[0] * x).sum(), back(y)[0]

    forward, backward, gradient = cheap_jit(both)(x, y)
    np.testing.assert_allclose(forward, backward, rtol=1e-4)
    assert np.abs(gradient).max() > 0


def test_half_precision_is_computed_in_float32():
    image = picture((31, 29)).astype(jnp.bfloat16)
    got = resize(image, (12, 10), antialias=True)
    assert got.dtype == jnp.bfloat16
    exact = resize(image.astype(np.float32), (12, 10), antialias=True)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        ((4, 4, 3), {"method": "cubic"}, "method='cubic', expected one of"),
        ((4, 4), {}, r"\[..., H, W, C\] with at least one pixel, got \[4, 4\]"),
        ((4, 0, 3), {}, r"at least one pixel, got \[4, 0, 3\]"),
        ((4, 4, 3), {"size": (0, 3)}, r"size=\(0, 3\), expected a height"),
        ((4, 4, 3), {"align_corners": True}, "antialias and align_corners exclude"),
        ((4, 4, 3), {"method": "nearest"}, "'nearest' has neither"),
    ],
)
def test_what_cannot_be_is_named(image, arguments, message):
    arguments = {"size": (2, 2), "antialias": True} | arguments
    with pytest.raises(ValueError, match=message):
        resize(jnp.zeros(image), **arguments)


def test_labels_are_not_blended():
    with pytest.raises(ValueError, match="takes floating or uint8 images, got int32"):
        resize(jnp.zeros((4, 4, 1), jnp.int32), (2, 2), antialias=True)
