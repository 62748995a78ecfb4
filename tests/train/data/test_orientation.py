"""EXIF orientations: one rule wherever an image is opened, and a warning at boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from train.data import BadImage, decode_image, load_dataset
from zoo.decode import decode_mask, read_orientation

# Of a view with a white square in its upper left corner, what is stored.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}


def make_view():
    seen = np.zeros((30, 40, 3), np.uint8)
    seen[:10, :12] = 255
    return seen


def encode(pixels, orientation, kind="png"):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", [*STORED, 0, 9])
def test_images_are_turned_as_viewers_show_them(orientation, kind):
    stored = STORED.get(orientation, STORED[1])(make_view())
    data = encode(stored, orientation, kind)
    assert read_orientation(data) == (orientation if orientation in STORED else 1)
    upright = decode_image(data, "x", upright=True)
    assert upright.shape == (30, 40, 3)
    assert np.abs(upright.astype(int) - make_view()).mean() < 3
    as_stored = decode_image(data, "x")
    assert np.abs(as_stored.astype(int) - stored).mean() < 3


def test_tiff_files_are_upright_whatever_is_asked_for():
    data = encode(STORED[6](make_view()), 6, "tiff")
    assert read_orientation(data) == 1
    for upright in (False, True):
        np.testing.assert_array_equal(
            decode_image(data, "x", upright=upright), make_view()
        )


def test_masks_are_turned_by_their_own_orientation():
    mask = make_view()[..., 0] // 255
    data = encode(STORED[6](mask), 6)
    np.testing.assert_array_equal(decode_mask(data, "x", upright=True), mask)
    np.testing.assert_array_equal(decode_mask(data, "x"), STORED[6](mask))


def write_voc(root, orientation, kind="jpeg"):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir()
    data = encode(STORED[orientation](make_view()), orientation, kind)
    (root / "JPEGImages/a.jpg").write_bytes(data)
    (root / "Annotations/a.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size><object>"
        "<name>sq</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>12</xmax>"
        "<ymax>10</ymax></bndbox></object></annotation>"
    )
    mask = Image.fromarray(make_view()[..., 0] // 255)
    mask.save(root / "SegmentationClass/a.png")
    for name in ("Main", "Segmentation"):
        (root / f"ImageSets/{name}/train.txt").write_text("a\n")
    return root


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_and_masks_drawn_on_the_upright_view(tmp_path, orientation, caplog):
    path = write_voc(tmp_path / "s", orientation)
    boxes = load_dataset(f"voc:{path}", "train", orientation="upright")[0]
    x1, y1, x2, y2 = boxes["boxes"][0].astype(int)
    assert boxes["image"][y1:y2, x1:x2].mean() > 240
    masks = load_dataset(
        f"voc_masks:{path}", "train", orientation="upright", classes=("a", "b")
    )[0]
    assert masks["image"][masks["mask"] == 1].mean() > 240
    assert masks["image"][masks["mask"] == 0].mean() < 15
    assert not caplog.records
    # Where nothing is said, it is counted and named.
    source = load_dataset(f"voc:{path}", "train")
    assert "1 of 1 images have an EXIF orientation" in caplog.text
    assert f"a.jpg: {orientation}" in caplog.text
    assert "--data.orientation upright" in caplog.text
    if orientation == 6:
        with pytest.raises(BadImage, match="orientation is 6, and turned upright it"):
            source[0]
        voc_masks = load_dataset(f"voc_masks:{path}", "train", orientation="stored")
        with pytest.raises(BadImage, match="orientation is 6, and turned upright it"):
            voc_masks[0]


def test_the_warning_is_said_for_zips_and_other_formats_too(tmp_path, caplog):
    path = write_voc(tmp_path / "s", 8, "webp")
    load_dataset(f"voc:{path}", "train", orientation="stored")
    assert not caplog.records
    load_dataset(f"voc_masks:{path}", "train", classes=("a", "b"))
    assert "a.jpg: 8" in caplog.text


def test_an_orientation_behind_a_long_header_is_found(tmp_path, caplog):
    path = write_voc(tmp_path / "s", 3)
    file = path / "JPEGImages/a.jpg"
    data = file.read_bytes()
    start = data.index(b"Exif") - 2  # of the segment's length and content
    end = start + int.from_bytes(data[start : start + 2], "big")
    segment = b"\xff\xe5" + (65_000).to_bytes(2, "big") + bytes(64_998)
    file.write_bytes(data[:end] + 3 * segment + data[end:])
    load_dataset(f"voc:{path}", "train")
    assert "a.jpg: 3" in caplog.text


def test_classification_is_upright_unless_told_otherwise(tmp_path):
    (tmp_path / "s/cat").mkdir(parents=True)
    stored = STORED[6](make_view())
    (tmp_path / "s/cat/1.png").write_bytes(encode(stored, 6))
    for option, shape in (
        ("auto", (30, 40)),
        ("upright", (30, 40)),
        ("stored", (40, 30)),
    ):
        source = load_dataset(f"imagefolder:{tmp_path}/s", "all", orientation=option)
        assert source[0]["image"].shape[:2] == shape
    with pytest.raises(ValueError, match="orientation='up': expected one of auto"):
        load_dataset(f"imagefolder:{tmp_path}/s", "all", orientation="up")
