"""Reads damaged files of every kind: each must be read, or refused by its name.

    python tests/benchmarks/fuzz.py [--cases 10000] [--seconds 10] [--seed 0]
        [--kinds image zip ..]

Small files of each kind are damaged: bits are flipped, parts are cut out, repeated or
replaced, and values of JSON, XML and PyTorch files become infinite, huge, deep, or of
another type. What reads them may raise a ValueError, an OSError or an ImportError that
names the file; anything else is a fault, as is a case that takes longer than `LIMIT`
seconds. The cases follow from the seed alone. Prints one line of JSON, and each fault
with the seed of its case before it; the status is 1 where there are faults.
"""

import argparse
import copy
import faulthandler
import io
import json
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import zoo
from train.config import load_config, save_config
from train.configs import get_config
from train.data import fit_source, load_dataset
from train.data.checks import find_problems
from train.data.formats.image_folder import find_layout
from train.history import read_history
from zoo.decode import decode_image, decode_mask, read_orientation
from zoo.spec import Preprocess

LIMIT = 30.0  # seconds for a case
MEMORY = 4 * 2**30  # bytes that a case may take beside what the process has
TAKES = Preprocess(size=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, fit="stretch")

Rng = np.random.Generator


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      write: Writes a damaged one into an empty folder.
      read: Reads it.
    """

    write: Callable[[Rng, Path], None]
    read: Callable[[Path], Any]


class Slow(BaseException):
    """A case takes too long."""


# Damage


def damage(rng: Rng, data: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    """Damages a file's bytes in one to four ways."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        at, length = rng.integers(len(out)), int(rng.integers(1, 40))
        way = rng.integers(7 + bool(words))
        if way == 0:
            out[at] ^= 1 << rng.integers(8)
        elif way == 1:
            out[at] = rng.choice([0, 1, 127, 128, 255])
        elif way == 2:
            del out[at:]
        elif way == 3:
            del out[at : at + length]
        elif way == 4:
            out[at:at] = out[at : at + length] * int(rng.integers(1, 20))
        elif way == 5:
            out[at:at] = rng.bytes(length)
        elif way == 6:
            other = rng.integers(len(out))
            out[at : at + length] = out[other : other + length]
        else:
            out[at : at + int(rng.integers(10))] = words[rng.integers(len(words))]
    return bytes(out)


NASTY = (
    *(None, True, False, [], {}, "", "x", "1", 0, -1, 3.9, 1e308, 2**31, 2**63, 10**9),
    *(10**400, float("nan"), float("inf"), -float("inf"), [[]], {"a": None}, "\ud800"),
    *("cat", "../x", "a\x00b", "x" * 5000, [1, 2, 3], [None], 0.5, "float64", "deep"),
)


