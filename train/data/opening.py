"""From the name of a data set to its source."""

from collections.abc import Sequence
from pathlib import Path

from train.data.decode import check_color
from train.data.source import Source, select


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    classes: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
    color: str | None = None,
    task: str | None = None,
) -> Source:
    """Opens a data set by name, preparing it first where that is possible.

    Args:
      name: "digits" (from scikit-learn), "cifar10", "cifar100" (from their publisher's
        archives), any data set of TFDS with an image and a label, or
        "imagefolder:PATH", a folder or zip file with `split/class/image` or
        `class/image`.
      split: Such as "train" or "test"; "val", "valid" and "validation" are the same.
        For data sets of TFDS also its slices, such as "train[:10%]".
      data_dir: Where prepared data sets are kept; TFDS's own folder if None. A
        relative PATH of "imagefolder:PATH" starts here.
      classes: Names of the classes to keep; they are relabelled 0, 1, .. in this order.
      per_class: Number of images to keep of each class.
      seed: Decides which images `per_class` keeps.
      color: "rgb" or "grey" to convert all images; None to keep what is stored.

      task: "classification", "detection" or "segmentation", of a data set that is for
        several; None for the first of them.

    Returns:
      The source.

    Raises:
      ValueError: A name is unknown (the nearest are given), or the data set is not
        as described above.
    """
    check_color(color)
    if name.startswith("imagefolder:"):
        from train.data.folder import open_folder

        path = Path(data_dir or "") / Path(name.partition(":")[2]).expanduser()
        source = open_folder(path, split, color=color)
    else:
        # Imported late: TFDS takes seconds, and image folders do without.
        from train.data.prepared import open_prepared

        source = open_prepared(name, split, data_dir=data_dir, color=color, task=task)
    return select(source, classes=classes, per_class=per_class, seed=seed)
