"""Some classes of a source, or a few images of each."""

from collections.abc import Sequence

import numpy as np

from train.data.objects import Objects
from train.data.source import Example, Source, Subset, nearest


class KeptClasses(Source):
    """A source for detection without the objects of some classes.

    Args:
      source: The images, all of which are kept.
      new_label: int32, for each class of `source` its new number, or -1.
      class_names: The new classes.
    """

    task = "detection"

    def __init__(
        self, source: Source, new_label: np.ndarray, class_names: tuple[str, ...]
    ):
        self.name, self.split, self.class_names = source.name, source.split, class_names
        self._source, self._new_label = source, new_label

    def image(self, index: int) -> np.ndarray:
        return self._source.image(index)

    def provenance(self, index: int) -> str:
        return self._source.provenance(index)

    def identity(self, index: int) -> str:
        return self._source.identity(index)

    def objects(self, index: int) -> Objects | None:
        objects = self._source.objects(index)
        if objects is None:
            return None
        classes = self._new_label[objects.classes]
        return objects._replace(classes=classes).choose(classes >= 0)

    def example(self, index: int) -> Example:
        example = self._source.example(index)
        example["classes"] = self._new_label[example["classes"]]
        kept = example["classes"] >= 0
        objects = ("boxes", "classes", "difficult")
        return {**example, **{field: example[field][kept] for field in objects}}

    def __len__(self) -> int:
        return len(self._source)


def select(
    source: Source,
    *,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Source:
    """Keeps some classes, or a few images of each.

    Args:
      source: What to choose from.
      classes: Names of the classes to keep; they are relabelled 0, 1, .. in this
        order. All, if None.
      per_class: Number of images to keep of each class, drawn without replacement;
        all, if None.
      seed: Decides which images are drawn.

    Returns:
      The chosen examples, in the order of `source`.

    Raises:
      ValueError: A class is unknown or named twice, or has too few images, or the task
        does not allow the choice: `per_class` is for classification, and of
        segmentation no class can be left out.
    """
    chosen = {"classes": classes, "per_class": per_class}
    possible = {"classification": ("classes", "per_class"), "detection": ("classes",)}
    for option, value in chosen.items():
        if value is not None and option not in possible.get(source.task, ()):
            raise ValueError(
                f"{source.name}: {option}={value!r} is not possible for {source.task}; "
                f"leave out --{option.replace('_', '-')}."
            )
    if classes is not None:
        source = _keep_classes(source, tuple(classes))
    if per_class is not None:
        source = _keep_few(source, per_class, seed)
    return source


def _keep_classes(source: Source, classes: tuple[str, ...]) -> Source:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(
            f"classes={classes!r}: expected names that differ, at least one."
        )
    new_label = np.full(len(source.class_names), -1, np.int32)
    for label, name in enumerate(classes):
        if name not in source.class_names:
            raise ValueError(
                f"{source.name} has no class {name!r}"
                f"{nearest(name, source.class_names)} "
                f"Its {len(source.class_names)} classes begin with "
                f"{', '.join(source.class_names[:10])}."
            )
        new_label[source.class_names.index(name)] = label
    if source.task == "detection":
        return KeptClasses(source, new_label, classes)
    labels = new_label[source.labels]
    indices = np.flatnonzero(labels >= 0)
    return Subset(source, indices, labels[indices], classes)


def _keep_few(source: Source, per_class: int, seed: int) -> Source:
    if per_class < 1:
        raise ValueError(f"per_class={per_class}: expected at least 1.")
    chosen = []
    for label, name in enumerate(source.class_names):
        # Seeded by class, so that dropping a class changes no other class's draw.
        members = np.flatnonzero(source.labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"{source.name} {source.split}: class {name!r} has {len(members)} "
                f"images, per_class={per_class} asks for more."
            )
        key = np.random.SeedSequence([seed, *name.encode()])
        chosen.append(np.random.default_rng(key).choice(members, per_class, False))
    return Subset(source, np.sort(np.concatenate(chosen)))
