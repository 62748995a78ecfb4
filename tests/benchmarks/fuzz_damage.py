"""Damage to the bytes of files, and to what JSON says."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Rng = np.random.Generator


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      write: Writes a damaged one into an empty folder.
      read: Reads it.
    """

    write: Callable[[Rng, Path], None]
    read: Callable[[Path], Any]


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
