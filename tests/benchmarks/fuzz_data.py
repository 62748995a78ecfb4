"""Damaged images and data sets, and what reads them."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from fuzz_damage import Kind, Rng, damage, damage_json, dump
from PIL import Image

from train.data import fit_source, load_dataset
from train.data.checks import find_problems
from train.data.formats.image_folder import find_layout
from zoo.decode import decode_image, decode_mask, read_orientation
from zoo.spec import Preprocess

TAKES = Preprocess(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, fit="stretch")


def make_image(rng: Rng, mask: bool = False) -> tuple[bytes, str]:
    """Makes an image of some mode and format; also returns its suffix."""
    height, width = rng.integers(1, 24, 2)
    pixels = rng.integers(0, 3 if mask else 256, (height, width, 4)).astype(np.uint8)
    image = Image.fromarray(pixels)
    modes = ("L", "P", "1", "I;16") if mask else ("L", "RGB", "RGBA", "P", "CMYK", "LA")
    mode = rng.choice(modes)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16))
    elif mask and mode in ("L", "P"):
        image = Image.fromarray(pixels[..., 0])
        if mode == "P":
            image.putpalette(bytes(range(256)) * 3)
    else:
        image = image.convert("RGB").convert(mode)
    kinds = ("png", "tiff", "jpeg", "gif", "bmp", "webp", "ppm", "jpeg2000", "tga")
    kinds = kinds if not mask else ("png", "tiff", "gif", "bmp")
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = int(rng.integers(0, 10))
    exif[0x010E] = "x" * int(rng.integers(0, 50))
    for kind in [*rng.permutation(kinds), "png", "tiff"]:
        file = io.BytesIO()
        try:
            options = {"exif": exif} if kind in ("png", "jpeg", "webp", "tiff") else {}
            image.save(file, kind, **options)
            return file.getvalue(), kind
        except (OSError, ValueError, KeyError):
            continue  # a format without this mode
    raise AssertionError(f"no format for {mode}")


def write_image(rng: Rng, folder: Path) -> None:
    data, _ = make_image(rng)
    (folder / "case.img").write_bytes(damage(rng, data))


def read_image(folder: Path) -> None:
    data = (folder / "case.img").read_bytes()
    read_orientation(data)
    for color in (None, "rgb", "gray"):
        decode_image(data, str(folder / "case.img"), color=color, upright=True)


def write_mask(rng: Rng, folder: Path) -> None:
    (folder / "case.img").write_bytes(damage(rng, make_image(rng, mask=True)[0]))


def read_mask(folder: Path) -> None:
    data = (folder / "case.img").read_bytes()
    decode_mask(data, str(folder / "case.img"), upright=True)


def write_zip(rng: Rng, folder: Path) -> None:
    ways = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("train/cat/1", "train/dog/2", "test/cat/3", "README"):
            data, suffix = make_image(rng)
            way = int(rng.choice([*ways, zipfile.ZIP_LZMA]))
            archive.writestr(f"{name}.{suffix}", data, way)
    data = file.getvalue()
    words = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"../", b"\\", b"train/")
    # The members' own bytes, or the zip file's.
    (folder / "case.zip").write_bytes(damage(rng, data, words))


def read_zip(folder: Path) -> None:
    _read_all(load_dataset(f"imagefolder:{folder / 'case.zip'}", "train"))


VOC = """<annotation><size><width>20</width><height>20</height></size><object><name>cow
</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>
8</ymax></bndbox></object><object><name>hen</name><bndbox><xmin>3.5</xmin><ymin>2</ymin>
<xmax>19</xmax><ymax>20</ymax></bndbox></object></annotation>"""
ENCODINGS = (
    *("utf-8", "gb2312", "gbk", "shift_jis", "big5", "latin-1", "hex", "zlib", "rot13"),
    *("idna", "punycode", "undefined", "utf-7", "utf-16", "unicode_escape", "none", ""),
)
MARKUP = (
    *(
        b"<object>",
        b"</object>",
        b"<name>",
        b"&lt;",
        b"&x;",
        b"<!DOCTYPE a>",
        b"<![CDATA[",
    ),
    *(b"<a>" * 150, b"9" * 300, b"1e400", b"nan", b"-1", b"\xff", b"<?xml?>", b"\x00"),
)


def _write_voc(folder: Path) -> Path:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / "voc" / name).mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "voc/JPEGImages/a.png")
    (folder / "voc/Annotations/a.xml").write_text(VOC)
    (folder / "voc/ImageSets/Main/train.txt").write_text("a\n")
    return folder / "voc"


def write_voc(rng: Rng, folder: Path) -> None:
    root = _write_voc(folder)
    encoding = str(rng.choice(ENCODINGS))
    text = VOC.replace("cow", rng.choice(["cow", "车", "ü", "x" * 300]))
    try:
        data = text.encode(encoding if rng.random() < 0.7 else "utf-8")
    except (LookupError, UnicodeError):
        data = text.encode()
    if rng.random() < 0.7:
        data = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + data
    if rng.random() < 0.7:
        data = damage(rng, data, MARKUP)
    (root / "Annotations/a.xml").write_bytes(data)
    if rng.random() < 0.2:
        file = root / rng.choice(["classes.txt", "ImageSets/Main/train.txt"])
        file.write_bytes(damage(rng, b"a\ncow\nhen\n"))


def read_voc(folder: Path) -> None:
    _read_all(load_dataset(f"voc:{folder / 'voc'}", "train"))


COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 20, "height": 20},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "categories": [{"id": 1, "name": "cow"}, {"id": 7, "name": "hen"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 2, 3.5, 4],
            "iscrowd": 0,
        },
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [5, 5, 30, 30]},
    ],
}


def write_coco(rng: Rng, folder: Path) -> None:
    root = folder / rng.choice(["coco", "{coco}", "{0}", "a{split}b", "100%"])
    for name in ("annotations", "train"):
        (root / name).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(root / "train" / name)
    data = dump(rng, damage_json(rng, COCO))
    (root / "annotations/instances_train.json").write_bytes(data)


def read_coco(folder: Path) -> None:
    root = next(folder.iterdir())
    source = load_dataset(f"coco:{root}", "train")
    _read_all(source)
    find_problems(fit_source(source, TAKES))
    file = root / "annotations/instances_train.json"
    if "{split}" not in str(root):
        load_dataset(f"coco:{file}:{root / 'train'}", "train")


def write_pairs(rng: Rng, folder: Path) -> None:
    for name in ("train/images", "train/masks"):
        (folder / "set" / name).mkdir(parents=True)
    for stem in "ab":
        data, _ = make_image(rng, mask=True)
        height, width = _size(data)
        Image.new("RGB", (width, height)).save(folder / f"set/train/images/{stem}.png")
        if rng.random() < 0.5:
            data = damage(rng, data)
        (folder / f"set/train/masks/{stem}.png").write_bytes(data)
    names = b"sky\nroad\ncar\n"
    names = damage(rng, names) if rng.random() < 0.3 else names
    (folder / "set/classes.txt").write_bytes(names)


def _size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def read_pairs(folder: Path) -> None:
    source = load_dataset(f"masks:{folder / 'set'}", "train")
    find_problems(fit_source(source, TAKES))
    _read_all(source)


LFW = {
    "pairs.txt": "1 1\nA 1 2\nA 1 B 1\n",
    "pairsDevTest.txt": "1\nA 1 2\nA 2 B 1\n",
    "people.txt": "2\n1\nA 2\n1\nB 1\n",
    "landmarks.csv": "file,x0,y0,x1,y1\nA/A_0001.png,1,2,3,4\nB/B_0001.png,5,6,7,8\n",
}


def write_faces(rng: Rng, folder: Path) -> None:
    for name in ("A/A_0001", "A/A_0002", "B/B_0001"):
        path = folder / f"lfw/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    words = (
        b"-1",
        b"9" * 30,
        b"9" * 5000,
        "²".encode(),
        b"\x00",
        b'"',
        b"\xff",
        b"nan",
        b"1e999",
        b",",
        b"\n",
    )
    damaged = str(rng.choice([*LFW]))
    for name, text in LFW.items():
        data = text.encode()
        data = damage(rng, data, words) if name == damaged else data
        (folder / "lfw" / name).write_bytes(data)


def read_faces(folder: Path) -> None:
    for split in ("test", "dev", "all"):
        _read_all(load_dataset(f"lfw:{folder / 'lfw'}", split))


def write_layout(rng: Rng, folder: Path) -> None:
    names = (
        *("train", "Test", "val", "cat", "dog", "Cat", "images", "data", "a", "é", "é"),
        *("seg_train", "train", "", ".x", "x" * 300, "..", "{0}", "%s", "\n", "1"),
    )
    entries = []
    for _ in range(rng.integers(0, 12)):
        parts = [names[i] for i in rng.integers(0, len(names), rng.integers(0, 4))]
        last = str(rng.choice(["1.png", "2.jpg", ""]))
        entries.append("/".join([*parts, last]))
    (folder / "layout.json").write_text(json.dumps(entries))


def read_layout(folder: Path) -> None:
    entries = json.loads((folder / "layout.json").read_text())
    find_layout([e for e in entries if e.strip("/")], str(folder))


def _read_all(source) -> None:
    errors = []
    for index in range(len(source)):
        try:
            source[index]
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]


KINDS = {
    "image": Kind(write_image, read_image),
    "mask": Kind(write_mask, read_mask),
    "zip": Kind(write_zip, read_zip),
    "voc": Kind(write_voc, read_voc),
    "coco": Kind(write_coco, read_coco),
    "pairs": Kind(write_pairs, read_pairs),
    "faces": Kind(write_faces, read_faces),
    "layout": Kind(write_layout, read_layout),
}
