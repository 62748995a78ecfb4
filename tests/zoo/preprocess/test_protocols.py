"""What a protocol shows of an image: how often, from where, and at which scale."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.preprocess import resize_center_crop
from zoo.protocols import PROTOCOLS, get_protocol, mean_probabilities
from zoo.spec import Preprocess

PREPROCESS = Preprocess(
    size=224, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, resize=256
)
SIZES = [(256, 300), (300, 256), (256, 256), (100, 333), (700, 301)]


def map_of(height, width):
    """An image whose pixels say where they are, up to 511."""
    rows, columns = np.mgrid[:height, :width]
    last = 2 * (rows % 2) + columns % 2
    return np.stack([rows // 2, columns // 2, last], -1).astype(np.uint8)


def place(view):
    """Where the pixels of a view lie in the map, as rows and columns."""
    view = view.astype(int)
    return 2 * view[..., 0] + view[..., 2] // 2, 2 * view[..., 1] + view[..., 2] % 2


def assert_shows(view, top, left, *, height=224, width=224, mirrored=False):
    rows, columns = place(view[:, ::-1] if mirrored else view)
    assert rows.shape == (height, width)
    np.testing.assert_array_equal(rows, np.mgrid[top : top + height, :width][0])
    np.testing.assert_array_equal(columns, np.mgrid[:height, left : left + width][1])


def ramp(height, width):
    """An image that is smooth, so that it says where it was seen at any scale."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows / height * 255, columns / width * 255, 0 * rows], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    ("name", "count", "parts"),
    [
        ("center_crop", 1, [1]),
        ("ten_crop", 10, [10]),
        ("googlenet_144", 144, [36] * 4),
        ("dense", 10, [2] * 5),
        ("dense_vgg", 6, [2] * 3),
        ("dense_vgg_256", 6, [2] * 3),
        ("dense_vgg_384", 6, [2] * 3),
    ],
)
def test_counts(name, count, parts):
    protocol = get_protocol(name)
    assert protocol.count == count
    views = protocol.views(map_of(70, 90), PREPROCESS)
    assert [len(part) for part in views] == parts
    for part in views:
        assert part.dtype == np.uint8
        assert part.shape[1:] == (224, 224, 3) or not protocol.cropped


def test_the_papers_scales():
    scales = {name: protocol.scales for name, protocol in PROTOCOLS.items()}
    assert scales == {
        "center_crop": (),
        "ten_crop": (256,),
        "googlenet_144": (256, 288, 320, 352),
        "dense": (224, 256, 384, 480, 640),
        "dense_vgg": (256, 384, 512),
        "dense_vgg_256": (224, 256, 288),
        "dense_vgg_384": (352, 384, 416),
    }


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_center_crop_is_that_of_preprocessing(height, width):
    image = map_of(height, width)
    (views,) = get_protocol("center_crop").views(image, PREPROCESS)
    np.testing.assert_array_equal(views[0], resize_center_crop(image, PREPROCESS))
    bicubic = Preprocess(200, 3, (0.5,) * 3, (0.5,) * 3, 220, "bicubic")
    (views,) = get_protocol("center_crop").views(image, bicubic)
    np.testing.assert_array_equal(views[0], resize_center_crop(image, bicubic))


@pytest.mark.parametrize(("height", "width"), [(256, 301), (301, 256), (256, 256)])
def test_ten_crops_are_the_corners_and_the_center_of_the_square(height, width):
    (views,) = get_protocol("ten_crop").views(map_of(height, width), PREPROCESS)
    y, x = round((height - 256) / 2), round((width - 256) / 2)
    expected = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    for i, (top, left) in enumerate(expected):
        assert_shows(views[i], y + top, x + left)
        assert_shows(views[5 + i], y + top, x + left, mirrored=True)


@pytest.mark.parametrize(("height", "width"), [(256, 359), (359, 256)])
def test_googlenets_squares(height, width):
    (views, *_) = get_protocol("googlenet_144").views(map_of(height, width), PREPROCESS)
    starts = (0, round(103 / 2), 103)
    for i, start in enumerate(starts):
        y, x = (start, 0) if height > width else (0, start)
        expected = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
        for j, (top, left) in enumerate(expected):
            assert_shows(views[6 * i + j], y + top, x + left)
            assert_shows(views[18 + 6 * i + j], y + top, x + left, mirrored=True)
        square = map_of(height, width)[y : y + 256, x : x + 256]
        whole = Image.fromarray(square).resize((224, 224), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(views[6 * i + 5], whole)
        np.testing.assert_array_equal(views[18 + 6 * i + 5], np.asarray(whole)[:, ::-1])


@pytest.mark.parametrize("name", ["ten_crop", "googlenet_144"])
def test_crops_of_other_scales_see_less_of_the_image(name):
    """Each crop's left edge and width, as shares of a square image, by the ramp."""
    protocol = get_protocol(name, (256, 352, 448))
    for part, scale in zip(
        protocol.views(ramp(400, 400), PREPROCESS), protocol.scales, strict=True
    ):
        first, second = part[0].astype(int), part[1].astype(int)
        share = 224 / scale
        assert np.ptp(first[..., 0]) == pytest.approx(255 * share, abs=3)
        assert second[0, 0, 1] == pytest.approx(255 * (1 - share), abs=3)


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (256, 256, (256, 256)),
        (256, 287, (256, 256)),
        (256, 300, (256, 288)),
        (351, 256, (320, 256)),
    ],
)
def test_dense_shows_the_whole_but_for_a_rest(height, width, shown):
    protocol = get_protocol("dense", (256,))
    (views,) = protocol.views(map_of(height, width), PREPROCESS)
    assert views.shape == (2, *shown, 3)
    y, x = round((height - shown[0]) / 2), round((width - shown[1]) / 2)
    size = dict(height=shown[0], width=shown[1])
    assert_shows(views[0], y, x, **size)
    assert_shows(views[1], y, x, **size, mirrored=True)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dense_has_few_shapes(height, width):
    protocol = get_protocol("dense")
    for views, scale in zip(
        protocol.views(map_of(height, width), PREPROCESS), protocol.scales, strict=True
    ):
        sides = views.shape[1:3]
        assert min(sides) == scale
        assert max(sides) % 32 == 0
        longer = int(scale * max(height, width) / min(height, width))
        assert longer - 32 < max(sides) <= longer


