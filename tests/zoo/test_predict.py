"""One line from an image file to what is in it, with the weights of the package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from damage import save_run
from PIL import Image
from sklearn.datasets import load_digits

import zoo
from zoo.__main__ import main


@pytest.fixture(scope="module")
def digit():
    """A seven of the digits, uint8 [40, 40]."""
    digits = load_digits()
    seven = digits.images[digits.target == 7][0]
    return np.asarray(Image.fromarray(np.uint8(seven * 255 / 16)).resize((40, 40)))


@pytest.fixture
def files(tmp_path, digit):
    """A digit that lies on its side, whose EXIF orientation says so, and others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(digit)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "more").mkdir()
    Image.fromarray(digit).convert("RGBA").save(tmp_path / "more" / "turned.png")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    return tmp_path


def test_classes_of_a_file(files, digit):
    found = zoo.predict("lenet5", files / "turned.jpg", weights="digits", top=2)
    assert found.image.shape == (40, 40, 1)  # upright
    assert (np.abs(found.image[..., 0].astype(int) - digit) < 60).all()
    assert (found.labels[0], len(found.labels), found.scores[0] > 0.5) == ("7", 2, True)
    assert str(found).startswith(f"{files / 'turned.jpg'}: 7 ")
    assert json.loads(json.dumps(found.to_json()))["labels"] == found.labels
    with Image.open(found.save(files / "found.png")) as picture:
        assert picture.width > 300
    assert found._repr_png_().startswith(b"\x89PNG")


def test_arrays_and_pillow_images_are_files_content(digit):
    predict = zoo.make_predictor("lenet5", weights="digits")
    color = np.repeat(digit[..., None], 3, axis=-1)
    for image in (digit, digit[..., None], color, Image.fromarray(color)):
        found = predict(image)
        assert (found.labels[0], found.name) == ("7", "image")
    for wrong in (digit / 255, np.zeros((3, 3, 3, 3), np.uint8)):
        with pytest.raises(ValueError, match="image must be a path, a Pillow image"):
            predict(wrong)


@pytest.mark.parametrize(
    "mode", ["P", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "1", "I;16"]
)
def test_a_pillow_image_is_read_as_its_file(mode, tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (9, 8, 3)).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(colors[..., 0].astype(np.uint16) << 8)
    else:
        image = Image.fromarray(colors).convert(mode)
    kind = "jpg" if mode == "CMYK" else "tif" if mode in ("YCbCr", "HSV") else "png"
    file = tmp_path / f"image.{kind}"
    stored = image.convert("RGB") if mode == "HSV" else image
    stored.save(file, **({"compression": None} if kind == "tif" else {}))
    if kind == "jpg":
        image = Image.open(file)
    predict = zoo.make_predictor("cifar_resnet20", weights="cifar10_20epochs")
    np.testing.assert_array_equal(predict.read(image), predict.read(file))


def test_a_pillow_image_without_a_range_is_refused():
    predict = zoo.make_predictor("lenet5", weights="digits")
    with pytest.raises(ValueError, match="mode F"):
        predict(Image.new("F", (9, 9)))


