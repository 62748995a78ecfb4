"""Statistics and warnings about the images of a data set."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from train.data.annotations import IGNORED
from train.data.formats.image_files import FileMasks, FileObjects
from train.data.source import Source, Subset, evenly_spaced, map_in_threads
from zoo.decode import BadImage

LOOKED_AT = 2000  # images of a split that are read, evenly spaced
# A class with fewer training images, or objects, than this is reported.
FEW = 10
# A class with a smaller share of all pixels than this is rare.
RARE = 1e-3
IMBALANCE = 20  # times as many examples of one class as of another
SMALLEST_BOX = 8  # pixels; boxes with shorter sides are hardly found


@dataclasses.dataclass(frozen=True, eq=False)
class SplitFindings:
    """The statistics of one split.

    Attributes:
      split: The name of the split.
      count: The number of images.
      sizes: int [n, 2], height and width of each image that was read.
      channels: The number of images that were read, by their number of channels.
      class_counts: int [K], the number of images of each class for classification, and
        of objects for detection. For segmentation, the number of pixels of each class
        in the images that were read.
      objects_per_image: int [count], for detection; else empty.
      box_sides: float [n], the square root of each box's area in the images that were
        read, relative to the square root of its image's area.
      value_counts: int [256], the number of pixels with each value in the masks' files;
        without files, with each class.
      unreadable: The reason for each image that cannot be read.
      hashes: The hash of each image's pixels, by the position of the image.
    """

    split: str
    count: int
    sizes: np.ndarray
    channels: dict[int, int]
    class_counts: np.ndarray
    objects_per_image: np.ndarray
    box_sides: np.ndarray
    value_counts: np.ndarray
    unreadable: tuple[str, ...]
    hashes: dict[int, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """The statistics of the images to train and to evaluate on.

    Attributes:
      task: The task of the data set.
      name: The name of the data set.
      class_names: The names of the classes.
      train: The images to train on.
      evaluation: The images to evaluate on.
      outside: The number of boxes that reach beyond their image.
      duplicates: The names of training images that also occur in the evaluation.
      repeated: The number of training images that repeat an earlier one.
    """

    task: str
    name: str
    class_names: tuple[str, ...]
    train: SplitFindings
    evaluation: SplitFindings
    outside: int
    duplicates: tuple[str, ...]
    repeated: int

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of all images that were read: int [n, 2]."""
        return np.concatenate([self.train.sizes, self.evaluation.sizes])

    @property
    def most_objects(self) -> int:
        """The largest number of objects of an image of either split."""
        both = self.train.objects_per_image, self.evaluation.objects_per_image
        return int(np.concatenate(both).max(initial=0))

    def describe(self) -> list[tuple[str, str]]:
        """Returns the statistics as pairs of a heading and a text."""
        both = self.train, self.evaluation
        counts = " and ".join(
            f"{s.count:,} to {verb} (split {s.split})"
            for s, verb in zip(both, ("train", "evaluate"), strict=True)
        )
        rows = [("images", counts), ("sizes", describe_sizes(self.sizes))]
        channels = Counter(self.train.channels) + Counter(self.evaluation.channels)
        if len(channels) > 1:
            words = {1: "gray", 3: "in color"}
            parts = [f"{n} {words[c]}" for c, n in channels.most_common()]
            rows.append(("colors", ", ".join(parts)))
        rows.append(("classes", self._describe_classes()))
        if self.task == "detection":
            rows.append(("boxes", self._describe_boxes()))
        if self.task == "segmentation":
            rows.append(("masks", self._describe_values()))
        return rows

    def _describe_classes(self) -> str:
        counts, total = self.train.class_counts, max(self.train.class_counts.sum(), 1)
        order = np.argsort(-counts, kind="stable")
        shown = order if len(order) <= 12 else [*order[:6], *order[-5:]]
        pixels = self.task == "segmentation"
        parts = [
            f"{self.class_names[i]} "
            + (f"{counts[i] / total:.1%}" if pixels else f"{counts[i]:,}")
            for i in shown
        ]
        if len(shown) < len(order):
            parts.insert(6, "..")
        return f"{len(counts)}: {', '.join(parts)}"

    def _describe_boxes(self) -> str:
        counts = self.train.objects_per_image
        if not len(self.train.box_sides):
            return "none"
        low, middle, high = np.quantile(self.train.box_sides, (0.05, 0.5, 0.95))
        return (
            f"{counts.sum():,} to train; {counts.min()} to {counts.max()} in an image "
            f"(half of them have up to {np.median(counts):g}); sides of {low:.0%} to "
            f"{high:.0%} of the image's, {middle:.0%} in the middle"
        )

    def _describe_values(self) -> str:
        counts = self.train.value_counts + self.evaluation.value_counts
        found = np.flatnonzero(counts)
        parts = [f"{v} ({counts[v] / counts.sum():.1%})" for v in found[:30]]
        more = f" and {len(found) - 30} more" if len(found) > 30 else ""
        return f"values {', '.join(parts)}{more}"

    def warnings(self) -> list[str]:
        """Returns a sentence for each possible problem of the data."""
        what = {"classification": "training images", "detection": "training objects"}
        lines = []
        counts, held = self.train.class_counts, self.evaluation.class_counts
        if self.task == "segmentation":
            share = counts / max(counts.sum(), 1)
            lines += self._name_classes(counts == 0, "no pixel to train on")
            rare = (counts > 0) & (share < RARE)
            lines += self._name_classes(
                rare, f"less than {RARE:.1%} of the pixels; most is learned of others"
            )
        else:
            few = counts < FEW
            lines += self._name_classes(
                few, f"fewer than {FEW} {what[self.task]}", counts
            )
            largest, smallest = counts.max(initial=0), counts[~few].min(initial=10**9)
            if largest > IMBALANCE * smallest:
                lines.append(
                    f"the largest class has {largest:,} {what[self.task]}, another one "
                    f"{smallest:,}: accuracy says little of the small ones."
                )
        lines += self._name_classes(
            (held == 0) & (counts > 0), "nothing to evaluate on; it is not measured"
        )
        if self.outside:
            lines.append(
                f"{self.outside} box(es) reach beyond their image by more than a "
                "pixel; they are clipped, or left out where nothing remains."
            )
        empty = (self.train.objects_per_image == 0).sum()
        if empty:
            lines.append(f"{empty} of {self.train.count} training images have no box.")
        unreadable = self.train.unreadable + self.evaluation.unreadable
        if unreadable:
            lines.append(
                f"{len(unreadable)} image(s) cannot be read and are left out; the "
                f"first: {unreadable[0]}"
            )
        if self.duplicates:
            shown = ", ".join(self.duplicates[:3])
            more = ", .." if len(self.duplicates) > 3 else ""
            lines.append(
                f"{len(self.duplicates)} image(s) of {self.train.split} are in "
                f"{self.evaluation.split}, too, pixel for pixel ({shown}{more}): the "
                "evaluation will look better than it is."
            )
        if self.repeated:
            lines.append(
                f"{self.repeated} training image(s) repeat another one pixel for pixel."
            )
        return lines

    def warn_of_small_boxes(self, height: int, width: int) -> list[str]:
        """Returns a sentence if many boxes are tiny in an input of this size."""
        sides = self.train.box_sides * np.sqrt(height * width)
        tiny = (sides < SMALLEST_BOX).mean() if len(sides) else 0
        if tiny < 0.02:
            return []
        return [
            f"{tiny:.0%} of the boxes have less than {SMALLEST_BOX} pixels a side in "
            f"an input of {width} x {height}, and will hardly be found: --size takes a "
            "larger one, and cutting the images into parts makes them larger."
        ]

    def _name_classes(
        self, which: np.ndarray, reason: str, counts: np.ndarray | None = None
    ) -> list[str]:
        found = np.flatnonzero(which)
        if not len(found):
            return []
        names = [
            self.class_names[i] + ("" if counts is None else f" ({counts[i]})")
            for i in found[:10]
        ]
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        kind = "class" if len(found) == 1 else "classes"
        return [f"{kind} {', '.join(names)}{more}: {reason}."]