def test_dense_shows_small_images_of_small_networks():
    gray = Preprocess(28, 1, (0.5,), (0.5,))
    protocol = get_protocol("dense", (20, 28))
    views = protocol.views(np.zeros((30, 35, 1), np.uint8), gray)
    assert [part.shape for part in views] == [(2, 20, 20, 1), (2, 28, 32, 1)]


def test_gray_images_stay_gray():
    gray = Preprocess(28, 1, (0.5,), (0.5,), 32)
    (views,) = get_protocol("ten_crop", (32,)).views(
        Image.fromarray(map_of(40, 60)[..., 0]), gray
    )
    assert views.shape == (10, 28, 28, 1)


def test_images_of_a_pixel_have_views():
    for name in PROTOCOLS:
        for part in get_protocol(name).views(
            np.full((1, 1, 3), 7, np.uint8), PREPROCESS
        ):
            assert (part == 7).all()


def test_probabilities_are_averaged_and_not_logits():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    got = mean_probabilities(jnp.stack([logits, logits[::-1] + 100]))
    np.testing.assert_allclose(got, [[0.55, 0.45]] * 2, rtol=1e-5)
    assert mean_probabilities(logits.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["ten_crop", "googlenet_144"])
def test_scales_smaller_than_the_network_are_refused(name):
    large = Preprocess(299, 3, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=f"{name} makes .* side 256 .* takes 299"):
        get_protocol(name).views(map_of(300, 300), large)
    get_protocol(name, (299,)).views(map_of(300, 300), large)


def test_names_and_scales_that_cannot_be():
    with pytest.raises(ValueError, match=r"unknown protocol 'ten_crops'; .* ten_crop"):
        get_protocol("ten_crops")
    with pytest.raises(ValueError, match=r"scales=\(256, 0\) must be 1"):
        get_protocol("dense", (256, 0))
    with pytest.raises(ValueError, match=r"has 1 channel\(s\)"):
        get_protocol("ten_crop").views(np.zeros((9, 9), np.uint8), PREPROCESS)


def test_a_classifier_names_the_most_probable_classes(cheap_jit):
    model, variables = zoo.create("lenet5_modern")
    preprocess = zoo.get_spec("lenet5_modern").preprocess
    images = np.stack([map_of(50, 40)[..., :1], 255 - map_of(50, 40)[..., :1]])
    found = zoo.make_classifier(model, preprocess, top=3)(variables, images)
    fitted = np.stack([resize_center_crop(image, preprocess) for image in images])
    logits = cheap_jit(model.apply)(variables, zoo.normalize(fitted, preprocess))
    probabilities = np.asarray(jax.nn.softmax(logits))
    expected = np.argsort(-probabilities)[:, :3]
    np.testing.assert_array_equal(found.classes, expected)
    scores = np.take_along_axis(probabilities, expected, 1)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-3)


def test_a_classifier_is_compiled_once_for_images_of_all_sizes(caplog):
    model, variables = zoo.create("lenet5_modern")
    preprocess = dataclasses.replace(
        zoo.get_spec("lenet5_modern").preprocess, resize=32
    )
    classify = zoo.make_classifier(model, preprocess)
    image = map_of(50, 40)[..., :1]
    found = classify(variables, [image, Image.fromarray(image[:40, :, 0])])
    with jax.log_compiles():
        alone = classify(variables, [image, map_of(31, 64)[..., :1]])
        assert "compil" not in caplog.text.lower()
        jax.jit(lambda x: x + 1)(1.5)
        assert "compil" in caplog.text.lower()
    np.testing.assert_allclose(alone.scores[0], found.scores[0], rtol=1e-5)
    on_device = classify(variables, jax.numpy.asarray(image)[None])
    np.testing.assert_allclose(on_device.scores[0], found.scores[0], rtol=0.02)
    with pytest.raises(ValueError, match="images must be one or more"):
        classify(variables, [])


def test_a_classifier_has_no_more_classes_than_there_are():
    model, variables = zoo.create("lenet5_modern", num_classes=3)
    classify = zoo.make_classifier(model, zoo.get_spec("lenet5_modern").preprocess)
    assert classify(variables, np.zeros((1, 28, 28, 1), np.uint8)).scores.shape == (
        1,
        3,
    )
    with pytest.raises(ValueError, match=r"has 3 channel\(s\).* takes 1"):
        classify(variables, np.zeros((1, 28, 28, 3), np.uint8))
    with pytest.raises(ValueError, match="top=0 must be 1 or more"):
        zoo.make_classifier(model, zoo.get_spec("lenet5_modern").preprocess, top=0)
