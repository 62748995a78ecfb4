"""Checks of data sets with boxes or masks, before training starts."""

from collections.abc import Iterator, Sequence

import numpy as np

from train.data.annotations import IGNORED, UnknownValues, explain_values
from train.data.formats.image_files import FileMasks
from train.data.inspect import file_source
from train.data.preprocess import FittedSource, TooManyObjects
from train.data.source import Example, evenly_spaced, map_in_threads
from zoo.decode import BadImage

EXAMINED = 64  # images that are read, evenly spaced in the set


def find_problems(
    source: FittedSource, *, fitted: bool = True, skip: bool = False
) -> list[str]:
    """Lists the problems of a set for detection or segmentation.

    Some images are read with their annotations. Objects are counted in all images if
    they are known without reading these, and else in the images that are read.

    Args:
      source: The set, fitted to its network.
      fitted: Whether training uses images as `fit_source` fits them, rather than random
        crops of the network's size.
      skip: Whether unreadable images are left out of the set.

    Returns:
      A sentence for each problem: too many objects, none at all, mask values that are
      not those of the classes, masks without valid pixels, and images that cannot be
      read or do not fit.
    """
    if source.task not in ("detection", "segmentation") or not len(source):
        return []
    where = f"{source.name} {source.split}"
    problems = []
    chosen = evenly_spaced(len(source), EXAMINED)
    masks = file_source(source.source, FileMasks)
    of_values = None if masks is None else _check_values(*masks, chosen, skip)
    if of_values:
        problems.append(f"{where}: {of_values}")
    if source.task == "detection":
        problems += _check_counts(source, where)
    elif not of_values and not any(map(_has_target, _examples(source, chosen))):
        problems.append(
            f"{where}: no pixel of any mask has a class; all are ignored "
            "(--data.ignored, or 255)."
        )
    reasons = _read(source, chosen, fitted, skip, masks is not None)
    if reasons:
        problems.append(
            f"{where}: {len(reasons)} of {len(chosen)} examined images cannot be used; "
            f"the first: {reasons[0]}"
        )
    return problems


def _check_values(
    source: FileMasks, positions: Sequence[int], chosen: list[int], skip: bool
) -> str | None:
    """Checks the values of masks; `positions` are those of the examples in `source`."""

    def explain(indices: list[int]) -> str | None:
        def count(place: int) -> np.ndarray:
            return source.count_values(positions[indices[place]])

        each = [*map_in_threads(count, len(indices), "masks")]
        counts = np.sum(each, axis=0)
        if skip:  # masks with unknown values are left out and named later
            counts = np.where(source.values < 0, 0, counts)
        examined = sum(bool(c.any()) for c in each)
        return explain_values(counts, source.values, examined, sure=source.sure)

    problem = explain(chosen)
    if problem and len(chosen) < len(positions):
        # A rare class may be missing in the images that were read.
        problem = explain([*range(len(positions))])
    return problem


def _check_counts(source: FittedSource, where: str) -> list[str]:
    """Checks that no image has more objects than slots, and that there are objects."""
    known = [source.objects(i) for i in range(len(source))]
    problems = []
    if all(objects is not None for objects in known):
        counts = np.array([len(objects.classes) for objects in known])
        more = np.flatnonzero(counts > source.max_boxes)
        if len(more):
            problems.append(
                f"{where}: {len(more)} of {len(counts)} images have more than "
                f"{source.max_boxes} objects, {source.provenance(more[0])} "
                f"{counts[more[0]]} of them: say --data.max-boxes {counts.max()}."
            )
        found = any(not objects.difficult.all() for objects in known)
    else:
        found = any(map(_has_target, _examples(source, [])))
    if not found:
        problems.append(
            f"{where}: no image has an object (that is not marked as difficult or as "
            "a crowd), so that there is nothing to find."
        )
    return problems


def _examples(source: FittedSource, first: list[int]) -> Iterator[Example]:
    """Yields the readable stored examples, those at `first` before the others."""
    for index in dict.fromkeys([*first, *range(len(source))]):
        try:
            yield source.source[index]
        except ValueError:
            continue


def _has_target(example: Example) -> bool:
    if "mask" in example:
        return bool((example["mask"] != IGNORED).any())
    return not bool(example["difficult"].all())


def _read(
    source: FittedSource,
    chosen: list[int],
    fitted: bool,
    skip: bool,
    counted_values: bool,
) -> list[str]:
    """Returns why some examples cannot be used; see `find_problems`.

    Values of masks and objects that were counted before are not reported again.
    """

    def reason(place: int) -> str | None:
        try:
            stored = source.source[chosen[place]]
            source.check_channels(stored["image"], chosen[place])
            if fitted:
                source[chosen[place]]
        except UnknownValues as error:
            return None if skip or counted_values else str(error)
        except BadImage as error:
            return None if skip else str(error)
        except TooManyObjects as error:
            counted = source.objects(chosen[place]) is not None
            return None if counted else str(error)
        except ValueError as error:
            return str(error)
        return None

    return [r for r in map_in_threads(reason, len(chosen), "checking") if r]
