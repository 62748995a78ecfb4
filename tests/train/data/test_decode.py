"""Image files of every kind become gray or RGB bytes, or an error with their name."""

import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from zoo.decode import BadImage, decode_image


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_rgb_and_gray_come_back_exactly():
    rgb, gray = pixels(5, 7, 3), pixels(5, 7)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgb)), "x"), rgb)
    out = decode_image(encode(Image.fromarray(gray)), "x")
    np.testing.assert_array_equal(out, gray[..., None])
    assert out.dtype == np.uint8


def test_palette_becomes_the_colors_it_stands_for():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putdata([0, 1])
    expected = [[[0, 0, 0], [200, 100, 50]]]
    np.testing.assert_array_equal(decode_image(encode(image), "x"), expected)
    see_through = encode(image, transparency=b"\x00\xff")
    np.testing.assert_array_equal(decode_image(see_through, "x"), expected)


def test_alpha_is_dropped_and_not_composited():
    rgba = pixels(4, 4, 4)
    out = decode_image(encode(Image.fromarray(rgba)), "x")
    np.testing.assert_array_equal(out, rgba[..., :3])
    gray_alpha = Image.merge("LA", [Image.fromarray(rgba[..., i]) for i in (0, 3)])
    out = decode_image(encode(gray_alpha), "x")
    np.testing.assert_array_equal(out, rgba[..., :1])


def test_sixteen_bits_keep_the_upper_eight():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for kind in ("png", "tiff", "ppm"):
        out = decode_image(encode(Image.fromarray(values), kind), "x")
        assert out[0, :, 0].tolist() == [0, 0, 1, 128, 255], kind


def test_cmyk_and_black_and_white():
    red = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    out = decode_image(encode(red, "tiff"), "x")
    assert out.shape == (2, 2, 3)
    assert out[0, 0].tolist() == [255, 0, 0]
    white = decode_image(encode(Image.new("1", (2, 3), 1)), "x")
    np.testing.assert_array_equal(white, np.full((3, 2, 1), 255))


def test_color_converts_both_ways():
    rgb = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    gray = decode_image(encode(Image.fromarray(rgb)), "x", color="gray")
    np.testing.assert_array_equal(gray, np.full((2, 2, 1), round(0.299 * 255)))
    british = decode_image(encode(Image.fromarray(rgb)), "x", color="grey")
    np.testing.assert_array_equal(gray, british)
    data = encode(Image.fromarray(pixels(3, 3)))
    out = decode_image(data, "x", color="rgb")
    np.testing.assert_array_equal(out, np.repeat(pixels(3, 3)[..., None], 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_when_asked(orientation):
    array = pixels(3, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(array), exif=exif)
    # The EXIF standard: where row 0 and column 0 of the stored image belong.
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: array.swapaxes(0, 1)[:, ::-1],
        7: array.swapaxes(0, 1)[::-1, ::-1],
        8: array.swapaxes(0, 1)[::-1],
    }[orientation]
    np.testing.assert_array_equal(decode_image(data, "x", upright=True), turned)
    np.testing.assert_array_equal(decode_image(data, "x"), array)


def test_truncated_and_foreign_files_are_named():
    whole = encode(Image.fromarray(pixels(64, 64, 3)), "jpeg")
    with pytest.raises(BadImage, match=r"a/b\.jpg: cannot be read .*truncated"):
        decode_image(whole[: len(whole) // 2], "a/b.jpg")
    with pytest.raises(BadImage, match=r"a/b\.jpg: .*not an image of a known format"):
        decode_image(b"hello", "a/b.jpg")
    with pytest.raises(BadImage, match=r"a/b\.png"):
        decode_image(encode(Image.fromarray(pixels(64, 64, 3)))[:300], "a/b.png")
    floats = encode(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")
    with pytest.raises(BadImage, match=r"f\.tif: .*mode F"):
        decode_image(floats, "f.tif")


def test_a_bomb_is_refused_with_size_and_limit():
    data = encode(Image.new("1", (300, 200)))
    with pytest.raises(BadImage, match=r"x\.png: 300 x 200 = 60000 .* limit of 59999"):
        decode_image(data, "x.png", max_pixels=59_999)
    assert decode_image(data, "x.png", max_pixels=60_000).shape == (200, 300, 1)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_pillows_own_bomb_warning_and_error_become_bad_image(side):
    data = encode(Image.new("1", (side, side)))
    with warnings.catch_warnings():
        # As a user sees it: Pillow's warning is not an error.
        warnings.simplefilter("ignore")
        with pytest.raises(BadImage, match=r"x\.png: .*limit"):
            decode_image(data, "x.png")


def test_bad_image_can_cross_processes():
    error = pickle.loads(pickle.dumps(BadImage("a.png: broken")))
    assert isinstance(error, BadImage)
    assert str(error) == "a.png: broken"
