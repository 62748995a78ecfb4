"""Images on their way to the network, against torchvision's rule restated."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.preprocess import normalize, resize_center_crop, resize_center_crop_batch
from zoo.spec import Card, Preprocess, plain_options


def facts(size, resize=None, channels=3, interpolation="bilinear"):
    half = (0.5,) * channels
    return Preprocess(size, channels, half, half, resize, interpolation)


def picture(height, width, channels=3):
    rng = np.random.default_rng(height * 1000 + width)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, 256, shape, np.uint8)


def torchvision_rule(array, size, resize, method):
    """Resize(resize) and CenterCrop(size) of torchvision, with Pillow."""
    image = Image.fromarray(array)
    width, height = image.size
    short, long = sorted((width, height))
    if short != resize:
        longer = int(resize * long / short)
        new = (resize, longer) if width <= height else (longer, resize)
        image = image.resize(new, method)
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


SIZES = [(64, 64), (65, 97), (97, 65), (640, 33), (33, 640), (20, 31), (256, 300)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "resize"), [(32, None), (224, 256), (27, 32)])
def test_images_are_fitted_as_torchvision_does(height, width, size, resize):
    array = picture(height, width)
    got = resize_center_crop(array, facts(size, resize))
    expected = torchvision_rule(array, size, resize or size, Image.Resampling.BILINEAR)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        resize_center_crop(Image.fromarray(array), facts(size, resize)), expected
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_fitted_as_torchvision_itself_does(interpolation):
    transforms = import_transforms()
    mode = transforms.InterpolationMode(interpolation)
    for size, resize in [(224, 256), (32, 32), (27, 32)]:
        reference = transforms.Compose(
            [
                transforms.Resize(resize, mode, antialias=True),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
            ]
        )
        preprocess = facts(size, resize, interpolation=interpolation)
        for height, width in [*SIZES, (257, 256), (255, 383), (375, 500)]:
            array = picture(height, width)
            expected = reference(Image.fromarray(array)).numpy() * np.float32(255)
            got = resize_center_crop(array, preprocess)
            np.testing.assert_array_equal(got, expected.round().transpose(1, 2, 0))


def import_transforms():
    """torchvision's, or skips; its compiled part may need to be stood in for."""
    pytest.importorskip("torch")
    with contextlib.suppress(ImportError):
        import torchvision_on_cpu  # noqa: F401
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision: {error}")
    return transforms


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (65, 97), (97, 65), (40, 33), (20, 31), (31, 20)]
)
def test_images_are_fitted_on_the_device_as_on_the_host(height, width, interpolation):
    preprocess = facts(27, 32, interpolation=interpolation)
    images = np.stack([picture(height, width), picture(height, width)[::-1]])
    got = jax.jit(resize_center_crop_batch, static_argnums=1)(images, preprocess)
    expected = np.stack([resize_center_crop(image, preprocess) for image in images])
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, expected)


def test_tall_images_are_fitted_on_the_device_within_a_level():
    # Whether the height or the width is resized first depends on Pillow's version.
    array = picture(140, 33)
    got = resize_center_crop_batch(array[None], facts(27, 32))[0]
    expected = resize_center_crop(array, facts(27, 32))
    np.testing.assert_allclose(got, expected.astype(int), rtol=0, atol=1)


def test_other_arrays_are_not_fitted_on_the_device():
    with pytest.raises(
        ValueError, match=r"must be uint8 \[B, h, w, channels\], got fl"
    ):
        resize_center_crop_batch(jnp.zeros((1, 40, 40, 3)), facts(32))
    with pytest.raises(ValueError, match=r"has 1 channel\(s\).* takes 3 \(RGB\)"):
        resize_center_crop_batch(jnp.zeros((2, 40, 40, 1), jnp.uint8), facts(32))


def test_bicubic_is_another_filter():
    array = picture(50, 70)
    got = resize_center_crop(array, facts(32, interpolation="bicubic"))
    expected = torchvision_rule(array, 32, 32, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got, expected)
    assert (got != resize_center_crop(array, facts(32))).any()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gray_images_keep_one_channel(height, width):
    array = picture(height, width, channels=1)
    gray = facts(28, 32, channels=1)
    expected = torchvision_rule(array, 28, 32, Image.Resampling.BILINEAR)
    for image in (array, array[..., None], Image.fromarray(array)):
        got = resize_center_crop(image, gray)
        assert got.shape == (28, 28, 1)
        np.testing.assert_array_equal(got[..., 0], expected)