def damage_json(rng: Rng, content: Any) -> Any:
    """Replaces, removes or repeats values anywhere in what JSON can say."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(content))
        if not places:
            break
        inside, key = places[rng.integers(len(places))]
        way = rng.integers(5)
        if way == 0:
            del inside[key]
        elif way == 1 and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[key]))
        else:
            value = NASTY[rng.integers(len(NASTY))]
            inside[key] = copy.deepcopy(value)
    return content


def _places(content: Any):
    keys = content if isinstance(content, dict) else range(len(content))
    for key in [*keys]:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def dump(rng: Rng, content: Any) -> bytes:
    """Writes damaged JSON, sometimes deeper or as another encoding."""
    text = json.dumps(content, indent=1)
    text = text.replace('"deep"', "[" * 3000 + "]" * 3000)
    data = text.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-16"]))
    words = (
        b"NaN",
        b"Infinity",
        b"1e999",
        b"1" * 5000,
        b"\xff\xfe",
        b"null",
        b"[" * 99,
    )
    return damage(rng, data, words) if rng.random() < 0.3 else data


# Images


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
    for color in (None, "rgb", "grey"):
        decode_image(data, str(folder / "case.img"), color=color, upright=True)


def write_mask(rng: Rng, folder: Path) -> None:
    (folder / "case.img").write_bytes(damage(rng, make_image(rng, mask=True)[0]))


def read_mask(folder: Path) -> None:
    data = (folder / "case.img").read_bytes()
    decode_mask(data, str(folder / "case.img"), upright=True)


# Data sets


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


# Runs


def write_config(rng: Rng, folder: Path) -> None:
    names = ("digits_lenet5", "voc_ssd300", "camvid_frrn", "imagenet_googlenet")
    save_config(get_config(str(rng.choice(names))), folder / "config.json")
    content = json.loads((folder / "config.json").read_bytes())
    if rng.random() < 0.1:
        content = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    else:
        content = damage_json(rng, content)
    (folder / "config.json").write_bytes(dump(rng, content))


def read_config(folder: Path) -> None:
    load_config(folder / "config.json")


def write_metrics(rng: Rng, folder: Path) -> None:
    rows = [
        {"kind": "train", "step": i, "epoch": i / 2, "loss": 1.5 / (i + 1)}
        for i in range(5)
    ]
    lines = []
    for row in rows:
        damaged = rng.random() < 0.3
        lines.append(json.dumps(damage_json(rng, row) if damaged else row).encode())
    data = b"\n".join(lines) + b"\n"
    words = (
        b"NaN",
        b"1e999",
        b"1" * 5000,
        b"[" * 5000,
        b"\xff\xfe",
        b"null\n",
        b"\x00",
    )
    (folder / "metrics.jsonl").write_bytes(
        damage(rng, data, words) if rng.random() < 0.6 else data
    )


def read_metrics(folder: Path) -> None:
    for row in read_history(folder):
        row["step"] + 1, row["kind"], row["epoch"]


# Weights

MODEL = "lenet5_modern"
_FRESH: list[Any] = []


def _variables() -> tuple[dict[str, Any], Any]:
    if not _FRESH:
        import jax

        key = jax.random.key(0)
        _FRESH.append(zoo.create_with_card(MODEL, num_classes=3, key=key)[1:])
    return _FRESH[0]


def write_safetensors(rng: Rng, folder: Path) -> None:
    variables, card = _variables()
    path = folder / "case.safetensors"
    zoo.weights.save_safetensors(path, variables, card)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = rng.random()
    if way < 0.4:  # the card
        texts = header.get("__metadata__", {})
        for name, text in texts.items():
            try:
                content = damage_json(rng, json.loads(text))
                texts[name] = json.dumps(content)
            except (ValueError, TypeError):
                texts[name] = damage(rng, text.encode()).decode("utf-8", "replace")
    elif way < 0.7:
        header = damage_json(rng, header)
    else:
        names = [name for name in header if name != "__metadata__"]
        name = str(rng.choice(names))
        changed = rng.choice([f"{name}/x", name.rpartition("/")[0], "", "/", "a//b"])
        header[str(changed)] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        kinds = ("F8_E4M3", "F8_E5M2", "BF16", "F64", "I64", "BOOL", "U8", "F16")
        header[name] = {**header[name], "dtype": str(rng.choice(kinds))}
    text = json.dumps(header).encode("utf-8", "replace")
    data = len(text).to_bytes(8, "little") + text + rest
    path.write_bytes(damage(rng, data) if rng.random() < 0.3 else data)


def read_safetensors(folder: Path) -> None:
    path = folder / "case.safetensors"
    zoo.weights.load_safetensors(path)
    zoo.weights.load(MODEL, path)


def write_pth(rng: Rng, folder: Path) -> None:
    variables, card = _variables()
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in zoo.weights.to_torch(MODEL, variables, num_classes=3).items()
    }
    del card
    name = str(rng.choice([*state]))
    odd = _odd_tensors(state[name])
    way = rng.random()
    if way < 0.6:
        state[name] = odd[rng.integers(len(odd))]
    elif way < 0.8:
        wrapper = str(rng.choice(["state_dict", "model", "net", "x", "", "module"]))
        state = {wrapper: state, "epoch": odd[rng.integers(len(odd))]}
    else:
        keys = (0, 1.5, None, ("a", "b"), "a.b", "", "module." + name, b"x")
        state[keys[rng.integers(len(keys))]] = odd[rng.integers(len(odd))]
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    data = file.getvalue()
    path = folder / "case.pth"
    path.write_bytes(damage(rng, data) if rng.random() < 0.4 else data)


def _odd_tensors(tensor: torch.Tensor) -> list[Any]:
    flat = tensor.reshape(-1)
    return [
        tensor.to_sparse(),
        torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        tensor.to("meta"),
        torch.view_as_complex(torch.ones(2, 2)).conj(),
        torch.nested.nested_tensor([flat[:1], flat[:2]]),
        tensor.to(torch.float8_e4m3fn),
        tensor.to(torch.bfloat16),
        tensor.half(),
        tensor.double(),
        tensor.to(torch.bool),
        flat.expand(3, -1),
        torch.nn.Parameter(tensor),
        torch.zeros(0),
        torch.tensor(float("nan")),
        None,
        7,
        "text",
        [tensor],
        {"a": {"b": tensor}},
        {1: 2},
    ]


def read_pth(folder: Path) -> None:
    zoo.weights.read_state_dict(folder / "case.pth")
    zoo.weights.load(MODEL, folder / "case.pth")


KINDS = {
    "image": Kind(write_image, read_image),
    "mask": Kind(write_mask, read_mask),
    "zip": Kind(write_zip, read_zip),
    "voc": Kind(write_voc, read_voc),
    "coco": Kind(write_coco, read_coco),
    "pairs": Kind(write_pairs, read_pairs),
    "layout": Kind(write_layout, read_layout),
    "config": Kind(write_config, read_config),
    "metrics": Kind(write_metrics, read_metrics),
    "safetensors": Kind(write_safetensors, read_safetensors),
    "pth": Kind(write_pth, read_pth),
}


# Running


def run_case(kind: str, seed: int, number: int, root: Path) -> str | None:
    """Writes and reads one damaged file.

    Returns:
      What is wrong with how it was read, or None.
    """
    folder = root / f"{kind}-{number}"
    folder.mkdir()
    order = [*KINDS].index(kind)
    rng = np.random.default_rng([seed, order, number])
    try:
        KINDS[kind].write(rng, folder)
        return _judge(KINDS[kind], folder)
    finally:
        shutil.rmtree(folder)


def _judge(kind: Kind, folder: Path) -> str | None:
    def stop(signum, frame):
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(6 * LIMIT, exit=True)  # code that is no Python
    try:
        kind.read(folder)
    except Slow:
        return f"took longer than {LIMIT} seconds"
    except (ValueError, OSError, ImportError) as error:
        if str(folder) in str(error):
            return None
        return f"does not name the file: {_describe(error)}"
    except Exception as error:
        return _describe(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
    return None


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/zoo/" in f.filename or "/train/" in f.filename]
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:200]}"


def run_cases(
    kinds: list[str], *, seed: int, cases: int, seconds: float
) -> tuple[dict[str, int], list[str]]:
    """Runs cases of some kinds, one of each after the other.

    Args:
      kinds: Names of `KINDS`.
      seed: Seed from which all cases are drawn.
      cases: Largest number of cases, of all kinds together; 0 for no limit.
      seconds: Time after which no case begins; 0 for no limit.

    Returns:
      The number of cases of each kind, and the faults.
    """
    if {"safetensors", "pth"} & {*kinds}:
        _variables()  # which compiles, once
    done, faults, started = dict.fromkeys(kinds, 0), [], time.monotonic()
    logging.disable(logging.WARNING)  # such as those of boxes without area
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fuzz") as root,
            warnings.catch_warnings(action="ignore"),
        ):
            while not cases or sum(done.values()) < cases:
                kind = min(kinds, key=done.get)
                if seconds and time.monotonic() - started >= seconds:
                    break
                fault = run_case(kind, seed, done[kind], Path(root))
                if fault:
                    faults.append(f"{kind}, seed {seed}, case {done[kind]}: {fault}")
                done[kind] += 1
    finally:
        logging.disable(logging.NOTSET)
    return done, faults


def limit_memory() -> None:
    """Lets the process take `MEMORY` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    options = parser.parse_args()
    if not options.cases and not options.seconds:
        options.seconds = 10
    _variables()
    limit_memory()
    started = time.monotonic()
    done, faults = run_cases(
        options.kinds,
        seed=options.seed,
        cases=options.cases,
        seconds=options.seconds,
    )
    print("\n".join(faults), end="\n" if faults else "")
    result = {
        "cases": sum(done.values()),
        "faults": len(faults),
        "seconds": round(time.monotonic() - started, 1),
        "seed": options.seed,
        "by_kind": done,
    }
    print(json.dumps(result))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
