"""Checksums of the files of a folder, and what they notice."""

import json
import zlib

import numpy as np
import pytest
import xxhash

from zoo.weights.checksums import FILE, check_checksums, write_checksums


def make_bytes(size):
    return np.random.default_rng(size).bytes(size)


@pytest.fixture
def folder(tmp_path):
    """Files of no, a few, and many bytes."""
    (tmp_path / "deep").mkdir()
    sizes = {"empty": 0, "small": 10, "deep/block": 2**20, "deep/blocks": 2**21 + 3}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(make_bytes(size))
    return tmp_path


def test_files_have_their_size_and_hash(folder):
    write_checksums(folder)
    found = json.loads((folder / FILE).read_bytes())["files"]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths(folder)}
    for name, data in files.items():
        assert found.pop(name) == [len(data), xxhash.xxh3_128_hexdigest(data)]
    assert not found
    assert check_checksums(folder)


def paths(folder):
    return [p for p in folder.rglob("*") if p.is_file() and p.name != FILE]


@pytest.mark.parametrize("place", [0, 2**20, 2**21 + 2])
def test_a_flipped_bit_is_noticed(folder, place):
    write_checksums(folder)
    with open(folder / "deep/blocks", "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(ValueError, match="deep/blocks is not as it was written"):
        check_checksums(folder)


def test_what_is_missing_or_cut_is_named(folder):
    write_checksums(folder)
    (folder / "small").unlink()
    with open(folder / "deep/block", "r+b") as file:
        file.truncate(2**19)
    with pytest.raises(ValueError, match=r"deep/block is not as.*small is missing"):
        check_checksums(folder)


def test_sums_of_an_earlier_version_are_checked(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789")
    sums = {"a": [9, "cbf43926"]}  # the check value of CRC-32
    text = json.dumps(sums, indent=1).encode()
    content = {"files": sums, "crc32": f"{zlib.crc32(text):08x}"}
    (tmp_path / FILE).write_text(json.dumps(content, indent=1))
    assert check_checksums(tmp_path)
    (tmp_path / "a").write_bytes(b"123456788")
    with pytest.raises(ValueError, match="a is not as it was written"):
        check_checksums(tmp_path)