def test_an_image_of_the_right_size_is_not_resampled():
    array = picture(32, 32)
    np.testing.assert_array_equal(resize_center_crop(array, facts(32)), array)
    np.testing.assert_array_equal(
        resize_center_crop(array, facts(28, 32)), array[2:30, 2:30]
    )


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"has 1 channel\(s\).* takes 3 \(RGB\)"):
        resize_center_crop(picture(40, 40, channels=1), facts(32))
    with pytest.raises(ValueError, match=r"has 3 channel\(s\).* takes 1 \(L\)"):
        resize_center_crop(picture(40, 40), facts(32, channels=1))
    with pytest.raises(ValueError, match=r"has 4 channel\(s\)"):
        resize_center_crop(picture(40, 40, channels=4), facts(32))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40, 3), np.float32),
        np.zeros((1, 40, 40, 3), np.uint8),
        np.zeros(40, np.uint8),
    ],
)
def test_other_arrays_are_no_images(image):
    with pytest.raises(ValueError, match=r"must be uint8 \[h, w, channels\], got"):
        resize_center_crop(image, facts(32))


@pytest.mark.parametrize(("mode", "channels"), [("P", 1), ("HSV", 3), ("YCbCr", 3)])
def test_other_modes_are_not_taken_for_gray_or_rgb(mode, channels):
    image = Image.fromarray(picture(40, 40)).convert(mode)
    with pytest.raises(ValueError, match=rf"mode 'L' or 'RGB', got '{mode}'"):
        resize_center_crop(image, facts(32, channels=channels))


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="resize=200 must be at least size=224"):
        facts(224, 200)


def test_impossible_facts_are_refused():
    with pytest.raises(ValueError, match="one value for each of the 3 channels"):
        Preprocess(32, 3, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="std must be positive"):
        Preprocess(32, 1, mean=(0.5,), std=(0.0,))
    with pytest.raises(ValueError, match="'bilinear' or 'bicubic', got 'nearest'"):
        facts(32, interpolation="nearest")


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_normalize_is_exact(lead):
    pre = Preprocess(8, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    images = np.broadcast_to(levels, (*lead, 16, 16, 3))
    got = normalize(jnp.asarray(images), pre)
    expected = (images.astype(np.float64) / 255 - pre.mean) / pre.std
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_lenets_background_and_foreground():
    pre = zoo.get_spec("lenet5").preprocess
    black_and_white = jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1)
    got = np.ravel(normalize(black_and_white, pre))
    np.testing.assert_allclose(got, [-0.1, 1.175], rtol=1e-6)


def test_caffes_lenet_divides_by_256():
    pre = zoo.get_spec("lenet5_modern").preprocess
    got = np.ravel(normalize(jnp.array([[[0], [255]]], jnp.uint8), pre))
    np.testing.assert_allclose(got, [0, 255 / 256], rtol=1e-6)


def test_cards_survive_json():
    card = Card(
        model="lenet5",
        num_classes=3,
        overrides=plain_options(
            {"dtype": jnp.bfloat16, "momentum": 0.5, "x": None, "widths": (8, 16)}
        ),
        preprocess=facts(28, 32, channels=1),
        class_names=("a", "b", "c"),
        versions={"jax": "1"},
    )
    assert card.overrides == {
        "dtype": "bfloat16",
        "momentum": 0.5,
        "x": None,
        "widths": [8, 16],
    }
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


@pytest.mark.parametrize("values", [{}, {"preprocess": None}, [], {"model": "lenet5"}])
def test_other_json_is_no_card(values):
    with pytest.raises(ValueError, match="not a model card"):
        Card.from_json(values)


def test_a_card_with_an_unknown_field_is_refused():
    card = Card("lenet5", 3, {}, facts(28)).to_json()
    with pytest.raises(ValueError, match=r"not a model card: .*color"):
        Card.from_json({**card, "color": 1})