def test_the_orientation_is_that_of_the_run_however_it_is_named(tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_run(run, steps=(1,))
    (run / "config.json").write_text('{"data": {"orientation": "stored"}}')
    monkeypatch.setenv("HOME", str(tmp_path))
    name = zoo.weights.read_card(run).model
    for first, weights in (
        *((run, None), ("~/run", None), (run / "checkpoints", None)),
        *((run / "checkpoints" / "1", None), (name, run), (name, "~/run")),
    ):
        assert not zoo.make_predictor(first, weights=weights).upright, (first, weights)


@pytest.mark.parametrize(
    ("name", "weights"), [("lenet5", "digits"), ("ssd96_small", "digits_canvas")]
)
def test_lists_of_images_give_what_each_gives_alone(name, weights, files, digit):
    channels = zoo.get_spec(name).preprocess.channels
    small = digit[5:35, 4:36] if channels == 1 else np.repeat(digit[..., None], 3, -1)
    images = [files / "turned.jpg", Image.fromarray(digit), small]
    predict = zoo.make_predictor(name, weights=weights, score_threshold=0.1)
    found = predict(images)
    assert [f.name for f in found] == [str(images[0]), "image", "image"]
    for each, image in zip(found, images, strict=True):
        alone = predict(image)
        assert each.labels == alone.labels
        np.testing.assert_allclose(each.scores, alone.scores, atol=1e-5)
        np.testing.assert_array_equal(each.image, alone.image)
    assert predict([]) == []
    several = zoo.predict(name, tuple(images[:1]), weights=weights)
    assert [len(several), several[0].name] == [1, str(images[0])]


def test_boxes_of_a_canvas(digit):
    canvas = np.full((120, 100, 3), 90, np.uint8)
    canvas[30:70, 20:60] = np.maximum(digit[..., None], 90)
    found = zoo.predict("ssd96_small", canvas, weights="digits_canvas")
    best = found.boxes[0]
    assert (found.labels[0], found.boxes.shape[1]) == ("7", 4)
    np.testing.assert_allclose(best, [24, 30, 56, 70], atol=12)
    assert found.to_json()["objects"][0]["label"] == "7"
    assert found.words().startswith("1 x ")


def test_a_mask_of_a_canvas(digit):
    canvas = np.full((90, 100, 3), 90, np.uint8)
    canvas[30:70, 20:60] = np.maximum(digit[..., None], 90)
    found = zoo.predict("unet_small", canvas, weights="digits_canvas")
    assert (found.mask.shape, found.scores.shape) == ((90, 100), (90, 100))
    background, largest, *_ = found.shares
    assert (background, largest) == ("background", "7")
    assert sum(found.to_json()["shares"].values()) == pytest.approx(1)
    assert {k: p.mode for k, p in found.pictures().items()} == {"": "RGB", "-mask": "P"}


def test_predictions_are_written_without_their_pixels(digit):
    found = zoo.predict("lenet5", [digit], weights="digits", top=1)
    assert repr(found) == f"[<ClassPrediction image: 7 {found[0].scores[0]:.1%}>]"


def test_images_that_cannot_be_taken_are_named(tmp_path, digit):
    with pytest.raises(ValueError, match=r"https://a\.b/c\.png.*fetch it"):
        zoo.predict("lenet5", "https://a.b/c.png", weights="digits")
    predict = zoo.make_predictor("unet_small", weights="digits_canvas")
    Image.fromarray(digit[:9]).save(tmp_path / "low.png")
    with pytest.raises(ValueError, match=r"low\.png: unet_small takes images of 16 x"):
        predict(tmp_path / "low.png")
    for shape in ((20, 20, 5), (2, 20, 20, 3), (20,)):
        with pytest.raises(ValueError, match=r"of 1 to 4 channels, got uint8 \["):
            predict(np.zeros(shape, np.uint8))


def test_a_descriptor():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    found = zoo.predict("deepface_small", image, weights="faces_synthetic")
    np.testing.assert_allclose(np.linalg.norm(found.descriptor), 1, rtol=1e-5)
    assert found.draw().size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "weights", "message"),
    [
        ("lenet5", None, r"weights=None: lenet5 needs weights .* one of \['digits'\]"),
        ("lenet6", None, r"unknown model 'lenet6'; did you mean lenet5"),
        ("lenet5", "digit", r"unknown weights of lenet5 'digit'; did you mean digits"),
        ("rcnn_alexnet", "x", "rcnn_alexnet reads regions"),
    ],
)
def test_what_cannot_be_loaded(arguments, weights, message):
    with pytest.raises(ValueError, match=message):
        zoo.make_predictor(arguments, weights=weights)


def test_an_option_that_does_not_exist():
    with pytest.raises(ValueError, match=r"'treshold'; did you mean score_threshold"):
        zoo.make_predictor("ssd96_small", weights="digits_canvas", treshold=0.5)


def test_a_number_of_boxes_that_is_no_number():
    with pytest.raises(ValueError, match=r"max_detections=0 must be 1 or more"):
        zoo.make_predictor("ssd96_small", weights="digits_canvas", max_detections=0)


@pytest.mark.parametrize("content", [b"null", b"[]", b"\xff", b'{"data": 3}', b"["])
def test_a_run_whose_config_is_damaged(tmp_path, content):
    save_run(tmp_path, steps=(1,))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is no config of a run"):
        zoo.make_predictor(tmp_path)


def test_a_file_that_says_its_model(tmp_path, digit):
    path = tmp_path / "my.safetensors"
    zoo.weights.convert("lenet5", "digits", path)
    assert zoo.predict(path, digit).labels[0] == "7"
    with pytest.raises(ValueError, match=r"weights='digits': .* has weights of"):
        zoo.predict(path, digit, weights="digits")


def test_the_command_reads_folders_and_patterns(files, capsys):
    options = ["--model", "lenet5", "--weights", "digits", "--top", "1"]
    pattern = str(files / "*.jpg")
    out = files / "out"
    main(["predict", str(files / "more"), pattern, *options, "--out", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1][:2] for line in said] == ["7 ", "7 "]
    assert {p.name for p in out.iterdir()} == {"turned.png", "turned-1.png"}
    # The photographs themselves stay, and so does each picture.
    before = (files / "more" / "turned.png").read_bytes()
    inside = str(files / "more" / "*")
    main(["predict", inside, *options, "--out", str(files / "more")])
    assert (files / "more" / "turned.png").read_bytes() == before
    assert (files / "more" / "turned-1.png").exists()
    main(["predict", inside, pattern, *options, "--out", str(out)])
    assert {p.stem for p in out.iterdir()} == {"turned", "turned-1", "turned-2"}
    capsys.readouterr()
    (files / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit, match="1 of 2 images could not be read"):
        main(["predict", str(files / "broken.png"), pattern, *options, "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["labels"] == ["7"]
    assert "broken.png: cannot be read" in said.err
    with pytest.raises(ValueError, match="name at least one image"):
        main(["predict", *options])
    with pytest.raises(FileNotFoundError, match=r"\*\.bmp is no image file, no folder"):
        main(["predict", str(files / "*.bmp"), *options])


def test_predicting_needs_no_trainer(files):
    code = "import sys, zoo; zoo.predict('lenet5', sys.argv[1], weights='digits')\n"
    code += "assert not {'train', 'grain', 'matplotlib'} & {*sys.modules}"
    path = str(files / "turned.jpg")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], check=True)
