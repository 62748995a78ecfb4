"""The names of splits: train, val and test in the forms that people give them."""

import re
from collections.abc import Collection

_KINDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# What may stand beside them, as in seg_train, training_set or TestImages.
FILLERS = frozenset(
    "set data dataset image images img imgs picture pictures photos seg split".split()
)


def split_kind(name: str) -> str | None:
    """Returns "train", "val" or "test" for a name such as Training, or else None.

    Case, separators, and words such as "set" or "images" do not matter.
    """
    if any(map(str.isdigit, name)):
        return None
    # Words end at separators, and before capitals that follow small letters.
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    kinds = set()
    for word in re.split(r"[\W_]+", spaced.lower()):
        if not word or word in FILLERS:
            continue
        for ending in ("", "set", "data", "images"):
            if word.removesuffix(ending) in _KINDS:
                kinds.add(_KINDS[word.removesuffix(ending)])
                break
        else:
            return None
    return kinds.pop() if len(kinds) == 1 else None


def find_splits(split: str, known: Collection[str], where: str) -> list[str]:
    """Returns the names in `known` of a split such as "train" or "train+val".

    Raises:
      ValueError: There is no such split, or one is named twice.
    """
    found = [_find_split(part, known, where) for part in split.split("+")]
    if len(set(found)) < len(found):
        raise ValueError(f"{where}: split {split!r} names one twice.")
    return found


def _find_split(split: str, known: Collection[str], where: str) -> str:
    if split in known:
        return split
    kind = split_kind(split)
    same = [name for name in known if kind and split_kind(name) == kind]
    if len(same) != 1:
        several = f"; {' and '.join(sorted(same))} could be meant" if same else ""
        raise ValueError(
            f"{where} has no split {split!r}; it has {', '.join(sorted(known))}"
            f"{several}."
        )
    return same[0]
