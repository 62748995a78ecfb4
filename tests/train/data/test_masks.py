"""Folders of images and masks: values, classes, splits, and what is refused."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from train.data import BadImage, array_source, fit_source, load_dataset
from train.data.annotations import make_values
from zoo.decode import decode_mask
from zoo.spec import Preprocess

NAMES = ("sky", "road", "car")


def encode(values, mode="L", kind="png"):
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image.putpalette([v for i in range(256) for v in (255 - i, i, i // 2)])
    elif mode != "L":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def make_mask(seed=0, size=(6, 9), most=3):
    return np.random.default_rng(seed).integers(0, most, size).astype(np.uint8)


def write(path, contents, zipped=False):
    if zipped:
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def files(**masks):
    """Images with masks, by split and name such as train_a."""
    contents = {}
    for name, mask in masks.items():
        split, _, stem = name.partition("_")
        contents[f"set/{split}/images/{stem}.jpg"] = encode(make_mask(), "RGB", "jpeg")
        if mask is not None:
            contents[f"set/{split}/masks/{stem}.png"] = mask
    return contents


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_the_numbers_in_their_files(tmp_path, mode, zipped):
    masks = {f"train_{i}": encode(make_mask(i), mode) for i in range(3)}
    contents = files(**masks, val_x=encode(make_mask(7), mode))
    contents["set/classes.txt"] = "\n".join(NAMES).encode()
    path = write(tmp_path / "s", contents, zipped)
    source = load_dataset(f"masks:{path}", "train")
    assert (source.task, source.class_names, len(source)) == ("segmentation", NAMES, 3)
    for i in range(3):
        example = source[i]
        assert {k: v.dtype.name for k, v in example.items()} == {
            "image": "uint8",
            "mask": "uint8",
            "index": "int32",
        }
        np.testing.assert_array_equal(example["mask"], make_mask(i))
    assert source.provenance(1) == f"{path}/set/train/images/1.jpg"
    both = load_dataset(f"masks:{path}", "validation+train")
    np.testing.assert_array_equal(both[0]["mask"], make_mask(7))
    assert len(both) == 4


def test_ignored_values(tmp_path):
    mask = make_mask(most=5)
    mask[0, 0], mask[0, 1] = 255, 11
    path = write(tmp_path / "s", files(train_a=encode(mask)))
    options = {"classes": "01234", "ignored": (11,)}
    out = load_dataset(f"masks:{path}", "train", **options)[0]["mask"]
    assert out[0, 0] == out[0, 1] == 255
    np.testing.assert_array_equal(out[1:], mask[1:])
    # The value of a class can be ignored only if the classes have other values.
    with pytest.raises(ValueError, match=r"--data.ignored both have \[0\]"):
        load_dataset(f"masks:{path}", "train", classes="01234", ignored=(0,))
    options = {"classes": "a", "values": (1,), "ignored": (0, 2, 3, 4, 5, 11)}
    out = load_dataset(f"masks:{path}", "train", **options)[0]["mask"]
    np.testing.assert_array_equal(out == 0, mask == 1)
    with pytest.raises(ValueError, match=r"ignored=\(256,\).*: values of masks are 0"):
        load_dataset(f"masks:{path}", "train", classes="ab", ignored=(256,))
    with pytest.raises(ValueError, match=r"digits: ignored=\(1,\).* is for files with"):
        load_dataset("digits", "train", data_dir=tmp_path, ignored=(1,))
    with pytest.raises(ValueError, match="256 classes: masks have 1 to 255"):
        make_values(256)
    assert make_values(255)[254] == 254


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            encode(make_mask(size=(9, 6))),
            r"a\.png: the mask is 6 x 9 pixels, its image 9 x 6",
        ),
        (encode(make_mask(), "RGB"), r"a\.png: a mask must have a palette or be gray"),
        (encode(make_mask(), "RGBA"), r"a\.png: a mask must have .* of mode RGBA"),
        (encode(make_mask(), "LA"), r"a\.png: a mask must have .* of mode LA"),
        (
            encode(3 + 0 * make_mask()),
            r"a\.png: 54 pixel.* such as 3, expected 0 \.\. 2",
        ),
        (encode(make_mask())[:60], r"a\.png: cannot be read"),
        (b"", r"a\.png: cannot be read \(not an image"),
    ],
)
def test_bad_masks_name_their_file(tmp_path, mask, message):
    path = write(tmp_path / "s", files(train_a=mask, train_b=encode(make_mask())))
    source = load_dataset(f"masks:{path}", "train", classes=NAMES)
    with pytest.raises(BadImage, match=f"masks/{message}"):
        source[0]
    np.testing.assert_array_equal(source[1]["mask"], make_mask())


def test_bad_pairs_can_be_skipped(tmp_path, caplog):
    contents = files(
        train_a=encode(make_mask()),
        train_b=encode(make_mask(), "RGB"),
        train_c=encode(make_mask(size=(9, 6))),
        train_d=encode(make_mask(3)),
    )
    path = write(tmp_path / "s", contents)
    source = load_dataset(f"masks:{path}", "train", classes=NAMES)
    preprocess = Preprocess(size=9, channels=3, mean=(0,) * 3, std=(1,) * 3, fit="keep")
    good = fit_source(source, preprocess, on_bad_image="skip")
    assert "2 of 4 images are left out" in caplog.text
    assert "masks/b.png: a mask must have a palette" in caplog.text
    assert (good.task, len(good)) == ("segmentation", 2)
    np.testing.assert_array_equal(good[1]["mask"][:6, :9], make_mask(3))
    assert good.provenance(1).endswith("images/d.jpg")


def test_more_modes_of_masks():
    ones = make_mask(most=2)
    bits = io.BytesIO()
    Image.fromarray(ones.astype(bool)).save(bits, "png")
    np.testing.assert_array_equal(decode_mask(bits.getvalue(), "m"), ones)
    for most, good in ((200, True), (300, False)):
        values = np.arange(most, dtype=np.uint16).reshape(10, -1)
        wide = io.BytesIO()
        Image.fromarray(values).save(wide, "png")
        if good:
            np.testing.assert_array_equal(decode_mask(wide.getvalue(), "m"), values)
        else:
            with pytest.raises(BadImage, match="m: a mask has the values 0 to 299"):
                decode_mask(wide.getvalue(), "m")
    with pytest.raises(BadImage, match="6 = 54 pixels, more than the limit of 53"):
        decode_mask(encode(make_mask()), "m", max_pixels=53)


def test_layouts_that_are_refused(tmp_path):
    contents = files(train_a=encode(make_mask()), train_b=None, train_c=None)
    path = write(tmp_path / "s", contents)
    message = r"2 of 3 images of split 'train' have no mask; .* set/train/masks/b\.png"
    with pytest.raises(ValueError, match=message):
        load_dataset(f"masks:{path}", "train", classes=NAMES)
    path = write(tmp_path / "t", files(train_a=encode(make_mask())))
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        load_dataset(f"masks:{path}", "test", classes=NAMES)
    with pytest.raises(ValueError, match=r"classes=.* or in a file set/classes\.txt"):
        load_dataset(f"masks:{path}", "train")
    with pytest.raises(ValueError, match="no folder images, or SPLIT/images"):
        load_dataset(f"masks:{path}/set/train/masks", "train", classes=NAMES)
    with pytest.raises(
        ValueError, match="is for segmentation, not for task='detection'"
    ):
        load_dataset(f"masks:{path}", "train", classes=NAMES, task="detection")
    with pytest.raises(ValueError, match="did you mean 'segmentation'"):
        load_dataset(f"masks:{path}", "train", classes=NAMES, task="segmentatoin")
    with pytest.raises(
        ValueError, match="per_class=1 is not possible for segmentation"
    ):
        load_dataset(f"masks:{path}", "train", classes=NAMES, per_class=1)
    write(path, {"other/train/images/z.png": encode(make_mask())})
    with pytest.raises(ValueError, match="two splits other/train and set/train"):
        load_dataset(f"masks:{path}", "train", classes=NAMES)


def test_what_a_name_may_begin_with(tmp_path):
    from train.data.datasets import FORMATS

    message = r"unknown data set 'mask:x'; did you mean .*'masks'"
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("mask:x", "train", data_dir=tmp_path)
    for form in FORMATS:
        assert f"{form}:PATH" in str(error.value)
    assert array_source(np.zeros((1, 2, 2), np.uint8), [0]).task == "classification"


def test_what_has_no_other_half_is_named(tmp_path, caplog):
    contents = files(train_a=encode(make_mask()))
    contents["set/train/masks/b.png"] = encode(make_mask())
    contents["set/train/images/c.txt"] = b"hello"
    path = write(tmp_path / "s", contents)
    assert len(load_dataset(f"masks:{path}", "train", classes=NAMES)) == 1
    assert "1 masks without an image (set/train/masks/b.png)" in caplog.text
    assert "1 no images that Pillow reads (1 x .txt)" in caplog.text
    (path / "set/train/images/a.png").write_bytes(encode(make_mask(), "RGB"))
    with pytest.raises(ValueError, match="two images called 'a'"):
        load_dataset(f"masks:{path}", "train", classes=NAMES)
