"""Data sets with random access on the host, and batches from them.

Nothing here needs TensorFlow: data sets are read through TFDS's data sources, and
grain makes the batches. The names below are the public API.
"""

from train.data.box_transforms import parse_geometry
from train.data.checks import find_problems
from train.data.crops import parse_crop
from train.data.datasets import load_dataset
from train.data.faces.aligned import align_source, choose_alignment
from train.data.faces.source import FaceSource
from train.data.pipeline import epoch_order, eval_batches, train_stream
from train.data.preprocess import (
    fit_source,
    load_resident,
    resident_bytes,
    skip_bad_images,
)
from train.data.source import Source, Subset, array_source
from zoo.decode import BadImage, decode_image

__all__ = [
    "BadImage",
    "FaceSource",
    "Source",
    "Subset",
    "align_source",
    "array_source",
    "choose_alignment",
    "decode_image",
    "epoch_order",
    "eval_batches",
    "find_problems",
    "fit_source",
    "load_dataset",
    "load_resident",
    "parse_crop",
    "parse_geometry",
    "resident_bytes",
    "skip_bad_images",
    "train_stream",
]
