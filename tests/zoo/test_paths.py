"""Path patterns over a tree of variables."""

import pytest

from zoo.paths import compile_pattern, flatten, match_paths, unflatten

PATHS = [
    "backbone/stem/conv/kernel",
    "backbone/stage1/block1/conv1/kernel",
    "backbone/stage1/block1/bn1/scale",
    "backbone/stage2/block1/conv1/kernel",
    "backbone/stage10/block1/conv1/kernel",
    "head/fc/kernel",
    "head/fc/bias",
]
CASES = {
    "head/fc/bias": [6],
    "head/**": [5, 6],
    "head/*/bias": [6],
    "**": [0, 1, 2, 3, 4, 5, 6],
    "**/kernel": [0, 1, 3, 4, 5],
    "backbone/**/kernel": [0, 1, 3, 4],
    "backbone/stage1/**": [1, 2],
    "backbone/stage*/**": [1, 2, 3, 4],
    "backbone/stage?/**": [1, 2, 3],
    "backbone/{stem,stage2}/**": [0, 3],
    "backbone/{stem, stage2}/**": [0, 3],
    "{backbone,head}/*/kernel": [5],
    "**/{conv1,fc}/**": [1, 3, 4, 5, 6],
    "**/block1/**/scale": [2],
    "**/bn?/*": [2],
}


@pytest.mark.parametrize("pattern", CASES)
def test_patterns(pattern):
    assert match_paths(PATHS, [pattern]) == {PATHS[i] for i in CASES[pattern]}


def test_several_patterns_one_and_none():
    both = match_paths(PATHS, ["head/**", "**/bias"])
    assert both == {PATHS[5], PATHS[6]}
    assert match_paths(PATHS, "head/**") == both
    assert match_paths(PATHS, []) == set()


@pytest.mark.parametrize(
    "pattern",
    ["head", "head/", "backbone", "bias", "head/fc", "Head/**", "head.fc.bias"],
)
def test_parts_of_paths_are_no_paths(pattern):
    with pytest.raises(ValueError, match="matches no parameter; the nearest of the 7"):
        match_paths(PATHS, ["head/**", pattern])


def test_the_error_has_the_nearest_paths():
    with pytest.raises(ValueError, match=r"'bakcbone/stage2/.*'backbone/stage2'"):
        match_paths(PATHS, ["bakcbone/stage2/**"])
    with pytest.raises(ValueError, match=r"'head/fc/bais'.*'head/fc/bias'"):
        match_paths(PATHS, ["head/fc/bais"])


@pytest.mark.parametrize("pattern", ["", "a/{b", "a/{b,c/**", "a}/b", "{a{b}/c", "}{"])
def test_malformed_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="is empty or has braces that do not close"):
        compile_pattern(pattern)


def test_other_characters_stand_for_themselves():
    assert match_paths(["a.b/c+", "axb/c+"], ["a.b/c+"]) == {"a.b/c+"}


def test_flatten_and_its_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