def describe_sizes(sizes: np.ndarray) -> str:
    """Describes the heights and widths [n, 2] of images in words: width x height."""
    if not len(sizes):
        return "unknown"
    low, middle, high = sizes.min(0), np.median(sizes, 0), sizes.max(0)
    if (low == high).all():
        return f"all {low[1]} x {low[0]} pixels"
    return (
        f"{low[1]} x {low[0]} to {high[1]} x {high[0]} pixels, in the middle "
        f"{middle[1]:.0f} x {middle[0]:.0f}"
    )


def inspect(train: Source, evaluation: Source) -> Findings:
    """Computes the statistics of images: sizes, classes, objects, masks, duplicates.

    Labels and boxes are counted in all images if they are known without decoding; up
    to `LOOKED_AT` images of each split are decoded.

    Args:
      train: The images to train on.
      evaluation: The images to evaluate on, of the same task and classes.

    Raises:
      ValueError: None of the images of a split can be read.
    """
    first, second = inspect_split(train), inspect_split(evaluation)
    known = {*second.hashes.values()}
    duplicates = [train.provenance(i) for i, h in first.hashes.items() if h in known]
    files = [file_source(source, FileObjects) for source in (train, evaluation)]
    # Two slices of one split have the same files, and are counted once.
    outside = {found[0].split: found[0].outside for found in files if found}
    repeated = len(first.hashes) - len({*first.hashes.values()})
    return Findings(
        task=train.task,
        name=train.name,
        class_names=train.class_names,
        train=first,
        evaluation=second,
        outside=sum(outside.values()),
        duplicates=tuple(duplicates),
        repeated=repeated,
    )


