"""Checksums of the files of a folder, and what they notice."""

import functools
import json
import zlib

import numpy as np
import pytest

from zoo.weights.checksums import FILE, check_checksums, write_checksums


def make_bytes(size):
    return np.random.default_rng(size).bytes(size)


@pytest.fixture
def folder(tmp_path):
    """Files of no, one and several blocks, and of exactly one."""
    (tmp_path / "deep").mkdir()
    sizes = {"empty": 0, "small": 10, "deep/block": 2**24, "deep/blocks": 2**25 + 3}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(make_bytes(size))
    return tmp_path


def parities(data):
    """The parities of a file, as the module describes them."""
    for start in range(0, len(data), 2**24):
        block = data[start : start + 2**24]
        words = np.frombuffer(block + bytes(-len(block) % 2**15), np.uint64)
        words = words.reshape(-1, 2**12)
        columns, rows = (functools.reduce(np.bitwise_xor, w) for w in (words, words.T))
        yield columns.tobytes() + rows.tobytes()


def test_files_have_their_size_and_the_crc32_of_their_parities(folder):
    write_checksums(folder)
    found = json.loads((folder / FILE).read_bytes())["files"]
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths(folder)}
    for name, data in files.items():
        crc = zlib.crc32(b"".join(parities(data)))
        assert found.pop(name) == [len(data), f"parities-{crc:08x}"]
    assert not found
    assert check_checksums(folder)


def paths(folder):
    return [p for p in folder.rglob("*") if p.is_file() and p.name != FILE]


def test_what_is_finished_meanwhile_is_summed_as_it_is_then(folder):
    def finish():
        (folder / "deep/blocks").write_bytes(make_bytes(2**24 + 1))
        (folder / "deep/block").unlink()
        (folder / "small").write_bytes(b"other")
        (folder / "new").write_bytes(b"new")

    write_checksums(folder, finish)
    found = json.loads((folder / FILE).read_bytes())["files"]
    assert sorted(found) == ["deep/blocks", "empty", "new", "small"]
    assert check_checksums(folder)


@pytest.mark.parametrize("place", [0, 2**24 - 1, 2**24, 2**25 + 2])
def test_a_bit_of_any_block_is_noticed(folder, place):
    write_checksums(folder)
    with open(folder / "deep/blocks", "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(ValueError, match="deep/blocks is not as it was written"):
        check_checksums(folder)


def change_words(path, change):
    words = np.fromfile(path, np.uint64)
    change(words)
    words.tofile(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.__setitem__([9, 9 + 2**12], w[[9 + 2**12, 9]]),  # a column
        lambda w: w.__setitem__([9, 10], w[[10, 9]]),  # a row
        lambda w: w.__setitem__(slice(2**12), w[2**12 : 2**13]),  # a row repeated
        lambda w: w.__setitem__(slice(512, 1024), 0),  # a page
        lambda w: np.bitwise_xor(w, np.uint64(8), w, where=np.arange(len(w)) % 3 == 0),
    ],
)
def test_words_that_are_exchanged_repeated_or_lost_are_noticed(folder, change):
    write_checksums(folder)
    change_words(folder / "deep/block", change)
    with pytest.raises(ValueError, match="deep/block is not as it was written"):
        check_checksums(folder)


def test_what_is_missing_or_cut_is_named(folder):
    write_checksums(folder)
    (folder / "small").unlink()
    with open(folder / "deep/block", "r+b") as file:
        file.truncate(2**23)
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
