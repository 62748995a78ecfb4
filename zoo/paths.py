"""Patterns over the paths of a variables tree, such as "backbone/{stem,stage1}/**"."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Flattens nested dicts to {"backbone/stem/conv/kernel": leaf, ...}."""
    return flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return unflatten_dict(dict(flat), sep="/")


def compile_pattern(pattern: str) -> re.Pattern:
    """Compiles a path pattern.

    `**` stands for any number of whole parts, `*` for anything and `?` for one
    character within a part, `{a,b}` for either of the parts a and b.

    Raises:
      ValueError: The pattern is empty or its braces do not close.
    """
    if not pattern or re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise ValueError(
            f"pattern {pattern!r} is empty or has braces that do not close."
        )
    tokens = re.split(r"(/\*\*$|\*\*/|\*\*|\*|\?|\{[^{}]*\})", pattern)
    out = []
    for token in tokens:
        match token:
            case "/**":
                out.append("/.+")
            case "**/":
                out.append("(?:.+/)?")
            case "**":
                out.append(".*")
            case "*":
                out.append("[^/]*")
            case "?":
                out.append("[^/]")
            case _ if token.startswith("{"):
                choices = (re.escape(c.strip()) for c in token[1:-1].split(","))
                out.append(f"(?:{'|'.join(choices)})")
            case _:
                out.append(re.escape(token))
    return re.compile("".join(out))


def match_paths(paths: Sequence[str], patterns: str | Sequence[str]) -> set[str]:
    """Selects the paths that any of the patterns matches.

    Args:
      paths: Paths, such as the keys of `flatten`.
      patterns: One pattern or several; an empty sequence selects nothing.

    Raises:
      ValueError: A pattern matches nothing; the message suggests the nearest paths.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    selected = set()
    for pattern in patterns:
        matches = compile_pattern(pattern).fullmatch
        matched = {path for path in paths if matches(path)}
        if not matched:
            parents = {"/".join(p.split("/")[:i]) for p in paths for i in (1, 2, 3)}
            known = sorted({*paths, *parents})
            near = difflib.get_close_matches(pattern.rstrip("/*"), known, n=3, cutoff=0)
            raise ValueError(
                f"pattern {pattern!r} matches no parameter; the nearest of the "
                f"{len(paths)} paths are {near}."
            )
        selected |= matched
    return selected


def _find_nearest(name: str, known: Iterable[str]) -> list[str]:
    """Finds up to five known names that are similar to a name, the nearest first."""
    return difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.5)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'a' or 'b'?" with the nearest known names, or "."."""
    near = _find_nearest(name, known)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the error for an unknown name, with the nearest or all known names."""
    known = sorted(known)
    hint = f"there are: {known}." if known else "there are none."
    if near := _find_nearest(name, known):
        hint = f"did you mean {' or '.join(near)}?"
    return f"unknown {kind} {name!r}; {hint}"