def inspect_split(source: Source) -> SplitFindings:
    """Computes the statistics of one split, see `inspect`."""
    count, num_classes = len(source), len(source.class_names)
    chosen = evenly_spaced(count, LOOKED_AT)
    masks = file_source(source, FileMasks)

    def look(place: int) -> dict | str:
        index = chosen[place]
        try:
            example = source[index] if masks is None else {"image": source.image(index)}
            if masks is not None:
                example["values"] = masks[0].mask(masks[1][index])
        except BadImage as error:
            return str(error)
        image = example.pop("image")
        content = image.tobytes() + str(image.shape).encode()
        facts = {"shape": image.shape, "hash": hashlib.sha256(content).hexdigest()}
        if "boxes" in example:
            x1, y1, x2, y2 = example["boxes"].T
            facts["sides"] = np.sqrt((x2 - x1) * (y2 - y1) / np.prod(image.shape[:2]))
            facts["classes"] = example["classes"]
        for name in ("mask", "values"):
            if name in example:
                facts["values"] = np.bincount(example[name].ravel(), minlength=256)
        return facts

    seen = [*map_in_threads(look, len(chosen), f"looking at {source.name}")]
    good = {i: s for i, s in zip(chosen, seen, strict=True) if isinstance(s, dict)}
    unreadable = tuple(s for s in seen if isinstance(s, str))
    if not good:
        raise ValueError(
            f"{source.name} {source.split}: none of the {len(seen)} images that were "
            f"looked at can be read; the first: {unreadable[0]}"
        )
    values = sum((s["values"] for s in good.values() if "values" in s), np.zeros(256))
    values = values.astype(int)
    per_image, sides = np.zeros(0, int), np.zeros(0)
    if source.task == "detection":
        per_image, class_counts = _count_objects(source, good, num_classes)
        sides = np.concatenate([s["sides"] for s in good.values()])
    elif source.task == "segmentation":
        table = np.arange(256) if masks is None else masks[0].values
        class_counts = np.zeros(num_classes, int)
        for value in np.flatnonzero(values):
            if 0 <= table[value] < min(num_classes, IGNORED):
                class_counts[table[value]] += values[value]
    else:
        class_counts = np.bincount(source.labels, minlength=num_classes)
    return SplitFindings(
        split=source.split,
        count=count,
        sizes=np.array([s["shape"][:2] for s in good.values()]),
        channels=Counter(s["shape"][2] for s in good.values()),
        class_counts=class_counts,
        objects_per_image=per_image,
        box_sides=sides,
        value_counts=values,
        unreadable=unreadable,
        hashes={i: s["hash"] for i, s in good.items()},
    )


def _count_objects(
    source: Source, good: dict[int, dict], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts objects by image and by class, in all images or else those in `good`."""
    known = [source.objects(i) for i in range(len(source))]
    if all(objects is not None for objects in known):
        classes = [objects.classes for objects in known]
    else:
        classes = [s["classes"] for s in good.values()]
    counts = np.array([len(each) for each in classes])
    together = np.concatenate([*classes, np.zeros(0, int)]).astype(int)
    return counts, np.bincount(together, minlength=num_classes)


def file_source(
    source: Source, kind: type[Source]
) -> tuple[Source, Sequence[int]] | None:
    """Finds the source of files that a source, or a subset of it, reads.

    Args:
      source: The source.
      kind: `FileMasks` or `FileObjects`.

    Returns:
      The source of files, and the position of each example in it; None if the source
      is of another kind.
    """
    positions = np.arange(len(source))
    while isinstance(source, Subset):
        positions, source = source.indices[positions], source.source
    return (source, positions.tolist()) if isinstance(source, kind) else None
